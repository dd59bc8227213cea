"""Mask (absorbing) noise: u = 0, m = 1 - alpha. D3PM (arXiv:2107.03006), MDLM (arXiv:2406.07524), MD4
(arXiv:2406.04329).
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from discdiff.processes.interpolating import Interpolating, Levels


class Mask(Interpolating, frozen=True):
    """Each token is replaced by the mask once, at a time drawn from the schedule, and stays so."""

    kind: Literal["mask"] = "mask"
    extra: ClassVar[int] = 1

    def levels(self, t: Tensor, vocab: int) -> Levels:
        alpha, dalpha = self.schedule.alpha(t), self.schedule.dalpha(t)
        zero = torch.zeros_like(alpha)
        return Levels(alpha, zero, self.schedule.beta(t), dalpha, zero, -dalpha)

    def live(self, x_t: Tensor, vocab: int) -> Tensor:
        return x_t == vocab
