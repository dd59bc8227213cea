"""How documents become rows of one length: the reader's choice, never the writer's."""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from discdiff.data.order import below, derive, mix
from discdiff.data.store import Store
from discdiff.types import DiscdiffError, Value


@dataclass(frozen=True)
class Spans:
    """Where rows lie in the token stream of a store."""

    begin: np.ndarray
    """`[n]`"""
    sizes: np.ndarray | None = None
    """How many tokens of each row are text, `[n]`; what follows is padding. None if all are."""


@runtime_checkable
class Packing(Protocol):
    length: int

    def count(self, store: Store) -> int:
        """Rows of one epoch."""
        ...

    def spans(self, store: Store, rows: np.ndarray, visits: np.ndarray, seed: int) -> Spans:
        """Where rows lie, by number. `visits`, their positions in the endless stream, key what is drawn."""
        ...

    def documents(self, store: Store, begin: np.ndarray) -> np.ndarray | None:
        """Which document of its row each token belongs to, where attention must know: `[n] -> [n, L]`."""
        ...


class _Cut(Value, frozen=True):
    """The token stream cut into rows. The end that does not fill a row is left out."""

    length: int = Field(ge=1)

    def count(self, store: Store) -> int:
        if store.tokens < self.length:
            raise DiscdiffError(
                f"length {self.length} is longer than the split's {store.tokens} tokens; take a shorter one "
                f"or more text for split {store.split!r} of {store.uri}"
            )
        return store.tokens // self.length

    def spans(self, store: Store, rows: np.ndarray, visits: np.ndarray, seed: int) -> Spans:
        return Spans(rows * self.length)


class Wrap(_Cut, frozen=True):
    """Rows cut from the token stream, on from document to document; separators stand between them.

    The end of the stream that does not fill a row is left out: fewer than `length` tokens.
    """

    kind: Literal["wrap"] = "wrap"

    def documents(self, store: Store, begin: np.ndarray) -> None:
        return None


class Isolated(_Cut, frozen=True):
    """The rows of `Wrap`, with ids that keep attention within each document."""

    kind: Literal["isolated"] = "isolated"

    def documents(self, store: Store, begin: np.ndarray) -> np.ndarray:
        marks = np.zeros((len(begin), self.length), np.int64)
        for mark, start in zip(marks, begin.tolist(), strict=True):
            mark[store.starts(start + 1, start + self.length) - start] = 1
        return marks.cumsum(axis=1)


class _OneDocument(Value, frozen=True):
    """One document a row."""

    length: int = Field(ge=1)

    def count(self, store: Store) -> int:
        return store.documents

    def documents(self, store: Store, begin: np.ndarray) -> None:
        return None


class PerDocument(_OneDocument, frozen=True):
    """One document a row, from its beginning, cut at `length`, padded if it is shorter."""

    kind: Literal["document"] = "document"

    def spans(self, store: Store, rows: np.ndarray, visits: np.ndarray, seed: int) -> Spans:
        begin, sizes = store.borders(rows)
        return Spans(begin, np.minimum(sizes, self.length))


class Crop(_OneDocument, frozen=True):
    """One document a row: `length` tokens from a random place, another at each visit; padded if shorter."""

    kind: Literal["crop"] = "crop"

    def spans(self, store: Store, rows: np.ndarray, visits: np.ndarray, seed: int) -> Spans:
        begin, sizes = store.borders(rows)
        words = mix(derive(seed, _CROPS) + mix(visits.astype(np.uint64)))
        shift = below(words, np.maximum(sizes - self.length, 0) + 1)
        return Spans(begin + shift, np.minimum(sizes, self.length))


AnyPacking = Annotated[Wrap | Isolated | PerDocument | Crop, Field(discriminator="kind")]

_CROPS = 0xC409
"""Keeps the places of crops apart from other draws of the same seed."""
