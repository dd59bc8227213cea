"""The key of a stage's work: a hash of its name, version and specification.

A specification counts by the values of its fields, defaults included, written as canonical JSON: the same in
every process and under every Python. A value with an `identity()` counts by that instead of by its fields;
artifacts do, so what lies upstream counts by its own key and where it is stored counts not at all.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

ABSENT = "absent"
Json = None | bool | int | float | str | list[Any] | dict[str, Any]


@runtime_checkable
class Identified(Protocol):
    """A value that says itself what it counts as."""

    def identity(self) -> Json: ...


def canonical(value: object) -> Json:
    """A specification as plain JSON, with non-finite numbers as words and sets in order.

    Raises TypeError for what has no canonical form.
    """
    match value:
        case Identified():
            return canonical(value.identity())
        case BaseModel():
            return {name: canonical(getattr(value, name)) for name in type(value).model_fields}
        case Enum():
            return canonical(value.value)
        case float() if not math.isfinite(value):
            return str(value)
        case None | bool() | int() | float() | str():
            return value
        case PurePath():
            return value.as_posix()
        case Mapping():
            return {str(name): canonical(each) for name, each in value.items()}
        case list() | tuple():
            return [canonical(each) for each in value]
        case set() | frozenset():
            return sorted(
                (canonical(each) for each in value), key=lambda each: json.dumps(each, sort_keys=True)
            )
        case _:
            raise TypeError(
                f"a {type(value).__name__} has no canonical form; a specification holds plain values."
            )


def fields(spec: BaseModel) -> dict[str, Json]:
    """The canonical form of a specification: the fields that count, by name."""
    tree = canonical(spec)
    if not isinstance(tree, dict):
        raise TypeError(f"a {type(spec).__name__} is no specification: it has no fields that count.")
    return tree


def key(stage: str, version: int, spec: object) -> str:
    """`train-6f1d0c9a4b7e2035`: the stage and 64 bits of SHA-256 over the canonical JSON."""
    text = _text([stage, version, canonical(spec)])
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def flatten(tree: Json, prefix: str = "") -> dict[str, Json]:
    """Nested JSON as `{"recipe.steps": 100, "methods.0.kind": "mdlm"}`."""
    if isinstance(tree, dict) and tree:
        items = list(tree.items())
    elif isinstance(tree, list) and tree:
        items = [(str(index), each) for index, each in enumerate(tree)]
    else:
        return {prefix: tree}
    flat: dict[str, Json] = {}
    for name, each in items:
        flat |= flatten(each, f"{prefix}.{name}" if prefix else name)
    return flat


def changes(before: Json, after: Json) -> dict[str, tuple[Json, Json]]:
    """The fields that differ between two canonical specifications; one that is missing reads "absent"."""
    old, new = flatten(before), flatten(after)
    names = list(new) + [name for name in old if name not in new]
    pairs = {name: (old.get(name, ABSENT), new.get(name, ABSENT)) for name in names}
    return {name: pair for name, pair in pairs.items() if _text(pair[0]) != _text(pair[1])}


def _text(tree: Json) -> str:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
