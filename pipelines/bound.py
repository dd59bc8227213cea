"""The bound over an evaluation set, on this machine or shared out to Ray actors: the numbers are the same.

Randomness is keyed by row and a ledger is put in row order, so neither the number of workers nor the
pieces they take enter a score. A piece that a dead worker had is measured again by another.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from discdiff.data.loader import Loader
from discdiff.data.packing import AnyPacking
from discdiff.data.store import Store
from discdiff.evaluation.estimators import AnyEstimator
from discdiff.evaluation.likelihood import Ledger, Protocol, Text, merge
from discdiff.training import load
from discdiff.types import Canvas
from pipelines.work import Work

BATCH = 2**14
"""Tokens of a batch. Not of a specification: it changes nothing but rounding."""
PIECE = 2**17
"""Tokens of a piece of work."""
WORTH = 2**23
"""Tokens times network evaluations from which starting workers pays."""

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Scoring:
    """A checkpoint, the rows of a store that it is scored on, and how."""

    checkpoint: str
    store: str
    split: str
    packing: AnyPacking
    estimator: AnyEstimator
    precision: Precision
    limit: int | None = None
    """At most so many rows."""


class Scorer:
    """A worker with the model and the rows open."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.store = Store.open(scoring.store, scoring.split)
        self.model = load(scoring.checkpoint, tokenizer=self.store.manifest.tokenizer, device=self.device)
        self.rows = Loader(self.store, scoring.packing, seed=0, shuffle=False)

    @property
    def count(self) -> int:
        """Rows to score."""
        there = self.scoring.packing.count(self.store)
        return min(there, self.scoring.limit or there)

    @property
    def evaluations(self) -> int:
        """Network evaluations a row."""
        return self.scoring.estimator.evaluations(self.model.method)

    def canvases(self, start: int, stop: int) -> Iterator[Canvas]:
        """Rows `start` to `stop`, a batch at a time."""
        return batches(self.rows, start, stop, self.device)

    def measure(self, start: int, stop: int) -> Ledger:
        """Rows `start` to `stop`."""
        with autocast(self.device, self.scoring.precision):
            canvases = self.canvases(start, stop)
            return self.scoring.estimator.measure(self.model.method, self.model.network, canvases)

    def text(self) -> Text:
        """The size of the split."""
        totals = self.store.totals
        return Text(tokens=totals.tokens, characters=totals.characters, bytes=totals.bytes)

    def protocol(self, ledger: Ledger) -> Protocol:
        """What the ledger's score means."""
        scoring, manifest = self.scoring, self.store.manifest
        estimator, times = scoring.estimator.describe(self.model.method)
        part = f", the first {len(ledger.rows):,} sequences" if scoring.limit else ""
        closed = "no separators" if self.store.separator is None else "separators of documents among them"
        counted = (
            f"{int(ledger.tokens.sum()):,} tokens in {len(ledger.rows):,} sequences, {closed}, no padding"
        )
        return Protocol(
            estimator=estimator,
            times=times,
            precision=scoring.precision,
            tokenizer=f"{manifest.tokenizer[:12]}, {manifest.vocab:,} tokens",
            packing=f"{scoring.packing.kind}, {scoring.packing.length} tokens",
            counted=counted,
            data=f"{manifest.fingerprint[:12]}, split {scoring.split}{part}; seed {scoring.estimator.seed}",
        )


def batches(rows: Loader, start: int, stop: int, device: torch.device) -> Iterator[Canvas]:
    """Rows `start` to `stop`, a batch at a time, on a device."""
    size = max(1, BATCH // rows.read(start, 1).shape[1])
    for at in range(start, stop, size):
        yield rows.read(at, min(size, stop - at)).to(device)


def autocast(device: torch.device, precision: Precision) -> Any:
    """The network in bfloat16 where that is asked for; logits and all after them stay in float32."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)


def measure(scorer: Scorer, work: Work) -> Ledger:
    """All rows; `scorer` takes part where other workers would not pay."""
    count, length = scorer.count, scorer.scoring.packing.length
    size = max(1, PIECE // length)
    pieces = [(start, min(start + size, count)) for start in range(0, count, size)]
    cost = count * length * scorer.evaluations
    alone = cost < WORTH or work.placement.workers == 1 or len(pieces) == 1
    parts = (scorer.measure(*piece) for piece in pieces) if alone else _everywhere(scorer, pieces, work)
    found: list[Ledger] = []
    for part in parts:
        found.append(part)
        work.progress(sum(len(each.rows) for each in found), count, "sequences scored")
    return merge(found)


def _everywhere(scorer: Scorer, pieces: list[tuple[int, int]], work: Work) -> Iterator[Ledger]:
    work.ray()
    import ray
    from ray.util.actor_pool import ActorPool

    place = work.placement
    actor: Any = ray.remote(Scorer)
    options = {"num_cpus": place.cpus, "num_gpus": place.gpus, "max_restarts": 3, "max_task_retries": 3}
    actors = [actor.options(**options).remote(scorer.scoring) for _ in range(min(place.workers, len(pieces)))]
    try:
        pool: Any = ActorPool(actors)
        yield from pool.map_unordered(lambda each, piece: each.measure.remote(*piece), pieces)
    finally:
        for each in actors:
            ray.kill(each)


def write_ledger(ledger: Ledger, path: str) -> None:
    """Keep every sequence's estimates in an .npz file."""
    np.savez_compressed(path, rows=ledger.rows, nats=ledger.nats, tokens=ledger.tokens)
