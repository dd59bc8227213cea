"""Hybrid noise of GIDD (von Rütte et al. 2025, arXiv:2503.04482): mask noise with a share of uniform noise on
the way.

With tau = 1 - schedule.alpha(t) (so tau = t for the linear schedule), c = B tau^(g/2) (1 - tau)^(g/2) and C =
1 + c,

    alpha = (1 - tau) / C,    m = tau / C,    V u = c / C,    B = 2^g p / (1 - p),

so that the share of uniform noise is p = `uniform` at tau = 1/2 and nothing at both ends, and g =
`sharpness`.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from discdiff.processes.interpolating import Interpolating, Levels


class Hybrid(Interpolating, frozen=True):
    """Tokens are masked, and some are replaced by uniformly drawn ones before that."""

    kind: Literal["hybrid"] = "hybrid"
    extra: ClassVar[int] = 1
    uniform: float = Field(default=0.1, gt=0, lt=1)
    sharpness: float = Field(default=1.0, gt=0)

    @property
    def strength(self) -> float:
        """B, by which the uniform noise is scaled."""
        return 2**self.sharpness * self.uniform / (1 - self.uniform)

    def levels(self, t: Tensor, vocab: int) -> Levels:
        untouched, dtau = self.schedule.alpha(t), -self.schedule.dalpha(t)
        tau, half = self.schedule.beta(t), self.sharpness / 2
        c = self.strength * (tau * untouched) ** half
        dc = self.strength * half * (tau * untouched) ** (half - 1) * (untouched - tau)
        whole, square = 1 + c, (1 + c) ** 2
        return Levels(
            alpha=untouched / whole,
            uniform=c / whole / vocab,
            mask=tau / whole,
            dalpha=dtau * (-whole - untouched * dc) / square,
            duniform=dtau * dc / square / vocab,
            dmask=dtau * (whole - tau * dc) / square,
        )
