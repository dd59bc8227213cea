"""Noise schedules: alpha(t), the probability that a token is still untouched at time t.

Every schedule decreases from alpha(0) to alpha(1). Unless it says otherwise alpha(0) = 1 and alpha(1) = 0
exactly; one with cut-off ends (`Linear(eps)`, `Geometric`) makes bounds carry a prior and a reconstruction
term. Times and values are float64, of any shape. `sigma = -log alpha` is the total noise of SEDD
(arXiv:2310.16834).
"""

import math
from abc import abstractmethod
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from discdiff.types import DiscdiffError, Value


def before_one(t: Tensor) -> Tensor:
    """t, and for t = 1 a time just before: rates are infinite at t = 1 itself, and scores say nothing of the
    data.
    """
    return torch.where(t == 1, 1 - 2.0**-20, t)


class Schedule(Value, frozen=True):
    """alpha(t) with its complement, derivative and inverse; each elementwise."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The probability of being untouched at t, to relative precision near t = 1."""

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """1 - alpha, to relative precision near t = 0."""

    @abstractmethod
    def dalpha(self, t: Tensor) -> Tensor:
        """The derivative of alpha at t."""

    @abstractmethod
    def inverse(self, alpha: Tensor) -> Tensor:
        """The t at which alpha(t) = alpha."""

    @property
    def ends(self) -> tuple[float, float]:
        """alpha(0) and alpha(1)."""
        low, high = self.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return low, high


class Linear(Schedule, frozen=True):
    """alpha = 1 - (1 - eps) t. With eps > 0 this is the log-linear noise of SEDD and MDLM
    (arXiv:2406.07524).
    """

    kind: Literal["linear"] = "linear"
    eps: float = Field(default=0.0, ge=0, lt=1)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.eps) * t

    def beta(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.eps - 1)

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1 - alpha) / (1 - self.eps)


class Cosine(Schedule, frozen=True):
    """alpha = 1 - sin(pi t / 2), which is 1 - cos(pi (1 - t) / 2): the cosine schedule of MD4
    (arXiv:2406.04329).
    """

    kind: Literal["cosine"] = "cosine"

    def alpha(self, t: Tensor) -> Tensor:
        late = 2 * ((1 - t) * (math.pi / 4)).sin() ** 2
        return torch.where(t < 0.5, 1 - self.beta(t), late)

    def beta(self, t: Tensor) -> Tensor:
        return (t * (math.pi / 2)).sin()

    def dalpha(self, t: Tensor) -> Tensor:
        return -(math.pi / 2) * (t * (math.pi / 2)).cos()

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1 - alpha).asin() * (2 / math.pi)


class SquaredCosine(Schedule, frozen=True):
    """alpha = cos^2(pi/2 (t + s)/(1 + s)) / cos^2(pi/2 s/(1 + s)), with s = `offset`.

    Improved DDPM (arXiv:2102.09672), used by multinomial diffusion (arXiv:2102.05379). Written as a sine of 1
    - t, so that alpha(1) = 0 exactly.
    """

    kind: Literal["squared_cosine"] = "squared_cosine"
    offset: float = Field(default=0.008, ge=0, lt=1)

    @property
    def _turn(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    def alpha(self, t: Tensor) -> Tensor:
        return (((1 - t) * self._turn).sin() / math.sin(self._turn)) ** 2

    def beta(self, t: Tensor) -> Tensor:
        return ((2 - t) * self._turn).sin() * (t * self._turn).sin() / math.sin(self._turn) ** 2

    def dalpha(self, t: Tensor) -> Tensor:
        return -self._turn * ((1 - t) * (2 * self._turn)).sin() / math.sin(self._turn) ** 2

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1 - (alpha.sqrt() * math.sin(self._turn)).asin() / self._turn


class Polynomial(Schedule, frozen=True):
    """alpha = 1 - t^w: the polynomial schedule of MD4 (arXiv:2406.04329); w = 1 is linear."""

    kind: Literal["polynomial"] = "polynomial"
    power: float = Field(default=2.0, gt=0)

    def alpha(self, t: Tensor) -> Tensor:
        return -torch.expm1(self.power * t.log())

    def beta(self, t: Tensor) -> Tensor:
        return t**self.power

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1)

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1 - alpha) ** (1 / self.power)


class Power(Schedule, frozen=True):
    """alpha = (1 - t)^n: the scheduler kappa = (1 - t)^n of discrete flow matching (arXiv:2407.15595), t = 0
    data.
    """

    kind: Literal["power"] = "power"
    power: float = Field(default=2.0, ge=1)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.power

    def beta(self, t: Tensor) -> Tensor:
        return -torch.expm1(self.power * torch.log1p(-t))

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.power * (1 - t) ** (self.power - 1)

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1 - alpha ** (1 / self.power)


class Geometric(Schedule, frozen=True):
    """alpha = exp(-low^(1-t) high^t): the geometric noise of SEDD (arXiv:2310.16834). Both ends are cut
    off.
    """

    kind: Literal["geometric"] = "geometric"
    low: float = Field(default=1e-3, gt=0)
    high: float = Field(default=20.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Geometric":
        if self.low >= self.high:
            raise DiscdiffError(f"a geometric schedule needs low < high, got {self.low} and {self.high}")
        return self

    def _sigma(self, t: Tensor) -> Tensor:
        return self.low ** (1 - t) * self.high**t

    def alpha(self, t: Tensor) -> Tensor:
        return (-self._sigma(t)).exp()

    def beta(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._sigma(t))

    def dalpha(self, t: Tensor) -> Tensor:
        sigma = self._sigma(t)
        return -sigma * math.log(self.high / self.low) * (-sigma).exp()

    def inverse(self, alpha: Tensor) -> Tensor:
        return ((-alpha.log()).log() - math.log(self.low)) / math.log(self.high / self.low)


class LinearRate(Schedule, frozen=True):
    """alpha = exp(-low t - (high - low) t^2 / 2): a rate of noise that grows from low to high, D3PM's linear
    beta.

    The end is cut off (Ho et al. 2020, arXiv:2006.11239, for Gaussian diffusion; D3PM, arXiv:2107.03006).
    """

    kind: Literal["linear_rate"] = "linear_rate"
    low: float = Field(default=0.1, gt=0)
    high: float = Field(default=20.0, gt=0)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.low * t + (self.high - self.low) * t**2 / 2

    def alpha(self, t: Tensor) -> Tensor:
        return (-self._sigma(t)).exp()

    def beta(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._sigma(t))

    def dalpha(self, t: Tensor) -> Tensor:
        return -(self.low + (self.high - self.low) * t) * self.alpha(t)

    def inverse(self, alpha: Tensor) -> Tensor:
        # The positive root, in the form that keeps its precision where high is near low.
        sigma, slope = -alpha.log(), self.high - self.low
        return 2 * sigma / (self.low + (self.low**2 + 2 * slope * sigma).clamp_min(0).sqrt())


class Tabulated(Schedule, frozen=True):
    """alpha at equally spaced times from 0 to 1, straight in between: a schedule found by search or estimated
    from data.
    """

    kind: Literal["tabulated"] = "tabulated"
    values: tuple[float, ...] = (1.0, 0.0)

    @model_validator(mode="after")
    def _falls(self) -> "Tabulated":
        steps = [b - a for a, b in pairwise(self.values)]
        if not steps or max(steps) >= 0 or self.values[0] > 1 or self.values[-1] < 0:
            raise DiscdiffError("a tabulated schedule needs two values or more that fall, within 1 and 0")
        return self

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = torch.tensor(self.values, dtype=torch.float64, device=t.device)
        pieces = len(values) - 1
        index = (t * pieces).floor().long().clamp(0, pieces - 1)
        return values[index], values[index + 1] - values[index], t * pieces - index

    def alpha(self, t: Tensor) -> Tensor:
        # Weighed from the nearer end, so that a last value of zero keeps relative precision near t = 1.
        start, change, part = self._piece(t)
        return (start + change) * part + start * (1 - part)

    def beta(self, t: Tensor) -> Tensor:
        start, change, part = self._piece(t)
        return (1 - start) * (1 - part) + (1 - start - change) * part

    def dalpha(self, t: Tensor) -> Tensor:
        return self._piece(t)[1] * (len(self.values) - 1)

    def inverse(self, alpha: Tensor) -> Tensor:
        values = torch.tensor(self.values, dtype=torch.float64, device=alpha.device)
        index = (torch.searchsorted(-values, -alpha) - 1).clamp(0, len(values) - 2)
        part = (alpha - values[index]) / (values[index + 1] - values[index])
        return (index + part) / (len(values) - 1)


AnySchedule = Annotated[
    Linear | Cosine | SquaredCosine | Polynomial | Power | Geometric | LinearRate | Tabulated,
    Field(discriminator="kind"),
]
