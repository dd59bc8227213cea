"""How varied samples are: entropy, distinct n-grams, self-BLEU, repetition. All read tokens, none needs a
judge.

Each depends on how much text it is given (a plug-in entropy grows with the sample, distinct-n falls), so
compare sets of equal count and length, and read every number next to the same number of real text.
"""

import numpy as np
from numpy.typing import NDArray

from discdiff.evaluation.estimate import Estimate, mean
from discdiff.evaluation.sequences import Sequences


def pooled_entropy(samples: Sequences) -> float:
    """Entropy in nats of the token frequencies of all sequences together."""
    return _entropy(np.bincount(samples.tokens))


def entropy(samples: Sequences) -> Estimate:
    """Entropy in nats of a sequence's own token frequencies, the mean over sequences: what the literature
    prints.

    It falls when sequences repeat themselves, which pooled frequencies cannot see.
    """
    rows = zip(samples.offsets[:-1], samples.offsets[1:], strict=True)
    return mean(np.array([_entropy(np.unique_counts(samples.tokens[a:b]).counts) for a, b in rows if b > a]))


def _entropy(counts: NDArray[np.int64]) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum() + 0.0)


def distinct(samples: Sequences, n: int) -> float:
    """Distinct n-grams over n-grams, of the whole set. Li et al. 2016, arXiv:1510.03055."""
    keys, _ = samples.ngrams(n)
    return len(np.unique(keys)) / len(keys) if len(keys) else 0.0


def repetition(samples: Sequences, n: int = 4) -> Estimate:
    """Share of a sequence's n-grams that it had already used, the mean over sequences. Welleck et al. 2019,
    arXiv:1908.04319.
    """
    keys, owners = samples.ngrams(n)
    total = np.bincount(owners, minlength=len(samples))
    unique = np.bincount(_pairs(keys, owners)[1], minlength=len(samples))
    long_enough = total > 0
    if not long_enough.any():
        return Estimate(value=0.0)
    return mean(1 - unique[long_enough] / total[long_enough])


def self_bleu(samples: Sequences, n: int = 4) -> Estimate:
    """BLEU-n of every sequence against all others as references, the mean over sequences: 1 where all are
    alike.

    Texygen (Zhu et al. 2018, arXiv:1802.01886) with BLEU of Papineni et al. 2002: clipped precisions of
    orders 1 to n in equal parts, closest reference length. No smoothing: a sequence that shares no n-gram
    of some order scores 0.
    """
    if len(samples) < 2:
        return Estimate(value=0.0)
    with np.errstate(divide="ignore"):
        logs = [np.log(_clipped_precision(samples, order)) for order in range(1, n + 1)]
    return mean(np.exp(np.mean(logs, axis=0)) * _brevity(samples.lengths))


def _pairs(
    keys: NDArray[np.uint64], owners: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Each n-gram of each sequence once, by n-gram, with how often it occurs there. -> keys, owners, "
    "counts"""
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]) | (owners[1:] != owners[:-1])
    start = np.flatnonzero(first)
    return keys[start], owners[start], np.diff(np.append(start, len(keys)))


def _clipped_precision(samples: Sequences, n: int) -> NDArray[np.float64]:
    """Share of each sequence's n-grams found in some other, counted no more often than any one other has
    them. -> [N]
    """
    keys, owners, counts = _pairs(*samples.ngrams(n))
    order = np.lexsort((-counts, keys))
    keys, owners, counts = keys[order], owners[order], counts[order]
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    group = np.cumsum(first) - 1
    start = np.flatnonzero(first)
    size = np.diff(np.append(start, len(keys)))
    second = np.where(size > 1, counts[np.minimum(start + 1, len(keys) - 1)], 0)
    elsewhere = np.where(first, second[group], counts[start][group])
    matched = np.bincount(owners, np.minimum(counts, elsewhere), len(samples))
    total = np.bincount(owners, counts, len(samples))
    return np.divide(matched, total, out=np.zeros(len(samples)), where=total > 0)


def _brevity(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """BLEU's penalty for a sequence shorter than the closest in length among the others. -> [N]"""
    ranked = np.sort(lengths)
    place = np.searchsorted(ranked, lengths)
    below = ranked[np.maximum(place - 1, 0)]
    above = ranked[np.minimum(place + 1, len(ranked) - 1)]
    below = np.where(place > 0, below, above)
    above = np.where(place + 1 < len(ranked), above, below)
    closest = np.where(lengths - below <= above - lengths, below, above)
    with np.errstate(divide="ignore"):
        return np.where(lengths >= closest, 1.0, np.exp(1 - closest / np.maximum(lengths, 1e-9)))
