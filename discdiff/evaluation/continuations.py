"""How likely a model finds a continuation of a text, with the error of the estimate: what choice benchmarks
ask.

The context is given and the continuation is free, so a diffusion's bound on -log p(continuation | context)
is estimated as any other. For methods that have only a bound the value is a lower bound of the
log-likelihood.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import nn

from discdiff.data.encoding import Tokenizer
from discdiff.evaluation.estimate import Estimate
from discdiff.evaluation.estimators import AnyEstimator
from discdiff.evaluation.likelihood import Ledger, Likelihood, is_exact
from discdiff.noise import Noise
from discdiff.types import Canvas, DiscdiffError, canvas

BATCH = 2**13
STRATIFIED = Likelihood()


@dataclass(frozen=True)
class Continuations:
    """A model that scores and writes continuations; `length` is the longest sequence it sees."""

    method: object
    network: nn.Module
    tokenizer: Tokenizer
    length: int
    estimator: AnyEstimator = STRATIFIED

    @property
    def bound(self) -> str:
        """What the values are."""
        if is_exact(self.method):
            return "log-likelihood, exact"
        name, times = self.estimator.describe(self.method)
        return f"log-likelihood, lower bound (minus the {name}; {times})"

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Estimate]:
        """log p(continuation | context) of each pair in nats; the error is over times and noise.

        A context that does not fit is cut from its beginning. Raises `DiscdiffError` for a continuation
        that is empty or longer than the model's sequences.
        """
        rows = [self._row(number, *pair) for number, pair in enumerate(pairs)]
        found: dict[int, Estimate] = {}
        for batch in _batches(rows):
            ledger = self.estimator.measure(self.method, self.network, [batch])
            found |= dict(zip(ledger.rows.tolist(), _estimates(ledger), strict=True))
        return [found[number] for number in range(len(rows))]

    def log_likelihood_of(self, texts: Sequence[str]) -> list[Estimate]:
        """log p of whole texts in nats, cut into the model's sequences, each read alone."""
        pieces = [self._pieces(text) for text in texts]
        flat = [("", piece) for each in pieces for piece in each]
        values = iter(self.log_likelihoods(flat))
        return [_total([next(values) for _ in each]) for each in pieces]

    def write(self, context: str, count: int, seed: int = 0) -> str:
        """`count` tokens that follow a context, by the method's own sampler."""
        ids = self._ids(context)[-(self.length - count) :] if count < self.length else self._ids("")
        tokens = torch.tensor([[*ids, *[0] * count]], device=self._device)
        blank = canvas(tokens)
        blank.free[:, : len(ids)] = False
        method: object = self.method
        sampler = method.default_sampler(count)  # type: ignore[attr-defined]
        drawn = method.sample(self.network, blank, sampler, Noise(seed))  # type: ignore[attr-defined]
        return self.tokenizer.decode(drawn[0, len(ids) :].cpu().numpy())

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode_batch([text]).ids.tolist()

    def _row(self, number: int, context: str, continuation: str) -> Canvas:
        target = self._ids(continuation)
        if not 0 < len(target) <= self.length:
            raise DiscdiffError(
                f"a continuation of {len(target)} tokens was given to a model of sequences of {self.length}: "
                "it must have 1 token or more and fit"
            )
        given = self._ids(context)[max(0, len(self._ids(context)) + len(target) - self.length) :]
        whole = canvas(torch.tensor([given + target], device=self._device), first_row=number)
        whole.free[:, : len(given)] = False
        return whole

    def _pieces(self, text: str) -> list[str]:
        ids = self._ids(text)
        return [self.tokenizer.decode(ids[i : i + self.length]) for i in range(0, len(ids), self.length)]


def _batches(rows: Sequence[Canvas]) -> Iterator[Canvas]:
    """Rows of one length together: nothing is padded, because a bidirectional network would see it."""
    ranked = sorted(rows, key=lambda row: row.shape[1])
    for length, group in groupby(ranked, key=lambda row: row.shape[1]):
        alike, size = list(group), max(1, BATCH // length)
        for start in range(0, len(alike), size):
            some = alike[start : start + size]
            tokens, free, numbers = (
                torch.cat([getattr(row, name) for row in some]) for name in ("tokens", "free", "rows")
            )
            yield Canvas(tokens, free, numbers)


def _estimates(ledger: Ledger) -> list[Estimate]:
    """Each row's log-likelihood with its error over draws, None for a single draw of a bound."""
    _, strata, draws = ledger.nats.shape
    values = -ledger.sequence_nats
    if ledger.exact:
        return [Estimate(value=value, se=0.0) for value in values.tolist()]
    if draws < 2:
        return [Estimate(value=value) for value in values.tolist()]
    errors = np.sqrt(ledger.nats.var(2, ddof=1).sum(1) / draws) / strata
    return [Estimate(value=v, se=e) for v, e in zip(values.tolist(), errors.tolist(), strict=True)]


def _total(parts: Sequence[Estimate]) -> Estimate:
    known = all(part.se is not None for part in parts)
    error = float(np.sqrt(sum((part.se or 0.0) ** 2 for part in parts))) if known else None
    return Estimate(value=sum(part.value for part in parts), se=error)
