"""Kernels: rate matrices by their sparse rows, for noise that knows which tokens are alike.

A generator R on K states has rates R(z -> y) >= 0 for y != z and rows that sum to zero; it is kept as lists
of neighbors, so that V = 50,257 tokens with 20 neighbors each take megabytes. Rates are normalized so that
leaving a state has rate at most one.

    Gaussian     R(i -> j) proportional to exp(-4 (i - j)^2 / ((V - 1)^2 width)) for |i - j| <= band: the
    discretized Gaussian of
                 D3PM (Austin et al. 2021, arXiv:2107.03006), whose transition matrix has these entries, taken
                 as a generator so that steps of any length belong to one process
    Neighbors    R = (G + G^T) / (2 k) off the diagonal, G the k-nearest-neighbor graph of token embeddings:
    D3PM's generator, of
                 which its transition matrices are matrix exponentials
    Complete     R(i -> j) = 1 / V: uniform noise, here as a check
"""

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import fsspec
import numpy as np
import torch
from jaxtyping import Float64, Int64
from pydantic import Field
from torch import Tensor

from discdiff.types import DiscdiffError, Value


@dataclass(frozen=True, eq=False)
class Generator:
    """A rate matrix by its nonzero off-diagonal entries: `rate[e]` from `source[e]` to `target[e]`."""

    states: int
    source: Int64[Tensor, "E"]
    target: Int64[Tensor, "E"]
    rate: Float64[Tensor, "E"]

    def exits(self) -> Float64[Tensor, "K"]:
        """The rate of leaving each state."""
        return torch.zeros(self.states, dtype=torch.float64).index_add(0, self.source, self.rate)

    def dense(self) -> Float64[Tensor, "K K"]:
        """R as a matrix, rows sources."""
        matrix = torch.zeros(self.states, self.states, dtype=torch.float64)
        matrix[self.source, self.target] = self.rate
        return matrix - torch.diag(self.exits())


def generator(source: Tensor, target: Tensor, weight: Tensor, states: int) -> Generator:
    """Weights of edges as a generator whose largest rate of leaving a state is one."""
    order = (source * states + target).argsort()
    bare = Generator(states, source[order], target[order], weight[order].double())
    return Generator(states, bare.source, bare.target, bare.rate / bare.exits().max())


class Gaussian(Value, frozen=True):
    """Tokens whose ids are close are exchanged: for ordered data."""

    kind: Literal["gaussian"] = "gaussian"
    width: float = Field(default=0.02, gt=0)
    band: int = Field(default=16, ge=1)

    def generator(self, vocab: int) -> Generator:
        """The banded rate matrix on V states."""
        token = torch.arange(vocab)
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        weights: list[Tensor] = []
        for distance in range(1, min(self.band, vocab - 1) + 1):
            weight = torch.tensor(
                -4 * distance**2 / ((vocab - 1) ** 2 * self.width), dtype=torch.float64
            ).exp()
            low, high = token[:-distance], token[distance:]
            sources += [low, high]
            targets += [high, low]
            weights += [weight.expand(len(low) * 2)]
        return generator(torch.cat(sources), torch.cat(targets), torch.cat(weights), vocab)


class Neighbors(Value, frozen=True):
    """Tokens whose embeddings are close are exchanged.

    `embeddings` is the URI of a .npy file `[V, E]` and `digest` the sha256 of its bytes, so that the
    specification says which embeddings they are and not only where.
    """

    kind: Literal["neighbors"] = "neighbors"
    embeddings: str
    digest: str
    count: int = Field(default=20, ge=1)

    def generator(self, vocab: int) -> Generator:
        """The symmetrized nearest-neighbor graph on V states."""
        table = _table(self.embeddings, self.digest)
        if table.shape[0] != vocab:
            raise DiscdiffError(
                f"{self.embeddings} holds {table.shape[0]} embeddings and the vocabulary has {vocab} tokens: "
                "take the embeddings of this tokenizer"
            )
        if self.count >= vocab:
            raise DiscdiffError(f"{self.count} neighbors of {vocab} tokens: take fewer than there are others")
        near = _nearest(table, self.count)
        source = torch.arange(vocab).repeat_interleave(self.count)
        both = torch.cat([source * vocab + near.flatten(), near.flatten() * vocab + source])
        edge, times = both.unique(return_counts=True)
        return generator(edge // vocab, edge % vocab, times.double() / (2 * self.count), vocab)


class Complete(Value, frozen=True):
    """Every token is exchanged for every other alike."""

    kind: Literal["complete"] = "complete"

    def generator(self, vocab: int) -> Generator:
        """1 / V off the diagonal, not normalized further: its time is that of uniform noise."""
        pair = torch.cartesian_prod(torch.arange(vocab), torch.arange(vocab))
        pair = pair[pair[:, 0] != pair[:, 1]]
        rate = torch.full((len(pair),), 1 / vocab, dtype=torch.float64)
        return Generator(vocab, pair[:, 0], pair[:, 1], rate)


@lru_cache(maxsize=4)
def _table(uri: str, digest: str) -> Tensor:
    try:
        with fsspec.open(uri, "rb") as file:
            content = bytes(file.read())  # pyright: ignore[reportAttributeAccessIssue]
    except OSError as error:
        raise DiscdiffError(f"the embeddings {uri} can't be read: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise DiscdiffError(f"the embeddings {uri} have sha256 {found}, not {digest}: they are other ones")
    return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False)).float()


def _nearest(table: Tensor, count: int) -> Tensor:
    """The nearest by Euclidean distance, a slice of rows at a time. `[V, E] -> [V, count]`"""
    square = (table**2).sum(-1)
    rows: list[Tensor] = []
    for start in range(0, len(table), 1024):
        part = table[start : start + 1024]
        distance = square - 2 * part @ table.T
        distance[torch.arange(len(part)), torch.arange(start, start + len(part))] = torch.inf
        rows.append(distance.topk(count, largest=False).indices)
    return torch.cat(rows)


AnyKernel = Annotated[Gaussian | Neighbors | Complete, Field(discriminator="kind")]
