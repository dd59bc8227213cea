"""D3PM: discrete diffusion in T steps. Austin et al. 2021, arXiv:2107.03006.

The bound is the sum over steps of KL(q(x_s | x_t, x_0) || p(x_s | x_t)); the network's law of x_0 enters p
through p(x_s | x_t) proportional to q(x_t | x_s) * sum over x_0 of q(x_s | x_0) w(x_0), which reads it as
leave-one-out. Training adds `auxiliary` times -log p(x_0 | x_t) (the paper's lambda), which learns a
posterior. With mask noise the two laws agree wherever there is something to predict; with any other noise
their optima differ, so the term is taken of the posterior that follows from w, and both terms have the same
optimum.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from discdiff.methods.diffusion import Diffusion
from discdiff.objectives import Steps
from discdiff.parameterizations import AnyParameterization, LeaveOneOut
from discdiff.processes import AnyProcess, Uniform


class D3pm(Diffusion, frozen=True):
    """T steps, any process, with the hybrid loss."""

    kind: Literal["d3pm"] = "d3pm"
    process: AnyProcess = Uniform()
    parameterization: AnyParameterization = LeaveOneOut()
    clock: Steps = Steps(count=1000)  # pyright: ignore[reportIncompatibleVariableOverride]
    auxiliary: float = Field(default=0.01, ge=0)

    def objective(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The bound plus lambda times the cross-entropy of x_0. `[N, W] -> [N]`"""
        log_posterior = self.parameterization.log_posterior(self.process, raw, x_t, t)
        entropy = -log_posterior.gather(-1, x0[..., None])[..., 0]
        return self.density(raw, x0, x_t, t) + self.auxiliary * entropy
