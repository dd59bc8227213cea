"""The stages that make a token store and train a tokenizer: a Ray task for each part of the corpus."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from discdiff.data.build import build
from discdiff.data.pool import settle
from discdiff.data.specification import Tokenize
from pipelines.artifacts import Tokens
from pipelines.stage import stage
from pipelines.work import Work

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2
"""Tasks submitted for each that can run: workers never wait for the driver, and the queue is short."""
_BESIDE = 384 * 2**20
"""Bytes of memory of a task beside its text: libraries and the tokenizer."""
_TIMES = 6
"""Memory of a task's text, its encodings and its shards, in multiples of its input."""


@stage(version=1, resumable=True)
def tokenize(spec: Tokenize, work: Work) -> Tokens:
    """Make the token store of a specification; a killed run goes on from the parts that are done."""
    work.ray()
    spread = Spread(memory=_BESIDE + _TIMES * spec.part)

    def show(done: int, total: int) -> None:
        work.progress(done / 1e6, total / 1e6, "MB")

    manifest = build(spec, work.uri, key=work.key, each=spread, progress=show)
    return Tokens(
        key=work.key,
        uri=work.uri,
        fingerprint=manifest.fingerprint,
        vocab=manifest.vocab,
        documents=sum(split.documents for split in manifest.splits.values()),
        tokens=sum(split.tokens for split in manifest.splits.values()),
    )


@dataclass(frozen=True)
class Spread:
    """`Each` over a Ray cluster: one CPU and so much memory a task, a bounded number of them in flight.

    Results come as they are ready. A task that dies with its worker or for lack of memory is tried again; one
    that raises ends the work with its error.
    """

    memory: int

    def __call__(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        import ray

        if not items:
            return
        total = ray.cluster_resources()
        memory = min(self.memory, int(total.get("memory", 0)))
        slots = min(total.get("CPU", 1), total.get("memory", 0) / memory if memory else math.inf)
        task = ray.remote(_apply).options(num_cpus=1, memory=memory or None, max_retries=5)  # pyright: ignore
        shared = ray.put(function)
        waiting = iter(enumerate(items))
        flying: dict[Any, int] = {}
        try:
            while True:
                while len(flying) < _AHEAD * max(1, int(slots)) and (following := next(waiting, None)):
                    flying[task.remote(shared, following[1])] = following[0]
                if not flying:
                    return
                (ready,), _ = ray.wait(list(flying), num_returns=1)
                yield flying.pop(ready), ray.get(ready)
        finally:
            for pending in flying:
                ray.cancel(pending, force=True)


def _apply(function: Callable[[T], R], item: T) -> R:
    settle()
    return function(item)
