"""Exponential moving average of the weights: what validation, evaluation and generation use.

After n updates with weights theta_1 .. theta_n the average is the bias-corrected

    sum_k d^(n - k) theta_k / sum_k d^(n - k),

kept as avg <- avg + w_n (theta_n - avg) with w_n = (1 - d) / (1 - d^n), so the first update forgets the
initialization and short runs are averaged as they should be. All arithmetic is on the local shard of a
sharded parameter: no communication.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from discdiff.types import DiscdiffError


class Ema:
    """The average of a network's trained parameters; make it after the network was wrapped or sharded."""

    def __init__(self, network: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise DiscdiffError(
                f"an EMA decay of {decay} was given: it lies in [0, 1), 0 for the plain weights"
            )
        self.decay = decay
        self.updates = 0
        parameters = trained_parameters(network)
        self.average = {name: p.detach().clone() for name, p in parameters.items()}
        self._averages = [local(tensor) for tensor in self.average.values()]
        self._parameters = [local(p.detach()) for p in parameters.values()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after one more optimizer step."""
        self.updates += 1
        weight = (1 - self.decay) / (1 - self.decay**self.updates)
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.lerp_(parameter, weight)

    @contextmanager
    def swapped(self) -> Generator[None]:
        """The network holds the averaged weights inside, and its own again, bit for bit, after."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights and the averaged ones."""
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but the frozen ones, which have no other average than themselves."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, the tensor itself otherwise; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
