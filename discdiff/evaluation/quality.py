"""One set of texts measured every way that applies: a row of the table of samples, for a model's samples or
for real text.

Samples alone say little: a low judge perplexity is bought with low entropy, a high entropy with noise. So
a row always carries its entropy, stands beside the same row of real text of equal count and length, and
warns where it is not to be read at face value.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from discdiff.evaluation.diversity import distinct, entropy, pooled_entropy, repetition, self_bleu
from discdiff.evaluation.estimate import Estimate
from discdiff.evaluation.laws import Distance, distance
from discdiff.evaluation.novelty import Matches, matches
from discdiff.evaluation.sequences import Sequences
from discdiff.types import Value

_MARGIN = 0.02
"""Entropies closer than this share are not told apart, whatever their standard errors say."""

_ITSELF = (
    "the judge drew these samples itself: its perplexity of them says how peaked its own law is, not how "
    "good it is; compare it with no other row"
)


class Judged(Value, frozen=True):
    """Generative perplexity: exp of the judge's nats per token of the corpus, and apart from it the mean over
    samples.
    """

    judge: str
    perplexity: Estimate
    """Summed nats over summed tokens: what may be compared."""
    sample_mean: Estimate
    """The mean over samples of each one's own perplexity, which some papers print; never comparable with the
    other.
    """
    mauve: float | None = None
    mauve_protocol: str = ""
    itself: bool = False
    """Whether the judge drew what it reads."""


class Quality(Value, frozen=True):
    """What was measured of a set of texts."""

    sequences: int
    tokens: int
    length: float
    """Mean tokens per sequence."""
    entropy: Estimate
    """Nats, of each sequence's own token frequencies, mean over sequences."""
    pooled_entropy: float
    """Nats, of the frequencies of all tokens together."""
    distinct: dict[int, float]
    """Distinct n-grams over n-grams, by n."""
    repetition: Estimate
    self_bleu: Estimate
    seen: dict[int, float] = Field(default_factory=dict)
    """Share of n-grams that occur in the training set, by n."""
    copied: int = 0
    """Tokens of the longest run copied from the training set, up to the length that was looked for."""
    spelling: Estimate | None = None
    judged: Judged | None = None
    distance: Distance | None = None
    warnings: tuple[str, ...] = ()

    def read_by_itself(self) -> "Quality":
        """The same row, of samples that the judge drew itself: labelled, and warned of."""
        if self.judged is None:
            return self
        judged = self.judged.model_copy(update={"itself": True})
        return self.model_copy(update={"judged": judged, "warnings": (*self.warnings, _ITSELF)})

    def beside(self, real: "Quality") -> "Quality":
        """The same row with the warnings that real text of equal count and length gives rise to."""
        return self.model_copy(update={"warnings": (*self.warnings, *_warnings(self, real))})


def _warnings(samples: Quality, real: Quality) -> Iterable[str]:
    gap = real.entropy.value - samples.entropy.value
    error = np.hypot(samples.entropy.se or 0.0, real.entropy.se or 0.0)
    if gap > max(2 * error, _MARGIN * real.entropy.value):
        yield (
            f"entropy {samples.entropy.value:.2f} nats is under the data's {real.entropy.value:.2f}: "
            "samples repeat themselves, "
            "and a judge's perplexity of them looks better than they are"
        )
    if real.pooled_entropy - samples.pooled_entropy > 2 * _MARGIN * real.pooled_entropy:
        yield (
            f"pooled entropy {samples.pooled_entropy:.2f} nats is under the data's "
            f"{real.pooled_entropy:.2f}: "
            "samples use too few of the tokens"
        )
    if not 0.8 < samples.tokens / real.tokens < 1.25:
        yield (
            f"{samples.tokens:,} sampled tokens stand beside {real.tokens:,} of real text: distinct-n, "
            "pooled entropy and "
            "self-BLEU depend on the amount"
        )


def quality(samples: Sequences, *, orders: Sequence[int] = (1, 2, 3, 4)) -> Quality:
    """What needs nothing but the samples."""
    return Quality(
        sequences=len(samples),
        tokens=len(samples.tokens),
        length=len(samples.tokens) / len(samples),
        entropy=entropy(samples),
        pooled_entropy=pooled_entropy(samples),
        distinct={n: distinct(samples, n) for n in orders},
        repetition=repetition(samples),
        self_bleu=self_bleu(samples),
    )


def with_training(
    rows: Sequence[Quality],
    samples: Sequence[Sequences],
    training: Iterable[NDArray[np.int64]],
    *,
    orders: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64),
) -> list[Quality]:
    """The rows with what their samples share with the training text, which streams past once for all of "
    "them."""
    union = Sequences(
        np.concatenate([each.tokens for each in samples]),
        np.concatenate([[0], np.cumsum(np.concatenate([each.lengths for each in samples]))]),
        samples[0].vocab,
    )
    found = matches(union, training)
    ends = np.cumsum([len(each.tokens) for each in samples])
    own = [
        Matches(each, found.lengths[end - len(each.tokens) : end], found.longest)
        for each, end in zip(samples, ends, strict=True)
    ]
    return [
        row.model_copy(update={"seen": {n: one.seen(n) for n in orders}, "copied": int(one.copied().max())})
        for row, one in zip(rows, own, strict=True)
    ]


def with_law(row: Quality, samples: Sequences, law: NDArray[np.float64]) -> Quality:
    """The row with the samples' distance from the law that made the data."""
    return row.model_copy(update={"distance": distance(samples, law)})
