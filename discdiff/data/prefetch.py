"""An iterator that is worked out ahead of its reader, in one thread."""

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE = 0.1
"""Seconds after which a thread that waits to hand over looks whether it should end."""


class Prefetch(Iterator[T], Generic[T]):
    """The items of the groups of `source`, in order; `depth` groups are made ahead. A context manager.

    What the source raises is raised here, at the same place. The thread ends with the source, with `close`,
    or when nobody holds this object any more.
    """

    def __init__(self, source: Iterable[list[T]], depth: int):
        self.waited = 0.0
        """Seconds that the reader has waited for items so far."""
        self._ready: deque[T] = deque()
        self._groups: queue.Queue[list[T] | BaseException | None] = queue.Queue(depth)
        self._stop = threading.Event()
        arguments = (source, self._groups, self._stop)
        self._thread = threading.Thread(target=_work, args=arguments, name="discdiff-prefetch", daemon=True)
        weakref.finalize(self, self._stop.set)
        self._thread.start()

    def __next__(self) -> T:
        while not self._ready:
            self._ready.extend(self._next_group())
        return self._ready.popleft()

    def close(self) -> None:
        """End the thread. What was made ahead is dropped."""
        self._stop.set()
        self._ready.clear()
        while self._thread.is_alive():
            _drain(self._groups)
            self._thread.join(PATIENCE)
        _drain(self._groups)

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next_group(self) -> list[T]:
        start = time.perf_counter()
        group = None if self._stop.is_set() and self._groups.empty() else self._groups.get()
        self.waited += time.perf_counter() - start
        if isinstance(group, list):
            return group
        self._stop.set()
        if group is None:
            raise StopIteration
        raise group


def _work(
    source: Iterable[list[T]], groups: "queue.Queue[list[T] | BaseException | None]", stop: threading.Event
):
    last: BaseException | None = None
    try:
        for group in source:
            if not _hand_over(group, groups, stop):
                return
    except BaseException as error:
        last = error
    _hand_over(last, groups, stop)


def _hand_over(
    item: list[T] | BaseException | None,
    groups: "queue.Queue[list[T] | BaseException | None]",
    stop: threading.Event,
) -> bool:
    while not stop.is_set():
        try:
            groups.put(item, timeout=PATIENCE)
            return True
        except queue.Full:
            continue
    return False


def _drain(groups: "queue.Queue[list[T] | BaseException | None]") -> None:
    while True:
        try:
            groups.get_nowait()
        except queue.Empty:
            return
