"""SEDD: score entropy discrete diffusion. Lou, Meng and Ermon 2023, arXiv:2310.16834.

The network states the log ratios s(y) = p_t(y) / p_t(x_t), scaled by the noise level. For any process whose
rate into a state does not depend on where the jump comes from, the diffusion-weighted denoising score entropy
is, with the true ratios r(y) = q_t(y|x_0) / q_t(x_t|x_0) and R the rate into x_t,

    R * sum over y of  s(y) - r(y) + r(y) (log r(y) - log s(y)),

where the term of y = x_t is zero. As r takes three values (at x_0, at other tokens, at the mask), it needs
the sums of s and of log s over tokens, and s at x_0 and at the mask.

With uniform noise every ratio tends to one as t -> 1 while R grows like 1 / alpha, so that a score which is
off by e costs e^2 / alpha there: cut the schedule's end off, as the paper does, by
`Uniform(schedule=Linear(eps=1e-3))` or `Geometric`. With mask noise the scaling of the output takes this
away.
"""

from typing import Literal

import torch
from torch import Tensor

from discdiff.methods.diffusion import Diffusion
from discdiff.objectives import Continuous
from discdiff.parameterizations import AnyParameterization, ScaledScore
from discdiff.processes import AnyProcess, Interpolating, Mask


class Sedd(Diffusion, frozen=True):
    """Score entropy, on any process."""

    kind: Literal["sedd"] = "sedd"
    process: AnyProcess = Mask()
    parameterization: AnyParameterization = ScaledScore()
    clock: Continuous = Continuous()  # pyright: ignore[reportIncompatibleVariableOverride]

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Score entropy, weighted by the rate. `[N, W] -> [N]`"""
        if not isinstance(self.process, Interpolating):
            return super().density(raw, x0, x_t, t)
        log_s = self.parameterization.log_score(self.process, raw, x_t, t)
        vocab = log_s.shape[-1] - self.process.extra
        level = self.process.levels(t, vocab)
        here = torch.where(x_t == vocab, level.mask, level.uniform + (x_t == x0) * level.alpha)
        at_x0 = ((level.uniform + level.alpha) / here).to(log_s)
        at_token, at_mask = (level.uniform / here).to(log_s), (level.mask / here).to(log_s)
        log_s0 = log_s.gather(-1, x0[..., None])[..., 0]
        other = log_s[..., :vocab].sum(-1) - log_s0
        cross = at_x0 * log_s0 + at_token * other
        negative_entropy = torch.special.xlogy(at_x0, at_x0) + (vocab - 1) * torch.special.xlogy(
            at_token, at_token
        )
        if self.process.extra:
            cross = cross + at_mask * log_s[..., vocab]
            negative_entropy = negative_entropy + torch.special.xlogy(at_mask, at_mask)
        rate = self.process.rate(x_t, t, vocab)[..., 0].to(log_s)
        return rate * (log_s.exp().sum(-1) - (1 / here).to(log_s) + negative_entropy - cross)
