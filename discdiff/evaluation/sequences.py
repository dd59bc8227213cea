"""Token sequences of any length, end to end in one array: what sample metrics count over."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from discdiff.types import DiscdiffError

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Sequences:
    """N sequences: `tokens` [T] end to end; sequence s is `tokens[offsets[s]:offsets[s + 1]]`; ids lie below
    `vocab`.
    """

    tokens: NDArray[np.int64]
    offsets: NDArray[np.int64]
    vocab: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def head(self, count: int) -> "Sequences":
        """The first `count` sequences."""
        offsets = self.offsets[: count + 1]
        return Sequences(self.tokens[: offsets[-1]], offsets, self.vocab)

    def ngrams(self, n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """A key for every n-gram inside a sequence, and the sequence it is in. -> `[M], [M]`

        The key is the n-gram read as a number of base V: exact while V^n is below 2^64 (50,257 tokens up
        to n = 4), beyond that a 64-bit hash, whose chance of one collision among 10 million n-grams is
        about 3e-6.
        """
        owner = np.repeat(np.arange(len(self)), self.lengths)
        count = max(len(self.tokens) - n + 1, 0)
        inside = owner[:count] == owner[n - 1 :] if count else np.zeros(0, bool)
        key = np.zeros(count, np.uint64)
        exact = self.vocab**n < 2**64
        for i in range(n):
            token = self.tokens[i : i + count].astype(np.uint64)
            key = key * np.uint64(self.vocab) + token if exact else _mix(key ^ (token * _MULTIPLIER))
        return key[inside], owner[:count][inside]


def _mix(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit words that spreads every bit (the finalizer of SplitMix64)."""
    key = (key + _MULTIPLIER) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


def sequences(rows: Sequence[NDArray[np.int64]] | NDArray[np.int64], vocab: int) -> Sequences:
    """Sequences from a list of id arrays or an `[N, L]` matrix.

    Raises `DiscdiffError` if there is none, if all are empty, or if an id is not below `vocab`.
    """
    if len(rows) == 0 or sum(len(row) for row in rows) == 0:
        raise DiscdiffError("the sample set is empty: no token to measure; generate at least one sequence")
    tokens = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    if tokens.min() < 0 or tokens.max() >= vocab:
        bad = tokens[(tokens < 0) | (tokens >= vocab)][0]
        raise DiscdiffError(
            f"token id {bad} is not of this vocabulary: ids are 0 to {vocab - 1}; use its own tokenizer"
        )
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Sequences(tokens, offsets.astype(np.int64), vocab)
