"""Data of a known law: what a perfect model would score, and how far samples are from a law that can be
enumerated.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from discdiff.data.laws import AnyLaw
from discdiff.evaluation.likelihood import Ledger, ledger, merge
from discdiff.evaluation.sequences import Sequences
from discdiff.types import Canvas, DiscdiffError, Value


def perfect(law: AnyLaw, canvases: Iterable[Canvas]) -> Ledger:
    """-log p of each sequence under the law that drew it, `[B, L]` whole documents: the score of a perfect
    model.

    A model's bound minus this, paired by sequence, is an unbiased estimate of its excess over the entropy: it
    is not negative but by chance, and the luck of the sequences cancels.
    """

    def measured(canvas: Canvas) -> Ledger:
        nats = -law.log_prob(canvas.tokens.cpu())
        exact = ledger(canvas, nats[:, None, None])
        return Ledger(exact.rows, exact.nats, exact.tokens, exact=True)

    return merge([measured(each) for each in canvases])


class Distance(Value, frozen=True):
    """How far sampled frequencies are from the law, and how far exact samples of that number are expected to
    be.

    `tv` in [0, 1]; `kl` = KL(samples || law) in nats, infinite if a sample is impossible under the law.
    `tv_exact` is about sum sqrt(p (1 - p) / N) / sqrt(2 pi), `kl_exact` about (states - 1) / 2N: what
    chance alone gives.
    """

    tv: float
    kl: float
    tv_exact: float
    kl_exact: float


def distance(samples: Sequences, law: NDArray[np.float64]) -> Distance:
    """Total variation and KL of the empirical law of N samples from `law`, an array `[V, ..., V]` of L axes
    that sums to 1.

    Raises `DiscdiffError` if a sample does not have L tokens or the law has another vocabulary.
    """
    if law.shape != (samples.vocab,) * law.ndim or (samples.lengths != law.ndim).any():
        raise DiscdiffError(
            f"the law is over {law.ndim} tokens of a vocabulary of {law.shape[0]}; the samples have lengths "
            f"{samples.lengths.min()} to {samples.lengths.max()} and {samples.vocab} tokens"
        )
    count = len(samples)
    states = np.ravel_multi_index(tuple(samples.tokens.reshape(count, law.ndim).T), law.shape)
    seen = np.bincount(states, minlength=law.size) / count
    p = law.reshape(-1)
    hit = seen > 0
    with np.errstate(divide="ignore"):
        kl = float((seen[hit] * (np.log(seen[hit]) - np.log(p[hit]))).sum())
    return Distance(
        tv=float(np.abs(seen - p).sum() / 2),
        kl=kl,
        tv_exact=float(np.sqrt(p * (1 - p) / count).sum() / np.sqrt(2 * np.pi)),
        kl_exact=float((np.count_nonzero(p) - 1) / (2 * count)),
    )
