"""Laws: sources of tokens whose entropy is known exactly, and a corpus of their samples.

On such a corpus the loss of a perfect model is known, so a bound below `entropy(L)` is a bug and the
distance above it is what there is left to learn.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int, Int64
from pydantic import Field
from torch import Tensor

from discdiff.data.characters import symbols
from discdiff.data.grammar import Grammar, Rule
from discdiff.data.hidden import HiddenMarkov
from discdiff.data.markov import MarkovChain
from discdiff.data.spans import SPAN, Piece, Span, cut
from discdiff.noise import Noise
from discdiff.types import Value

__all__ = ["AnyLaw", "Grammar", "HiddenMarkov", "KnownLaw", "Law", "MarkovChain", "Rule"]

_ROWS = 256
_APART = 2**40
"""Rows of the splits are this far apart: a longer training split leaves the others as they are."""


@runtime_checkable
class KnownLaw(Protocol):
    """A distribution of token sequences of any length, with its entropy."""

    @property
    def vocab(self) -> int: ...

    @property
    def entropy_rate(self) -> float: ...

    def entropy(self, length: int) -> float: ...

    def log_prob(self, tokens: Int[Tensor, "B L"]) -> Float64[Tensor, "B"]: ...

    def sample(self, noise: Noise, length: int) -> Int64[Tensor, "B L"]: ...


AnyLaw = Annotated[MarkovChain | HiddenMarkov | Grammar, Field(discriminator="kind")]

Count = Annotated[int, Field(ge=0, lt=_APART)]


class Law(Value, frozen=True):
    """A corpus of samples: documents of `length` tokens, so many in each split, drawn by row from one seed.

    Tokens are written as the characters of `Symbols(size=law.vocab)`: under that tokenizer nothing is
    added, and rows of `length` tokens are documents.
    """

    kind: Literal["law"] = "law"
    law: AnyLaw
    length: Annotated[int, Field(ge=1)]
    train: Annotated[int, Field(ge=1, lt=_APART)]
    validation: Count = 0
    test: Count = 0
    seed: int = 0

    def plan(self, size: int = SPAN) -> list[Span]:
        """Ranges of documents, split by split."""
        spans: list[Span] = []
        for index, split in enumerate(("train", "validation", "test")):
            count = getattr(self, split)
            first = index * _APART
            for a, b in cut(count, max(1, size // self.length)) if count else ():
                piece = Piece(f"law {self.law.kind}", "", first + a, first + b, (b - a) * self.length)
                spans.append(Span((piece,), split))
        return spans

    def documents(self, span: Span) -> Iterator[str]:
        """The documents of a range, each drawn by its number alone."""
        alphabet = symbols(self.law.vocab)
        for piece in span.pieces:
            stop = piece.stop or 0
            for start in range(piece.start, stop, _ROWS):
                rows = torch.arange(start, min(start + _ROWS, stop))
                for row in self.law.sample(Noise(self.seed, rows=rows), self.length).tolist():
                    yield "".join(map(alphabet.__getitem__, row))
