"""MDLM: masked diffusion. Sahoo et al. 2024, arXiv:2406.07524.

With mask noise the leave-one-out law and the posterior agree at masked positions, unmasked ones are certain,
and the bound is cross-entropy on masked tokens,

    nats per unit time = -alpha' / (1 - alpha) * -log p(x_0 | x_t)          (continuous time)
                         T (alpha_s - alpha_t) / (1 - alpha_t) * the same    (T steps).

Shi et al. 2024 (MD4, arXiv:2406.04329) derive the same model; theirs has other schedules.
"""

from typing import Literal

from torch import Tensor

from discdiff.methods.diffusion import Diffusion
from discdiff.objectives import masked_divergence
from discdiff.parameterizations import Posterior
from discdiff.processes import Mask


class Mdlm(Diffusion, frozen=True):
    """Masked diffusion whose bound is a weighted cross-entropy."""

    kind: Literal["mdlm"] = "mdlm"
    process: Mask = Mask()
    parameterization: Posterior = Posterior()

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Cross-entropy at masked positions, weighted. `[N, V] -> [N]`"""
        return masked_divergence(self.clock, self.process.schedule, raw, x0, x_t, t)
