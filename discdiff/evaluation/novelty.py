"""What samples copied: the longest match of every sample position in the training set, by suffix arrays.

Training text streams through in pieces, so memory is bounded by the piece and the samples. A piece and the
samples are ranked together by prefix doubling (Manber and Myers 1993): ranks of length 2^k prefixes give
ranks of length 2^(k+1). In the order of the last ranks the training suffix that shares the longest prefix
with a sample suffix is its neighbor, before or after; the shared length is then read off the ranks from
the longest power down. Exact, no hashing.

One pass gives the share of n-grams found in training for every n (Merrill et al. 2024, arXiv:2406.13069).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from discdiff.evaluation.sequences import Sequences

_PIECE = 2**21


@dataclass(frozen=True)
class Matches:
    """For each sample position the length, up to `longest`, of the longest match that starts there. `lengths`
    [T]
    """

    samples: Sequences
    lengths: NDArray[np.int64]
    longest: int

    def seen(self, n: int) -> float:
        """Share of the samples' n-grams that occur in the training set; 1 - seen(n) is their novelty."""
        if n > self.longest:
            raise ValueError(f"matches were measured up to {self.longest} tokens; n = {n} is beyond that")
        ends = np.repeat(self.samples.offsets[1:], self.samples.lengths)
        fits = np.arange(len(self.samples.tokens)) + n <= ends
        return float((self.lengths[fits] >= n).mean()) if fits.any() else 0.0

    def copied(self) -> NDArray[np.int64]:
        """The longest run each sample copied from the training set, up to `longest`. -> [N]"""
        filled = self.samples.lengths > 0
        out = np.zeros(len(self.samples), np.int64)
        out[filled] = np.maximum.reduceat(self.lengths, self.samples.offsets[:-1][filled])
        return out


def matches(samples: Sequences, training: Iterable[NDArray[np.int64]], *, levels: int = 6) -> Matches:
    """The longest match of every sample position in the training text, up to 2^levels tokens.

    `training` yields the text in consecutive arrays of any length; a match may cross from one into the next.
    """
    longest = 2**levels
    lengths = np.zeros(len(samples.tokens), np.int64)
    for piece in _overlapping(training, longest - 1):
        lengths = np.maximum(lengths, _match(samples, piece, levels))
    return Matches(samples, lengths, longest)


def _overlapping(training: Iterable[NDArray[np.int64]], overlap: int) -> Iterator[NDArray[np.int64]]:
    """The text in pieces of about `_PIECE` tokens, each beginning with the last `overlap` tokens of the one
    before.
    """
    held: list[NDArray[np.int64]] = []
    size = 0
    for part in training:
        for start in range(0, len(part), _PIECE):
            held.append(np.asarray(part[start : start + _PIECE], np.int64))
            size += len(held[-1])
            if size >= _PIECE:
                piece = np.concatenate(held)
                yield piece
                held, size = [piece[max(0, len(piece) - overlap) :]], 0
    if size:
        yield np.concatenate(held)


def _match(samples: Sequences, piece: NDArray[np.int64], levels: int) -> NDArray[np.int64]:
    """The longest match of each sample position in one piece. -> [T]"""
    text, place = _joined(samples, piece)
    ranks = _ranks(text, levels)
    order = np.argsort(ranks[-1], kind="stable")
    before, after = _neighbors(order, len(piece))
    here = np.empty(len(text), np.int64)
    here[order] = np.arange(len(text))
    spots = here[place]
    return np.maximum(*(_shared(ranks, place, near[spots]) for near in (before, after)))


def _joined(samples: Sequences, piece: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The piece, a border, then every sample with a border of another kind after it; and where sample tokens
    are.
    """
    owner = np.repeat(np.arange(len(samples)), samples.lengths)
    place = len(piece) + 1 + np.arange(len(samples.tokens)) + owner
    text = np.full(len(piece) + 1 + len(samples.tokens) + len(samples), samples.vocab + 1, np.int64)
    text[: len(piece)] = piece
    text[len(piece)] = samples.vocab
    text[place] = samples.tokens
    return text, place


def _ranks(text: NDArray[np.int64], levels: int) -> list[NDArray[np.int32]]:
    """The rank of every position's prefix of 1, 2, 4, ..., 2^levels tokens; equal prefixes have equal "
    "ranks."""
    ranks = [np.unique(text, return_inverse=True)[1].astype(np.int32)]
    for k in range(levels):
        ahead = np.full(len(text), -1, np.int64)
        ahead[: -(2**k)] = ranks[-1][2**k :]
        pair = ranks[-1].astype(np.int64) * (len(text) + 1) + ahead + 1
        ranks.append(np.unique(pair, return_inverse=True)[1].astype(np.int32))
    return ranks


def _neighbors(order: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each place in the sorted order the nearest training suffix before it and after it, -1 if none."""
    rank = np.arange(len(order))
    training = order < size
    before = np.maximum.accumulate(np.where(training, rank, -1))
    after = np.minimum.accumulate(np.where(training, rank, len(order))[::-1])[::-1]
    return (
        np.where(before >= 0, order[np.maximum(before, 0)], -1),
        np.where(after < len(order), order[np.minimum(after, len(order) - 1)], -1),
    )


def _shared(
    ranks: list[NDArray[np.int32]], place: NDArray[np.int64], near: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many tokens the suffixes at `place` and `near` share, up to the longest power."""
    last = len(ranks[0]) - 1
    length = np.zeros(len(place), np.int64)
    whole = (near >= 0) & (ranks[-1][place] == ranks[-1][near])
    for k in range(len(ranks) - 2, -1, -1):
        a, b = np.minimum(place + length, last), np.minimum(near + length, last)
        length += np.where((near >= 0) & (ranks[k][a] == ranks[k][b]), 2**k, 0)
    return np.where(whole, 2 ** (len(ranks) - 1), length)
