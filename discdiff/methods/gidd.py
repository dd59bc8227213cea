"""GIDD: generalized interpolating discrete diffusion. von Rütte et al. 2025, arXiv:2503.04482.

The network states the leave-one-out law w, through which q̂(y) = q_t(y | w). With R the rate into x_t, which
does not depend on where the jump comes from, the bound's integrand is

    R / q_t(x_t|x_0) * ( KL(q_t(.|x_0) || q̂)  +  IS(q_t(x_t|x_0) || q̂(x_t)) ),        IS(p || q) = p/q -
    log(p/q) - 1.

Training may replace the weight R / q_t(x_t|x_0), which is unbounded at both ends of time, by the paper's
dynamic one: with lambda = log(alpha / (1 - alpha)) and B the scale of the uniform noise (`Hybrid`),

    w ( 1 + [x_t = mask] + (B / V exp(-lambda / 2) - 1) [x_t = x_0] ),

which keeps the order of weights between masked, replaced and untouched tokens. The bound never uses it.

As q_t(.|x_0) takes two values on tokens and both laws agree on the mask, KL needs q̂ at x_0 and the sum of
log q̂ over tokens.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from discdiff.closed_forms import Stand, marginal_divergence, rate_weight
from discdiff.methods.diffusion import Diffusion
from discdiff.objectives import Continuous
from discdiff.parameterizations import LeaveOneOut
from discdiff.processes import Hybrid
from discdiff.types import Value


class Exact(Value, frozen=True):
    """Train on the bound itself."""

    kind: Literal["exact"] = "exact"

    def weight(
        self, process: Hybrid, exact: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, vocab: int
    ) -> Tensor:
        """The bound's own weight."""
        return exact


class Dynamic(Value, frozen=True):
    """Train with the dynamic weight, `scale` times (1, 2 at masks, B / V exp(-lambda / 2) at untouched
    tokens).
    """

    kind: Literal["dynamic"] = "dynamic"
    scale: float = Field(default=1.0, gt=0)

    def weight(
        self, process: Hybrid, exact: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, vocab: int
    ) -> Tensor:
        """The dynamic weight, at each position."""
        level = process.levels(t, vocab)
        odds = (level.mask + vocab * level.uniform) / level.alpha  # exp(-lambda)
        untouched = process.strength / vocab * odds.sqrt()
        weight = torch.where(x_t == vocab, 2.0, torch.where(x_t == x0, untouched, 1.0))
        return self.scale * weight


class Gidd(Diffusion, frozen=True):
    """Mask noise with a share of uniform noise."""

    kind: Literal["gidd"] = "gidd"
    process: Hybrid = Hybrid()
    parameterization: LeaveOneOut = LeaveOneOut()
    clock: Continuous = Continuous()  # pyright: ignore[reportIncompatibleVariableOverride]
    weighting: Annotated[Exact | Dynamic, Field(discriminator="kind")] = Dynamic()

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The divergence of marginals with the bound's weight. `[N, V] -> [N]`"""
        weight, nats = self._terms(raw, x0, x_t, t)
        return (weight * nats).to(raw)

    def objective(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The divergence of marginals with the weight of training. `[N, V] -> [N]`"""
        exact, nats = self._terms(raw, x0, x_t, t)
        weight = self.weighting.weight(self.process, exact, x0, x_t, t, raw.shape[-1])
        return (weight * nats).to(raw)

    def _terms(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """R / q_t(x_t|x_0), and KL + IS."""
        stand = Stand.of(self.process, self.parameterization, raw, x0, x_t, t, t)
        return rate_weight(stand), marginal_divergence(stand)
