"""How operations become MLflow's: runs, parameters, metrics, tags and artifacts, within its limits."""

import fcntl
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Read when mlflow is imported. The spool is what retries, with more patience than a request.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

METRICS, ENTITIES = 1000, 100
KEY_LIMIT, VALUE_LIMIT = 250, 6000
TAG = "discdiff.run"
CARD = "model"
TEMPORARY = (401, 403, 408, 409, 429)


class AwayError(Exception):
    """The server can't be reached, or won't have us, now."""


class Delivery:
    """Sends one session's operations.

    `runs` maps our names of the open runs to MLflow's and is kept up to date. What MLflow refuses for good is
    appended to `rejected` with the reason.
    """

    def __init__(self, header: Mapping[str, Any], runs: dict[str, str], rejected: Path) -> None:
        self._header = header
        self._runs = runs
        self._rejected = rejected
        self._client: Any = None
        self._experiment = ""

    def send(self, operations: list[dict[str, Any]]) -> None:
        """Send in order. Raises AwayError, after which all may be sent again."""
        waiting: dict[str, list[dict[str, Any]]] = {}
        for operation in operations:
            if operation["op"] == "metrics":
                waiting.setdefault(operation["run"], []).append(operation)
            else:
                self._send_metrics(waiting)
                self._attempt(operation)
        self._send_metrics(waiting)

    def _send_metrics(self, waiting: dict[str, list[dict[str, Any]]]) -> None:
        for run, operations in waiting.items():
            self._attempt({"op": "points", "run": run, "of": operations})
        waiting.clear()

    def _attempt(self, operation: dict[str, Any]) -> None:
        try:
            self._connect()
            getattr(self, f"_{operation['op']}")(operation)
        except Exception as error:
            if operation["op"] == "start" or _temporary(error):
                raise AwayError(_reason(error)) from error
            with self._rejected.open("a") as file:
                file.write(json.dumps({"reason": _reason(error), **operation}) + "\n")

    def _connect(self) -> None:
        if self._experiment:
            return
        from mlflow.tracking import MlflowClient

        name, where = self._header["experiment"], self._header["artifacts"]
        # A database is made by whoever connects first, and two at a time would spoil it.
        with self._rejected.with_name("connecting").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._client = MlflowClient(self._header["uri"])
            found = self._client.get_experiment_by_name(name)
            self._experiment = (
                self._client.create_experiment(name, artifact_location=where)
                if found is None
                else found.experiment_id
            )

    def _start(self, operation: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        run = self._known(operation["run"]) or self._create(operation)
        self._runs[operation["run"]] = run
        parameters = [Param(*each) for each in parameters_within_limits(operation["parameters"])]
        for some in _batches(parameters, ENTITIES):
            self._client.log_batch(run, params=some)

    def _known(self, ours: str) -> str | None:
        found = self._client.search_runs([self._experiment], f"tags.`{TAG}` = '{ours}'", max_results=1)
        return found[0].info.run_id if found else None

    def _create(self, operation: Mapping[str, Any]) -> str:
        tags = {TAG: operation["run"], "mlflow.source.name": "discdiff", "mlflow.source.type": "JOB"}
        if operation["parent"] is not None:
            parent = operation["parent"]
            tags["mlflow.parentRunId"] = self._runs.get(parent) or self._known(parent)
        run = self._client.create_run(
            self._experiment, start_time=operation["time"], run_name=operation["name"], tags=tags
        )
        return run.info.run_id

    def _points(self, operation: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(within_limit(name), value, each["time"], each["step"])
            for each in operation["of"]
            for name, value in each["values"].items()
        ]
        for some in _batches(points, METRICS):
            self._client.log_batch(self._run(operation), metrics=some)

    def _tags(self, operation: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(within_limit(name), shortened(value)) for name, value in operation["values"].items()]
        for some in _batches(tags, ENTITIES):
            self._client.log_batch(self._run(operation), tags=some)

    def _artifact(self, operation: Mapping[str, Any]) -> None:
        self._client.log_artifact(self._run(operation), operation["path"], operation["folder"] or None)

    def _register(self, operation: Mapping[str, Any]) -> None:
        """A version points at its card, a file of its run that says where the weights lie."""
        if self._version(operation) is None:
            self._model(operation["model"])
            run, card = self._run(operation), json.dumps(operation["tags"], indent=1)
            self._client.log_text(run, card, f"{CARD}/card.json")
            source, tags = f"runs:/{run}/{CARD}", {"key": operation["key"]}
            name, wait = within_limit(operation["model"]), 0
            self._client.create_model_version(name, source, run, tags=tags, await_creation_for=wait)
        self._describe(operation)

    def _describe(self, operation: Mapping[str, Any]) -> None:
        found = self._version(operation)
        if found is None:
            return
        for name, value in operation["tags"].items():
            tag = within_limit(name), shortened(value)
            self._client.set_model_version_tag(found.name, found.version, *tag)

    def _version(self, operation: Mapping[str, Any]) -> Any:
        """The version of a model that has the operation's key, if there is one."""
        versions = self._client.search_model_versions(f"name = '{within_limit(operation['model'])}'")
        return next((each for each in versions if each.tags.get("key") == operation["key"]), None)

    def _model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(within_limit(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _end(self, operation: Mapping[str, Any]) -> None:
        self._client.set_terminated(self._run(operation), operation["status"], operation["time"])
        self._runs.pop(operation["run"], None)

    def _run(self, operation: Mapping[str, Any]) -> str:
        """MLflow's name of a run; one that ended may be named again when operations are sent twice."""
        run = self._runs.get(operation["run"]) or self._known(operation["run"])
        if run is None:
            raise LookupError(f"MLflow has no run {operation['run']}")
        return run


def parameters_within_limits(parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values as MLflow takes them."""
    for name, value in parameters.items():
        yield within_limit(name), shortened(value if isinstance(value, str) else json.dumps(value))


def within_limit(name: str) -> str:
    """A name of at most 250 allowed characters; a longer one ends in its hash, so two never become one."""
    safe = re.sub(r"[^\w.\- :/]", "_", name)
    if posixpath.normpath(safe) != safe or safe.startswith(("/", "..")) or safe == ".":
        safe = re.sub(r"[/.]", "_", safe) or "_"
    if safe == name and len(safe) <= KEY_LIMIT:
        return safe
    return f"{safe[: KEY_LIMIT - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def shortened(value: str) -> str:
    """A value of at most 6,000 characters; a longer one ends in its length and hash."""
    if len(value) <= VALUE_LIMIT:
        return value
    end = f"... ({len(value)} characters, sha256 {hashlib.sha256(value.encode()).hexdigest()[:16]})"
    return value[: VALUE_LIMIT - len(end)] + end


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _temporary(error: Exception) -> bool:
    """Whether the same operation may succeed later: the connection, the server or its rights failed."""
    if isinstance(error, (FileNotFoundError, LookupError, TypeError)):
        return False
    status = getattr(error, "get_http_status_code", lambda: 500)()
    return status >= 500 or status in TEMPORARY


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
