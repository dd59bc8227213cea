"""From an argument list to a specification: a TOML file, `key.sub=value` on top, checked by the type."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from discdiff.types import DiscdiffError, Value
from pipelines.failure import validation

V = TypeVar("V", bound=Value)


def specification(kind: type[V], arguments: Sequence[str], base: V | None = None) -> V:
    """A specification from `[FILE.toml] key.sub=value ...`, or from `base` and `key.sub=value ...`.

    A value is read as TOML, else as text; `none` is None. Raises DiscdiffError for what is not understood.
    """
    files = [each for each in arguments if "=" not in each]
    tree: dict[str, Any] = {} if base is None else base.model_dump()
    if len(files) > (base is None):
        allowed = "one file" if base is None else "none beside a preset"
        raise DiscdiffError(f"specification files {', '.join(files)} were given; {allowed} is allowed.")
    for file in files:
        tree = read(Path(file))
    for each in arguments:
        name, equals, text = each.partition("=")
        if equals:
            tree = changed(tree, name.split("."), parse(text))
    return validated(kind, tree)


def validated(kind: type[V], tree: dict[str, Any]) -> V:
    """The specification that nested tables describe. Raises DiscdiffError, which names each wrong field."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise DiscdiffError(validation(error, kind)) from error


def read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises DiscdiffError if there is no such file or it is not TOML."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DiscdiffError(f"the specification {path} can't be read: {error}.") from error


def parse(text: str) -> Any:
    """The value of an override: TOML, `none`, or the text itself."""
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def changed(tree: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of nested tables and arrays with another value at a path.

    A new `kind` begins its table anew, since the fields of another kind do not belong to it. Raises
    DiscdiffError for an index that is not there.
    """
    if not path:
        return value
    first, *rest = path
    if isinstance(tree, (list, tuple)):
        return _replaced(list(tree), first, rest, value)
    table: dict[str, Any] = dict(tree) if isinstance(tree, dict) else {}
    if first == "kind" and table.get("kind", value) != value:
        table = {}
    return {**table, first: changed(table.get(first), rest, value)}


def _replaced(array: list[Any], first: str, rest: Sequence[str], value: Any) -> list[Any]:
    if not first.isdigit() or int(first) >= len(array):
        raise DiscdiffError(f"{first!r} is no index of a list of {len(array)}; the first is 0.")
    index = int(first)
    return [*array[:index], changed(array[index], rest, value), *array[index + 1 :]]
