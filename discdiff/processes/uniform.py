"""Uniform noise: u = (1 - alpha) / V, no mask. Multinomial diffusion (arXiv:2102.05379), UDLM
(arXiv:2412.10193).
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from discdiff.processes.interpolating import Interpolating, Levels


class Uniform(Interpolating, frozen=True):
    """Each token is replaced, again and again, by one drawn uniformly from all V, itself included."""

    kind: Literal["uniform"] = "uniform"
    extra: ClassVar[int] = 0

    def levels(self, t: Tensor, vocab: int) -> Levels:
        alpha, dalpha = self.schedule.alpha(t), self.schedule.dalpha(t)
        zero = torch.zeros_like(alpha)
        return Levels(alpha, self.schedule.beta(t) / vocab, zero, dalpha, -dalpha / vocab, zero)
