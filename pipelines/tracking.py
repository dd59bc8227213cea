"""Tracking: one run per stage, nested under its experiment's run.

Stages know `Tracker`, runners know `Tracking`; `Untracked` keeps nothing.
"""

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from pipelines.key import Json


class Tracker(Protocol):
    """One tracked run."""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Metrics at a step; returns at once."""
        ...

    def tag(self, tags: Mapping[str, str]) -> None: ...

    def attach(self, path: Path, folder: str = "") -> None:
        """Keep a local file with the run."""
        ...

    def child(self, name: str, parameters: Mapping[str, Json]) -> "AbstractContextManager[Tracker]":
        """A run nested under this one, for instance a trial."""
        ...


class Tracking(Protocol):
    """Where runs are tracked."""

    def run(self, name: str, parameters: Mapping[str, Json]) -> AbstractContextManager[Tracker]:
        """A run, nested under the experiment that is open if one is."""
        ...

    def experiment(self, name: str, parameters: Mapping[str, Json]) -> AbstractContextManager[None]:
        """An experiment: runs within are nested under its run."""
        ...

    def close(self) -> None: ...


class Untracked:
    """Tracks nothing."""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...

    def tag(self, tags: Mapping[str, str]) -> None: ...

    def attach(self, path: Path, folder: str = "") -> None: ...

    @contextmanager
    def child(self, name: str, parameters: Mapping[str, Json]) -> Generator[Tracker]:
        yield self

    @contextmanager
    def run(self, name: str, parameters: Mapping[str, Json]) -> Generator[Tracker]:
        yield self

    @contextmanager
    def experiment(self, name: str, parameters: Mapping[str, Json]) -> Generator[None]:
        yield

    def close(self) -> None: ...
