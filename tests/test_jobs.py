"""The jobs as users run them: submitted to a cluster of `ray start --head`, and on a command line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, ROOT
from typer.testing import CliRunner

from discdiff.types import DiscdiffError
from jobs import experiment, tokenize, train, vocabulary
from pipelines import presets
from pipelines.command import command
from pipelines.experiment import Experiment, Lineage
from pipelines.frontier import Frontier
from pipelines.plan import Plan
from pipelines.record import RECORD
from pipelines.root import RAY_JOB, root_or_default
from pipelines.specs import changed, parse, specification
from pipelines.tracking import Untracked

TINY = {
    "backbone": "{kind='transformer', layers=1, width=16, heads=2}",
    "recipe": "{steps=4, batch=8, validate_every=4, validate_rows=4, checkpoint_every=4}",
    "packing": "{kind='wrap', length=16}",
}


@pytest.fixture(scope="module")
def submit(ray_cluster, tmp_path_factory):
    """Submit a job as a user would, and return what it printed; `root` is where its artifacts lie."""
    root = tmp_path_factory.mktemp("jobs") / "runs"

    def run(name: str, *arguments: str, code: int = 0) -> str:
        command = [
            BIN / "ray",
            "job",
            "submit",
            "--working-dir",
            ".",
            "--",
            sys.executable,
            "-m",
            f"jobs.{name}",
        ]
        done = subprocess.run(
            [*command, *arguments, "--root", str(root)],
            cwd=ROOT,
            env={**os.environ, **ray_cluster.environment},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert (done.returncode != 0) == (code != 0), done.stdout + done.stderr
        return done.stdout + done.stderr

    run.root = root
    return run


def only(root: Path, stage_name: str) -> str:
    (found,) = [str(path.parent) for path in root.glob(f"{stage_name}-*/{RECORD}")]
    return found


@pytest.mark.timeout(900)  # a dozen processes that import torch and join a cluster, on a slow machine
def test_every_job_runs_on_a_cluster(submit) -> None:
    """From text to report, each stage a job of its own, each finding what the one before made."""
    root = submit.root
    submit("tokenize", "tokenizer.kind=bytes")
    tokens = f"tokens={only(root, 'tokenize')}"
    tiny = [f"{name}={value}" for name, value in TINY.items()]
    candidates = "candidates=[{kind='mdlm'}, {kind='udlm'}]"
    submit("tune", tokens, candidates, *tiny, "timesteps=4", "--workers", "1")
    submit("train", tokens, "method.kind=mdlm", *tiny)
    checkpoint = f"checkpoint={only(root, 'train')}"
    submit("generate", checkpoint, "count=6", "sampler.kind=default", "sampler.steps=3")
    samples = f"samples={only(root, 'generate')}"
    submit("evaluate", checkpoint, tokens, samples, "rows=8")
    said = submit("report", f"scores=['{only(root, 'evaluate')}']")
    assert (Path(only(root, "report")) / "report.html").exists()
    assert only(root, "report") in said
    # Run again, nothing is left to do.
    again = submit("train", tokens, "method.kind=mdlm", *tiny)
    assert "cached" in again
    # The same as one experiment: tokens, model and samples are there.
    few = ["drawing.count=6", "drawing.sampler.steps=3", "measuring.rows=8", "corpus.tokenizer.kind=bytes"]
    whole = submit("experiment", "--preset", "smoke", "methods=[{kind='mdlm'}]", *tiny, *few)
    assert whole.count("cached") == 3, whole
    assert "bits/char" in whole


def test_a_failing_job_says_why_in_one_line(submit) -> None:
    said = submit("train", "method.kind=mdlm", "tokens=/nowhere", code=2)
    errors = [line for line in said.splitlines() if "error: " in line and "nowhere" in line]
    assert len(set(errors)) == 1, said  # Ray shows the log as it comes, and its end once more
    assert "exit code 2" in said
    assert "Traceback" not in said


# The command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DiscdiffError("a\nb"), 2, "error: a b\n"),
        (RuntimeError("bug"), 1, "error: RuntimeError: bug (traceback in "),
        (KeyboardInterrupt(), 130, "error: interrupted; the same command goes on from here.\n"),
    ],
)
def test_failures_are_one_line_and_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    monkeypatch.setattr("pipelines.command.Mlflow", lambda folder, warn: Untracked())

    def work(*_: object) -> None:
        raise error

    result = CliRunner().invoke(command(work, "help"), ["--root", str(tmp_path)])
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
    assert result.stderr.startswith(text)
    if "traceback" in text:
        kept = Path(result.stderr.rpartition("in ")[2].strip().rstrip(")"))
        assert "RuntimeError: bug" in kept.read_text()
        kept.unlink()


def planned(*arguments: str) -> dict[str, set[str]]:
    """The keys of an experiment's stages, by stage, from a dry run of the smoke preset."""
    result = CliRunner().invoke(
        experiment.main, ["--preset", "smoke", "--dry-run", "--root", "/tmp/nowhere", *arguments]
    )
    assert result.exit_code == 0, result.output
    keys = [word for line in result.output.splitlines() for word in line.split() if word.count("-") == 1]
    stages = ("tokenize", "train", "generate", "evaluate", "report")
    return {name: {key for key in keys if key.startswith(f"{name}-")} for name in stages}


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("drawing.sampler.steps=3", {"tokenize", "train"}),
        ("measuring.rows=3", {"tokenize", "train", "generate"}),
        ("recipe.steps=31", {"tokenize"}),
        ("corpus.tokenizer.kind=bytes", set()),
        ("summary=other", {"tokenize", "train", "generate", "evaluate"}),
    ],
)
def test_a_change_runs_again_only_what_follows(change: str, kept: set[str]) -> None:
    before, after = planned(), planned(change)
    assert {name: len(keys) for name, keys in before.items()} == {
        name: len(keys) for name, keys in after.items()
    }
    assert {name for name in before if before[name] == after[name]} == kept
    assert all(not before[name] & after[name] for name in before.keys() - kept)
    assert not Path("/tmp/nowhere").exists()


def test_the_autoregressive_model_judges_all_and_every_point_is_a_stage(tmp_path: Path) -> None:
    lines = Frontier(temperatures=(0.5, 1.0), top_ps=(), steps=(2, 4), batches=(1, 2), count=2)
    spec = presets.smoke().model_copy(update={"frontier": lines})
    with Told(str(tmp_path)) as run:
        lineage = Lineage(spec, run)
        assert lineage.report
        assert lineage.judge == lineage.models[0]
    evaluated, points = run.told["evaluate"], run.told["point"]
    assert {each.judge for each in [*evaluated, *points]} == {lineage.judge}
    diffusions = len(spec.methods) - 1
    assert len(set(points)) == len(points) == diffusions * (2 + 2 * 2) + (2 + 2)
    assert run.told["report"][0].points == tuple(lineage.points)
    without = spec.model_copy(update={"frontier": None, "methods": spec.methods[1:]})
    with Told(str(tmp_path)) as run:
        assert Lineage(without, run).report
    assert {each.judge for each in run.told["evaluate"]} == {None}
    assert (run.told["report"][0].points, "point" in run.told) == ((), False)


class Told(Plan):
    """A dry run that keeps what it was asked for."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.told: dict[str, list[Any]] = {}

    def __call__(self, stage: Any, spec: Any) -> Any:
        self.told.setdefault(stage.name, []).append(spec)
        return super().__call__(stage, spec)


def test_text_of_another_tokenizer_is_no_zero_shot_text() -> None:
    with pytest.raises(DiscdiffError, match=r"'other' has a tokenizer of its own: .* reads one vocabulary"):
        specification(Experiment, [ZERO_SHOT + ",tokenizer={kind='bytes'}}}]"], presets.smoke())
    spec = specification(Experiment, [ZERO_SHOT + "}}]"], presets.smoke())
    assert spec.measuring.zero_shot[0].corpus.tokenizer == spec.corpus.tokenizer


def test_a_method_may_have_an_estimator_of_its_own(tmp_path: Path) -> None:
    spec = specification(
        Experiment, ["methods.5.clock={kind='steps',count=7}", D3PM + "{kind='every_step'}"], presets.smoke()
    )
    with Told(str(tmp_path)) as run:
        assert Lineage(spec, run).scores
    own = dict(zip([method.kind for method in spec.methods], run.told["evaluate"], strict=True))
    assert own.pop("d3pm").estimator.kind == "every_step"
    assert {each.estimator.kind for each in own.values()} == {"stratified"}


D3PM = "measuring.estimators.d3pm="


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            [D3PM.replace("d3pm", "duo") + "{kind='every_step'}"],
            "'duo', which is no method here; name one of",
        ),
        (["measuring.estimators.mdlm={kind='every_step'}"], "mdlm has no steps to sum over"),
        (["measuring.estimator={kind='every_step'}"], "autoregressive has no steps to sum over"),
        (["measuring.estimators.autoregressive={kind='importance_weighted'}"], "no noising paths to weigh"),
        (
            ["search={candidates=[{kind='udlm'}]}", "measuring.estimators.udlm={kind='every_step'}"],
            "udlm has no",
        ),
        (["methods=[{kind='latent'}]", "measuring.estimators.latent={kind='stratified'}"], "no likelihood"),
    ],
)
def test_an_estimator_that_cannot_score_its_method_is_refused_before_any_work(
    changes: list[str], words: str
) -> None:
    with pytest.raises(DiscdiffError, match=words):
        specification(Experiment, changes, presets.smoke())


ZERO_SHOT = "measuring.zero_shot=[{name='other',corpus={corpus={kind='files',url='/nowhere'}"


def test_a_stage_job_with_a_preset_stops_at_its_stage() -> None:
    result = CliRunner().invoke(train.main, ["--preset", "smoke", "--dry-run", "--root", "/tmp/nowhere"])
    assert result.exit_code == 0, result.output
    assert "train mdlm" in result.output
    assert "generate" not in result.output


def test_a_vocabulary_is_trained_and_tokenized_with(tmp_path: Path) -> None:
    run = lambda job, *arguments: CliRunner().invoke(job.main, [*arguments, "--root", str(tmp_path)])  # noqa: E731
    assert run(vocabulary, "size=300").exit_code == 0
    made = only(tmp_path, "vocabulary")
    wanted = ["tokenizer.kind=pretrained", f"tokenizer.path={made}"]
    assert run(tokenize, *wanted, "--dry-run").exit_code == 0
    assert "size = 300" in run(tokenize, "--inspect", made).output
    refused = run(vocabulary, "--preset", "smoke")
    assert refused.exit_code == 2
    assert "no experiment has a vocabulary stage" in refused.stderr


@pytest.mark.parametrize("name", presets.names())
def test_presets_are_specifications(name: str) -> None:
    spec = presets.named(name)
    assert Experiment.model_validate_json(spec.model_dump_json()) == spec
    assert presets.with_search(spec).search is not None
    assert specification(Experiment, ["recipe.seed=5"], spec).recipe.seed == 5


def test_values_are_toml_or_text() -> None:
    found = [
        parse(text) for text in ("3", "3.5", "true", "inf", "none", "mdlm", "[1, 2]", "{a=1}", '"3"', "a b")
    ]
    assert found == [3, 3.5, True, float("inf"), None, "mdlm", [1, 2], {"a": 1}, "3", "a b"]


def test_overrides_reach_into_tables_and_arrays() -> None:
    tree = {"a": {"kind": "x", "size": 1}, "b": [{"c": 1}, {"c": 2}]}
    assert changed(tree, ["a", "size"], 2) == {**tree, "a": {"kind": "x", "size": 2}}
    assert changed(tree, ["a", "kind"], "y") == {**tree, "a": {"kind": "y"}}
    assert changed(tree, ["a", "kind"], "x") == tree
    assert changed(tree, ["b", "1", "c"], 3) == {**tree, "b": [{"c": 1}, {"c": 3}]}
    assert changed(tree, ["d", "e"], 3) == {**tree, "d": {"e": 3}}
    assert tree == {"a": {"kind": "x", "size": 1}, "b": [{"c": 1}, {"c": 2}]}
    with pytest.raises(DiscdiffError, match="'2' is no index of a list of 2"):
        changed(tree, ["b", "2"], 0)


def test_a_job_on_a_cluster_keeps_its_artifacts_outside_its_working_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert root_or_default(None).uri == str(Path.cwd() / "runs")
    monkeypatch.setenv("DISCDIFF_ROOT", "/elsewhere")
    assert root_or_default(None).uri == "/elsewhere"
    assert root_or_default("s3://bucket/x").uri == "s3://bucket/x"
    monkeypatch.setenv(RAY_JOB, "{}")
    assert root_or_default(None).uri == "/elsewhere"
    with pytest.raises(DiscdiffError, match="goes away with the job"):
        root_or_default("runs")
    monkeypatch.delenv("DISCDIFF_ROOT")
    assert root_or_default(None).uri == str(Path.home() / "discdiff" / "runs")
