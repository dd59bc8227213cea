"""What a stage's body is given: its private place, its key, and ways to tell how it goes."""

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.placement import Cluster, Placement
from pipelines.remote import Post, Remote
from pipelines.screen import Bar
from pipelines.tracking import Tracker

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Work:
    """One attempt at one specification.

    `uri` is the artifact's folder, where parallel workers write; nobody reads there before the commit.
    `directory` is a local folder whose content will lie under `uri` at the commit: the same folder where the
    root is on a disk. In a resumable stage both keep what an interrupted attempt left, otherwise they start
    empty.
    """

    key: str
    uri: str
    directory: Path
    title: str
    cluster: Cluster
    tracker: Tracker
    bar: Bar
    post: Post
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def placement(self) -> Placement:
        """How wide to run: workers, CPUs and GPUs of each."""
        return self.cluster.placement

    def ray(self) -> None:
        """Join or start Ray; call it before anything of Ray."""
        self.cluster.start()

    def remote(self) -> Remote:
        """`log` and `progress` for Ray workers: picklable."""
        return self.post.remote(self)

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep metrics with the artifact, in `metrics.jsonl`, and send them to the tracker.

        A resumed attempt may repeat a step; the last line of a step counts.
        """
        values = {name: float(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, "time": time.time(), "metrics": values})
        with self._lock, (self.directory / METRICS).open("a") as file:
            file.write(line + "\n")
        self.tracker.log(values, step)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Move the stage's bar."""
        self.bar.show(done, total, note)
