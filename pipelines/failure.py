"""Why something failed, as one line: the first cause out of all that was wrapped around it."""

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

WRAPPERS = ("cause", "controller_failure", "_base_exc")


class StageError(RuntimeError):
    """A stage failed for a reason that is not a mistake in its specification."""

    def __init__(self, title: str, reason: BaseException) -> None:
        super().__init__(f"{title} failed: {sentence(reason)}")
        self.reason = reason


def cause(error: BaseException) -> BaseException:
    """What happened first, unwrapped from Ray's task, worker group and controller errors."""
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, Mapping) and failures:
        return cause(failures[min(failures)])
    inner = [getattr(error, name, None) for name in WRAPPERS] + list(error.args)
    for each in inner:
        if isinstance(each, BaseException) and each is not error:
            return cause(each)
    return error


def sentence(error: BaseException) -> str:
    """An error as one line."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def validation(error: ValidationError, kind: type[BaseModel]) -> str:
    """Each field of a specification of some kind that is wrong: what was given and what is allowed."""
    return "; ".join(_field(each, kind) for each in error.errors()) + "."


def _field(error: ErrorDetails, kind: type[BaseModel]) -> str:
    path, owner = _walk(kind, error["loc"])
    name = ".".join(path) or "the specification"
    match error["type"], error.get("ctx", {}):
        case "extra_forbidden", _:
            allowed = list(owner.model_fields) if owner is not None else []
            near = difflib.get_close_matches(path[-1], allowed, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            return f"{name} is no field: {meant}allowed are {', '.join(allowed)}"
        case "missing", _:
            return f"{name} is missing"
        case "union_tag_invalid", {"tag": tag, "expected_tags": expected}:
            return f"{name}.kind = {tag!r} is not known: allowed are {expected}"
        case "union_tag_not_found", _:
            return f"{name}.kind is missing"
        case "model_attributes_type" | "model_type" | "dict_type", _:
            return f"{name} = {_shown(error['input'])}: a table of fields is allowed, such as {name}.kind=..."
        case "value_error", {"error": reason}:
            return f"{name}: {str(reason).rstrip('.')}" if path else str(reason).rstrip(".")
        case _:
            return f"{name} = {_shown(error['input'])}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _walk(kind: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], type[BaseModel] | None]:
    """The field's name without the tags of unions, and the type that should own it."""
    path: list[str] = []
    owners: list[type[BaseModel]] = [kind]
    owner: type[BaseModel] | None = kind
    for part in location:
        tagged = [each for each in owners if len(owners) > 1 and _tag(each) == part]
        if tagged:
            owners = tagged
            continue
        path.append(str(part))
        if isinstance(part, int):
            continue
        owner = owners[0] if len(owners) == 1 else None
        field = owner.model_fields.get(part) if owner is not None else None
        owners = _models(field.annotation) if field is not None else []
    return path, owner


def _tag(model: type[BaseModel]) -> object:
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The value types that a field's annotation names, through unions, tuples and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple, list, dict):
        return [model for each in get_args(annotation) for model in _models(each)]
    return []


def _shown(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 80 else text[:77] + "..."
