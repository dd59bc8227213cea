"""Which method takes which part of a sampler, found by trying: construction and `check` decide each cell."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from discdiff.samplers.cache import Unchanged
from discdiff.samplers.compatible import check
from discdiff.samplers.correctors import FlowCorrector, ForwardBackward, Gibbs, Psi, Remask
from discdiff.samplers.filters import Greedy, MinP, Temperature, TopK, TopP
from discdiff.samplers.grid import Even, Held, Listed, Quarter, Through
from discdiff.samplers.guidance import ClassifierBased, ClassifierFree
from discdiff.samplers.orders import Confidence, Entropy, EntropyBudget, Margin, Random
from discdiff.samplers.reverse import Ancestral, Euler, FirstHitting, FlowEuler
from discdiff.samplers.windows import Windows
from discdiff.types import DiscdiffError, Value

PARTS: dict[str, tuple[Value, ...]] = {
    "grid": (Even(), Quarter(), Through(), Listed(listed=(1.0, 0.0)), Held()),
    "reverse": (Ancestral(), Euler(), FlowEuler(), FirstHitting()),
    "order": (Random(), Confidence(), Margin(), Entropy(), EntropyBudget()),
    "filters": (Temperature(), TopK(k=1), TopP(p=0.9), MinP(share=0.1), Greedy()),
    "corrector": (Remask(), Psi(), FlowCorrector(), ForwardBackward(), Gibbs()),
    "guidance": (ClassifierFree(), ClassifierBased()),
    "cache": (Unchanged(),),
    "windows": (Windows(size=1, stride=1),),
}
"""A value of each kind of each part."""


@dataclass(frozen=True)
class Cell:
    """Whether a method takes a part of a sampler; if not, `refusal` is the sentence that says so."""

    method: str
    field: str
    part: str
    refusal: str | None


def matrix(methods: Iterable[Any]) -> list[Cell]:
    """A cell for each method and each kind of each part, together with whatever other parts it asks for."""
    return [
        Cell(_name(method), field, getattr(part, "kind", field), _refusal(method, field, part))
        for method in methods
        for field, values in PARTS.items()
        for part in values
    ]


def render(cells: list[Cell]) -> str:
    """A line for each part and a column for each method, as text."""
    methods = list(dict.fromkeys(cell.method for cell in cells))
    parts = list(dict.fromkeys((cell.field, cell.part) for cell in cells))
    takes = {(cell.method, cell.field, cell.part): cell.refusal is None for cell in cells}
    names = [f"{field}: {part}" for field, part in parts]
    width = max(map(len, names))
    lines = [" " * width + "  " + "  ".join(methods)]
    for name, part in zip(names, parts, strict=True):
        marks = ["yes" if takes[method, *part] else "-" for method in methods]
        cells_of = [mark.ljust(len(method)) for mark, method in zip(marks, methods, strict=True)]
        lines.append(f"{name.ljust(width)}  {'  '.join(cells_of)}".rstrip())
    return "\n".join(lines)


def _name(method: Any) -> str:
    """Its kind, and its noise where it has one."""
    process = getattr(method, "process", None)
    return method.kind if process is None else f"{method.kind} ({process.kind})"


def _refusal(method: Any, field: str, part: Value) -> str | None:
    """The sentence of the sampler that comes closest to drawing with this part, None if one draws."""
    last = ""
    for sampler in _samplers(method.default_sampler(20), field, part):
        try:
            check(method, sampler())
            return None
        except ValidationError as refused:
            last = last or refused.errors()[0]["msg"].removeprefix("Value error, ")
        except DiscdiffError as refused:
            last = str(refused)
    return last or f"{method.default_sampler(1).kind} has no part named {field}"


def _samplers(own: Any, field: str, part: Value) -> Iterator[Any]:
    """The method's own sampler with the part, and with each other part that it may need beside."""
    if "inside" in type(own).model_fields:
        for make in _samplers(own.inside, field, part):
            yield lambda make=make: type(own)(**{**dict(own), "inside": make()})
        return
    if field not in type(own).model_fields:
        return
    value = (part,) if field == "filters" else part
    beside = [{name: other} for name in ("reverse", "corrector") for other in PARTS[name]]
    for others in [{}, *beside]:
        parts = {**dict(own), **others, field: value}
        if isinstance(part, Listed):
            parts["steps"] = len(part.listed) - 1
        yield lambda parts=parts: type(own)(**parts)
