"""Several stores read as one stream, in exact proportions, with no state.

Each 65,536 rows of the stream hold each store's share of rows, an integer, in an order drawn anew. So the
number of rows that a store has given before any position follows from the position alone.
"""

from collections.abc import Sequence

import numpy as np

from discdiff.data.manifest import Manifest
from discdiff.data.order import derive, mix, permute
from discdiff.data.store import Store
from discdiff.data.tokenizers import Tokenizer
from discdiff.types import DiscdiffError

PERIOD = 65_536
_STREAM = 0x3123


class Mixture:
    """Stores with weights, rounded to parts of 65,536. All must have been made with one tokenizer."""

    def __init__(self, stores: Sequence[Store], weights: Sequence[int | float]):
        if len(stores) != len(weights) or not stores:
            raise DiscdiffError(
                f"a mixture of {len(stores)} stores has {len(weights)} weights; give one for each"
            )
        for store in stores[1:]:
            if store.manifest.tokenizer != stores[0].manifest.tokenizer:
                raise DiscdiffError(
                    f"{store.uri} and {stores[0].uri} were made with different tokenizers; "
                    "mix stores of one tokenizer"
                )
        self.stores = tuple(stores)
        self.shares = _round(np.array(weights, np.float64))
        """Rows of each store in 65,536."""
        self._ends = np.cumsum(self.shares)

    @property
    def vocab(self) -> int:
        """V, the same for all."""
        return self.stores[0].vocab

    @property
    def tokenizer(self) -> Tokenizer:
        """That of all."""
        return self.stores[0].tokenizer

    @property
    def manifest(self) -> Manifest:
        """That of the first store; the tokenizer that it names is that of all."""
        return self.stores[0].manifest

    def assign(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Which store each position falls to, and how many rows it gave before: `[n] -> [n], [n]`."""
        period, slot = np.divmod(positions.astype(np.uint64), np.uint64(PERIOD))
        key = mix(derive(seed, _STREAM) + mix(period + 1))
        slot = permute(slot, PERIOD, key).astype(np.int64)
        which = np.searchsorted(self._ends, slot, side="right")
        before = self._ends - self.shares
        return which, period.astype(np.int64) * self.shares[which] + slot - before[which]


class Classes(Mixture):
    """Stores that are classes, each as often as it has text: a row's label is the number of its store."""

    def __init__(self, stores: Sequence[Store]):
        super().__init__(stores, [store.tokens for store in stores])


def _round(weights: np.ndarray) -> np.ndarray:
    """Integers in proportion to the weights that add up to 65,536: the largest remainders are rounded up."""
    if not np.isfinite(weights).all() or (weights <= 0).any():
        raise DiscdiffError(f"weights {weights.tolist()} cannot be used; each must be a number above 0")
    exact = weights / weights.sum() * PERIOD
    shares = np.floor(exact).astype(np.int64)
    up = np.argsort(shares - exact, kind="stable")[: PERIOD - int(shares.sum())]
    shares[up] += 1
    if (shares == 0).any():
        raise DiscdiffError(f"weights {weights.tolist()} differ too much; none may be below 1 in {PERIOD}")
    return shares
