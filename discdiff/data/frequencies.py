"""How often each token occurs: what a schedule that is estimated from the corpus needs."""

import numpy as np

from discdiff.data.store import Store

_SLICE = 2**22


def token_counts(store: Store) -> list[float]:
    """The number of times each of the V tokens occurs in a split, read a slice at a time. `-> [V]`"""
    counts = np.zeros(store.vocab, dtype=np.int64)
    for begin in range(0, store.tokens, _SLICE):
        tokens = store.read(np.array([begin]), min(_SLICE, store.tokens - begin))[0]
        counts += np.bincount(tokens, minlength=store.vocab)
    return counts.astype(np.float64).tolist()
