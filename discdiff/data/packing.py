"""How documents become rows of one length: the reader's choice, never the writer's."""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field

from discdiff.data.order import below, derive, mix
from discdiff.data.store import Store
from discdiff.types import DiscdiffError, Value


@dataclass(frozen=True)
class Rows:
    """Sequences as they are read."""

    tokens: np.ndarray
    """`[n, L]`, in the type of the store."""
    sizes: np.ndarray | None = None
    """How many of each row are text, `[n]`; the rest is padding. None if all are."""
    documents: np.ndarray | None = None
    """Which document of its row each token belongs to, `[n, L]`."""


class Packing(Protocol):
    length: int

    def count(self, store: Store) -> int:
        """Rows of one epoch."""
        ...

    def read(self, store: Store, rows: np.ndarray, visits: np.ndarray, seed: int) -> Rows:
        """Rows by number. `visits` are their positions in the endless stream: what chance is keyed by."""
        ...


class _Cut(Value, frozen=True):
    """The token stream cut into rows. The end that does not fill a row is left out."""

    length: int = Field(ge=1)

    def count(self, store: Store) -> int:
        if store.tokens < self.length:
            raise DiscdiffError(
                f"length {self.length} is longer than the split's {store.tokens} tokens; take a shorter length "
                f"or more text for split {store.split!r} of {store.uri}"
            )
        return store.tokens // self.length


class Wrap(_Cut, frozen=True):
    """Rows cut from the token stream, on from document to document; separators stand between them.

    The end of the stream that does not fill a row is left out: fewer than `length` tokens.
    """

    kind: Literal["wrap"] = "wrap"

    def read(self, store: Store, rows: np.ndarray, visits: np.ndarray, seed: int) -> Rows:
        return Rows(store.read(rows * self.length, self.length))


class Isolated(_Cut, frozen=True):
    """The rows of `Wrap`, with ids that keep attention within each document."""

    kind: Literal["isolated"] = "isolated"

    def read(self, store: Store, rows: np.ndarray, visits: np.ndarray, seed: int) -> Rows:
        marks = np.zeros((len(rows), self.length), np.int64)
        for mark, begin in zip(marks, (rows * self.length).tolist(), strict=True):
            mark[store.starts(begin + 1, begin + self.length) - begin] = 1
        return Rows(store.read(rows * self.length, self.length), documents=marks.cumsum(axis=1))


class PerDocument(Value, frozen=True):
    """One document a row, from its beginning, cut at `length`, padded if it is shorter."""

    kind: Literal["document"] = "document"
    length: int = Field(ge=1)

    def count(self, store: Store) -> int:
        return store.documents

    def read(self, store: Store, rows: np.ndarray, visits: np.ndarray, seed: int) -> Rows:
        begin, sizes = store.borders(rows)
        return _padded(store, begin, np.minimum(sizes, self.length), self.length)


class Crop(Value, frozen=True):
    """One document a row: `length` tokens from a random place, another at each visit; padded if shorter."""

    kind: Literal["crop"] = "crop"
    length: int = Field(ge=1)

    def count(self, store: Store) -> int:
        return store.documents

    def read(self, store: Store, rows: np.ndarray, visits: np.ndarray, seed: int) -> Rows:
        begin, sizes = store.borders(rows)
        words = mix(derive(seed, *_CROPS) + visits.astype(np.uint64))
        shift = below(words, np.maximum(sizes - self.length, 0) + 1)
        return _padded(store, begin + shift, np.minimum(sizes, self.length), self.length)


AnyPacking = Annotated[Wrap | Isolated | PerDocument | Crop, Field(discriminator="kind")]

_CROPS = (0xC409,)
"""Keeps the places of crops apart from other draws of the same seed."""


def _padded(store: Store, begin: np.ndarray, sizes: np.ndarray, length: int) -> Rows:
    tokens = store.read(begin, length)
    tokens[np.arange(length) >= sizes[:, None]] = store.separator or 0
    return Rows(tokens, sizes)
