"""An iterator that is worked out ahead of its reader, in one thread."""

import queue
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE = 0.1
"""Seconds after which a thread that waits to hand over looks whether it should end."""


class Prefetch(Iterator[T], Generic[T]):
    """The items of the groups of `source`, in order; `depth` groups are made ahead. A context manager.

    The thread makes the groups, the reader iterates over them: what an iterator does for an item is done when
    the item is asked for. What the source raises is raised here, at the same place. The thread ends with the
    source, with `close`, or when nobody holds this object any more.
    """

    def __init__(self, source: Iterable[Iterable[T]], depth: int):
        self.waited = 0.0
        """Seconds that the reader has waited for groups so far."""
        self._group: Iterator[T] = iter(())
        self._groups: queue.Queue[Iterable[T] | BaseException | None] = queue.Queue(depth)
        self._stop = threading.Event()
        arguments = (source, self._groups, self._stop)
        self._thread = threading.Thread(target=_work, args=arguments, name="discdiff-prefetch", daemon=True)
        weakref.finalize(self, self._stop.set)
        self._thread.start()

    def __next__(self) -> T:
        while True:
            for item in self._group:
                return item
            self._group = iter(self._next_group())

    def close(self) -> None:
        """End the thread. What was made ahead is dropped."""
        self._stop.set()
        self._group = iter(())
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

    def _next_group(self) -> Iterable[T]:
        start = time.perf_counter()
        group = None if self._stop.is_set() and self._groups.empty() else self._groups.get()
        self.waited += time.perf_counter() - start
        if group is not None and not isinstance(group, BaseException):
            return group
        self._stop.set()
        raise StopIteration if group is None else group


def _work(
    source: Iterable[Iterable[T]],
    groups: "queue.Queue[Iterable[T] | BaseException | None]",
    stop: threading.Event,
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
    item: Iterable[T] | BaseException | None,
    groups: "queue.Queue[Iterable[T] | BaseException | None]",
    stop: threading.Event,
) -> bool:
    while not stop.is_set():
        try:
            groups.put(item, timeout=PATIENCE)
            return True
        except queue.Full:
            continue
    return False


def _drain(groups: "queue.Queue[Iterable[T] | BaseException | None]") -> None:
    while True:
        try:
            groups.get_nowait()
        except queue.Empty:
            return
