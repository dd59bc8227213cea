"""What a person sees while stages run: a line a stage and a bar while it works.

On a terminal the bars move; in a log, where nothing moves, a running stage writes a line now and then.
"""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_EVERY = 15.0


class Bar:
    """The progress of one stage: `show(done, total, note)` as often as one likes."""

    def __init__(self, screen: "Screen", label: str, task: TaskID | None) -> None:
        self.label = label
        self._screen = screen
        self._task = task
        self._last = time.monotonic()

    def show(self, done: float, total: float | None = None, note: str = "") -> None:
        if self._task is not None:
            self._screen.progress.update(self._task, completed=done, total=total, note=escape(note))
        elif time.monotonic() - self._last > LOG_EVERY:
            self._last = time.monotonic()
            share = f"{done:g} of {total:g}" if total else f"{done:g}"
            self._screen.say("at", self.label, f"{share} {note}".strip())


class Screen:
    """A console that several stages share."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        columns = (
            TextColumn("[bold blue]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        self.progress = Progress(*columns, console=self.console, transient=True)
        self._open = 0
        self._lock = threading.Lock()

    def say(self, what: str, label: str, text: str = "", *, style: str = "green") -> None:
        """One line: what happened, to which stage, and more."""
        self.console.print(f"[{style}]{what:>8}[/] [bold]{escape(label)}[/] {escape(text)}".rstrip())

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]{'warning':>8}[/] {escape(text)}")

    @contextmanager
    def bar(self, label: str) -> Generator[Bar]:
        """A bar for as long as a stage runs."""
        if not self.console.is_terminal:
            yield Bar(self, label, None)
            return
        with self._lock:
            self._open += 1
            if self._open == 1:
                self.progress.start()
            task = self.progress.add_task(label, total=None, note="")
        try:
            yield Bar(self, label, task)
        finally:
            with self._lock:
                self.progress.remove_task(task)
                self._open -= 1
                if self._open == 0:
                    self.progress.stop()
