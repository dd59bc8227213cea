"""The runner: finds the artifact of a specification, or runs the stage and commits.

The commit is one file, `artifact.json`, made last and exclusively: before it nobody reads the place, after it
nobody writes there. A lease keeps two runners from working on one key at a time; should both still get there
(one slept through its lease), the first to commit wins and the other returns what was committed.
"""

import getpass
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from discdiff.types import DiscdiffError, UnreachableError, Value
from pipelines.artifacts import Artifact
from pipelines.failure import StageError, cause
from pipelines.key import Json, fields, flatten
from pipelines.lease import Lease
from pipelines.place import Place
from pipelines.placement import Cluster, Placement
from pipelines.record import RECORD, Record, now, versions
from pipelines.remote import Post
from pipelines.screen import Screen
from pipelines.stage import A, S, Stage, label
from pipelines.tracking import Tracking, Untracked
from pipelines.work import Work

P = ParamSpec("P")
T = TypeVar("T")

LEASES = ".leases"


class Runner:
    """Runs stages under a root: `run(stage, spec)`, `run.all(stage, specs)`.

    `root` is a path or any fsspec URI; every machine of the cluster must see it. Leave with `close`, or use
    it as a context.
    """

    def __init__(
        self,
        root: str,
        *,
        placement: Placement | None = None,
        tracking: Tracking | None = None,
        screen: Screen | None = None,
    ) -> None:
        self.root = Place.at(root)
        self.screen = screen or Screen()
        self._cluster = Cluster(placement or Placement())
        self._post = Post(self._cluster)
        self.tracking = tracking or Untracked()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster and send what is still to be tracked."""
        self._cluster.close()
        self.tracking.close()

    @contextmanager
    def experiment(self, name: str, spec: Value) -> Generator[None]:
        """Stages within are tracked as parts of this experiment."""
        with self.tracking.experiment(name, flatten(fields(spec))):
            yield

    def __call__(self, stage: Stage[S, A], spec: S) -> A:
        """The artifact of the specification, made now if it was never made.

        Raises DiscdiffError for a mistake in the specification, StageError for any other failure.
        """
        place = self.root / stage.key(spec)
        record = Record.read(place)
        if record is None:
            return self._make(stage, spec, place)
        self.screen.say("cached", stage.title(spec), record.key, style="cyan")
        return _opened(stage, place)

    def all(self, stage: Stage[S, A], specs: Sequence[S]) -> list[A]:
        """The artifacts of several specifications, in their order; as many at a time as the placement says.

        All are tried: what can be finished is, before the first failure is raised.
        """
        width = self._cluster.placement.concurrent
        with ThreadPoolExecutor(width) if width > 1 else Here() as pool:
            futures = [pool.submit(self, stage, spec) for spec in specs]
        return [future.result() for future in futures]

    def _make(self, stage: Stage[S, A], spec: S, place: Place) -> A:
        title = stage.title(spec)
        lease = Lease(self.root / LEASES / stage.key(spec))
        if lease.acquire(
            lambda holder: self.screen.say("waiting", title, f"for {holder}", style="yellow"),
            lambda: Record.read(place) is not None,
        ):
            try:
                if Record.read(place) is None:
                    return self._attempt(stage, spec, place)
            finally:
                lease.release()
        return _opened(stage, place)

    def _attempt(self, stage: Stage[S, A], spec: S, place: Place) -> A:
        directory = place.local or self._scratch(place)
        resumed = bool(place.names()) or (directory.exists() and any(directory.iterdir()))
        if resumed and not stage.resumable:
            self._clear(place, directory)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            return self._run(stage, spec, place, directory)
        except Exception as error:
            reason = cause(error)
            if not stage.resumable or (_is_mistake(reason) and not resumed) or not any(directory.iterdir()):
                self._clear(place, directory)
            if isinstance(reason, DiscdiffError):
                raise reason from (None if reason is error else error)
            raise StageError(stage.title(spec), reason) from error

    def _run(self, stage: Stage[S, A], spec: S, place: Place, directory: Path) -> A:
        title, start = stage.title(spec), time.monotonic()
        key, parameters = stage.key(spec), flatten(fields(spec)) | _facts(spec)
        self.screen.say("running", title, key)
        with self.tracking.run(title, parameters) as tracker, self.screen.bar(title) as bar:
            work = Work(key, place.uri, directory, title, self._cluster, tracker, bar, self._post)
            tracker.tag({"stage": stage.name, "key": key, "uri": place.uri, **_inputs(spec)})
            try:
                made = stage(spec, work)
            finally:
                self._post.finish(key)
            seconds = time.monotonic() - start
            self._commit(place, directory, made, _record(stage, spec, made, seconds))
            tracker.tag({f"output.{name}": str(value) for name, value in flatten(made.content()).items()})
        self.screen.say("done", title, f"{seconds:.0f} s")
        return _opened(stage, place)

    def _commit(self, place: Place, directory: Path, made: Artifact, record: Record) -> None:
        if (made.key, made.uri) != (record.key, place.uri):
            raise TypeError(f"{record.stage} returned an artifact of another key or place than its own.")
        if place.local is None:
            place.upload(directory)
        place.settle()
        place.create(RECORD, record.model_dump_json(indent=2).encode())
        if place.local is None:
            shutil.rmtree(directory, ignore_errors=True)

    def _clear(self, place: Place, directory: Path) -> None:
        if place.local is None:
            shutil.rmtree(directory, ignore_errors=True)
        self.root.remove(place.uri.rsplit("/", 1)[-1])

    def _scratch(self, place: Place) -> Path:
        """A local folder that an interrupted attempt at the same place finds again."""
        name = f"{sha256(self.root.uri.encode()).hexdigest()[:8]}-{place.uri.rsplit('/', 1)[-1]}"
        return Path(tempfile.gettempdir()) / f"discdiff-{getpass.getuser()}" / name


class Here(Executor):
    """Runs one thing after the other on the thread that asks, where Ray and Python can take signals."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _is_mistake(error: BaseException) -> bool:
    """Whether the specification is wrong, so that trying it again is in vain."""
    return isinstance(error, DiscdiffError) and not isinstance(error, UnreachableError)


def _opened(stage: Stage[S, A], place: Place) -> A:
    return stage.artifact.open(place.uri)


def _inputs(spec: Value) -> dict[str, str]:
    """The artifacts that a specification names, by field, with their keys and where they lie."""
    tags: dict[str, str] = {}
    for name, each in _artifacts(spec, "input"):
        tags |= {f"{name}.key": each.key, f"{name}.uri": each.uri}
    return tags


def _facts(spec: Value) -> dict[str, Json]:
    """What is known of the artifacts that a specification names, such as `checkpoint.method`: nobody tells
    runs apart by keys alone.
    """
    named = {name: getattr(spec, name) for name in type(spec).model_fields}
    return {
        f"{name}.{fact}": value
        for name, each in named.items()
        if isinstance(each, Artifact)
        for fact, value in each.content().items()
        if isinstance(value, str | int) and fact != "kind"
    }


def _artifacts(value: object, name: str) -> Iterator[tuple[str, Artifact]]:
    """Those in a value, wherever it has them, with the fields that lead there."""
    match value:
        case Artifact():
            yield name, value
        case Value():
            for field in type(value).model_fields:
                yield from _artifacts(getattr(value, field), f"{name}.{field}")
        case tuple():
            for index, each in enumerate(cast(tuple[object, ...], value)):
                yield from _artifacts(each, f"{name}.{index}")
        case _:
            pass


def _record(stage: Stage[S, A], spec: S, made: Artifact, seconds: float) -> Record:
    return Record(
        stage=stage.name,
        version=stage.version,
        key=stage.key(spec),
        label=label(spec),
        spec=fields(spec),
        artifact=made.content(),
        created=now(),
        seconds=round(seconds, 3),
        versions=versions(),
    )
