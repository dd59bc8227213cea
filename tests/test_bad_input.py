"""Mistakes in what is asked for: one line that says what to do, exit code 2, nothing half-made."""

import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_problem import untrained
from typer.testing import CliRunner

from discdiff.data.characters import Characters
from discdiff.data.files import Files
from discdiff.data.specification import Tokenize
from discdiff.methods import Classifier, Mdlm
from discdiff.processes import Uniform
from jobs import evaluate, experiment, generate, report, tokenize, train, tune
from pipelines.artifacts import Tokens
from pipelines.record import RECORD
from pipelines.runner import Runner
from pipelines.tokenize import tokenize as tokenized
from pipelines.tracking import Untracked

# Ray sets deprecated options of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")

Say = Callable[..., str]


@pytest.fixture(scope="module")
def tokens(ray_cluster, tmp_path_factory) -> Tokens:
    """A small store of random lines of three letters."""
    folder = tmp_path_factory.mktemp("store")
    choose = random.Random(1)
    (folder / "text.txt").write_text("\n".join("".join(choose.choices("abc", k=30)) for _ in range(200)))
    corpus = Files(url=str(folder / "text.txt"), separator="\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_cluster.environment.items():
            patch.setenv(name, value)
        with Runner(str(folder / "root")) as run:
            return run(tokenized, Tokenize(corpus=corpus, tokenizer=Characters(alphabet="abc")))


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Run a job that must refuse, and return its one line. Tracking, slow to start, is left out."""
    monkeypatch.setattr("pipelines.command.Mlflow", lambda folder, warn: Untracked())

    def run(app, *arguments: object, root: str | None = None) -> str:
        where = root or str(tmp_path / "runs")
        result = CliRunner().invoke(app, [*map(str, arguments), "--root", where])
        assert result.exit_code == 2, (result.output, result.exception)
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: ")
        assert not list(Path(tmp_path).rglob(RECORD)), "nothing is committed"
        assert not [each for each in Path(tmp_path, "runs").glob("*-*")], "nothing is left"
        return lines[0]

    return run


def test_an_unknown_method(refused: Say, tokens: Tokens) -> None:
    line = refused(train.main, f"tokens={tokens.uri}", "method.kind=mdlmm")
    assert "method.kind = 'mdlmm' is not known: allowed are 'autoregressive', 'mdlm'" in line


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("recipe.stepz=3", "recipe.stepz is no field: did you mean 'steps'?"),
        ("recepi.steps=3", "recepi is no field: did you mean 'recipe'?"),
        ("method.proces=3", "method.proces is no field: did you mean 'process'?"),
        ("method.process.schedule.kind=linaer", "'linear'"),
        ("recipe.steps=0", "recipe.steps = 0: input should be greater than or equal to 1"),
        ("recipe.steps=many", "recipe.steps = 'many': input should be a valid integer"),
        ("method=mdlm", "method = 'mdlm': a table of fields is allowed, such as method.kind=..."),
    ],
)
def test_a_misspelled_field_or_value(refused: Say, tokens: Tokens, argument: str, message: str) -> None:
    assert message in refused(train.main, f"tokens={tokens.uri}", "method.kind=mdlm", argument)


def test_a_specification_that_is_not_toml(refused: Say, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("steps = = 3")
    assert "bad.toml can't be read" in refused(train.main, tmp_path / "bad.toml")
    assert "none.toml can't be read" in refused(train.main, tmp_path / "none.toml")
    assert "one file is allowed" in refused(train.main, "a.toml", "b.toml")


def test_an_unknown_preset(refused: Say) -> None:
    assert "there is no preset 'smok'; there are smoke" in refused(experiment.main, "--preset", "smok")


def test_no_vocabulary(refused: Say, tmp_path: Path, ray_driver) -> None:
    (tmp_path / "text.txt").write_text("abc")
    line = refused(
        tokenize.main, *files(tmp_path / "text.txt"), "tokenizer.kind=characters", 'tokenizer.alphabet=""'
    )
    assert "V = 0" in line


def test_an_empty_corpus(refused: Say, tmp_path: Path, ray_driver) -> None:
    (tmp_path / "text.txt").write_text("")
    assert "text.txt" in refused(tokenize.main, *files(tmp_path / "text.txt"), "tokenizer.kind=bytes")
    assert "nothing.txt" in refused(tokenize.main, *files(tmp_path / "nothing.txt"), "tokenizer.kind=bytes")


def test_text_that_is_not_utf_8(refused: Say, tmp_path: Path, ray_driver) -> None:
    (tmp_path / "text.txt").write_bytes("Gruß\n".encode("latin-1") * 20)
    line = refused(tokenize.main, *files(tmp_path / "text.txt"), "tokenizer.kind=bytes")
    assert "text.txt" in line
    assert "UTF-8" in line


def test_rows_longer_than_the_corpus(refused: Say, tokens: Tokens) -> None:
    line = refused(
        train.main, f"tokens={tokens.uri}", "method.kind=mdlm", "packing.kind=wrap", "packing.length=100000"
    )
    assert "length 100000 is longer than the split's" in line


def test_a_batch_that_cannot_be_shared(refused: Say, tokens: Tokens) -> None:
    line = refused(
        train.main,
        f"tokens={tokens.uri}",
        "method.kind=mdlm",
        "recipe.batch=7",
        "packing.length=8",
        "packing.kind=wrap",
    )
    assert "a batch of 7 rows can't be shared by 2 workers" in line


def test_a_checkpoint_of_another_tokenizer(refused: Say, tokens: Tokens, tmp_path_factory) -> None:
    checkpoint = untrained(tmp_path_factory.mktemp("train"), Mdlm())
    line = refused(evaluate.main, f"checkpoint={checkpoint.uri}", f"tokens={tokens.uri}")
    assert "was trained with" in line or "another tokenizer" in line


GUIDED = ["sampler.kind=reverse", "sampler.guidance.kind=classifier_based"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*GUIDED, "labels=[0]"], "asks a classifier of noisy sequences and none was given: train method"),
        (["labels=[0]", "classifier=CLASSIFIER"], "a classifier was given and the sampler doesn't ask it"),
        (
            [*GUIDED, "labels=[0]", "classifier=MODEL"],
            "the checkpoint of the classifier is of mdlm: give one",
        ),
        ([*GUIDED, "labels=[0]", "classifier=UNIFORM"], "the classifier was trained on uniform noise"),
        ([*GUIDED, "classifier=CLASSIFIER"], "guidance needs a class for each row: give labels"),
        (
            [*GUIDED, "labels=[0, 2]", "classifier=CLASSIFIER"],
            "labels are 0 to 1 for this network, not [0, 2]",
        ),
        (["checkpoint=CLASSIFIER"], "a classifier generates nothing by itself: draw from a diffusion"),
    ],
)
def test_a_classifier_that_can_not_lead(
    refused: Say, tmp_path_factory, arguments: list[str], message: str
) -> None:
    made = {
        "MODEL": untrained(tmp_path_factory.mktemp("model"), Mdlm()),
        "CLASSIFIER": untrained(tmp_path_factory.mktemp("classifier"), Classifier(), labels=2),
        "UNIFORM": untrained(tmp_path_factory.mktemp("other"), Classifier(process=Uniform()), labels=2),
    }
    arguments = ["checkpoint=MODEL", *arguments]
    for name, checkpoint in made.items():
        arguments = [each.replace(f"={name}", f"={checkpoint.uri}") for each in arguments]
    assert message in refused(generate.main, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.kind=classifier"], "classifier tells classes apart and text of one was given"),
        (
            ["method.kind=classifier", "classes=[TOKENS]"],
            "text of 2 classes was given and the backbone knows 0: set backbone.labels=2",
        ),
        (["method.kind=classifier", "method.process.kind=hybrid"], "allowed are 'mask', 'uniform'"),
        (["mixed=[{tokens=TOKENS, weight=0}]"], "mixed.0.weight = 0: input should be greater than 0"),
        (["mixed=[{tokens=TOKENS}]"], "mixed.0.weight is missing"),
        (["mixed=[{tokens=TOKENS, weight=1e-9}]"], "differ too much"),
        (["mixed=[{tokens=TOKENS, weight=1}]", "classes=[TOKENS]"], "classes and mixed: give one of them"),
    ],
)
def test_stores_that_can_not_be_read_together(
    refused: Say, tokens: Tokens, arguments: list[str], message: str
) -> None:
    named = [each.replace("TOKENS", f'"{tokens.uri}"') for each in arguments]
    method = [] if arguments[0].startswith("method") else ["method.kind=mdlm"]
    assert message in refused(train.main, f"tokens={tokens.uri}", *method, *named)


@pytest.mark.parametrize("root", ["/dev/null/runs", "nonsense://bucket/runs"])
def test_a_root_that_cannot_be_written(refused: Say, tokens: Tokens, root: str) -> None:
    line = refused(train.main, f"tokens={tokens.uri}", "method.kind=mdlm", root=root)
    assert root.split(":")[0] in line


def test_a_port_in_use(refused: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert f"port {port} " in refused(tokenize.main, "--dashboard", port)


def test_an_artifact_that_is_not_there_or_of_another_kind(
    refused: Say, tokens: Tokens, tmp_path: Path
) -> None:
    assert "checkpoint: " in refused(generate.main, f"checkpoint={tmp_path}")
    assert "holds tokens, but checkpoint is needed" in refused(generate.main, f"checkpoint={tokens.uri}")
    assert "scores is missing" in refused(report.main)
    assert "candidates" in refused(tune.main, f"tokens={tokens.uri}", "candidates=[]")
    assert "holds no finished artifact" in refused(generate.main, "--inspect", tmp_path)


def test_a_process_of_its_own_says_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.generate", "count=0", "--root", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: count = 0: input should be greater than or equal to 1; checkpoint is missing.\n"
    )
    assert not (tmp_path / "runs").exists()


def files(path: Path) -> list[str]:
    return ["corpus.kind=files", f"corpus.url={path}"]
