"""Tracking: one run per stage, nested under its experiment's run.

Stages know `Tracker`, runners know `Tracking`. `Untracked` keeps nothing. `Mlflow` appends every operation to
a file, the spool, and returns: another process (`pipelines.sender`) reads the spool and talks to MLflow. So a
stage never waits for a server nor for MLflow's import, and what a server did not take stays on the disk until
it does.
"""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from pipelines.key import Json
from pipelines.process import dead, identity

EXPERIMENT = "discdiff"
SPOOL = ".spool"
LAST_WAIT = 120.0


class Tracker(Protocol):
    """One tracked run."""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Metrics at a step; returns at once."""
        ...

    def tag(self, tags: Mapping[str, str]) -> None: ...

    def attach(self, path: Path, folder: str = "") -> None:
        """Keep a local file with the run."""
        ...

    def register(self, model: str, key: str, tags: Mapping[str, str]) -> None:
        """Make a version of a registered model, the one with this key, that comes from this run."""
        ...

    def describe(self, model: str, key: str, tags: Mapping[str, str]) -> None:
        """Add tags to the version of a registered model with this key, if it was registered."""
        ...

    def child(self, name: str, parameters: Mapping[str, Json]) -> "AbstractContextManager[Tracker]":
        """A run nested under this one, for instance a trial."""
        ...


class Tracking(Protocol):
    """Where runs are tracked."""

    uri: str
    """Where to look, for people."""

    def run(self, name: str, parameters: Mapping[str, Json]) -> AbstractContextManager[Tracker]:
        """A run, nested under the experiment that is open, if one is."""
        ...

    def experiment(self, name: str, parameters: Mapping[str, Json]) -> AbstractContextManager[None]:
        """An experiment: runs within are nested under its run, which starts with the first of them."""
        ...

    def close(self) -> None: ...


class Untracked:
    """Tracks nothing."""

    uri = "nowhere"

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...

    def tag(self, tags: Mapping[str, str]) -> None: ...

    def attach(self, path: Path, folder: str = "") -> None: ...

    def register(self, model: str, key: str, tags: Mapping[str, str]) -> None: ...

    def describe(self, model: str, key: str, tags: Mapping[str, str]) -> None: ...

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


class MlflowRun:
    """A tracker that writes to the spool."""

    def __init__(self, write: Callable[[dict[str, Any]], None], name: str, parent: str | None) -> None:
        self._write = write
        self._name = name
        self._parent = parent
        self.id = uuid.uuid4().hex

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._put("metrics", values={name: float(value) for name, value in metrics.items()}, step=step or 0)

    def tag(self, tags: Mapping[str, str]) -> None:
        self._put("tags", values=dict(tags))

    def attach(self, path: Path, folder: str = "") -> None:
        self._put("artifact", path=str(path.absolute()), folder=folder)

    def register(self, model: str, key: str, tags: Mapping[str, str]) -> None:
        self._put("register", model=model, key=key, tags=dict(tags))

    def describe(self, model: str, key: str, tags: Mapping[str, str]) -> None:
        self._put("describe", model=model, key=key, tags=dict(tags))

    @contextmanager
    def child(self, name: str, parameters: Mapping[str, Json]) -> Generator[Tracker]:
        run = MlflowRun(self._write, name, self.id)
        with run.open(parameters):
            yield run

    @contextmanager
    def open(self, parameters: Mapping[str, Json]) -> Generator[None]:
        """The run from its start to its end, finished or failed."""
        self.start(parameters)
        try:
            yield
        except Exception:
            self.end("FAILED")
            raise
        except BaseException:
            self.end("KILLED")
            raise
        self.end("FINISHED")

    def start(self, parameters: Mapping[str, Json]) -> None:
        self._put("start", name=self._name, parent=self._parent, parameters=dict(parameters))

    def end(self, status: str) -> None:
        self._put("end", status=status)

    def _put(self, operation: str, **fields: Any) -> None:
        self._write({"op": operation, "run": self.id, "time": int(time.time() * 1000), **fields})


class Mlflow:
    """Tracks in MLflow, at MLFLOW_TRACKING_URI or else in a database embedded in `folder`."""

    def __init__(self, folder: Path, warn: Callable[[str], None], uri: str | None = None) -> None:
        self.folder = folder
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
        self._warn = warn
        self._lock = threading.Lock()
        self._session: IO[str] | None = None
        self._sender: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        self._experiment: MlflowRun | None = None
        self._unstarted: Callable[[], None] | None = None
        if _left_behind(self._spool):
            self._start_sender()

    @property
    def _spool(self) -> Path:
        return self.folder / SPOOL

    @contextmanager
    def run(self, name: str, parameters: Mapping[str, Json]) -> Generator[Tracker]:
        with self._lock:
            parent = self._experiment
            first, self._unstarted = self._unstarted, None
        if first is not None:
            first()
        run = MlflowRun(self._write, name, parent.id if parent is not None else None)
        with run.open(parameters):
            yield run

    @contextmanager
    def experiment(self, name: str, parameters: Mapping[str, Json]) -> Generator[None]:
        run = MlflowRun(self._write, name, None)
        self._experiment, self._unstarted = run, lambda: run.start(parameters)
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        finally:
            if self._unstarted is None:
                run.end(status)
            self._experiment = self._unstarted = None

    def close(self) -> None:
        """Wait until everything is sent, or until it is clear that it can't be now."""
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None
        if self._sender is None or self._sender.stdin is None:
            return
        self._sender.stdin.close()
        try:
            self._sender.wait(LAST_WAIT)
        except subprocess.TimeoutExpired:
            self._sender.terminate()
        if self._sender.wait() != 0:
            self._warn(f"not all was sent to MLflow; the rest is kept in {self._spool} for the next run.")
        if self._listener is not None:
            self._listener.join()
        self._sender = None

    def _write(self, operation: dict[str, Any]) -> None:
        with self._lock:
            if self._session is None:
                self._session = self._open_session()
                self._start_sender()
            self._session.write(json.dumps(operation) + "\n")

    def _open_session(self) -> IO[str]:
        self._spool.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        part = self._spool / f"{name}.part"
        header = {
            "uri": self.uri,
            "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT),
            "artifacts": (self.folder / "mlartifacts").as_uri() if self.uri.startswith("sqlite:") else None,
            "owner": dict(identity()),
        }
        part.write_text(json.dumps(header) + "\n")
        path = part.rename(self._spool / f"{name}.jsonl")
        return path.open("a", buffering=1)

    def _start_sender(self) -> None:
        if self._sender is not None:
            return
        with (self._spool / "sender.log").open("ab") as log:
            self._sender = subprocess.Popen(
                [sys.executable, "-m", "pipelines.sender", str(self._spool), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, args=(self._sender.stdout,), daemon=True)
        self._listener.start()

    def _listen(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._warn(line.strip())


def _left_behind(spool: Path) -> bool:
    """Whether a run that is over left something to send."""
    return any(dead(json.loads(_first_line(path))["owner"]) for path in spool.glob("*.jsonl"))


def _first_line(path: Path) -> str:
    with path.open() as file:
        return file.readline()
