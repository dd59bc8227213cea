"""Noise processes q(x_t | x_0): what a forward process must offer, and the union of all.

Everything else (posteriors, scores, bridges, reverse rates) is derived from these primitives in
`discdiff.algebra`.
"""

from typing import Annotated, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from discdiff.noise import Noise
from discdiff.processes.hybrid import Hybrid
from discdiff.processes.interpolating import Interpolating, Levels
from discdiff.processes.mask import Mask
from discdiff.processes.matrix import Matrix
from discdiff.processes.uniform import Uniform

__all__ = ["AnyProcess", "Hybrid", "Interpolating", "Levels", "Mask", "Matrix", "Process", "Uniform"]


@runtime_checkable
class Process(Protocol):
    """A Markov process on K = vocab + extra states, the same at every position. `...` is any shape; times
    broadcast to it.
    """

    extra: ClassVar[int]
    """1 with a mask token (whose id is vocab), else 0."""

    @property
    def ends(self) -> tuple[float, float]:
        """alpha at t = 0 and t = 1; a bound has prior and reconstruction terms unless these are (1, 0)."""
        ...

    def states(self, vocab: int) -> int: ...
    def alpha(self, t: Tensor) -> Tensor: ...
    def live(self, x_t: Tensor, vocab: int) -> Tensor: ...
    def corrupt(self, x0: Tensor, t: Tensor, vocab: int, noise: Noise) -> Tensor: ...
    def prior(self, shape: tuple[int, int], vocab: int, noise: Noise) -> Tensor: ...
    def log_marginal(self, log_clean: Tensor, t: Tensor) -> Tensor: ...
    def log_unmarginal(self, log_noisy: Tensor, t: Tensor) -> Tensor: ...
    def log_likelihood(self, x_t: Tensor, t: Tensor, vocab: int, dtype: torch.dtype) -> Tensor: ...
    def log_transition(self, x_t: Tensor, s: Tensor, t: Tensor, vocab: int, dtype: torch.dtype) -> Tensor: ...
    def rate(self, x_t: Tensor, t: Tensor, vocab: int) -> Tensor: ...


AnyProcess = Annotated[Mask | Uniform | Hybrid | Matrix, Field(discriminator="kind")]
