"""Laws of stages: at most once, nothing half-made, keys that are stable and tell what changed."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from stage_problem import PARTS, Corpus, Draw, collect, draw, gather

from discdiff.types import DiscdiffError, UnreachableError
from pipelines.artifacts import Tokens
from pipelines.failure import StageError
from pipelines.key import ABSENT, Json, canonical, changes, key
from pipelines.lease import PATIENCE, Lease
from pipelines.place import Place
from pipelines.placement import Placement
from pipelines.plan import Plan
from pipelines.record import RECORD
from pipelines.runner import LEASES, Runner
from pipelines.screen import Screen
from pipelines.stage import Stage
from pipelines.tracking import Tracker, Untracked
from pipelines.work import Work

SCRIPT = str(Path(__file__).with_name("stage_problem.py"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture(params=["disk", "object store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A root on a disk, and one in an object store."""
    if request.param == "disk":
        return str(tmp_path / "runs")
    return f"{request.getfixturevalue('bucket')}/runs"


def quiet() -> Screen:
    return Screen(Console(file=io.StringIO(), width=400))


def said(screen: Screen) -> str:
    assert isinstance(screen.console.file, io.StringIO)
    return screen.console.file.getvalue()


def lines(trace: Path) -> list[str]:
    return trace.read_text().splitlines() if trace.exists() else []


def start(root: str, name: str, spec: Corpus, beat: float = 5, patience: float = 30) -> subprocess.Popen[str]:
    command = [sys.executable, SCRIPT, root, name, spec.model_dump_json(), str(beat), str(patience)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# Keys ---------------------------------------------------------------------------------------------------


def test_a_key_is_the_same_in_every_process_and_forever(trace: Path) -> None:
    spec = Corpus(trace=str(trace), names=("ä", "b"), rate=0.1)
    assert collect.key(spec) == "collect-11faf29e2760b503"
    code = "from stage_problem import *; print(collect.key(Corpus(trace='t', names=('ä', 'b'), rate=.1)))"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(SCRIPT).parent)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == collect.key(spec), found.stderr


@pytest.mark.parametrize("change", [{"size": 4}, {"rate": 0.25}, {"names": ("b", "a")}, {"fail": "x"}])
def test_every_field_that_counts_changes_the_key(change: dict[str, object]) -> None:
    spec = Corpus(trace="t")
    assert collect.key(spec) != collect.key(spec.model_copy(update=change))
    assert collect.key(spec) == collect.key(spec.model_copy(update={"trace": "elsewhere"}))


def test_name_and_version_count_and_upstream_counts_by_its_key() -> None:
    spec = Corpus(trace="t")
    assert collect.key(spec).split("-")[1] != gather.key(spec).split("-")[1]
    assert key("collect", 1, spec) != key("collect", 2, spec)
    here = Tokens(key="k", uri="/here", fingerprint="f", vocab=1, documents=1, tokens=1)
    moved = here.model_copy(update={"uri": "s3://there", "label": "other"})
    assert draw.key(Draw(tokens=here)) == draw.key(Draw(tokens=moved))
    assert draw.key(Draw(tokens=here)) != draw.key(Draw(tokens=here.model_copy(update={"key": "l"})))


name = st.text("abcdef_", min_size=1, max_size=3)
scalar = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text().filter(lambda text: text != ABSENT)
)
tree = st.dictionaries(
    name, st.recursive(scalar, lambda inner: st.lists(inner) | st.dictionaries(name, inner), max_leaves=8)
)


@settings(deadline=None)
@given(tree, tree)
def test_changes_are_empty_exactly_when_the_keys_are_equal(one: object, other: object) -> None:
    same = key("stage", 1, one) == key("stage", 1, other)
    assert same == (not changes(canonical(one), canonical(other)))


def test_what_has_no_canonical_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        canonical({"field": object()})
    assert canonical([float("inf"), {2, 1}, Path("a/b")]) == ["inf", [1, 2], "a/b"]


# Running ------------------------------------------------------------------------------------------------


def test_a_stage_runs_at_most_once_and_what_follows_knows_its_input(root: str, trace: Path) -> None:
    spec = Corpus(trace=str(trace))
    for _ in range(2):
        with Runner(root, screen=quiet()) as run:
            tokens = run(collect, spec)
            samples = run(draw, Draw(tokens=tokens))
    assert lines(trace) == ["began 0", "ended"]
    assert (tokens.vocab, tokens.label, samples.length) == (3, "of 3", 3)
    assert len([name for name in Place.at(tokens.uri).names() if name.startswith("part")]) == PARTS
    assert Place(f"{root}/{LEASES}/{tokens.key}").names() == []


def test_a_tracked_run_says_what_its_inputs_are(tmp_path: Path, trace: Path) -> None:
    """By keys alone nobody tells runs apart that differ in nothing but their inputs."""
    tracking = Kept()
    with Runner(str(tmp_path / "runs"), tracking=tracking, screen=quiet()) as run:
        tokens = run(collect, Corpus(trace=str(trace)))
        run(draw, Draw(tokens=tokens))
    drawn = next(said for name, said in tracking.parameters.items() if name.startswith("draw"))
    assert drawn == {
        "tokens": tokens.key,
        "count": 2,
        "tokens.fingerprint": "f",
        "tokens.vocab": 3,
        "tokens.documents": 1,
        "tokens.tokens": 2,
    }


class Kept(Untracked):
    """Keeps the parameters of each run."""

    def __init__(self) -> None:
        self.parameters: dict[str, dict[str, Json]] = {}

    @contextmanager
    def run(self, name: str, parameters: Mapping[str, Json]) -> Generator[Tracker]:
        self.parameters[name] = dict(parameters)
        yield self


def test_a_moved_store_is_still_cached(tmp_path: Path, trace: Path) -> None:
    with Runner(str(tmp_path / "one"), screen=quiet()) as run:
        run(draw, Draw(tokens=run(collect, Corpus(trace=str(trace)))))
    (tmp_path / "one").rename(tmp_path / "two")
    screen = quiet()
    with Runner(str(tmp_path / "two"), screen=screen) as run:
        samples = run(draw, Draw(tokens=run(collect, Corpus(trace=str(trace)))))
    assert lines(trace) == ["began 0", "ended"]
    assert said(screen).count("cached") == 2
    assert samples.uri.startswith(str(tmp_path / "two"))


def test_metrics_stay_with_the_artifact(root: str, trace: Path) -> None:
    with Runner(root, screen=quiet()) as run:
        samples = run(draw, Draw(tokens=run(collect, Corpus(trace=str(trace)))))
    written = (Place.at(samples.uri).read("metrics.jsonl") or b"").decode().splitlines()
    assert ['"step": 1' in written[0], '"loss": 0.5' in written[1], len(written)] == [True, True, 2]


def test_a_mistake_and_a_bug_leave_nothing(root: str, trace: Path) -> None:
    with Runner(root, screen=quiet()) as run:
        with pytest.raises(DiscdiffError, match=r"^size 3 was given; 4 is allowed\.$"):
            run(collect, Corpus(trace=str(trace), fail="mistake"))
        with pytest.raises(StageError, match=r"^collect of 3 failed: RuntimeError: two lines$"):
            run(collect, Corpus(trace=str(trace), fail="bug"))
        with pytest.raises(DiscdiffError):
            run(gather, Corpus(trace=str(trace), fail="mistake"))
    names = [name for name in Place(root).names() if name != LEASES]
    assert names == []


def test_what_can_not_be_reached_now_leaves_what_is_done(
    root: str, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runner(root, screen=quiet()) as run:
        for _ in range(2):
            with pytest.raises(UnreachableError, match="refused"):
                run(gather, Corpus(trace=str(trace), fail="away"))
            monkeypatch.setattr("stage_problem._fail", _refuse)
        monkeypatch.setattr("stage_problem._fail", lambda how: None)
        run(gather, Corpus(trace=str(trace), fail="away"))
    assert lines(trace) == ["began 0", "began 2", "began 2", "ended"]


def _refuse(how: str) -> None:
    raise UnreachableError("refused")


@pytest.mark.parametrize(("name", "left"), [("collect", 0), ("gather", 2)])
def test_a_killed_run_commits_nothing_and_the_next_goes_on_at_once(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch, name: str, left: int
) -> None:
    root = str(tmp_path / "runs")
    spec = Corpus(trace=str(trace), fail="killed")
    with start(root, name, spec) as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    stage: Stage[Corpus, Tokens] = {"collect": collect, "gather": gather}[name]
    assert Path(root, stage.key(spec), "part-1").exists()
    assert not Path(root, stage.key(spec), RECORD).exists()
    began = time.monotonic()
    monkeypatch.setattr("stage_problem._fail", lambda how: None)
    with Runner(root, screen=quiet()) as run:
        run(stage, spec)
    assert lines(trace) == ["began 0", f"began {left}", "ended"]
    assert time.monotonic() - began < PATIENCE, "a process that is seen to be dead is not waited for"


def test_the_record_is_the_last_thing_written(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the place comes before the record's creation."""
    calls: list[str] = []
    for name in ("write", "upload", "settle", "create"):
        real = getattr(Place, name)

        def spy(place: Place, *args: object, name: str = name, real: object = real) -> object:
            if LEASES not in place.uri:
                calls.append(f"{name} {args[0]}" if name in ("write", "create") else name)
            return real(place, *args)  # type: ignore[operator]

        monkeypatch.setattr(Place, name, spy)
    with Runner(str(tmp_path / "runs"), screen=quiet()) as run:
        run(collect, Corpus(trace=str(trace)))
    assert calls == ["settle", f"create {RECORD}"]


def test_many_runners_of_one_key_run_it_once(root: str, trace: Path) -> None:
    spec = Corpus(trace=str(trace), slow=1.0)
    processes = [start(root, "collect", spec) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert lines(trace) == ["began 0", "ended"]
    assert len({out.splitlines()[-1] for out, _ in outputs}) == 1


def test_a_sleeping_runner_is_taken_over_and_does_not_overwrite(tmp_path: Path, trace: Path) -> None:
    root = str(tmp_path / "runs")
    spec = Corpus(trace=str(trace), slow=2.0)
    first = start(root, "collect", spec, beat=0.2, patience=1.0)
    while lines(trace) != ["began 0"]:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGSTOP)
    second = start(root, "collect", spec, beat=0.2, patience=1.0)
    try:
        out, error = second.communicate(timeout=60)
        assert second.returncode == 0, error
        record = Path(root, collect.key(spec), RECORD)
        committed = record.read_bytes()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    late, error = first.communicate(timeout=60)
    assert first.returncode == 0, error
    assert record.read_bytes() == committed
    assert late.splitlines()[-1] == out.splitlines()[-1]


def test_all_keeps_order_and_finishes_what_it_can(tmp_path: Path, trace: Path) -> None:
    specs = [Corpus(trace=str(trace), size=size, fail="bug" if size == 2 else "") for size in (1, 2, 3, 1)]
    with Runner(str(tmp_path / "runs"), screen=quiet(), placement=Placement(concurrent=2)) as run:
        with pytest.raises(StageError, match="of 2"):
            run.all(collect, specs)
        found = run.all(collect, [specs[0], specs[2], specs[3]])
    assert [each.vocab for each in found] == [1, 3, 1]
    assert lines(trace).count("ended") == 2


def test_no_more_stages_at_a_time_than_the_placement_says(tmp_path: Path, trace: Path) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def body(spec: Corpus, work: Work) -> Tokens:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.1)
        with lock:
            running -= 1
        return Tokens(key=work.key, uri=work.uri, fingerprint="f", vocab=1, documents=1, tokens=1)

    with Runner(str(tmp_path / "runs"), screen=quiet(), placement=Placement(concurrent=2)) as run:
        run.all(Stage(body, 1, False), [Corpus(trace=str(trace), size=size) for size in range(5)])
    assert most == 2


def test_a_body_must_return_its_own_artifact(tmp_path: Path, trace: Path) -> None:
    def body(spec: Corpus, work: Work) -> Tokens:
        return Tokens(key="another", uri=work.uri, fingerprint="f", vocab=1, documents=1, tokens=1)

    with (
        Runner(str(tmp_path / "runs"), screen=quiet()) as run,
        pytest.raises(StageError, match="another key"),
    ):
        run(Stage(body, 1, False), Corpus(trace=str(trace)))


def test_a_root_that_cannot_be_written_is_a_mistake(tmp_path: Path, trace: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        Runner(str(tmp_path / "file" / "runs"), screen=quiet()) as run,
        pytest.raises(DiscdiffError, match="written"),
    ):
        run(collect, Corpus(trace=str(trace)))
    assert lines(trace) == []


# Dry runs -----------------------------------------------------------------------------------------------


def test_a_dry_run_names_the_field_and_does_nothing(tmp_path: Path, trace: Path) -> None:
    root = str(tmp_path / "runs")
    with Runner(root, screen=quiet()) as run:
        run(draw, Draw(tokens=run(collect, Corpus(trace=str(trace)))))
        run(collect, Corpus(trace=str(trace), size=9, rate=0.1))
    before = sorted(str(each) for each in Path(root).rglob("*"))
    screen = quiet()
    plan = Plan(root, screen=screen)
    plan(draw, Draw(tokens=plan(collect, Corpus(trace=str(trace)))))
    plan(draw, Draw(tokens=plan(collect, Corpus(trace=str(trace), rate=0.75))))
    plan(draw, Draw(tokens=plan(collect, Corpus(trace=str(trace))), count=5))
    text = said(screen)
    assert text.count("cached") == 3
    assert "rate: 0.5 -> 0.75" in text
    assert "size" not in text, "the nearest earlier artifact is the one with the fewest differences"
    assert 'tokens: "collect-' in text
    assert "count: 2 -> 5" in text
    assert sorted(str(each) for each in Path(root).rglob("*")) == before


def test_a_dry_run_tells_a_new_version_from_a_first_run(tmp_path: Path, trace: Path) -> None:
    root = str(tmp_path / "runs")
    screen = quiet()
    Plan(root, screen=screen)(collect, Corpus(trace=str(trace)))
    assert "the first of its stage" in said(screen)
    with Runner(root, screen=quiet()) as run:
        run(collect, Corpus(trace=str(trace)))
    Plan(root, screen=screen)(Stage(collect.body, 2, False), Corpus(trace=str(trace)))
    assert "version 2 now" in said(screen)


# Places and leases --------------------------------------------------------------------------------------


def test_a_place_creates_once_and_replaces_whole(root: str) -> None:
    place = Place.at(root)
    assert place.read("a") is None
    assert place.names() == []
    assert place.create("a", b"first")
    assert not place.create("a", b"second")
    assert place.read("a") == b"first"
    place.write("a", b"third")
    (place / "inner").write("b", b"")
    assert place.read("a") == b"third"
    assert place.names() == ["a", "inner"]
    place.remove("inner")
    place.remove("inner")
    place.remove("a")
    assert place.names() == []


def test_one_of_many_creates(root: str) -> None:
    place, wins = Place.at(root), []
    threads = [
        threading.Thread(target=lambda n=n: wins.append(n) if place.create("a", str(n).encode()) else None)
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert place.read("a") == str(wins[0]).encode()


def test_a_lease_is_held_by_one(root: str) -> None:
    place = Place.at(root) / "lease"
    one, other = Lease(place), Lease(place)
    assert one.acquire(lambda who: None, lambda: False)
    told: list[str] = []
    done = threading.Event()
    waiter = threading.Thread(target=lambda: other.acquire(told.append, lambda: False) and done.set())
    waiter.start()
    assert not done.wait(1.0)
    assert len(told) == 1
    one.release()
    assert done.wait(10)
    waiter.join()
    other.release()
    assert place.names() == []


@pytest.mark.parametrize("given", ["nonsense://x/y", "s4://b"])
def test_a_protocol_that_nothing_reads_is_a_mistake(given: str) -> None:
    with pytest.raises(DiscdiffError, match="fsspec"):
        Place.at(given)
