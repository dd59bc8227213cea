"""The runner: finds the artifact of a specification, or runs the stage and commits.

The commit is one file, `artifact.json`, made last and exclusively: before it nobody reads the place, after it
nobody writes there. A lease keeps two runners from working on one key at a time; should both still get there
(one slept through its lease), the first to commit wins and the other returns what was committed.
"""

import contextlib
import getpass
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from discdiff.types import DiscdiffError, Value
from pipelines.artifacts import RECORD, Artifact, Record
from pipelines.failure import StageError, cause
from pipelines.key import Json, changes, fields, flatten
from pipelines.lease import Lease
from pipelines.place import Place
from pipelines.placement import Cluster, Placement
from pipelines.remote import Post
from pipelines.screen import Screen
from pipelines.stage import A, S, Stage
from pipelines.tracking import Tracking, Untracked
from pipelines.work import Work

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
        self._tracking = tracking or Untracked()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster and send what is still to be tracked."""
        self._cluster.close()
        self._tracking.close()

    @contextmanager
    def experiment(self, name: str, spec: Value) -> Generator[None]:
        """Stages within are tracked as parts of this experiment."""
        with self._tracking.experiment(name, flatten(fields(spec))):
            yield

    def __call__(self, stage: Stage[S, A], spec: S) -> A:
        """The artifact of the specification, made now if it was never made.

        Raises DiscdiffError for a mistake in the specification, StageError for any other failure.
        """
        place = self.root / stage.key(spec)
        record = Record.read(place)
        if record is None:
            return self._make(stage, spec, place)
        self.screen.say("cached", stage.label(spec), record.key, style="cyan")
        return _opened(stage, place)

    def all(self, stage: Stage[S, A], specs: Sequence[S]) -> list[A]:
        """The artifacts of several specifications, in their order; as many at a time as the placement says.

        All are tried: what can be finished is, before the first failure is raised.
        """
        with ThreadPoolExecutor(self._cluster.placement.concurrent) as pool:
            futures = [pool.submit(self, stage, spec) for spec in specs]
        return [future.result() for future in futures]

    def _make(self, stage: Stage[S, A], spec: S, place: Place) -> A:
        label = stage.label(spec)
        lease = Lease(self.root / LEASES / stage.key(spec))
        if lease.acquire(
            lambda holder: self.screen.say("waiting", label, f"for {holder}", style="yellow"),
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
            if (
                not stage.resumable
                or (isinstance(reason, DiscdiffError) and not resumed)
                or not any(directory.iterdir())
            ):
                self._clear(place, directory)
            if isinstance(reason, DiscdiffError):
                raise reason from (None if reason is error else error)
            raise StageError(stage.label(spec), reason) from error

    def _run(self, stage: Stage[S, A], spec: S, place: Place, directory: Path) -> A:
        label, start = stage.label(spec), time.monotonic()
        parameters = flatten(fields(spec))
        self.screen.say("running", label, place.uri.rsplit("/", 1)[-1])
        with self._tracking.run(label, parameters) as tracker, self.screen.bar(label) as bar:
            work = Work(stage.key(spec), place.uri, directory, label, self._cluster, tracker, bar, self._post)
            tracker.tag({"stage": stage.name, "key": work.key, "uri": place.uri, **_inputs(spec)})
            try:
                artifact = stage(spec, work)
            finally:
                self._post.finish(work.key)
            seconds = time.monotonic() - start
            artifact = self._commit(stage, spec, artifact, work, place, seconds)
            tracker.tag({f"output.{name}": str(value) for name, value in flatten(artifact.content()).items()})
        self.screen.say("done", label, f"{seconds:.0f} s")
        return artifact

    def _commit(
        self, stage: Stage[S, A], spec: S, artifact: A, work: Work, place: Place, seconds: float
    ) -> A:
        if (artifact.key, artifact.uri) != (work.key, work.uri):
            raise TypeError(f"stage {stage.name} returned an artifact that is not of its own key and place.")
        if place.local is None:
            place.upload(work.directory)
        place.settle()
        record = Record(
            stage=stage.name,
            version=stage.version,
            key=work.key,
            label=work.label,
            spec=fields(spec),
            artifact=artifact.content(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            versions=_versions(),
        )
        if not place.create(RECORD, record.model_dump_json(indent=2).encode()):
            artifact = _opened(stage, place)
        if place.local is None:
            shutil.rmtree(work.directory, ignore_errors=True)
        return artifact

    def _clear(self, place: Place, directory: Path) -> None:
        if place.local is None:
            shutil.rmtree(directory, ignore_errors=True)
        self.root.remove(place.uri.rsplit("/", 1)[-1])

    def _scratch(self, place: Place) -> Path:
        """A local folder that an interrupted attempt at the same place finds again."""
        name = f"{sha256(self.root.uri.encode()).hexdigest()[:8]}-{place.uri.rsplit('/', 1)[-1]}"
        return Path(tempfile.gettempdir()) / f"discdiff-{getpass.getuser()}" / name


class Plan(Runner):
    """A dry run: tells of each stage whether it is cached and, if not, which field made it new."""

    def _make(self, stage: Stage[S, A], spec: S, place: Place) -> A:
        key = stage.key(spec)
        self.screen.say("to run", stage.label(spec), f"{key}  {self._reason(stage, spec)}", style="yellow")
        return stage.artifact.model_construct(key=key, uri=place.uri)

    def _reason(self, stage: Stage[S, A], spec: S) -> str:
        now = fields(spec)
        records = [record for record in self._records(stage) if record.version == stage.version]
        if not records:
            ran = any(self._records(stage))
            return f"the stage is at version {stage.version} now" if ran else "the first of its stage"
        nearest = min(reversed(records), key=lambda record: len(changes(record.spec, now)))
        differing = changes(nearest.spec, now)
        shown = [f"{name}: {_shown(old)} -> {_shown(new)}" for name, (old, new) in differing.items()]
        more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
        return f"{', '.join(shown[:6])}{more} (since {nearest.key})"

    def _records(self, stage: Stage[S, A]) -> list[Record]:
        names = [name for name in self.root.names() if name.rpartition("-")[0] == stage.name]
        records = [record for name in names if (record := Record.read(self.root / name)) is not None]
        return sorted(records, key=lambda record: record.created)


def _opened(stage: Stage[S, A], place: Place) -> A:
    return stage.artifact.open(place.uri)


def _inputs(spec: Value) -> dict[str, str]:
    """The artifacts that a specification names, by field, with their keys and where they lie."""
    tags: dict[str, str] = {}
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        for index, each in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(each, Artifact):
                label = f"input.{name}.{index}" if isinstance(value, tuple) else f"input.{name}"
                tags |= {f"{label}.key": each.key, f"{label}.uri": each.uri}
    return tags


def _shown(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("discdiff", "torch", "ray", "pyarrow"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
