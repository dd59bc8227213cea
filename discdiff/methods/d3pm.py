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

from discdiff.closed_forms import Stand, bridge_divergence, log_kappa
from discdiff.methods.diffusion import Diffusion
from discdiff.objectives import Steps
from discdiff.parameterizations import AnyParameterization, LeaveOneOut, Posterior
from discdiff.processes import AnyProcess, Mask, Matrix, Uniform
from discdiff.sums import cross_entropy


class D3pm(Diffusion, frozen=True):
    """T steps, any process, with the hybrid loss."""

    kind: Literal["d3pm"] = "d3pm"
    process: AnyProcess = Uniform()
    parameterization: AnyParameterization = LeaveOneOut()
    clock: Steps = Steps(count=1000)  # pyright: ignore[reportIncompatibleVariableOverride]
    auxiliary: float = Field(default=0.01, ge=0)

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """T times the divergence of the bridges of the step that ends at t. `[N, W] -> [N]`"""
        return self._hybrid(raw, x0, x_t, t, 0.0)

    def objective(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The bound plus lambda times the cross-entropy of x_0. `[N, W] -> [N]`"""
        return self._hybrid(raw, x0, x_t, t, self.auxiliary)

    def _hybrid(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, auxiliary: float) -> Tensor:
        process, reading = self.process, self.parameterization
        if not isinstance(reading, LeaveOneOut | Posterior) or isinstance(process, Matrix):
            bound = super().density(raw, x0, x_t, t)
            return bound + auxiliary * self._entropy(raw, x0, x_t, t) if auxiliary else bound
        if isinstance(process, Mask):
            weight = self.clock.mask_weight(process.schedule, t) + auxiliary
            return weight.to(raw) * cross_entropy(raw, x0) * (x_t == raw.shape[-1])
        s = self.clock.start(t)
        stand = Stand.of(process, reading, raw, x0, x_t, t, s)
        bound = self.clock.count * bridge_divergence(process, stand, t)
        return (bound + auxiliary * stand.entropy(log_kappa(process, t, stand.vocab))).to(raw)

    def _entropy(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        log_posterior = self.parameterization.log_posterior(self.process, raw, x_t, t)
        return -log_posterior.gather(-1, x0[..., None])[..., 0]
