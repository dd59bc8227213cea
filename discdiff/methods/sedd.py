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
from discdiff.parameterizations import AnyParameterization, ScaledScore, Score
from discdiff.processes import AnyProcess, Interpolating, Mask
from discdiff.sums import with_total


class Sedd(Diffusion, frozen=True):
    """Score entropy, on any process."""

    kind: Literal["sedd"] = "sedd"
    process: AnyProcess = Mask()
    parameterization: AnyParameterization = ScaledScore()
    clock: Continuous = Continuous()  # pyright: ignore[reportIncompatibleVariableOverride]

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Score entropy, weighted by the rate. `[N, W] -> [N]`"""
        process, reading = self.process, self.parameterization
        if isinstance(process, Interpolating) and isinstance(reading, Score):
            return self._entropy(process, reading, raw, x0, x_t, t)
        return super().density(raw, x0, x_t, t)

    def _entropy(
        self, process: Interpolating, reading: Score, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        """Score entropy from sums over the tokens that are not x_t, and the mask. `[N, K] -> [N]`"""
        vocab = raw.shape[-1] - process.extra
        level, masked = process.levels(t, vocab), x_t == vocab
        here = torch.where(masked, level.mask, level.uniform + (x_t == x0) * level.alpha)
        at_x0 = torch.where(x_t == x0, 0, (level.uniform + level.alpha) / here)
        at_token = level.uniform / here
        token, mask = reading.offsets(process, x_t, t, vocab)
        at_0, _, around, total = (x.double() for x in with_total(raw[..., :vocab], x0, x_t))
        others = vocab - 2 + (x_t == x0).double() + masked
        rest = total - torch.where(x_t == x0, 0, at_0) + others * token
        model = (around + token).exp()
        cross = at_x0 * (at_0 + token) + at_token * rest
        negative_entropy = torch.special.xlogy(at_x0, at_x0) + others * torch.special.xlogy(
            at_token, at_token
        )
        if process.extra:
            at_mask = torch.where(masked, 0, level.mask / here)
            log_mask = torch.where(masked, -torch.inf, raw[..., vocab] + mask)
            model = model + log_mask.exp()
            cross = cross + at_mask * torch.where(masked, 0, log_mask)
            negative_entropy = negative_entropy + torch.special.xlogy(at_mask, at_mask)
        true = 1 / here - 1
        rate = process.rate(x_t, t, vocab)[..., 0]
        return (rate * (model - true + negative_entropy - cross)).to(raw)
