"""MD4: masked diffusion, simplified and generalized. Shi et al. 2024, arXiv:2406.04329.

The bound is an integral of weighted cross-entropies, nats per unit time = -alpha' / (1 - alpha) * -log
mu(x_0) at masked positions, with mu the network's law of x_0; in continuous time it does not depend on the
schedule, but the variance of its estimate and the quality of T-step sampling do. The paper's schedules are
linear, polynomial (1 - t^w) and cosine, its default.
"""

from typing import Literal

from torch import Tensor

from discdiff.methods.diffusion import Diffusion
from discdiff.objectives import masked_divergence
from discdiff.parameterizations import Posterior
from discdiff.processes import Mask
from discdiff.schedules import Cosine


class Md4(Diffusion, frozen=True):
    """Masked diffusion with a cosine schedule."""

    kind: Literal["md4"] = "md4"
    process: Mask = Mask(schedule=Cosine())
    parameterization: Posterior = Posterior()

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Cross-entropy at masked positions, weighted. `[N, V] -> [N]`"""
        return masked_divergence(self.clock, self.process.schedule, raw, x0, x_t, t)
