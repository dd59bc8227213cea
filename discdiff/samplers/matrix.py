"""Which method takes which part of a sampler and which prompt, found by trying: construction, `check` and
`check_canvas` decide each cell.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError

from discdiff.samplers.cache import Unchanged
from discdiff.samplers.compatible import check, check_canvas
from discdiff.samplers.correctors import FlowCorrector, ForwardBackward, Gibbs, Psi, Remask
from discdiff.samplers.filters import Greedy, MinP, Temperature, TopK, TopP
from discdiff.samplers.gaussian import Clamping, Ddim, Ddpm, ProbabilityFlow
from discdiff.samplers.grid import Even, Held, Listed, Quarter, Through
from discdiff.samplers.guidance import ClassifierBased, ClassifierFree
from discdiff.samplers.orders import Confidence, Entropy, EntropyBudget, Margin, Random
from discdiff.samplers.reverse import Ancestral, Euler, FirstHitting, FlowEuler, GreedyTail
from discdiff.samplers.windows import Windows
from discdiff.types import Canvas, DiscdiffError, Value, canvas

PARTS: dict[str, tuple[Value | int, ...]] = {
    "grid": (Even(), Quarter(), Through(), Listed(listed=(1.0, 0.0)), Held()),
    "reverse": (
        *(Ancestral(), Euler(), FlowEuler(), FirstHitting(), GreedyTail()),
        *(Ddpm(), Ddim(), ProbabilityFlow()),
    ),
    "clamping": (Clamping(),),
    "order": (Random(), Confidence(), Margin(), Entropy(), EntropyBudget()),
    "filters": (Temperature(), TopK(k=1), TopP(p=0.9), MinP(share=0.1), Greedy()),
    "corrector": (Remask(), Psi(), FlowCorrector(), ForwardBackward(), Gibbs()),
    "guidance": (ClassifierFree(), ClassifierBased()),
    "cache": (Unchanged(),),
    "windows": (Windows(size=1, stride=1),),
    "microbatch": (2,),
}
"""A value of each kind of each part."""
_STEPS = 10
"""As few as the grid that stands still can share out."""


@dataclass(frozen=True)
class Cell:
    """Whether a method takes a part of a sampler or a prompt; `refusal` is the sentence that says why not."""

    method: str
    field: str
    part: str
    refusal: str | None


def matrix(methods: Iterable[Any]) -> list[Cell]:
    """A cell for each method and each kind of each part, together with whatever other parts it asks for, and
    for each kind of prompt.
    """
    return [cell for method in methods for cell in (*_of_parts(method), *_of_prompts(method))]


def _of_parts(method: Any) -> Iterator[Cell]:
    for field, values in PARTS.items():
        for part in values:
            yield Cell(_name(method), field, getattr(part, "kind", field), _refusal(method, field, part))


def _of_prompts(method: Any) -> Iterator[Cell]:
    for kind, given in prompts().items():
        try:
            check_canvas(method, method.default_sampler(_STEPS), given)
            refusal = None
        except DiscdiffError as refused:
            refusal = str(refused)
        yield Cell(_name(method), "prompt", kind, refusal)


def prompts() -> dict[str, Canvas]:
    """Canvases of 64 positions: text in front, behind, between holes, and tokens that a position may be."""
    place = torch.arange(64)[None]
    blank = canvas(torch.zeros(1, 64, dtype=torch.int64))
    return {
        "prefix": replace(blank, free=place >= 8),
        "suffix": replace(blank, free=place < 56),
        "infill": replace(blank, free=(place < 8) | (place >= 56)),
        "allowed tokens": replace(blank, allowed=torch.tensor([True, False]).expand(1, 64, 2)),
    }


def _name(method: Any) -> str:
    """Its kind, and its noise where it has one."""
    process = getattr(method, "process", None)
    return method.kind if process is None else f"{method.kind} ({process.kind})"


def _refusal(method: Any, field: str, part: Value | int) -> str | None:
    try:
        sampler_with(method, field, part)
        return None
    except DiscdiffError as refused:
        return str(refused)


def sampler_with(method: Any, field: str, part: Value | int) -> Any:
    """A sampler that draws from a method with this part, few steps, and no more beside it than needed.

    Raises DiscdiffError with the sentence of the one that comes closest.
    """
    last = ""
    for make in _samplers(method.default_sampler(_STEPS), field, part):
        try:
            check(method, sampler := make())
            return sampler
        except ValidationError as refused:
            last = last or _sentence(refused)
        except DiscdiffError as refused:
            last = str(refused)
    raise DiscdiffError(last or f"the sampler {method.default_sampler(1).kind} has no such part")


def _sentence(refused: ValidationError) -> str:
    """What a value says of itself, or which values there are where this is none of them."""
    first = refused.errors()[0]
    if first["type"] == "union_tag_invalid":
        given = first.get("ctx", {})
        return f"this sampler's {first['loc'][0]} is one of {given['expected_tags']}, not {given['tag']!r}"
    return first["msg"].removeprefix("Value error, ")


def _samplers(own: Any, field: str, part: Value | int) -> Iterator[Any]:
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
