"""UDLM: uniform-noise diffusion. Schiff et al. 2024, arXiv:2412.10193.

The network states the leave-one-out law w. With kappa = V alpha / (1 - alpha), the marginals over u = (1 -
alpha) / V are

    true   rho_0(y) = 1 + kappa [y = x_0],      model   rho(y) = 1 + kappa w(y),

and the divergence of rates is -alpha' / (V alpha) * sum over y of (r̂ - r + r log(r / r̂)) with r = rho_0(y)
/ rho_0(x_t), r̂ = rho(y) / rho(x_t). As rho_0 takes two values it needs three numbers of the logits: w(x_t),
w(x_0) and the sum of log rho over other tokens. So the backward pass holds one tensor of the logits' size.
"""

from typing import Literal

import torch
from torch import Tensor

from discdiff.closed_forms import Stand
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
        """The divergence of rates from w(x_t), w(x_0) and the sum of log rho. `[N, V] -> [N]`"""
        alpha, dalpha = self.process.schedule.alpha(t), self.process.schedule.dalpha(t)
        stand = Stand.of(self.process, self.parameterization, raw, x0, x_t, t, t)
        vocab, kappa = stand.vocab, stand.log_kappa.exp()
        model_t, model_0 = stand.lift_t, stand.lift_0
        same = x_t == x0
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
