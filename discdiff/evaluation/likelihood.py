"""Likelihood of held-out text: an upper bound on -log p(text), in nats, with its standard error and its
protocol.

A method's `bound` is an unbiased estimate from one random time a sequence. Here the unit interval is cut
into H strata and every sequence gets one time in each, Q times over with fresh noise, so a sequence is
scored by the mean of H x Q estimates. Time and noise are functions of (seed, row, stratum, draw) and of
nothing else: the result does not depend on batch size, world size or order. Two standard errors are kept
apart:

over sequences   of the ratio of sums (`estimate.ratio`): what another sample of text would change, time noise
                 included;
over time        with the sequences held fixed: the Q >= 2 draws of a stratum differ by chance alone, so with
                 v_h the sample variance over draws of the corpus total in stratum h,
                 se^2 = sum_h v_h / (Q H^2 tokens^2). Unbiased: strata and draws are independent, and rows
                 that share a time are summed before they are compared.

Bits appear here only on their way to a report: bits per character = nats per token x tokens / characters /
ln 2.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from discdiff.evaluation.estimate import Estimate, ratio
from discdiff.noise import Noise
from discdiff.types import Canvas, DiscdiffError, Value

Bound = Callable[..., Tensor]
"""(network, canvas, noise) -> [B] nats"""


class Protocol(Value, frozen=True):
    """What a score means: two scores stand in one column only if these agree."""

    estimator: str
    times: str
    precision: str
    tokenizer: str
    packing: str
    counted: str
    data: str
    standard_error: str = "ratio of sums over sequences; over time with sequences fixed"


class Text(Value, frozen=True):
    """The size of a text in three units, by which nats per token become bits per character or byte."""

    tokens: int = Field(gt=0)
    characters: int = Field(gt=0)
    bytes: int = Field(gt=0)


class Score(Value, frozen=True):
    """A bound on a set of sequences: sums, standard errors (of nats per token) and protocol."""

    nats: float
    tokens: int
    sequences: int
    se: float | None
    se_time: float | None
    text: Text
    protocol: Protocol
    curve: tuple[Estimate, ...] = ()
    """Nats per token and unit time in each stratum of time; their mean is the score. Empty for an exact
    likelihood.
    """

    @property
    def nats_per_token(self) -> Estimate:
        return Estimate(value=self.nats / self.tokens, se=self.se)

    @property
    def bits_per_character(self) -> Estimate:
        return self.nats_per_token.scaled(self.text.tokens / self.text.characters / math.log(2))

    @property
    def bits_per_byte(self) -> Estimate:
        return self.nats_per_token.scaled(self.text.tokens / self.text.bytes / math.log(2))

    @property
    def perplexity(self) -> Estimate:
        return self.nats_per_token.exp()


@dataclass(frozen=True)
class Ledger:
    """Every sequence's estimates before anything is averaged: what scores, curves and comparisons are made
    of.

    `rows` [S] global ids, ascending; `nats` [S, H, Q] of H strata and Q draws; `tokens` [S] counted in
    each sequence.
    """

    rows: NDArray[np.int64]
    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    exact: bool = False
    """Whether the estimates are -log p itself."""

    @property
    def sequence_nats(self) -> NDArray[np.float64]:
        """The bound of each sequence. -> [S]"""
        return self.nats.mean((1, 2))

    def curve(self) -> tuple[Estimate, ...]:
        """Nats per token and unit time in each stratum, with standard errors over sequences. -> [H]"""
        return tuple(ratio(self.nats[:, h].mean(1), self.tokens) for h in range(self.nats.shape[1]))

    def se_time(self) -> float | None:
        """The standard error of nats per token over times and corruptions, sequences fixed; None for one
        draw.
        """
        _, strata, draws = self.nats.shape
        if draws < 2:
            return None
        totals = self.nats.sum(0)
        variance = totals.var(1, ddof=1).sum() / draws / strata**2
        return math.sqrt(variance) / int(self.tokens.sum())

    def score(self, text: Text, protocol: Protocol) -> Score:
        """The corpus-level bound: summed nats over summed tokens."""
        overall = ratio(self.sequence_nats, self.tokens)
        return Score(
            nats=math.fsum(self.sequence_nats),
            tokens=int(self.tokens.sum()),
            sequences=len(self.rows),
            se=overall.se,
            se_time=0.0 if self.exact else self.se_time(),
            text=text,
            protocol=protocol,
            curve=() if self.exact else self.curve(),
        )


def merge(parts: Sequence[Ledger]) -> Ledger:
    """One ledger of several, in row order: what ranks or resumed runs measured apart.

    Raises `DiscdiffError` if a sequence was measured twice or if nothing was.
    """
    if not parts:
        raise DiscdiffError(
            "the evaluation set is empty: no sequence was given; lower the length or give more text"
        )
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    if (twice := rows[1:][rows[1:] == rows[:-1]]).size:
        raise DiscdiffError(f"sequence {twice[0]} was scored twice; give each row of the evaluation set once")
    nats = np.concatenate([part.nats for part in parts])[order]
    tokens = np.concatenate([part.tokens for part in parts])[order]
    return Ledger(rows, nats, tokens, exact=all(part.exact for part in parts))


class Likelihood(Value, frozen=True):
    """Stratified times: a sequence costs `strata * draws` network evaluations, an exact likelihood one."""

    kind: Literal["stratified"] = "stratified"
    strata: int = Field(default=8, ge=1)
    draws: int = Field(default=2, ge=1)
    seed: int = 0

    def check(self, method: object) -> None:
        """Raises `DiscdiffError` if the method has no bound."""
        bound_of(method)

    def evaluations(self, method: object) -> int:
        """Network evaluations a sequence."""
        return 1 if is_exact(method) else self.strata * self.draws

    def describe(self, method: object) -> tuple[str, str]:
        """The estimator and its times, for a protocol."""
        if is_exact(method):
            return "exact log-likelihood", "none"
        return "upper bound, " + _clock(method), f"{self.strata} strata, {self.draws} draws in each"

    def measure(self, method: object, network: nn.Module, canvases: Iterable[Canvas]) -> Ledger:
        """Every sequence's estimates, batch by batch.

        Raises `DiscdiffError` if the method has no bound, or where a bound is not a number.
        """
        bound = bound_of(method)
        strata, draws = (1, 1) if is_exact(method) else (self.strata, self.draws)
        network.eval()
        found = merge([self._batch(bound, network, each, strata, draws) for each in canvases])
        return replace(found, exact=is_exact(method))

    def _batch(self, bound: Bound, network: nn.Module, canvas: Canvas, strata: int, draws: int) -> Ledger:
        noise = Noise(self.seed).on(canvas.rows)
        with torch.inference_mode():
            columns = [
                bound(network, canvas, noise.stratum(h, strata).at(q * strata + h))
                for h in range(strata)
                for q in range(draws)
            ]
        return ledger(canvas, torch.stack(columns, 1).reshape(-1, strata, draws))


class EveryStep(Value, frozen=True):
    """The whole sum of a T-step bound: every step of every sequence is evaluated, only the corruption is
    drawn.
    """

    kind: Literal["every_step"] = "every_step"
    draws: int = Field(default=1, ge=1)
    seed: int = 0

    def check(self, method: object) -> None:
        """Raises `DiscdiffError` if the method's time is not cut into steps."""
        self._stratified(method).check(method)

    def evaluations(self, method: object) -> int:
        """Network evaluations a sequence."""
        return self._stratified(method).evaluations(method)

    def describe(self, method: object) -> tuple[str, str]:
        """The estimator and its times, for a protocol."""
        steps = self._stratified(method).strata
        return "upper bound, " + _clock(method), f"all {steps} steps, {self.draws} draws of each"

    def measure(self, method: object, network: nn.Module, canvases: Iterable[Canvas]) -> Ledger:
        """Every sequence's estimates, batch by batch; the strata of the ledger are the steps.

        Raises `DiscdiffError` if the method's time is not cut into steps.
        """
        return self._stratified(method).measure(method, network, canvases)

    def _stratified(self, method: object) -> Likelihood:
        # A step is a stratum of time: the clock takes every time in it to the step's end.
        steps = getattr(getattr(method, "clock", None), "count", None)
        if steps is None:
            raise DiscdiffError(
                f"{getattr(method, 'kind', method)} has no steps to sum over: its time is continuous; use "
                "the "
                "stratified estimator, or give the method a clock of steps"
            )
        return Likelihood(strata=steps, draws=self.draws, seed=self.seed)


def ledger(canvas: Canvas, nats: Tensor) -> Ledger:
    """The ledger of a batch. `[B, H, Q] -> Ledger`. Raises `DiscdiffError` where a bound is not a number."""
    values, rows = nats.double().cpu().numpy(), canvas.rows.cpu().numpy()
    _refuse_nan(rows, values)
    return Ledger(rows, values, canvas.free.sum(1).cpu().numpy())


def _clock(method: object) -> str:
    steps = getattr(getattr(method, "clock", None), "count", None)
    return "continuous time" if steps is None else f"{steps} steps"


def is_exact(method: object) -> bool:
    """Whether the method says that `bound` is -log p itself, which takes no time and no noise."""
    return bool(getattr(method, "exact", False))


def bound_of(method: object) -> Bound:
    bound = getattr(method, "bound", None)
    if bound is None:
        why = getattr(method, "unscored", f"{type(method).__name__} has no likelihood bound")
        raise DiscdiffError(f"{why}; report judge perplexity of its samples instead")
    return bound


def _refuse_nan(rows: NDArray[np.int64], nats: NDArray[np.float64]) -> None:
    bad = ~np.isfinite(nats).all((1, 2))
    if bad.any():
        worst = nats[bad][~np.isfinite(nats[bad])][0]
        raise DiscdiffError(
            f"the bound of sequence {rows[bad][0]} is {worst} ({int(bad.sum())} of {len(rows)} sequences of "
            "its batch): the "
            "weights hold NaN or infinity, or the model gives a token probability zero; evaluate an "
            "earlier checkpoint"
        )


def compare(first: Ledger, second: Ledger) -> Estimate:
    """Second minus first in nats per token, paired: same sequences, same times, same noise. The error is of
    the difference.

    Raises `DiscdiffError` if the two did not score the same sequences.
    """
    same = np.array_equal(first.rows, second.rows) and np.array_equal(first.tokens, second.tokens)
    if not same:
        raise DiscdiffError(
            f"the ledgers cannot be paired: {len(first.rows)} and {len(second.rows)} sequences that are not "
            "the same; "
            "evaluate both checkpoints on one store, packing and limit"
        )
    return ratio(second.sequence_nats - first.sequence_nats, first.tokens)


def unigram(counts: NDArray[np.int64], canvases: Iterable[Canvas]) -> Ledger:
    """The baseline that knows only how often each token occurs: p(v) = (counts[v] + 1) / (sum + V). `[V] ->
    Ledger`
    """
    cost = -np.log((counts + 1) / (counts.sum() + len(counts)))
    parts: list[Ledger] = []
    for canvas in canvases:
        free = canvas.free.cpu().numpy()
        nats = (cost[canvas.tokens.cpu().numpy()] * free).sum(1)
        parts.append(Ledger(canvas.rows.cpu().numpy(), nats[:, None, None], free.sum(1), exact=True))
    return merge(parts)
