"""UDLM: uniform-noise diffusion. Schiff et al. 2024, arXiv:2412.10193.

The network states the leave-one-out law, and the bound is the divergence of rates in closed form.
"""

from typing import Literal

from torch import Tensor

from discdiff.closed_forms import uniform_divergence
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
        return uniform_divergence(self.process, self.parameterization, raw, x0, x_t, t)
