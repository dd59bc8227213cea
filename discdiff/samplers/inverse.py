"""Sampling from a flow: draw from its base, then run it."""

from typing import TYPE_CHECKING, Literal, Optional

from pydantic import Field

from discdiff.types import Value

if TYPE_CHECKING:
    from discdiff.samplers import AnySampler


class Inverse(Value, frozen=True):
    """A draw from the base by its own sampler, None where that asks no network, then one evaluation for each
    of the `parallel` layers and as many as positions for each of the `sequential` ones.

    A flow's `default_sampler` counts its layers; it samples in no other way.
    """

    kind: Literal["inverse"] = "inverse"
    parallel: int = Field(default=0, ge=0)
    sequential: int = Field(default=0, ge=0)
    base: Optional["AnySampler"] = None

    def evaluations(self, length: int) -> int:
        """Network evaluations for a sequence."""
        base = 0 if self.base is None else self.base.evaluations(length)
        return base + self.parallel + self.sequential * length
