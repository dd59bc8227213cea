"""The stages evaluate and report on a real store, checkpoints and samples, run by a real runner."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner, Result

from discdiff.data.build import build
from discdiff.data.characters import Characters
from discdiff.data.files import Files
from discdiff.data.loader import Loader
from discdiff.data.packing import PerDocument, Wrap
from discdiff.data.specification import Tokenize
from discdiff.data.store import Store
from discdiff.evaluation.likelihood import Likelihood
from discdiff.evaluation.page import Page
from discdiff.methods import Autoregressive, Block, DiscreteFlow, GenMd4, Mdlm, Method
from discdiff.networks import Transformer
from discdiff.networks.ema import Ema
from discdiff.samplers import TopP
from discdiff.training import Checkpoints, Loss, Recipe, Subject, fit
from discdiff.training.optimizer import adamw
from discdiff.training.parallel import World as Alone
from discdiff.types import DiscdiffError
from jobs import evaluate as evaluate_job
from pipelines import bound
from pipelines.artifacts import Artifact, Checkpoint, Samples, Tokens
from pipelines.evaluate import Evaluate, Evaluation, Named, evaluate
from pipelines.frontier import Frontier, Point, measure, point, sampler
from pipelines.generate import Generate, Generator
from pipelines.place import Place
from pipelines.placement import Placement
from pipelines.record import RECORD, Record
from pipelines.report import ReportSpec, report
from pipelines.runner import Runner
from pipelines.stage import stage
from pipelines.texts import counts, real, stream, text_of
from pipelines.tracking import Untracked
from pipelines.work import Work

LENGTH = 24
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "the",
    "dog",
    "ran",
    "to",
    "the",
    "log",
    "while",
    "a",
    "bird",
    "sang",
    "in",
    "the",
    "tall",
    "tree",
]
ESTIMATOR = Likelihood(strata=2, draws=2)


@stage(version=1)
def drawn(spec: Generate, work: Work) -> Samples:
    """The body of `generate` in this process."""
    for shard in spec.shards():
        Generator(spec, work.uri).draw(shard)
    return Samples(key=work.key, uri=work.uri, count=spec.count, length=spec.length or LENGTH)


def documents(seed: int, count: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, 12)) + "." for _ in range(count)]


def store(folder: Path, seed: int, alphabet: str) -> Tokens:
    """Three splits of documents, one a line."""
    lines = "\n".join(json.dumps({"text": text}) for text in documents(seed, 120))
    folder.mkdir()
    (folder / "text.jsonl").write_text(lines)
    spec = Tokenize(corpus=Files(url=str(folder / "text.jsonl")), tokenizer=Characters(alphabet=alphabet))
    uri = str(folder / "store")
    made = build(spec, uri)
    tokens = sum(split.tokens for split in made.splits.values())
    return Tokens(
        key=f"tokenize-{seed}",
        uri=uri,
        fingerprint=made.fingerprint,
        vocab=made.vocab,
        documents=120,
        tokens=tokens,
    )


def described(method: Method, text: Store) -> Subject:
    return Subject(
        method=method,
        backbone=Transformer(layers=1, width=32, heads=2),
        vocab=text.vocab,
        tokenizer=text.manifest.tokenizer,
        length=LENGTH,
    )


def spoiled(folder: Path, method: Method, tokens: Tokens) -> Checkpoint:
    """A whole checkpoint whose first weights are NaN."""
    subject, recipe = described(method, Store.open(tokens.uri)), Recipe(steps=1)
    network, world = subject.build(0), Alone.current(torch.device("cpu"))
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    loss = Loss(method, network)
    Checkpoints(str(folder), subject, recipe).save(1, loss, adamw(loss, recipe), Ema(network, 0.9), world)
    facts = {"method": method.kind, "step": 1, "length": LENGTH, "parameters": 1}
    return Checkpoint(key="train-spoiled", uri=str(folder), label="spoiled", **facts)


def trained(folder: Path, method: Method, tokens: Tokens) -> Checkpoint:
    """A few steps of training, with what the train stage leaves beside them."""
    text = Store.open(tokens.uri)
    subject = described(method, text)
    recipe = Recipe(
        steps=25, batch=16, learning_rate=1e-2, warmup=5, ema=0.8, checkpoint_every=25, log_every=5
    )
    log: list[str] = []
    fit(
        method,
        subject.build(0),
        Loader(text, Wrap(length=LENGTH)),
        recipe,
        checkpoints=Checkpoints(str(folder), subject, recipe),
        log=lambda step, metrics: log.append(json.dumps({"step": step, "time": 0.0, "metrics": metrics})),
    )
    (folder / "metrics.jsonl").write_text("\n".join(log))
    (folder / "tokenizer.json").write_text(text.tokenizer.to_json())
    return Checkpoint(
        key=f"train-{method.kind}",
        uri=str(folder),
        label=method.kind,
        method=method.kind,
        step=25,
        length=LENGTH,
        parameters=1,
    )


@dataclass(frozen=True)
class World:
    tokens: Tokens
    other: Tokens
    models: dict[str, Checkpoint]
    samples: dict[str, Samples]
    folder: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("evaluation")
    alphabet = "".join(sorted(set(" .".join(WORDS))))
    tokens, other = store(folder / "one", 0, alphabet), store(folder / "two", 1, alphabet)
    methods: list[Method] = [Autoregressive(), Mdlm()]
    models = {each.kind: trained(folder / each.kind, each, tokens) for each in methods}
    with Runner(str(folder / "runs")) as run:
        samples = {
            kind: run(drawn, Generate(checkpoint=model, count=10, batch=4)) for kind, model in models.items()
        }
    return World(tokens, other, models, samples, folder)


def spec(world: World, kind: str, **changes: object) -> Evaluate:
    fields = {"checkpoint": world.models[kind], "tokens": world.tokens, "estimator": ESTIMATOR}
    return Evaluate.model_validate(fields | changes)


def found(scores: Artifact) -> Evaluation:
    return Evaluation.model_validate_json((Path(scores.uri) / "scores.json").read_bytes())


def test_a_report_of_two_models(world, tmp_path):
    with Runner(str(tmp_path)) as run:
        scores = [
            run(
                evaluate, spec(world, kind, samples=world.samples[kind], judge=world.models["autoregressive"])
            )
            for kind in world.models
        ]
        made = run(report, ReportSpec(scores=tuple(scores), title="Two models"))
        again = run(
            evaluate, spec(world, "mdlm", samples=world.samples["mdlm"], judge=world.models["autoregressive"])
        )
    assert again == scores[1]
    for each in scores:
        metrics = each.metrics
        assert metrics["bits_per_character"] < metrics["unigram_bits_per_character"]
        assert metrics["bits_per_character_se"] > 0
        assert 0 < metrics["spelling"] < metrics["real_spelling"] <= 1
        assert metrics["seen_4"] < metrics["real_seen_4"]
        assert metrics["judge_perplexity"] > metrics["real_judge_perplexity"]
    own, other = (found(each).model.quality for each in scores)
    assert (own.judged.itself, other.judged.itself) == (True, False)
    assert [any("drew these samples itself" in w for w in q.warnings) for q in (own, other)] == [True, False]
    assert scores[0].metrics["nats_per_token_se_time"] == 0 < scores[1].metrics["nats_per_token_se_time"]
    page = Page.model_validate_json((Path(made.uri) / "report.json").read_bytes())
    html = (Path(made.uri) / "report.html").read_text()
    assert [model.name for model in page.models] == ["autoregressive", "mdlm"]
    assert page.comparisons[0].difference.value == pytest.approx(
        scores[1].metrics["nats_per_token"] - scores[0].metrics["nats_per_token"]
    )
    assert "Two models" in html
    table = pd.read_json(Path(made.uri) / "methods.json", orient="split")
    told = [each.metrics["bits_per_character"] for each in scores]
    assert table["bits_per_character"].tolist() == pytest.approx(told)
    assert page.warnings == ()
    assert {curve.name for curve in page.models[1].training} == {"loss"}


def test_the_viewer_plays_the_sample_that_was_drawn(world, tmp_path):
    with Runner(str(tmp_path)) as run:
        for kind in world.models:
            result = found(run(evaluate, spec(world, kind, samples=world.samples[kind])))
            trace, first = (
                result.model.trace,
                pq.read_table(f"{world.samples[kind].uri}/samples-00000.parquet"),
            )
            state: dict[int, str | None] = {}
            for step in trace.steps:
                state.update(step)
            text = "".join(state[i] or "?" for i in range(LENGTH))
            assert text == first["text"][0].as_py().replace("<|endoftext|>", "\n\n")
            assert set(dict(trace.steps[0]).values()) == {None}  # all masks
            assert list(trace.times) == sorted(trace.times, reverse=True)


def test_counts_and_units_are_of_the_whole_split(world, tmp_path):
    with Runner(str(tmp_path)) as run:
        result = found(run(evaluate, spec(world, "autoregressive")))
    score, text = result.model.score, Store.open(world.tokens.uri, "test")
    assert score.tokens == text.tokens // LENGTH * LENGTH
    assert score.text.characters == text.totals.characters == text.tokens - text.documents
    by_hand = score.nats / score.tokens * text.tokens / text.totals.characters / np.log(2)
    assert score.bits_per_character.value == pytest.approx(by_hand)
    assert score.protocol.estimator == "exact log-likelihood"
    assert f"{score.tokens:,} tokens" in score.protocol.counted


def test_padding_is_not_counted(world, tmp_path):
    with Runner(str(tmp_path)) as run:
        packing = PerDocument(length=100)
        result = found(run(evaluate, spec(world, "autoregressive", packing=packing)))
    text = Store.open(world.tokens.uri, "test")
    sizes = text.borders(np.arange(text.documents))[1]
    assert result.model.score.tokens == int(np.minimum(sizes, 100).sum())
    assert result.model.score.sequences == text.documents


def test_other_stores_are_scored_by_name(world, tmp_path):
    with Runner(str(tmp_path)) as run:
        others = (Named(name="same", tokens=world.tokens), Named(name="two", tokens=world.other))
        result = found(run(evaluate, spec(world, "mdlm", zero_shot=others)))
    assert [row.store for row in result.zero_shot] == ["same", "two"]
    assert result.zero_shot[0].score == result.model.score
    assert result.zero_shot[1].score.protocol.data != result.model.score.protocol.data


def test_ray_workers_find_the_same_score(world, tmp_path, monkeypatch, ray_driver):
    with Runner(str(tmp_path / "here")) as run:
        alone = run(evaluate, spec(world, "mdlm"))
    monkeypatch.setattr(bound, "WORTH", 0)
    monkeypatch.setattr(bound, "PIECE", 5 * LENGTH)
    with Runner(str(tmp_path / "there"), placement=Placement(workers=2)) as run:
        shared = run(evaluate, spec(world, "mdlm"))
    assert shared.metrics == pytest.approx(alone.metrics, rel=1e-6)
    ledgers = [np.load(f"{each.uri}/ledger.npz") for each in (alone, shared)]
    assert np.array_equal(ledgers[0]["rows"], ledgers[1]["rows"])
    assert np.allclose(ledgers[0]["nats"], ledgers[1]["nats"], rtol=1e-4)


def test_the_batch_changes_nothing_but_rounding(world, tmp_path, monkeypatch):
    results = []
    for size in (2**14, 3 * LENGTH):
        monkeypatch.setattr(bound, "BATCH", size)
        with Runner(str(tmp_path / str(size))) as run:
            results.append(run(evaluate, spec(world, "mdlm")).metrics)
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_texts_are_the_store_s(world):
    with Store.open(world.tokens.uri) as text:
        whole = np.concatenate(list(stream(text)))
        assert len(whole) == text.tokens
        assert np.array_equal(counts(text), np.bincount(whole, minlength=text.vocab))
        joined = "".join(text_of(text))
        assert joined.replace("\n\n", "") == text.tokenizer.decode(whole).replace("<|endoftext|>", "")
        rows = real(text, 7, LENGTH)
        assert (len(rows), rows.lengths.tolist()) == (7, [LENGTH] * 7)


# The frontier


def test_points_of_the_frontier_are_made_once_and_drawn_on_the_page(world, tmp_path, ray_driver):
    plan = Frontier(temperatures=(0.5, 1.0), top_ps=(), steps=(2, 8), batches=(1, 4), at=4, count=8)
    points = list(plan.points(world.models["mdlm"], Mdlm(), world.models["autoregressive"]))
    assert len(points) == len(set(points)) == 6
    with Runner(str(tmp_path), placement=Placement(workers=2, concurrent=2)) as run:
        made = run.all(point, points)
        before = {each.uri: (Path(each.uri) / "cell.json").stat().st_mtime_ns for each in made}
        assert run.all(point, points[::-1]) == made[::-1]
        score = run(evaluate, spec(world, "mdlm"))
        page = run(report, ReportSpec(scores=(score,), points=tuple(made)))
    assert before == {each.uri: (Path(each.uri) / "cell.json").stat().st_mtime_ns for each in made}
    cells = {
        (c.sweep, c.setting, c.batch): c
        for c in Page.model_validate_json((Path(page.uri) / "report.json").read_bytes()).frontier
    }
    cold, warm = cells["temperature", 0.5, 4], cells["temperature", 1.0, 4]
    assert cold.entropy.value < warm.entropy.value
    assert cold.perplexity.value < warm.perplexity.value
    assert cells["steps", 2, 4].evaluations <= 2 < cells["steps", 8, 4].evaluations <= 8
    alone, together = cells["steps", 8, 1], cells["steps", 8, 4]
    assert alone.seconds > 0
    assert alone.evaluations == together.evaluations
    assert alone.entropy.value == pytest.approx(together.entropy.value), (
        "a batch draws what its rows draw alone"
    )
    html = (Path(page.uri) / "report.html").read_text()
    assert all(f'id="chart-{name}"' in html for name in ("quality", "evaluations", "seconds"))


def test_only_lines_that_a_sampler_has_are_drawn(world):
    plan = Frontier(temperatures=(0.5,), top_ps=(0.9,), steps=(2, 8), batches=(1, 4), count=4)

    def lines(method):
        return [(p.sweep, p.setting, p.batch) for p in plan.points(world.models["mdlm"], method)]

    filtered = [("temperature", 0.5, 4), ("top-p", 0.9, 4)]
    stepped = [("steps", steps, batch) for batch in (1, 4) for steps in (2, 8)]
    whole = [("batch", batch, batch) for batch in (1, 4)]
    block = Block(inner=Mdlm(), size=8)
    assert lines(Mdlm()) == [*filtered, *stepped]
    assert lines(block) == [*filtered, *stepped]
    assert lines(Autoregressive()) == [*filtered, *whole]
    assert lines(GenMd4()) == stepped  # its tokens leave the mask at times of their own
    assert lines(DiscreteFlow()) == whole
    with pytest.raises(DiscdiffError, match="has no temperature; vary its steps"):
        sampler(DiscreteFlow(), "temperature", 0.5, 4)
    assert sampler(block, "top-p", 0.9, 4).inside.filters == (TopP(p=0.9),)


def test_a_batch_that_is_not_filled_is_refused():
    with pytest.raises(ValueError, match="count 4 does not fill a batch of 8"):
        Frontier(batches=(1, 8), count=4)


def test_a_flow_and_an_autoregressive_model_have_points_too(world):
    model = world.models["autoregressive"]
    cell = measure(Point(checkpoint=model, judge=model, sweep="batch", setting=2, batch=2, count=4))
    assert (cell.evaluations, cell.itself) == (LENGTH, True)
    assert cell.seconds > 0
    flow = trained(world.folder / "flow", DiscreteFlow(), world.tokens)
    assert (
        measure(Point(checkpoint=flow, judge=model, sweep="batch", setting=2, batch=2, count=4)).evaluations
        >= 1
    )


# Bad input


def refused(world: World, tmp_path: Path, text: str, kind: str = "mdlm", **changes: object) -> None:
    """The stage says so in one sentence and leaves nothing that looks finished."""
    with Runner(str(tmp_path)) as run, pytest.raises(DiscdiffError, match=text) as caught:
        run(evaluate, spec(world, kind, **changes))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("evaluate-*/artifact.json")) == []


def elsewhere(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    return checkpoint.model_copy(update={"uri": str(folder)})


def test_a_checkpoint_that_is_not_ours_is_refused(world, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    torch.save({"model": torch.zeros(3)}, folder / "model.pt")
    refused(
        world, tmp_path, "holds no complete checkpoint", checkpoint=elsewhere(world.models["mdlm"], folder)
    )


def test_a_truncated_checkpoint_is_refused(world, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(world.models["mdlm"].uri, folder)
    (largest,) = sorted(folder.glob("step-*/state/*.distcp"), key=lambda p: p.stat().st_size)[-1:]
    largest.write_bytes(largest.read_bytes()[:-100])
    refused(world, tmp_path, "is not whole", checkpoint=elsewhere(world.models["mdlm"], folder))


def test_an_empty_sample_set_is_refused(world, tmp_path):
    folder = tmp_path / "none"
    folder.mkdir()
    empty = Samples(key="generate-none", uri=str(folder), count=0, length=LENGTH)
    refused(world, tmp_path, "holds no sample", samples=empty)
    fields = {"ids": pa.list_(pa.int32()), "text": pa.string(), "nfe": pa.int32()}
    pq.write_table(pa.schema(list(fields.items())).empty_table(), folder / "samples-00000.parquet")
    refused(world, tmp_path, "holds no sample", samples=empty)


def test_a_store_or_judge_of_another_vocabulary_is_refused(world, tmp_path):
    foreign = store(tmp_path / "foreign", 3, "".join(sorted(set(" .xyz".join(WORDS)))))
    refused(world, tmp_path, "was trained with tokenizer .* the data is of", tokens=foreign)
    judge = trained(tmp_path / "judge", Autoregressive(), foreign)
    refused(world, tmp_path, "has another vocabulary", judge=judge, samples=world.samples["mdlm"])
    refused(world, tmp_path, "a judge must be autoregressive", judge=world.models["mdlm"])
    others = (Named(name="foreign", tokens=foreign),)
    refused(world, tmp_path, "was trained with tokenizer", zero_shot=others)


# The same, on the command line


def committed(artifact: Artifact, folder: Path) -> str:
    """The artifact's folder, copied, with the record that makes it one."""
    if artifact.uri != str(folder):
        shutil.copytree(artifact.uri, folder)
    (folder / RECORD).unlink(missing_ok=True)
    content = {"spec": {}, "artifact": artifact.content(), "created": "", "seconds": 0, "versions": {}}
    named = {"stage": artifact.kind, "version": 1, "key": artifact.key, "label": artifact.label}
    Place(str(folder)).create(RECORD, Record.model_validate(named | content).model_dump_json().encode())
    return str(folder)


@dataclass(frozen=True)
class Asked:
    """What a job is given, by field."""

    folder: Path
    checkpoint: str
    tokens: str
    samples: str
    judge: str


@pytest.fixture
def asked(world, tmp_path) -> Asked:
    one, reader = world.models["mdlm"], world.models["autoregressive"]
    return Asked(
        tmp_path,
        committed(one, tmp_path / "model"),
        committed(world.tokens, tmp_path / "tokens"),
        committed(world.samples["mdlm"], tmp_path / "samples"),
        committed(reader, tmp_path / "judge"),
    )


def said(asked: Asked, monkeypatch: pytest.MonkeyPatch, **changes: str) -> Result:
    """What `python -m jobs.evaluate` says and returns."""
    monkeypatch.setattr("pipelines.command.Mlflow", lambda folder, warn: Untracked())
    names = ("checkpoint", "tokens", "samples", "judge")
    given = {name: getattr(asked, name) for name in names} | changes
    root, width = (
        ["--root", str(asked.folder / "runs")],
        ["estimator={kind='stratified', strata=2}", "rows=4"],
    )
    return CliRunner().invoke(
        evaluate_job.main, [*(f"{name}={each}" for name, each in given.items()), *width, *root]
    )


def one_line(result: Result, text: str) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert text in line


def test_the_job_scores_what_is_whole(asked, monkeypatch):
    result = said(asked, monkeypatch)
    assert result.exit_code == 0, result.output
    assert len(list((asked.folder / "runs").glob("evaluate-*/artifact.json"))) == 1


def test_the_job_refuses_a_checkpoint_that_is_not_ours(asked, monkeypatch):
    theirs = asked.folder / "theirs"
    theirs.mkdir()
    torch.save({"model": torch.zeros(3)}, theirs / "pytorch_model.bin")
    (theirs / "config.json").write_text("{}")
    one_line(said(asked, monkeypatch, checkpoint=str(theirs)), "holds no finished artifact")
    one_line(said(asked, monkeypatch, checkpoint=asked.tokens), "holds tokens, but checkpoint is needed")


def test_the_job_refuses_a_truncated_checkpoint(asked, monkeypatch):
    states = Path(asked.checkpoint).glob("step-*/state/*.distcp")
    largest = max(states, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    one_line(said(asked, monkeypatch), "is not whole")


def test_the_job_refuses_weights_that_are_not_numbers(world, asked, monkeypatch):
    folder = asked.folder / "nan"
    model = committed(spoiled(folder, Mdlm(), world.tokens), folder)
    one_line(said(asked, monkeypatch, checkpoint=model), "the bound of sequence 0 is nan")
    folder = asked.folder / "reader"
    reader = committed(spoiled(folder, Autoregressive(), world.tokens), folder)
    one_line(said(asked, monkeypatch, judge=reader), "is nan")


def test_the_job_refuses_an_empty_sample_set(asked, monkeypatch):
    for shard in Path(asked.samples).glob("*.parquet"):
        shard.unlink()
    one_line(said(asked, monkeypatch), "holds no sample")


def test_the_job_refuses_a_judge_of_another_vocabulary(world, asked, monkeypatch):
    foreign = store(asked.folder / "foreign", 3, "".join(sorted(set(" .xyz".join(WORDS)))))
    judge = trained(asked.folder / "foreign judge", Autoregressive(), foreign)
    other = committed(judge, asked.folder / "foreign judge")
    one_line(said(asked, monkeypatch, judge=other), "has another vocabulary")
    one_line(said(asked, monkeypatch, judge=asked.checkpoint), "a judge must be autoregressive")


def test_two_judges_and_no_evaluations_are_refused(world, tmp_path):
    refused(
        world, tmp_path, "two judges were given", judge=world.models["autoregressive"], hugging_face="gpt2"
    )
    with Runner(str(tmp_path)) as run, pytest.raises(DiscdiffError, match="nothing to report"):
        run(report, ReportSpec(scores=()))


def test_evaluations_of_different_text_are_warned_of(world, tmp_path):
    with Runner(str(tmp_path)) as run:
        scores = (run(evaluate, spec(world, "mdlm")), run(evaluate, spec(world, "mdlm", rows=5)))
        made = run(report, ReportSpec(scores=scores))
    page = Page.model_validate_json((Path(made.uri) / "report.json").read_bytes())
    assert "not of the same text" in page.warnings[0]
    assert [model.name for model in page.models] == ["mdlm 1", "mdlm 2"]
    assert page.comparisons == ()


def test_the_record_of_samples_gives_their_sampler_back(world):
    from pipelines.provenance import sampler_of

    assert "steps" in sampler_of(world.samples["mdlm"])
