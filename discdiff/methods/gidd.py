"""GIDD: generalized interpolating discrete diffusion. von Rütte et al. 2025, arXiv:2503.04482.

The network states the leave-one-out law w, through which q̂(y) = q_t(y | w). With R the rate into x_t, which
does not depend on where the jump comes from, the bound's integrand is

    R / q_t(x_t|x_0) * ( KL(q_t(.|x_0) || q̂)  +  IS(q_t(x_t|x_0) || q̂(x_t)) ),        IS(p || q) = p/q -
    log(p/q) - 1.

As q_t(.|x_0) takes two values on tokens and both laws agree on the mask, KL needs q̂ at x_0 and the sum of
log q̂ over tokens.
"""

from typing import Literal

import torch
from torch import Tensor

from discdiff.methods.diffusion import Diffusion
from discdiff.objectives import Continuous
from discdiff.parameterizations import LeaveOneOut
from discdiff.processes import Hybrid


class Gidd(Diffusion, frozen=True):
    """Mask noise with a share of uniform noise."""

    kind: Literal["gidd"] = "gidd"
    process: Hybrid = Hybrid()
    parameterization: LeaveOneOut = LeaveOneOut()
    clock: Continuous = Continuous()  # pyright: ignore[reportIncompatibleVariableOverride]

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The divergence of marginals, weighted by the rate. `[N, V] -> [N]`"""
        vocab = raw.shape[-1]
        level = self.process.levels(t, vocab)
        alpha, low, mask = (x.to(raw) for x in (level.alpha, level.uniform, level.mask))
        high = alpha + low
        log_q = torch.logaddexp(raw.log_softmax(-1) + alpha.log()[..., None], low.log()[..., None])
        log_q0 = log_q.gather(-1, x0[..., None])[..., 0]
        others = (vocab - 1) * low.log() - (log_q.sum(-1) - log_q0)
        kl = high * (high.log() - log_q0) + low * others
        masked = x_t == vocab
        log_qt = log_q.gather(-1, x_t.clamp_max(vocab - 1)[..., None])[..., 0]
        true_t = torch.where(masked, mask, torch.where(x_t == x0, high, low))
        log_ratio = torch.where(masked, 0, true_t.log() - log_qt)
        rate = self.process.rate(x_t, t, vocab)[..., 0].to(raw)
        return rate / true_t * (kl + torch.expm1(log_ratio) - log_ratio)
