"""Evaluate: a checkpoint on held-out text, and its samples beside real text of the same size.

`scores.json` holds all that a report needs of a model, with the specifications that led to it;
`ledger.npz` keeps every sequence's estimates, so that two checkpoints can be compared on the same
sequences.
"""

import torch
from pydantic import Field

from discdiff.data.packing import AnyPacking, Wrap
from discdiff.data.store import Store
from discdiff.evaluation.estimators import AnyEstimator
from discdiff.evaluation.judge import HuggingFace, Judge, Own
from discdiff.evaluation.likelihood import Likelihood, Score, unigram
from discdiff.evaluation.mauve import Mauve
from discdiff.evaluation.page import Fact, Model, Trace, ZeroShot
from discdiff.evaluation.quality import Quality
from discdiff.networks.ema import trained_parameters
from discdiff.training import Trained, load
from discdiff.types import DiscdiffError, Value
from pipelines.artifacts import Checkpoint, Samples, Scores, Tokens
from pipelines.bound import Precision, Scorer, Scoring, measure, write_ledger
from pipelines.headline import of_quality, of_score, tags
from pipelines.measured import Measured, measure_samples
from pipelines.provenance import facts, sampler_of, specs, training_curves, versions
from pipelines.stage import stage
from pipelines.texts import Drawn, counts, drawn, readable
from pipelines.trajectory import trajectory
from pipelines.work import Work

SCORES = "scores.json"
LEDGER = "ledger.npz"
SHOWN = 3
"""Samples that a report prints."""


class Named(Value, frozen=True):
    """Another store that a model is tried on."""

    name: str
    tokens: Tokens


class Evaluate(Value, frozen=True):
    """What is measured: a checkpoint on a split of a store, and samples if there are any.

    `packing` is rows of the checkpoint's length by default. The judge reads the samples: one of our
    autoregressive checkpoints, or the folder of a Hugging Face model.
    """

    checkpoint: Checkpoint
    tokens: Tokens
    samples: Samples | None = None
    split: str = "test"
    packing: AnyPacking | None = None
    rows: int | None = Field(default=None, ge=1)
    """At most so many sequences of the split; all by default."""
    estimator: AnyEstimator = Likelihood()
    precision: Precision = "float32"
    judge: Checkpoint | None = None
    hugging_face: str | None = None
    mauve: Mauve = Mauve()
    zero_shot: tuple[Named, ...] = ()

    @property
    def label(self) -> str:
        return self.checkpoint.label or self.checkpoint.method


class Evaluation(Value, frozen=True, ser_json_inf_nan="strings"):
    """The content of `scores.json`."""

    model: Model
    unigram: Score | None
    real: Quality | None
    real_samples: tuple[str, ...]
    zero_shot: tuple[ZeroShot, ...]
    facts: tuple[Fact, ...]
    specs: dict[str, str]


@stage(version=1)
def evaluate(spec: Evaluate, work: Work) -> Scores:
    """Score the checkpoint, measure its samples, keep both with their protocols."""
    made = (spec.tokens, spec.checkpoint, *([spec.samples] if spec.samples else []))
    with Store.open(spec.tokens.uri, spec.split) as store:
        judge = _judge(spec, store)
        sampled = None if spec.samples is None else drawn(spec.samples)
        score, baseline, zero_shot = _likelihood(spec, work)
        rows = None if sampled is None else measure_samples(sampled, store, judge, spec.mauve, work)
        evaluation = Evaluation(
            model=_model(spec, score, sampled, rows, store),
            unigram=baseline,
            real=rows.real if rows else None,
            real_samples=rows.real_texts[:SHOWN] if rows else (),
            zero_shot=zero_shot,
            facts=facts(store) + versions(*made),
            specs=specs(*made),
        )
    (work.directory / SCORES).write_text(evaluation.model_dump_json(indent=1))
    score, row = evaluation.model.score, evaluation.model.quality
    metrics = of_score(score, evaluation.unigram) | of_quality(row, evaluation.real)
    work.log(metrics)
    work.tracker.tag(tags(score, row))
    work.tracker.attach(work.directory / SCORES)
    return Scores(key=work.key, uri=work.uri, metrics=metrics)


def _model(
    spec: Evaluate, score: Score | None, sampled: Drawn | None, rows: Measured | None, store: Store
) -> Model:
    trained = load(spec.checkpoint.uri)
    return Model(
        name=spec.label,
        family=trained.method.kind,
        parameters=sum(p.numel() for p in trained_parameters(trained.network).values()),
        steps=trained.step,
        score=score,
        unscored="" if score else str(getattr(trained.method, "unscored", "no likelihood")),
        quality=rows.samples if rows else None,
        evaluations=sampled.evaluations if sampled else None,
        sampler=sampler_of(spec.samples) if spec.samples else "",
        training=training_curves(spec.checkpoint),
        samples=tuple(readable(text) for text in sampled.texts[:SHOWN]) if sampled else (),
        trace=_trace(spec, sampled, trained, store) if sampled else None,
        settings=trained.method.model_dump(mode="json"),
    )


def _trace(spec: Evaluate, sampled: Drawn, trained: Trained, store: Store) -> Trace | None:
    return trajectory(spec.samples, sampled.ids[0], trained, store.tokenizer) if spec.samples else None


def _likelihood(spec: Evaluate, work: Work) -> tuple[Score | None, Score | None, tuple[ZeroShot, ...]]:
    """The checkpoint's score, the unigram's on the same rows, and scores on other stores."""
    scorer = _scorer(spec, spec.tokens)
    baseline = _unigram(scorer)
    if getattr(scorer.model.method, "bound", None) is None:
        return None, baseline, ()
    ledger = measure(scorer, work)
    write_ledger(ledger, str(work.directory / LEDGER))
    others: list[ZeroShot] = []
    for other in spec.zero_shot:
        away = _scorer(spec, other.tokens)
        found = measure(away, work)
        score = found.score(away.text(), away.protocol(found))
        others.append(ZeroShot(model=spec.label, store=other.name, score=score))
    return ledger.score(scorer.text(), scorer.protocol(ledger)), baseline, tuple(others)


def _scorer(spec: Evaluate, tokens: Tokens) -> Scorer:
    packing = spec.packing or Wrap(length=load(spec.checkpoint.uri).length)
    limits = (spec.precision, spec.rows)
    return Scorer(Scoring(spec.checkpoint.uri, tokens.uri, spec.split, packing, spec.estimator, *limits))


def _unigram(scorer: Scorer) -> Score | None:
    """The baseline on the same rows, from the counts of the training split."""
    if "train" not in scorer.store.manifest.splits:
        return None
    with Store.open(scorer.store.uri, "train") as training:
        frequencies = counts(training)
    ledger = unigram(frequencies, scorer.canvases(0, scorer.count))
    named = {"estimator": "unigram of the training split, add one", "times": "none"}
    return ledger.score(scorer.text(), scorer.protocol(ledger).model_copy(update=named))


def _judge(spec: Evaluate, store: Store) -> Judge | None:
    """The judge, refused before anything is measured if it cannot read these samples."""
    if spec.judge is not None and spec.hugging_face is not None:
        raise DiscdiffError("two judges were given, judge and hugging_face; give one")
    if spec.hugging_face is not None:
        return HuggingFace(spec.hugging_face)
    if spec.judge is None:
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load(spec.judge.uri, device=device)
    judge = Own(spec.judge.method, trained.method, trained.network, trained.tokenizer)
    judge.check(store.manifest.tokenizer)
    return judge
