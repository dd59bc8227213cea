"""UDLM: uniform-noise diffusion. Schiff et al. 2024, arXiv:2412.10193.

The network states the leave-one-out law w. With c = V alpha and a = 1 - alpha, V times the marginals are

    true   qb(y) = c [y = x_0] + a,      model   qt(y) = c w(y) + a,

and the divergence of rates, -alpha' / (V alpha) * sum over y of (r̂ - r + r log(r / r̂)) with r =
qb(y)/qb(x_t), r̂ = qt(y)/qt(x_t), needs only three numbers of the logits, because qb takes two values:
w(x_t), w(x_0) and sum over y of log qt(y). So the backward pass holds one tensor of the logits' size.
"""

from typing import Literal

import torch
from torch import Tensor

from discdiff.methods.diffusion import Diffusion
from discdiff.objectives import Continuous
from discdiff.parameterizations import LeaveOneOut
from discdiff.processes import Uniform


class Udlm(Diffusion, frozen=True):
    """Uniform-noise diffusion in continuous time, in closed form."""

    kind: Literal["udlm"] = "udlm"
    process: Uniform = Uniform()
    parameterization: LeaveOneOut = LeaveOneOut()
    clock: Continuous = Continuous()  # pyright: ignore[reportIncompatibleVariableOverride]

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The divergence of rates from w(x_t), w(x_0) and sum log qt. `[N, V] -> [N]`"""
        vocab = raw.shape[-1]
        alpha, dalpha = self.process.schedule.alpha(t), self.process.schedule.dalpha(t)
        scale, floor = (vocab * alpha).to(raw), self.process.schedule.beta(t).to(raw)
        log_w = raw.log_softmax(-1)
        log_qt = torch.logaddexp(log_w + scale.log()[..., None], floor.log()[..., None])
        model_t, model_0 = _at(log_qt, x_t), _at(log_qt, x0)
        same = x_t == x0
        true_0, true_other = (scale + floor).log(), floor.log()
        true_t = torch.where(same, true_0, true_other)
        # sum over y of r̂ is V / qt(x_t); the same holds for r; the terms of y = x_t cancel.
        ratios = vocab * ((-model_t).exp() - (-true_t).exp())
        # sum over y of r (log r - log r̂), where r is one number for every y but x_0.
        other = (true_other - true_t).exp()
        first = (true_0 - true_t).exp()
        gap = model_t - true_t
        rest = other * ((vocab - 1) * (true_other + gap) - (log_qt.sum(-1) - model_0))
        return (-dalpha / (vocab * alpha)).to(raw) * (ratios + rest + first * (true_0 + gap - model_0))


def _at(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index[..., None])[..., 0]
