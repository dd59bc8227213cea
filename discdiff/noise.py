"""Counter-based randomness: every draw is a pure function of (seed, row, step, stream, position).

Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") maps a 128-bit counter and
a 64-bit key to 128 random bits by ten rounds of two 32x32-bit products. The seed is the key; row, step,
stream and position are the counter. There is no state: corruption does not depend on world size, micro-batch
or resume, and a sample does not depend on what it was batched with. It is written in int64 torch arithmetic
(products wrap modulo 2^64, which keeps all bits), so integers are the same on every device.

Categorical draws are exact: one uniform of 52 bits through the inverse of a CDF in float64 (`Cumulative`).
Gumbel-max in float32 is not: with 50,000 classes the maximum of the noise is quantized and the tail is never
drawn.
"""

import math
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from discdiff.chunks import at_once

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio, as a signed 64-bit integer
_GROUP = 256  # classes of a group of `Cumulative`


class Stream(IntEnum):
    """What a draw is for: two draws of one row and step never share bits unless they share a stream."""

    TIME = 0
    CORRUPT = 1
    CORRUPT_VALUE = 2
    PRIOR = 3
    PRIOR_VALUE = 4
    STEP = 5
    STEP_VALUE = 6
    ORDER = 7
    CORRECT = 8
    CORRECT_VALUE = 9
    EMBEDDING = 10
    DROP_LABEL = 11
    SELF_CONDITION = 12
    DATA = 13
    AUXILIARY = 14


def philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox-4x32-10 of four int64 tensors that hold 32-bit words, which broadcast. -> four such tensors"""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW) ^ c1 ^ k0,
            p1 & _LOW,
            ((p0 >> 32) & _LOW) ^ c3 ^ k1,
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return [c0, c1, c2, c3]


@dataclass(frozen=True)
class Noise:
    """A source of randomness for a batch of rows; `on`, `at` and `stratum` return the source they name."""

    seed: int
    step: int = 0
    rows: Int64[Tensor, "B"] = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    strata: tuple[int, int] = (0, 1)

    def on(self, rows: Int64[Tensor, "B"]) -> "Noise":
        """The randomness of these rows, on their device."""
        return replace(self, rows=rows)

    def at(self, step: int) -> "Noise":
        """The randomness of this step: a sampler's, or the index of a repeated estimate."""
        return replace(self, step=step)

    def stratum(self, index: int, count: int) -> "Noise":
        """Step `index`, with times in [index / count, (index + 1) / count): estimates that share out the unit
        interval.
        """
        return replace(self, step=index, strata=(index, count))

    def _words(self, stream: Stream, count: int) -> list[Tensor]:
        """Four 32-bit words for each of `count` counters. -> four `[B, count]`"""
        rows = self.rows[:, None]
        position = torch.arange(count, device=rows.device)[None, :]
        high = (((rows >> 32) & 0xFFFFFF) << 8) | int(stream)
        step = torch.full((1, 1), self.step & _LOW, device=rows.device)
        return philox([position, step, rows & _LOW, high], (self.seed & _LOW, (self.seed >> 32) & _LOW))

    def uniform(self, stream: Stream, *shape: int) -> Float64[Tensor, "B ..."]:
        """Uniform on the open interval (0, 1) with 52 bits. -> `[B, *shape]`"""
        count = math.prod(shape)
        a, b, c, d = self._words(stream, (count + 1) // 2)
        pairs = torch.stack([(a << 20) | (b >> 12), (c << 20) | (d >> 12)], dim=-1)
        bits = pairs.flatten(1)[:, :count]
        return ((bits.double() + 0.5) * 2.0**-52).reshape(-1, *shape)

    def normal(self, stream: Stream, *shape: int) -> Float[Tensor, "B ..."]:
        """Standard normal by Box and Muller, four to a counter, in float32. -> `[B, *shape]`"""
        count = math.prod(shape)
        a, b, c, d = ((w.double() + 0.5) * 2.0**-32 for w in self._words(stream, (count + 3) // 4))
        first, second = (-2 * a.log()).sqrt(), (-2 * c.log()).sqrt()
        turn, other = 2 * math.pi * b, 2 * math.pi * d
        four = [first * turn.cos(), first * turn.sin(), second * other.cos(), second * other.sin()]
        return torch.stack(four, dim=-1).flatten(1)[:, :count].reshape(-1, *shape).float()

    def time(self) -> Float64[Tensor, "B 1"]:
        """A time per row, uniform on (0, 1) and evenly spread over consecutive rows. -> `[B, 1]`

        t(row) = frac(shift + row / golden ratio), in 64-bit fixed point; the shift is uniform and depends on
        seed and step. Consecutive rows are a Kronecker sequence, whatever the batch size and however ranks
        share the batch.
        """
        zero = replace(self, rows=torch.zeros_like(self.rows[:1]))
        a, b, _, _ = zero._words(Stream.TIME, 1)
        spread = ((a << 32) | b)[0] + self.rows * _GOLDEN
        fraction = ((((spread >> 12) & (2**52 - 1)).double() + 0.5) * 2.0**-52)[:, None]
        index, count = self.strata
        return (index + fraction) / count


def categorical(log_p: Float[Tensor, "*n K"], u: Float64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """Draw by the inverse CDF: the first k with sum of p up to k > u, p = softmax(log_p). `[..., K], [...] ->
    [...]`

    Exact in the tail, and rows are independent of each other: see `Cumulative`.
    """
    flat, point = log_p.reshape(-1, log_p.shape[-1]), u.reshape(-1)
    size = at_once(flat)
    pieces = zip(flat.split(size), point.split(size), strict=True)
    drawn = [Cumulative.of(some).draw(at) for some, at in pieces]
    return (torch.cat(drawn) if drawn else point.long()).reshape(u.shape)


@dataclass(frozen=True)
class Cumulative:
    """The CDF of rows of log-probabilities, normalized or not, in two levels: of groups of neighbors, and
    within the group that a draw falls into, which is summed for that draw alone.

    Terms and their sums within a group have the precision that was given, sums of groups and sums within the
    group that is drawn from are float64. So each probability is right to a relative error of few float32
    roundings, however far in the tail, and a row costs two passes beyond the exponential.
    """

    p: Float[Tensor, "N K"]
    """The probabilities, times a number of each row's own."""
    groups: Float64[Tensor, "N G"]
    """What lies before each group, and then the total."""

    @classmethod
    def of(cls, log_p: Float[Tensor, "N K"]) -> "Cumulative":
        p = (log_p - log_p.amax(-1, keepdim=True)).exp_()
        count = p.shape[-1] // _GROUP
        whole, rest = p.split([count * _GROUP, p.shape[-1] - count * _GROUP], dim=-1)
        sums = [whole.unflatten(-1, (count, _GROUP)).sum(-1), rest.sum(-1, keepdim=True)]
        return cls(p, F.pad(torch.cat(sums, dim=-1).cumsum(-1, dtype=torch.float64), (1, 0)))

    @property
    def total(self) -> Float64[Tensor, "N"]:
        return self.groups[:, -1]

    def share(self, index: Int64[Tensor, "N"]) -> Float64[Tensor, "N"]:
        """The probability of a class of each row. `[N] -> [N]`"""
        return self.p.gather(-1, index[:, None])[:, 0] / self.total

    def draw(self, u: Float64[Tensor, "N"]) -> Int64[Tensor, "N"]:
        """A class for each row; none without mass is drawn. `[N] -> [N]`"""
        point = _below(u * self.total, self.total)[:, None]
        group = torch.searchsorted(self.groups, point, right=True) - 1
        index = group * _GROUP + torch.arange(_GROUP, device=u.device)
        classes = self.p.shape[-1]
        terms = self.p.gather(-1, index.clamp_max(classes - 1)).double().masked_fill_(index >= classes, 0)
        within = terms.cumsum(-1)
        point = _below(point - self.groups.gather(-1, group), within[:, -1:])
        return (index[:, :1] + torch.searchsorted(within, point, right=True))[:, 0]


def _below(point: Tensor, bound: Tensor) -> Tensor:
    """The point, or what comes before the bound where rounding took it there."""
    return torch.minimum(point, torch.nextafter(bound, torch.zeros_like(bound)))
