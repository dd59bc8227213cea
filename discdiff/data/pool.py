"""Work over the cores of one machine, without Ray."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

from discdiff.data.heap import keep_freed

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2


def settle() -> None:
    """Ready this process to encode on one core, in memory that it keeps.

    The tokenizers would otherwise start a thread for each core of the machine.
    """
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    keep_freed()


@dataclass(frozen=True)
class Pool:
    """`Each` over processes: `build(spec, uri, each=Pool(8))`. Results come as they are ready."""

    processes: int

    def __call__(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        context = get_context("forkserver")
        context.set_forkserver_preload(["discdiff.data.preparation"])
        waiting = iter(enumerate(items))
        flying: dict[Future[R], int] = {}
        with ProcessPoolExecutor(self.processes, context, settle) as pool:
            try:
                while True:
                    while len(flying) < _AHEAD * self.processes and (following := next(waiting, None)):
                        flying[pool.submit(function, following[1])] = following[0]
                    if not flying:
                        return
                    for ready in wait(flying, return_when=FIRST_COMPLETED).done:
                        yield flying.pop(ready), ready.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
