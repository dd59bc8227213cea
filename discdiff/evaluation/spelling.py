"""Spelling: how many words that a character model writes are words of the training text."""

import re
from collections.abc import Iterable

import numpy as np

from discdiff.evaluation.estimate import Estimate, ratio

_WORD = re.compile(r"[^\W\d_]+")


def words(documents: Iterable[str]) -> frozenset[str]:
    """Every word of the documents: a maximal run of letters, case kept."""
    return frozenset(word for document in documents for word in _WORD.findall(document))


def spelled(samples: Iterable[str], known: frozenset[str]) -> Estimate:
    """Share of the words in the samples that are known; the words a sample's ends cut off are not counted."""
    found, total = [], []
    for sample in samples:
        inner = [m.group() for m in _WORD.finditer(sample) if m.start() > 0 and m.end() < len(sample)]
        found.append(float(sum(word in known for word in inner)))
        total.append(float(len(inner)))
    if not sum(total):
        return Estimate(value=0.0)
    return ratio(np.array(found), np.array(total))
