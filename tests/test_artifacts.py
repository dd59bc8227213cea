"""Artifacts: what they are is their key; where they lie is found out when they are opened."""

import math
from pathlib import Path

import pytest
from pydantic import ValidationError
from stage_problem import Corpus, Draw, collect, draw

from discdiff.types import DiscdiffError
from pipelines.artifacts import Artifact, Checkpoint, Report, Samples, Scores, Tokens, Trials
from pipelines.inspection import describe
from pipelines.key import canonical
from pipelines.place import Place
from pipelines.record import RECORD, Record
from pipelines.runner import Runner
from pipelines.specs import specification
from pipelines.vocabulary import Vocabulary

EXAMPLES: list[Artifact] = [
    Tokens(key="tokenize-1", uri="/a", fingerprint="f", vocab=2, documents=3, tokens=4),
    Checkpoint(key="train-1", uri="/a", method="mdlm", step=5, length=6, parameters=7),
    Trials(key="tune-1", uri="/a", best={"kind": "mdlm"}, trials=4),
    Samples(key="generate-1", uri="/a", count=8, length=9),
    Scores(key="evaluate-1", uri="/a", metrics={"a": math.nan, "b": math.inf, "c": 0.1}),
    Report(key="report-1", uri="/a"),
    Vocabulary(key="vocabulary-1", uri="/a", size=300, fingerprint="f"),
]


def test_every_artifact_is_tried_here() -> None:
    assert {type(each) for each in EXAMPLES} == set(Artifact.__subclasses__())


@pytest.mark.parametrize("artifact", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_record_keeps_all_but_the_place(artifact: Artifact, tmp_path: Path) -> None:
    commit(artifact, tmp_path / "here")
    found = type(artifact).open(str(tmp_path / "here"))
    assert found == artifact
    assert repr(found.content()) == repr(artifact.content())
    assert found.uri == str(tmp_path / "here")
    assert "here" not in (tmp_path / "here" / RECORD).read_text()


@pytest.mark.parametrize("artifact", EXAMPLES, ids=lambda each: type(each).__name__)
def test_the_key_alone_is_what_an_artifact_is(artifact: Artifact) -> None:
    moved = artifact.model_copy(update={"uri": "s3://elsewhere", "label": "x"})
    other = artifact.model_copy(update={"key": "other-1"})
    assert (moved == artifact, hash(moved) == hash(artifact), canonical(moved)) == (True, True, artifact.key)
    assert other != artifact
    with pytest.raises(ValidationError):
        artifact.key = "changed"  # type: ignore[misc]


def test_another_kind_is_refused(tmp_path: Path) -> None:
    commit(EXAMPLES[0], tmp_path / "tokens")
    with pytest.raises(DiscdiffError, match="holds tokens, but checkpoint is needed"):
        Checkpoint.open(str(tmp_path / "tokens"))


@pytest.mark.parametrize("content", [None, "{", '{"format": 1}'])
def test_what_is_no_artifact_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / RECORD).write_text(content)
    with pytest.raises(DiscdiffError, match=r"artifact\.json"):
        Tokens.open(str(tmp_path))


def test_a_specification_names_an_artifact_by_its_folder(tmp_path: Path) -> None:
    with Runner(str(tmp_path / "runs")) as run:
        tokens = run(collect, Corpus(trace=str(tmp_path / "trace")))
    (tmp_path / "draw.toml").write_text(f'tokens = "{tokens.uri}"\ncount = 7\n')
    spec = specification(Draw, [str(tmp_path / "draw.toml"), "count=9"])
    assert spec == Draw(tokens=tokens, count=9)
    assert draw.key(spec) == draw.key(Draw(tokens=tokens, count=9))
    with pytest.raises(DiscdiffError, match=r"tokens: .*nowhere holds no finished artifact"):
        specification(Draw, [f"tokens={tmp_path}/nowhere"])


def test_an_artifact_can_be_described(tmp_path: Path) -> None:
    with Runner(str(tmp_path / "runs")) as run:
        tokens = run(collect, Corpus(trace=str(tmp_path / "trace"), rate=0.75))
    text = "\n".join(describe(tokens.uri))
    assert [part in text for part in (tokens.key, "rate = 0.75", "vocab = 3", "part-0")] == [True] * 4
    with pytest.raises(DiscdiffError, match="no finished artifact"):
        list(describe(str(tmp_path)))


def commit(artifact: Artifact, folder: Path) -> None:
    record = Record(
        stage="stage",
        version=1,
        key=artifact.key,
        label="label",
        spec={},
        artifact=artifact.content(),
        created="2026-01-01",
        seconds=1.0,
        versions={},
    )
    assert Place.at(str(folder)).create(RECORD, record.model_dump_json().encode())
