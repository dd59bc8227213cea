"""A number with its standard error, and how both come from summed numerators and denominators.

A corpus score is a ratio of sums, R = sum a_s / sum b_s over sequences s (nats over tokens): long
sequences count for what they are, and perplexities are never averaged. Its standard error over sequences
is that of the ratio estimator,

    se^2 = S / (S - 1) * sum_s (a_s - R b_s)^2 / (sum_s b_s)^2.

Sums are `math.fsum`, exact before the last rounding, so a score does not depend on the order of its
sequences.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from discdiff.types import DiscdiffError, Value


class Estimate(Value, frozen=True):
    """A value and its standard error; `None` where one evaluation cannot tell, 0 where the value is exact."""

    value: float
    se: float | None = None

    def scaled(self, factor: float) -> "Estimate":
        """The same quantity in another unit."""
        return Estimate(value=self.value * factor, se=None if self.se is None else self.se * abs(factor))

    def exp(self) -> "Estimate":
        """Its exponential, the standard error carried along to first order: perplexity from nats per "
        "token."""
        value = math.exp(self.value) if self.value < 700 else math.inf
        return Estimate(value=value, se=None if self.se is None else value * self.se)

    def __str__(self) -> str:
        """`1.2345 ± 0.0067`: the error with two digits, four decimals at most; powers of ten where numbers
        are huge.
        """
        if self.se is None or not math.isfinite(self.se) or abs(self.value) >= 1e5:
            return f"{self.value:.4g}"
        digits = 4 if self.se <= 0 else min(4, max(0, 1 - math.floor(math.log10(self.se))))
        return f"{self.value:.{digits}f}" + (f" ± {self.se:.{digits}f}" if self.se > 0 else "")


def ratio(numerators: NDArray[Any], denominators: NDArray[Any]) -> Estimate:
    """The ratio of two sums over sequences, with its standard error over sequences. `[S], [S] -> Estimate`

    Raises `DiscdiffError` where the denominators sum to nothing.
    """
    below = math.fsum(denominators)
    if not below > 0:
        raise DiscdiffError(
            "there is nothing to average over: no token was counted; give a set that has some"
        )
    value = math.fsum(numerators) / below
    count = len(numerators)
    if count < 2:
        return Estimate(value=value)
    spread = math.fsum((np.asarray(numerators) - value * np.asarray(denominators)) ** 2)
    return Estimate(value=value, se=math.sqrt(count / (count - 1) * spread) / below)


def mean(values: NDArray[np.float64]) -> Estimate:
    """The mean over sequences with its standard error. `[S] -> Estimate`"""
    return ratio(values, np.ones(len(values)))
