"""An iterator whose items are made ready ahead of its reader, in one thread."""

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

Task = Callable[[], Iterable[T]]
_Tasks = queue.SimpleQueue[Task[T] | None]
_Made = queue.SimpleQueue[Iterable[T] | BaseException]


class Prefetch(Iterator[T], Generic[T]):
    """The items of each task's result, in order; `depth` tasks are done ahead. A context manager.

    The reader draws the tasks and iterates over their results, the thread calls them: to draw one should be
    cheap, and what an iterator does for an item is done when the item is asked for. What the thread raises is
    raised here, at the same place. It ends with the tasks, with `close`, or when nobody holds this object any
    more.
    """

    def __init__(self, tasks: Iterable[Task[T]], depth: int):
        self.waited = 0.0
        """Seconds that the reader has waited for the thread so far."""
        self._tasks = iter(tasks)
        self._depth = depth
        self._ahead = 0
        self._group: Iterator[T] = iter(())
        self._given: _Tasks[T] = queue.SimpleQueue()
        self._made: _Made[T] = queue.SimpleQueue()
        arguments = (self._given, self._made)
        self._thread = threading.Thread(target=_work, args=arguments, name="discdiff-prefetch", daemon=True)
        weakref.finalize(self, _dismiss, self._given)
        self._thread.start()
        self._give()

    def __next__(self) -> T:
        while True:
            for item in self._group:
                return item
            self._group = iter(self._next_group())

    def close(self) -> None:
        """End the thread. What was made ahead is dropped."""
        self._end()
        self._thread.join()
        self._group, self._made = iter(()), queue.SimpleQueue()

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        self._tasks, self._ahead = iter(()), 0
        _dismiss(self._given)

    def _give(self) -> None:
        """Let the thread be as far ahead as it should."""
        while self._ahead < self._depth and (task := next(self._tasks, None)) is not None:
            self._given.put(task)
            self._ahead += 1

    def _next_group(self) -> Iterable[T]:
        if not self._ahead:
            self._end()
            raise StopIteration
        start = time.perf_counter()
        made = self._made.get()
        self.waited += time.perf_counter() - start
        if isinstance(made, BaseException):
            self._end()
            raise made
        self._ahead -= 1
        self._give()
        return made


def _work(given: _Tasks[T], made: _Made[T]) -> None:
    while (task := given.get()) is not None:
        try:
            made.put(task())
        except BaseException as error:
            made.put(error)


def _dismiss(given: _Tasks[T]) -> None:
    """End the thread after what it is at."""
    with contextlib.suppress(queue.Empty):
        while True:
            given.get_nowait()
    given.put(None)
