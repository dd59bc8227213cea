"""Processes that interpolate between a token and noise which forgets it.

    q_t(y | x) = alpha_t [y = x] + u_t [y < V] + m_t [y = V]

with alpha_t + V u_t + m_t = 1. Mask noise has u = 0, uniform noise has no mask state, hybrid noise has both.
Such processes are Markov: with alpha_(t|s) = alpha_t / alpha_s,

    q(x_t = y | x_s = z) = alpha_(t|s) [y = z] + u_t - alpha_(t|s) u_s   (and the same with m for the mask),
    R_t(z -> y) = u'_t - (alpha'_t / alpha_t) u_t   for every z != y      (likewise with m),

so the rate into a state does not depend on where the jump comes from (GIDD, von Rütte et al. 2025,
arXiv:2503.04482). A subclass says only what alpha, u and m are.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from discdiff.noise import Noise, Stream
from discdiff.schedules import AnySchedule, Linear
from discdiff.types import Value


@dataclass(frozen=True)
class Levels:
    """alpha, u and m at a time, and their derivatives; float64, shaped as the time."""

    alpha: Tensor
    uniform: Tensor
    mask: Tensor
    dalpha: Tensor
    duniform: Tensor
    dmask: Tensor

    def rate_into_token(self) -> Tensor:
        return self.duniform - self.dalpha / self.alpha * self.uniform

    def rate_into_mask(self) -> Tensor:
        return self.dmask - self.dalpha / self.alpha * self.mask


class Interpolating(Value, frozen=True):
    """The primitives of a process, for any alpha, u and m. Times broadcast against the shape of the
    tokens.
    """

    extra: ClassVar[int]
    schedule: AnySchedule = Linear()

    @abstractmethod
    def levels(self, t: Tensor, vocab: int) -> Levels:
        """alpha, u, m and their derivatives at t."""

    @property
    def ends(self) -> tuple[float, float]:
        """alpha at t = 0 and t = 1: (1, 0) unless the schedule is cut off."""
        return self.schedule.ends

    def states(self, vocab: int) -> int:
        """K, the number of noisy states."""
        return vocab + self.extra

    def alpha(self, t: Tensor) -> Tensor:
        """The probability that a token is untouched at t, shaped as t."""
        return self.levels(t, 1).alpha

    def live(self, x_t: Int64[Tensor, "*n"], vocab: int) -> Bool[Tensor, "*n"]:
        """Where time reversal can still change the token: everywhere, unless noise only masks."""
        return torch.ones_like(x_t, dtype=torch.bool)

    def corrupt(
        self, x0: Int64[Tensor, "B L"], t: Float64[Tensor, "B _"], vocab: int, noise: Noise
    ) -> Int64[Tensor, "B L"]:
        """Draw x_t from q_t(. | x0): "keep, mask or replace?" and then "by what?". `[B, L] -> [B, L]`"""
        level = self.levels(t, vocab)
        u = noise.uniform(Stream.CORRUPT, x0.shape[1])
        anything = (noise.uniform(Stream.CORRUPT_VALUE, x0.shape[1]) * vocab).long()
        x_t = torch.where((u < level.alpha) | (level.uniform == 0), x0, anything)
        return torch.where(u >= 1 - level.mask, vocab, x_t) if self.extra else x_t

    def prior(self, shape: tuple[int, int], vocab: int, noise: Noise) -> Int64[Tensor, "B L"]:
        """Draw from the law that sampling starts from: q_1 of a uniform token. `-> [B, L]`"""
        device = noise.rows.device
        token = (noise.uniform(Stream.PRIOR_VALUE, shape[1]) * vocab).long()
        one = torch.ones(shape[0], 1, dtype=torch.float64, device=device)
        return self.corrupt(token.expand(shape), one, vocab, noise)

    def log_marginal(
        self, log_clean: Float[Tensor, "*n V"], t: Float64[Tensor, "*m"]
    ) -> Float[Tensor, "*n K"]:
        """Push a distribution of tokens forward to time t. `[..., V] -> [..., K]`"""
        level = self.levels(t, log_clean.shape[-1])
        tokens = log_clean + _log(level.alpha, log_clean)
        tokens = torch.logaddexp(tokens, _log(level.uniform, log_clean))
        return self._with_mask(tokens, level.mask)

    def log_unmarginal(
        self, log_noisy: Float[Tensor, "*n K"], t: Float64[Tensor, "*m"]
    ) -> Float[Tensor, "*n V"]:
        """The distribution of tokens whose marginal at t this is: the inverse of `log_marginal`. `[..., K] ->
        [..., V]`

        The mask's own share is known, so only the odds between tokens are read; a share below u_t, which no
        distribution has, counts as (almost) nothing.
        """
        vocab = log_noisy.shape[-1] - self.extra
        level = self.levels(t, vocab)
        share = log_noisy[..., :vocab].softmax(-1) * (1 - level.mask)[..., None].to(log_noisy)
        clean = (share - level.uniform[..., None].to(log_noisy)).clamp_min(torch.finfo(share.dtype).tiny)
        return (clean / clean.sum(-1, keepdim=True)).log()

    def log_likelihood(
        self, x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*m"], vocab: int, dtype: torch.dtype
    ) -> Float[Tensor, "*n V"]:
        """log q_t(x_t | x_0 = .). `[...] -> [..., V]`"""
        level = self.levels(t, vocab)
        floor = torch.where(x_t == vocab, level.mask, level.uniform)
        return _log_column(x_t, level.alpha, floor, vocab, dtype)

    def log_transition(
        self,
        x_t: Int64[Tensor, "*n"],
        s: Float64[Tensor, "*m"],
        t: Float64[Tensor, "*m"],
        vocab: int,
        dtype: torch.dtype,
    ) -> Float[Tensor, "*n K"]:
        """log q(x_t | x_s = .) for s < t. `[...] -> [..., K]`"""
        now, before = self.levels(t, vocab), self.levels(s, vocab)
        keep = now.alpha / before.alpha
        uniform = (now.uniform - keep * before.uniform).clamp_min(0)
        mask = (now.mask - keep * before.mask).clamp_min(0)
        floor = torch.where(x_t == vocab, mask, uniform)
        return _log_column(x_t, keep, floor, self.states(vocab), dtype)

    def rate(self, x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*m"], vocab: int) -> Float64[Tensor, "*n 1"]:
        """R_t(z -> x_t) for z != x_t, which is the same for every z. `[...] -> [..., 1]`"""
        level = self.levels(t, vocab)
        into = torch.where(x_t == vocab, level.rate_into_mask(), level.rate_into_token())
        return into[..., None]

    def _with_mask(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if not self.extra:
            return tokens
        last = _log(mask, tokens).expand(*tokens.shape[:-1], 1)
        return torch.cat([tokens, last], dim=-1)


def _log(probability: Tensor, like: Tensor) -> Tensor:
    return probability.log()[..., None].to(like)


def _log_column(x_t: Tensor, keep: Tensor, floor: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """log(floor + keep [z = x_t]) for z = 0 ... width - 1, where an x_t past the width has no such z."""
    low, high = floor.log().to(dtype), (floor + keep).log().to(dtype)
    column = low[..., None].expand(*x_t.shape, width).clone()
    index = x_t.clamp_max(width - 1)[..., None]
    return column.scatter_(-1, index, torch.where(x_t < width, high, low)[..., None])
