"""Discrete flow matching. Gat et al. 2024, arXiv:2407.15595; Campbell et al. 2024, arXiv:2402.04997.

The path is q_t(y | x_0) = alpha [y = x_0] + (1 - alpha) source(y), the source all masks or uniform tokens:
the marginals of mask and uniform noise. The network states the posterior p(x_0 | x_t). Its probability
velocity moves a token straight to its prediction,

    rate from x_t to y = h p(y | x_t),        h = -alpha' / (1 - alpha),        y != x_t,

while the conditional one is h [y = x_0]; both have the path's marginals. Training minimizes one of

    cross-entropy             -log p(x_0 | x_t), unweighted
    generalized KL            h ( [x_t = x_0] - p(x_t | x_t) - [x_t != x_0] log p(x_0 | x_t) )

the latter being the divergence of these rates, hence a bound on -log p of samples drawn by the velocity:
`velocity_bound`. It is a bound of another process than time reversal: `bound` is the latter's, shared by all
discrete methods, so that numbers may stand in one column; the two are never mixed. With a mask source they
are the same.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from discdiff.closed_forms import rate_divergence
from discdiff.methods.diffusion import Diffusion
from discdiff.noise import Noise
from discdiff.objectives import Continuous, masked_divergence
from discdiff.parameterizations import Posterior
from discdiff.processes import Mask, Uniform
from discdiff.schedules import Power
from discdiff.sums import with_total
from discdiff.types import Canvas, Network, Value


class CrossEntropy(Value, frozen=True):
    """Learn the posterior by its unweighted cross-entropy."""

    kind: Literal["cross_entropy"] = "cross_entropy"

    def term(self, stated: "Stated", x0: Tensor, x_t: Tensor, speed: Tensor) -> Tensor:
        """-log p(x_0 | x_t). `[...] -> [...]`"""
        return stated.entropy


class GeneralizedKl(Value, frozen=True):
    """Learn the posterior by the divergence of velocities."""

    kind: Literal["generalized_kl"] = "generalized_kl"

    def term(self, stated: "Stated", x0: Tensor, x_t: Tensor, speed: Tensor) -> Tensor:
        """Nats per unit time of the velocities. `[...] -> [...]`"""
        return velocity_divergence(stated, x0, x_t, speed)


@dataclass(frozen=True)
class Stated:
    """What a posterior says of x_0 and of leaving x_t, from one pass over its logits."""

    entropy: Tensor
    """-log p(x_0 | x_t)"""
    leave: Tensor
    """1 - p(x_t | x_t), which is one at masks"""

    @staticmethod
    def of(raw: Float[Tensor, "*n V"], x0: Tensor, x_t: Tensor) -> "Stated":
        """Read the logits. `[..., V] -> [...]`"""
        sums = with_total(raw, x0, x_t)
        log_norm = torch.logaddexp(sums.around, sums.at_t)
        return Stated(log_norm - sums.at_0, (sums.around - log_norm).exp())


def velocity_divergence(stated: Stated, x0: Tensor, x_t: Tensor, speed: Tensor) -> Tensor:
    """h ([x_t = x_0] - p(x_t | x_t) - [x_t != x_0] log p(x_0 | x_t)). `[...] -> [...]`"""
    moved = stated.entropy - 1 + stated.leave
    return speed * torch.where(x_t == x0, stated.leave, moved)


class FlowMatching(Diffusion, frozen=True):
    """Discrete flow matching with a mask or a uniform source."""

    kind: Literal["flow_matching"] = "flow_matching"
    process: Annotated[Mask | Uniform, Field(discriminator="kind")] = Uniform(schedule=Power(power=2))
    parameterization: Posterior = Posterior()
    clock: Continuous = Continuous()  # pyright: ignore[reportIncompatibleVariableOverride]
    learns: Annotated[CrossEntropy | GeneralizedKl, Field(discriminator="kind")] = CrossEntropy()

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The divergence of rates of time reversal, shared by all discrete methods. `[N, V] -> [N]`"""
        if isinstance(self.process, Mask):
            return masked_divergence(self.clock, self.process.schedule, raw, x0, x_t, t)
        return rate_divergence(self.process, self.parameterization, raw, x0, x_t, t)

    def objective(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Cross-entropy or the divergence of velocities. `[N, V] -> [N]`"""
        return self.learns.term(Stated.of(raw, x0, x_t), x0, x_t, self._speed(t).to(raw))

    def velocity_density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The integrand of the velocity's own bound. `[N, V] -> [N]`"""
        return velocity_divergence(Stated.of(raw, x0, x_t), x0, x_t, self._speed(t).to(raw))

    def velocity_bound(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """A bound on -log p of what the velocity generates; not comparable with `bound`. `-> [B]` nats"""
        noise = noise.on(canvas.rows)
        estimate = self._noised(net, canvas, noise.time(), noise, self.velocity_density)
        return estimate + self.ends(net, canvas, noise)

    def _speed(self, t: Tensor) -> Tensor:
        return -self.process.schedule.dalpha(t) / self.process.schedule.beta(t)
