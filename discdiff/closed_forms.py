"""The divergences of `discdiff.objectives` in closed form, for noise that interpolates and a head that states
a law of tokens.

With kappa = alpha / u and the leave-one-out law w, a token's marginal is q_t(y | w) = u (1 + kappa w(y)), and
likewise q_t(y | x_0) = u (1 + kappa [y = x_0]), which takes two values. So every divergence follows from w at
x_0, w at x_t and the sum over other tokens of log(1 + kappa w): numbers per position, from one pass over the
logits. They are put together in float64, from terms that vanish with kappa and not by difference.

    marginals    KL(q_t(. | x_0) || q_t(. | w)), and IS(p || q) = p/q - log(p/q) - 1 at x_t;
                 times R / q_t(x_t | x_0) their sum is the divergence of rates (GIDD, arXiv:2503.04482)
    bridges      KL(q(x_s | x_t, x_0) || p(x_s | x_t)): of p(y) proportional to q(x_t | y) q_s(y | w), whose
                 norm is q_t(x_t | w)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from discdiff.parameterizations import LeaveOneOut, Posterior
from discdiff.processes import Interpolating, Uniform
from discdiff.processes.interpolating import Levels
from discdiff.sums import with_softened

_FAR = 1e12
"""Where a logarithm counts as infinite."""

Stated = LeaveOneOut | Posterior
"""Heads whose logits are those of the leave-one-out law but for the one at x_t."""


def log_kappa(process: Interpolating, t: Float64[Tensor, "*n"], vocab: int) -> Float64[Tensor, "*n"]:
    """log(alpha / u), infinite where there is no uniform noise, -infinite where there is no data. `[...] ->
    [...]`
    """
    return _log_odds(process.levels(t, vocab))


def _log_odds(level: Levels) -> Tensor:
    return torch.where(level.alpha > 0, level.alpha.log() - level.uniform.log(), -torch.inf)


@dataclass(frozen=True)
class Stand:
    """What a law w says of x_0 and x_t, and of all other tokens together; float64, shaped as the tokens."""

    vocab: int
    level: Levels
    """Of the noise, at the time of kappa."""
    log_w0: Tensor
    log_wt: Tensor
    softened: Tensor
    """The sum of log(1 + kappa w) over tokens but x_t."""
    log_kappa: Tensor
    same: Tensor
    masked: Tensor

    @staticmethod
    def of(
        process: Interpolating,
        reading: Stated,
        raw: Float[Tensor, "*n V"],
        x0: Int64[Tensor, "*n"],
        x_t: Int64[Tensor, "*n"],
        t: Float64[Tensor, "*n"],
        s: Float64[Tensor, "*n"],
    ) -> "Stand":
        """Read raw outputs at t, with kappa that of time s. `[..., V] -> [...]`"""
        vocab = raw.shape[-1]
        tilt = reading.tilt(process, x_t, t, vocab)
        level = process.levels(s, vocab)
        log_odds = _log_odds(level)
        sums = with_softened(raw, x0, x_t, tilt, log_odds)
        at_0, at_t, around, softened = (x.double() for x in sums)
        same, masked = x_t == x0, x_t == vocab
        log_norm = torch.logaddexp(around, at_t + tilt)
        log_wt = at_t + tilt - log_norm
        log_w0 = torch.where(same, log_wt, at_0 - log_norm)
        return Stand(vocab, level, log_w0, log_wt, softened, log_odds, same, masked)

    @property
    def gap_0(self) -> Tensor:
        """log q(x_0 | x_0) / q(x_0 | w), at the time of kappa."""
        endless = self.log_kappa == torch.inf
        odds = torch.where(endless, 0, self.log_kappa)
        return torch.where(endless, -self.log_w0, _log1p_exp(odds) - _log1p_exp(odds + self.log_w0))

    @property
    def lift_t(self) -> Tensor:
        """log q(x_t | w) / u at the time of kappa, zero at masks."""
        return self.lift(self.log_kappa)

    def lift(self, odds: Tensor) -> Tensor:
        """log(1 + kappa w(x_t)) for another kappa, zero at masks. `[...] -> [...]`"""
        return _log1p_exp(torch.where(self.masked, -torch.inf, odds + self.log_wt))

    @property
    def lift_0(self) -> Tensor:
        """log(1 + kappa w(x_0))."""
        return _log1p_exp(self.log_kappa + self.log_w0)

    def log_ratio(self, odds: Tensor) -> Tensor:
        """log q_t(x_t | x_0) / q_t(x_t | w), where kappa of t is exp(odds). `[...] -> [...]`"""
        return torch.where(self.same, _log1p_exp(odds), 0) - self.lift(odds)

    def entropy(self, odds: Tensor) -> Tensor:
        """-log p(x_0 | x_t), the cross-entropy of the posterior, where kappa of t is exp(odds). `[...] ->
        [...]`
        """
        return -self.log_w0 - self.log_ratio(odds)


def _log1p_exp(z: Tensor) -> Tensor:
    """log(1 + exp z), whose gradient is finite at both infinities."""
    return torch.logaddexp(z.clamp(-_FAR, _FAR), torch.zeros_like(z))


def marginal_divergence(stand: Stand) -> Float64[Tensor, "*n"]:
    """KL of the marginals and IS at x_t, in nats at each position. `-> [...]`"""
    level = stand.level
    others = stand.softened + stand.lift_t - stand.lift_0
    kl = (level.alpha + level.uniform) * stand.gap_0 - level.uniform * others
    ratio = stand.log_ratio(stand.log_kappa)
    return kl + torch.expm1(ratio) - ratio


def rate_weight(stand: Stand) -> Float64[Tensor, "*n"]:
    """R / q_t(x_t | x_0), by which a divergence of marginals is one of rates. `-> [...]`"""
    level = stand.level
    here = torch.where(stand.masked, level.mask, level.uniform + stand.same * level.alpha)
    return torch.where(stand.masked, level.rate_into_mask(), level.rate_into_token()) / here


def rate_divergence(
    process: Interpolating,
    reading: Stated,
    raw: Float[Tensor, "*n V"],
    x0: Int64[Tensor, "*n"],
    x_t: Int64[Tensor, "*n"],
    t: Float64[Tensor, "*n"],
) -> Float[Tensor, "*n"]:
    """Nats per unit time at each position. `[..., V] -> [...]`"""
    stand = Stand.of(process, reading, raw, x0, x_t, t, t)
    return (rate_weight(stand) * marginal_divergence(stand)).to(raw)


def uniform_divergence(
    process: Uniform,
    reading: Stated,
    raw: Float[Tensor, "*n V"],
    x0: Int64[Tensor, "*n"],
    x_t: Int64[Tensor, "*n"],
    t: Float64[Tensor, "*n"],
) -> Float[Tensor, "*n"]:
    """The same with uniform noise (UDLM, arXiv:2412.10193), written out. `[..., V] -> [...]`

    With rho = 1 + kappa w and rho_0 = 1 + kappa [. = x_0] it is -alpha' / (V alpha) * sum over y of r̂ - r + r
    log(r / r̂), where r = rho_0(y) / rho_0(x_t) and r̂ = rho(y) / rho(x_t).
    """
    alpha, dalpha = process.schedule.alpha(t), process.schedule.dalpha(t)
    stand = Stand.of(process, reading, raw, x0, x_t, t, t)
    vocab, kappa, same = stand.vocab, stand.log_kappa.exp(), stand.same
    model_t, model_0 = stand.lift_t, stand.lift_0
    true_0 = kappa.log1p()
    true_t = torch.where(same, true_0, 0)
    # sum over y of r̂ is (V + kappa) / rho(x_t); the same holds for r; the terms of y = x_t cancel.
    ratios = (vocab + kappa) * (torch.expm1(-model_t) - torch.expm1(-true_t))
    # r is one number for every y but x_0, and zero logarithm of it where y = x_t.
    gap = model_t - true_t
    first = torch.where(same, 0, (1 + kappa) * (true_0 + gap - model_0))
    count, others = torch.where(same, vocab - 1, vocab - 2), torch.where(same, 0, model_0)
    rest = (-true_t).exp() * (count * gap - (stand.softened - others))
    return (-dalpha / (vocab * alpha) * (ratios + first + rest)).to(raw)


def bridge_divergence(
    process: Interpolating, stand: Stand, t: Float64[Tensor, "*n"]
) -> Float64[Tensor, "*n"]:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)), from a `Stand` at the kappa of s. `[...] -> [...]`"""
    now, before = process.levels(t, stand.vocab), stand.level
    keep = now.alpha / before.alpha
    uniform = (now.uniform - keep * before.uniform).clamp_min(0)
    mask = (now.mask - keep * before.mask).clamp_min(0)
    floor = torch.where(stand.masked, mask, uniform)
    here = torch.where(stand.masked, now.mask, now.uniform + stand.same * now.alpha)
    at_0 = (before.alpha + before.uniform) * (floor + stand.same * keep)
    at_t = torch.where(stand.same | stand.masked, 0, before.uniform * (floor + keep))
    at_other = before.uniform * floor
    others = stand.softened - torch.where(stand.same, 0, stand.lift_0)
    cross = at_0 * stand.gap_0 - _times(at_t, stand.lift_t) - _times(at_other, others)
    return cross / here - stand.log_ratio(_log_odds(now))


def _times(share: Tensor, nats: Tensor) -> Tensor:
    """Their product, nothing where there is no share, whatever the nats."""
    return torch.where(share > 0, share * torch.where(share > 0, nats, 0), 0)
