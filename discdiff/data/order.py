"""The order in which rows are visited: `row = permutation(seed, epoch)[position]`, in O(1) memory.

A keyed bijection replaces the list that others shuffle. Position p of the endless stream lies in epoch p // n
of n rows, and each epoch has a permutation of its own. Up to 262,144 rows are permuted freely. More are
permuted in blocks of 256 neighbors, so that a distant store is read in runs: the blocks are permuted, and
dealt to 64 lanes; a lane draws from 16 blocks at a time, in a permuted order of their 4,096 rows; the stream
takes a row of each lane in turn. The lanes are out of step, so that new blocks are needed evenly. Positions
that land past the last row are walked along their cycle until they come back, which leaves a bijection.

The permutations are alternating Feistel networks over multiply-shift hashes (Dietzfelbinger 1996), whose
words come from SHA-256 of the seed through SplitMix64's finalizer (Steele, Lea and Flood 2014): integer
arithmetic that no version of a library can change.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol, runtime_checkable

import numpy as np

BLOCK = 256
LANES = 64
DEPTH = 16
LANE = DEPTH * BLOCK
WINDOW = LANES * LANE
HAND = LANES * DEPTH
MET = 4
"""Windows that a few positions meet at most, but for those across the end of an epoch."""
AT_ONCE = 8_192
"""Positions whose words stay in a core's cache on the way."""
ROUNDS = 8
LEAST_BITS = 6
_STEP = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

_Step = Callable[[np.ndarray, np.ndarray], np.ndarray]


@runtime_checkable
class Order(Protocol):
    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        ...

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions of the endless stream, int64 `[n] -> [n]`."""
        ...


@dataclass(frozen=True)
class Sequential:
    """Each epoch in the order of the store."""

    rows: int

    def at(self, positions: np.ndarray) -> np.ndarray:
        return positions % self.rows


@dataclass(frozen=True)
class Shuffled:
    """Each epoch in an order of its own, drawn from the seed. `stream` tells orders of one seed apart."""

    rows: int
    seed: int
    stream: int = 0

    @cached_property
    def _key(self) -> np.ndarray:
        return derive(self.seed, self.stream)

    def at(self, positions: np.ndarray) -> np.ndarray:
        parts = [self._at(positions[i : i + AT_ONCE]) for i in range(0, max(1, len(positions)), AT_ONCE)]
        return np.concatenate(parts)

    def _at(self, positions: np.ndarray) -> np.ndarray:
        epoch, position = np.divmod(positions.astype(np.uint64), self.rows)
        key = mix(self._key + _shortest(epoch) * _STEP)
        if self.rows <= WINDOW:
            return permute(position, self.rows, key).astype(np.int64)
        return _walk(self._deal, position, self.rows, key).astype(np.int64)

    def _deal(self, position: np.ndarray, key: np.ndarray) -> np.ndarray:
        """A bijection of whole windows: of which block of which lane, and which row of it."""
        windows = -(-self.rows // WINDOW)
        turn, lane = position // LANES, position % LANES
        turn = (turn + lane * (LANE // LANES)) % (windows * LANE)
        window = turn // LANE
        place = _scatter(turn % LANE, mix(key + (window * LANES + lane + 1) * _STEP))
        slot = lane * DEPTH + place // BLOCK
        return _blocks(window, slot, windows * HAND, key) * BLOCK + place % BLOCK


def _blocks(window: np.ndarray, slot: np.ndarray, count: int, key: np.ndarray) -> np.ndarray:
    """Which block lies in each slot of each window. Few windows are met at once: each is worked out whole."""
    first, last = (int(window.min()), int(window.max())) if len(window) else (0, 0)
    if len(key) > 1 or last - first >= MET:
        return permute(window * HAND + slot, count, key)
    blocks = np.stack([_window(number, count, int(key[0])) for number in range(first, last + 1)])
    return blocks[window - first, slot]


@lru_cache(2 * MET)
def _window(number: int, count: int, key: int) -> np.ndarray:
    """The blocks of one window, `[HAND]`: they are asked for as long as the stream is in it."""
    slots = number * HAND + np.arange(HAND, dtype=np.uint64)
    return permute(slots, count, np.array([key], np.uint64))


def derive(*parts: int) -> np.ndarray:
    """A 64-bit key, shape [1], from whole numbers of any size."""
    digest = hashlib.sha256(("discdiff order 1:" + ",".join(map(str, parts))).encode()).digest()
    return np.frombuffer(digest, "<u8", 1).astype(np.uint64)


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: a bijection of 64-bit words; each bit that changes turns half of the others."""
    x = (x ^ (x >> 30)) * _FIRST
    x = (x ^ (x >> 27)) * _SECOND
    return x ^ (x >> 31)


def below(words: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to below each limit, up to 2^32, from random words: `[n], [n] -> int64 [n]`."""
    return ((words >> 32) * limits.astype(np.uint64) >> 32).astype(np.int64)


def permute(x: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """A bijection of 0 ... size - 1 for each key, uint64, `[n], [n] or [1] -> [n]`."""
    bits = max((size - 1).bit_length(), LEAST_BITS)
    words = mix(key + np.arange(1, 2 * ROUNDS + 1, dtype=np.uint64)[:, None] * _STEP)
    return _walk(lambda y, w: _feistel(y, bits, w), x, size, words)


def _walk(step: _Step, x: np.ndarray, size: int, words: np.ndarray) -> np.ndarray:
    """A bijection of more than `size` numbers, repeated on what it leads outside. `words [..., n or 1]`."""
    y = step(x, words)
    outside = np.flatnonzero(y >= size)
    while len(outside):
        y[outside] = again = step(y[outside], words if words.shape[-1] == 1 else words[..., outside])
        outside = outside[again >= size]
    return y


def _feistel(x: np.ndarray, bits: int, words: np.ndarray) -> np.ndarray:
    """Each half of the bits in turn is changed by a hash of the other: multiply, add, shift."""
    low = bits // 2
    left, right = x >> low, x & ((1 << low) - 1)
    for i in range(0, 2 * ROUNDS, 4):
        left = left ^ ((right * (words[i] | 1) + words[i + 1]) >> (64 - bits + low))
        right = right ^ ((left * (words[i + 2] | 1) + words[i + 3]) >> (64 - low))
    return left << low | right


def _scatter(x: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A bijection of the 4,096 rows of a lane for each key: cheaper, for it is worked out row by row."""
    bits = LANE.bit_length() - 1
    for i in range(4):
        x = (x * (key >> (14 * i) | 1) + (key >> (9 * i + 20))) & (LANE - 1)
        x = x ^ (x >> (bits // 2))
    return x


def _shortest(values: np.ndarray) -> np.ndarray:
    """One value where all are equal: keys are then worked out once."""
    return values[:1] if len(values) and values.min() == values.max() else values
