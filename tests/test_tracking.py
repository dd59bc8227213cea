"""Tracking: nothing that was logged is lost, whatever dies; the work waits for nobody."""

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import BIN, free_ports, served
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.delivery import KEY_LIMIT, VALUE_LIMIT, parameters_within_limits, shortened, within_limit
from pipelines.tracking import SPOOL, Mlflow

ALLOWED = re.compile(r"^[/\w.\- :]*$")


def ask(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Read the tracking database itself."""
    with closing(sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


def runs(folder: Path) -> dict[str, tuple[str, str | None]]:
    """Each run's status and the name of its parent."""
    tags = dict(ask(folder, "select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
    rows = ask(folder, "select run_uuid, name, status from runs")
    names = {run: name for run, name, _ in rows}
    return {name: (status, names.get(tags.get(run, ""))) for run, name, status in rows}


@contextmanager
def server(folder: Path, port: int) -> Generator[None]:
    command: list[str | Path] = [
        BIN / "mlflow",
        "server",
        "--host=127.0.0.1",
        f"--port={port}",
        "--workers=1",
    ]
    command += [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/kept"]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with served(command, f"http://127.0.0.1:{port}/health", environment, folder / "server.log"):
        yield


def kill(port: int) -> None:
    """SIGKILL whoever listens on a port, and its family."""
    holders = {
        c.pid for c in psutil.net_connections() if c.laddr and c.laddr.port == port and c.status == "LISTEN"
    }
    family = {
        p for pid in holders for p in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
    }
    for process in family:
        process.send_signal(signal.SIGKILL)


def test_a_server_that_is_away_and_comes_back_gets_all(tmp_path: Path) -> None:
    """First nobody listens; then a server is killed in the middle and started again."""
    (port,) = free_ports(1)
    uri, warnings = f"http://127.0.0.1:{port}", list[str]()
    early = Mlflow(tmp_path, warnings.append, uri=uri)
    began = time.monotonic()
    with early.experiment("early", {"a": 1}), early.run("train", {"lr": 0.1}) as run:
        for step in range(500):
            run.log({"loss": 1 / (step + 1)}, step)
        took = time.monotonic() - began
    early.close()
    assert took < 2, "the work does not wait for a server"
    assert [("can't be reached" in warning, uri.split("//")[1] in warning) for warning in warnings] == [
        (True, True)
    ]
    assert len(list((tmp_path / SPOOL).glob("*.jsonl"))) == 1

    late = Mlflow(tmp_path, warnings.append, uri=uri)
    with late.experiment("late", {}), late.run("train late", {}) as run:
        with server(tmp_path, port):
            for step in range(300):
                run.log({"loss": float(step), "other": -float(step)}, step)
            until(lambda: ask(tmp_path, "select count(*) from metrics where key = 'other'") == [(300,)])
            kill(port)
        for step in range(300, 600):
            run.log({"loss": float(step), "other": -float(step)}, step)
            time.sleep(0.005)
        run.attach(Path(__file__), "code")
    with server(tmp_path, port):
        late.close()
    assert len(warnings) == 2, "one warning a session"
    assert not list((tmp_path / SPOOL).glob("*.jsonl"))
    query = "select name, key, count(*) from metrics join runs using (run_uuid) group by 1, 2 order by 1, 2"
    assert ask(tmp_path, query) == [
        ("train", "loss", 500),
        ("train late", "loss", 600),
        ("train late", "other", 600),
    ]
    values = ask(tmp_path, "select step, value from metrics where key = 'other' order by step")
    assert values == [(step, -float(step)) for step in range(600)]
    assert len(list(tmp_path.glob(f"kept/**/code/{Path(__file__).name}"))) == 1
    assert runs(tmp_path) == {
        "early": ("FINISHED", None),
        "train": ("FINISHED", "early"),
        "late": ("FINISHED", None),
        "train late": ("FINISHED", "late"),
    }


@pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")
@pytest.mark.parametrize("served", [False, True], ids=["embedded", "server"])
def test_checkpoints_are_versions_of_registered_models(tmp_path: Path, served: bool) -> None:
    from mlflow.tracking import MlflowClient

    (port,) = free_ports(1)
    warnings: list[str] = []
    uri = f"http://127.0.0.1:{port}" if served else None
    with server(tmp_path, port) if served else nullcontext():
        tracking = Mlflow(tmp_path, warnings.append, uri=uri)
        with tracking.run("train", {}) as run:
            for _ in range(2):  # what was sent before a crash may be sent again
                run.register("discdiff-mdlm", "train-1", {"stage": "trained", "use": "research"})
            run.register("discdiff-mdlm", "train-2", {"stage": "trained", "long": "x" * 9000})
        with tracking.run("evaluate", {}) as run:
            run.describe("discdiff-mdlm", "train-1", {"stage": "evaluated", "perplexity": "3.5"})
            run.describe("discdiff-udlm", "train-3", {"stage": "evaluated"})
        tracking.close()
        client = MlflowClient(tracking.uri)
        assert [each.name for each in client.search_registered_models()] == ["discdiff-mdlm"]
        versions = {each.tags["key"]: each for each in client.search_model_versions("name='discdiff-mdlm'")}
        assert sorted(versions) == ["train-1", "train-2"]
        first = versions["train-1"]
        told = {"key": "train-1", "stage": "evaluated", "use": "research", "perplexity": "3.5"}
        assert (first.tags, first.status) == (told, "READY")
        assert versions["train-2"].tags["stage"] == "trained"
        assert client.get_run(first.run_id).info.run_name == "train"
        card = client.download_artifacts(first.run_id, "model/card.json", str(tmp_path))
        assert "stage" in json.loads(Path(card).read_text())
    assert warnings == []
    assert not list((tmp_path / SPOOL).glob("*.rejected"))


LONG = "k" * 300
KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines.tracking import Mlflow
tracking = Mlflow(Path(sys.argv[1]), print)
with tracking.experiment("killed", {}), tracking.run("train killed", {}) as run:
    for step in range(100):
        run.log({"loss": float(step)}, step)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_embedded_store_gets_everything_even_of_a_killed_process(tmp_path: Path) -> None:
    warnings: list[str] = []
    tracking = Mlflow(tmp_path, warnings.append)
    with tracking.experiment("cached", {}):
        pass
    assert not (tmp_path / SPOOL).exists(), "an experiment in which nothing ran starts nothing"
    with pytest.raises(RuntimeError):
        fail_after_one(tracking)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    tracking.close()
    until(lambda: not list((tmp_path / SPOOL).glob("*.jsonl")))
    assert warnings == []
    assert not list((tmp_path / SPOOL).glob("*.rejected"))
    assert runs(tmp_path) == {
        "failed": ("FAILED", None),
        "good": ("FINISHED", "failed"),
        "trial": ("FINISHED", "good"),
        "bad": ("FAILED", "failed"),
        "killed": ("KILLED", None),
        "train killed": ("KILLED", "killed"),
    }
    parameters = dict(ask(tmp_path, "select key, value from params"))
    assert parameters["none"] == "null"
    assert [len(value) for key, value in parameters.items() if key.startswith("kkk")] == [VALUE_LIMIT]
    metrics = {
        (key, bool(nan)): value for key, value, nan in ask(tmp_path, "select key, value, is_nan from metrics")
    }
    assert metrics[("odd", True)] == 0
    assert metrics[("top", False)] > 1e308
    assert ask(tmp_path, "select count(*) from metrics where key = 'loss'") == [(101,)]


def fail_after_one(tracking: Mlflow) -> None:
    with tracking.experiment("failed", {"kind": "x"}):
        with tracking.run("good", {"lr": 0.1, LONG: "v" * 7000, "none": None}) as run:
            run.log({"odd": math.nan, "top": math.inf, "a%b": 1.0}, 1)
            run.tag({"key": "train-1", "long": "t" * 9000})
            with run.child("trial", {}) as trial:
                trial.log({"loss": 2.0})
        with tracking.run("bad", {}):
            raise RuntimeError


def test_the_standard_variable_is_honored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert Mlflow(tmp_path, print).uri == "http://127.0.0.1:1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Mlflow(tmp_path, print).uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_log_costs_microseconds_and_imports_no_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.tracking import Mlflow\n"
        "t = Mlflow(Path(sys.argv[1]), print, uri='http://127.0.0.1:1')\n"
        "with t.run('r', {}) as run: run.log({'loss': 1.0}, 1)\n"
        "assert not {'mlflow', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    (session,) = (tmp_path / SPOOL).glob("*.jsonl")
    kinds = [json.loads(line).get("op") for line in session.read_text().splitlines()]
    assert kinds == [None, "start", "metrics", "end"]


@settings(deadline=None)
@given(st.text(max_size=400), st.text(max_size=400))
def test_names_are_allowed_and_stay_apart(one: str, other: str) -> None:
    for name in (one, other):
        safe = within_limit(name)
        assert len(safe) <= KEY_LIMIT
        assert ALLOWED.match(safe)
        assert safe == os.path.normpath(safe)
        assert not safe.startswith(("/", ".."))
    assert one == other or within_limit(one) != within_limit(other)


@settings(deadline=None)
@given(st.text(max_size=5), st.integers(0, 9000))
def test_values_are_short_enough_and_stay_apart(text: str, times: int) -> None:
    value = text * times
    assert len(shortened(value)) <= VALUE_LIMIT
    assert shortened(value) == value or shortened(value) != shortened(value + "x")
    assert dict(parameters_within_limits({"a": value})) == {"a": shortened(value)}


def until(true: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
