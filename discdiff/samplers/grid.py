"""Grids of times: where between noise and data the network is asked.

A grid of n steps is 1 = t_0 > t_1 > ... > t_n = 0: it starts in pure noise, and its last step ends in data.
`Held` alone repeats a time, for a corrector to work at.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from discdiff.schedules import AnySchedule, Linear
from discdiff.types import DiscdiffError, Value


class Even(Value, frozen=True):
    """Steps of equal length in t."""

    kind: Literal["even"] = "even"

    def times(self, steps: int) -> list[float]:
        """t_0 = 1, ..., t_n = 0."""
        return [1 - k / steps for k in range(steps)] + [0.0]


class Quarter(Value, frozen=True):
    """The cosine grid of MD4 (arXiv:2406.04329): t_k = cos(pi k / 2n), short steps near noise, long ones near
    data.
    """

    kind: Literal["cosine"] = "cosine"

    def times(self, steps: int) -> list[float]:
        """t_0 = 1, ..., t_n = 0."""
        return [math.cos(math.pi * k / (2 * steps)) for k in range(steps)] + [0.0]


class Through(Value, frozen=True):
    """Steps of equal size in the alpha of a schedule: t_k = schedule.inverse(alpha_k), alpha_k evenly spaced
    between its ends.

    Through the schedule that noises, each step of mask noise unmasks as many tokens in expectation.
    """

    kind: Literal["through"] = "through"
    schedule: AnySchedule = Linear()

    def times(self, steps: int) -> list[float]:
        """t_0 = 1, ..., t_n = 0."""
        high, low = self.schedule.ends
        alpha = torch.linspace(low, high, steps + 1, dtype=torch.float64)[1:-1]
        return [1.0, *self.schedule.inverse(alpha).tolist(), 0.0]


class Listed(Value, frozen=True):
    """Times given one by one: learned, or found by a search."""

    kind: Literal["listed"] = "listed"
    listed: tuple[float, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _falls_from_one_to_zero(self) -> "Listed":
        falls = all(t > s for t, s in pairwise(self.listed))
        if self.listed[0] != 1 or self.listed[-1] != 0 or not falls:
            raise DiscdiffError(f"a grid falls from 1 to 0, got {self.listed}: list its times in that order")
        return self

    def times(self, steps: int) -> list[float]:
        """The list. Raises DiscdiffError unless it has so many steps."""
        if steps != len(self.listed) - 1:
            raise DiscdiffError(
                f"the listed grid has {len(self.listed) - 1} steps and the sampler {steps}: make them agree"
            )
        return list(self.listed)


class Held(Value, frozen=True):
    """An even grid that stands still on its way: ReMDM's loop (arXiv:2503.00307).

    The share `before` of the steps goes from 1 to `time`, the share `during` stays there, where only a
    corrector moves, and the rest goes to 0.
    """

    kind: Literal["held"] = "held"
    time: float = Field(default=0.1, gt=0, lt=1)
    before: float = Field(default=0.45, gt=0, lt=1)
    during: float = Field(default=0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_steps_for_the_rest(self) -> "Held":
        if self.before + self.during >= 1:
            raise DiscdiffError(
                f"before + during is {self.before + self.during:g} and leaves no step after {self.time:g}: "
                "make it less than 1"
            )
        return self

    def times(self, steps: int) -> list[float]:
        """t_0 = 1, ..., t_n = 0. Raises DiscdiffError where a part would have no step."""
        first, hold = round(steps * self.before), round(steps * self.during)
        last = steps - first - hold
        if min(first, hold, last) < 1:
            raise DiscdiffError(
                f"{steps} steps can't be shared out into {self.before:g}, {self.during:g} and the rest: "
                "take more steps"
            )
        down = [1 - (1 - self.time) * k / first for k in range(first)]
        out = [self.time * (1 - k / last) for k in range(1, last)]
        return [*down, *[self.time] * (hold + 1), *out, 0.0]


AnyGrid = Annotated[Even | Quarter | Through | Listed | Held, Field(discriminator="kind")]
