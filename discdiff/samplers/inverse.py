"""Sampling from a flow: draw from its base, then run it."""

from typing import TYPE_CHECKING, Any, Literal, Optional

from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from discdiff.noise import Noise
from discdiff.samplers.microbatch import Filling, in_groups
from discdiff.samplers.trace import Observer
from discdiff.types import Canvas, Value

if TYPE_CHECKING:
    from discdiff.samplers import AnySampler


class Inverse(Value, frozen=True):
    """A draw from the base by its own sampler, None where that asks no network, then one evaluation for each
    of the `parallel` layers and as many as positions for each of the `sequential` ones.

    A flow's `default_sampler` counts its layers; it samples in no other way. `microbatch`: draw exactly so
    many rows at a time, from the base too, so that rounding doesn't depend on what a row is batched with.
    """

    kind: Literal["inverse"] = "inverse"
    parallel: int = Field(default=0, ge=0)
    sequential: int = Field(default=0, ge=0)
    base: Optional["AnySampler"] = None
    microbatch: int | None = Field(default=None, ge=1)

    def evaluations(self, length: int) -> int:
        """Network evaluations for a sequence."""
        base = 0 if self.base is None else self.base.evaluations(length)
        return base + self.parallel + self.sequential * length

    def run(self, fill: Filling, canvas: Canvas, noise: Noise, observe: Observer) -> Int64[Tensor, "B L"]:
        """What a flow makes of a canvas, so many rows at a time. `-> [B, L]`"""
        return in_groups(fill, self.microbatch, canvas, noise, observe)

    @property
    def base_in_groups(self) -> Any:
        """The sampler of the base, with this microbatch where there is one."""
        return self.base if self.microbatch is None else _with_microbatch(self.base, self.microbatch)


def _with_microbatch(sampler: Any, size: int) -> Any:
    if sampler is None:
        return None
    inside = {"inside": _with_microbatch(sampler.inside, size)} if hasattr(sampler, "inside") else None
    return sampler.model_copy(update=inside or {"microbatch": size})
