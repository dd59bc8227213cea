"""The exponential of a rate matrix applied to vectors, p exp(sigma R), without drawing and without a V x V
table of it.

    Eigenbasis       R = S diag(lambda) S^-1 once, then exp(sigma lambda): for small V, any sigma up to
    infinity
    Uniformization   sum over k of Poisson(k; q sigma) p P^k with P = I + R / q, q the largest rate of leaving
    a state (Jensen 1953):
                     sparse products of nonnegative numbers, memory linear in V, sigma finite

The two are one law. `columns=True` stands for exp(sigma R) v in place of v exp(sigma R): a likelihood in
place of a marginal.
"""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from discdiff.processes.kernels import Generator
from discdiff.types import Value


class Eigenbasis(Value, frozen=True):
    """Dense, exact for any sigma; the basis takes V^3 once and each product V^2."""

    kind: Literal["eigenbasis"] = "eigenbasis"

    def prepare(self, rates: Generator, device: torch.device) -> "Basis":
        return Basis(rates, device)


class Uniformization(Value, frozen=True):
    """Sparse: as many products as jumps are likely, with what is left out below `tolerance`."""

    kind: Literal["uniformization"] = "uniformization"
    tolerance: float = Field(default=1e-12, gt=0, lt=1e-3)

    def prepare(self, rates: Generator, device: torch.device) -> "Series":
        return Series(rates, self.tolerance, device)


class Basis:
    """exp(sigma R) through eigenvectors. Eigenvalues that are zero to rounding are zero."""

    def __init__(self, rates: Generator, device: torch.device):
        value, vector = torch.linalg.eig(rates.dense())
        self.value = torch.where(value.abs() < 1e-12, 0, value).to(device)
        self.vector, self.inverse = vector.to(device), torch.linalg.inv(vector).to(device)

    def apply(
        self, p: Float[Tensor, "N K"], sigma: Float64[Tensor, "N"], columns: bool
    ) -> Float[Tensor, "N K"]:
        """p exp(sigma R), or exp(sigma R) p. `[N, K] -> [N, K]`, in float64 inside"""
        left, right = self.vector, self.inverse
        if columns:
            left, right = right.T, left.T
        scale = torch.where(self.value == 0, 1, (sigma[:, None] * self.value).exp())
        moved = ((p.to(left.dtype) @ left) * scale) @ right
        return moved.real.clamp_min(0).to(p.dtype)


class Series:
    """exp(sigma R) as a Poisson mixture of powers."""

    def __init__(self, rates: Generator, tolerance: float, device: torch.device):
        exits = rates.exits()
        self.rate = exits.max().item()
        self.tolerance = tolerance
        diagonal = torch.arange(rates.states)
        index = torch.stack([torch.cat([rates.source, diagonal]), torch.cat([rates.target, diagonal])])
        value = torch.cat([rates.rate / self.rate, 1 - exits / self.rate])
        shape = (rates.states, rates.states)
        with torch.sparse.check_sparse_tensor_invariants():
            rows = torch.sparse_coo_tensor(index, value, shape).coalesce()
            self.rows, self.columns = rows.to(device), rows.t().coalesce().to(device)

    @staticmethod
    def terms_of(most: float, tolerance: float) -> int:
        """Jumps to count for a Poisson law of mean at most `most`: more than these have less than
        `tolerance`.

        By Chernoff, P(N >= m + d) <= exp(-d^2 / (2 (m + d / 3))).
        """
        bits = -math.log(tolerance)
        return math.ceil(most + bits / 3 + math.sqrt(bits**2 / 9 + 2 * most * bits))

    def apply(
        self, p: Float[Tensor, "N K"], sigma: Float64[Tensor, "N"], columns: bool
    ) -> Float[Tensor, "N K"]:
        """p exp(sigma R), or exp(sigma R) p. `[N, K] -> [N, K]`"""
        step = (self.rows if columns else self.columns).to(p.dtype)
        mean = self.rate * sigma
        count = self.terms_of(mean.max().item() if len(mean) else 0.0, self.tolerance)
        weight = poisson(mean, count).to(p.dtype)
        moving = p.T
        total = moving * weight[:, 0]
        for k in range(1, count + 1):
            moving = torch.sparse.mm(step, moving)
            total = total + moving * weight[:, k]
        return total.T


def poisson(mean: Float64[Tensor, "N"], count: int) -> Float64[Tensor, "N C"]:
    """Poisson probabilities of 0 ... count. `[N] -> [N, count + 1]`"""
    k = torch.arange(count + 1, device=mean.device, dtype=torch.float64)
    return (torch.special.xlogy(k, mean[:, None]) - mean[:, None] - torch.lgamma(k + 1)).exp()


AnyRoute = Annotated[Eigenbasis | Uniformization, Field(discriminator="kind")]
