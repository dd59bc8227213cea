"""Evaluate: a checkpoint on held-out text, and its samples beside real text of the same size.

`scores.json` holds all that a report needs of a model, with the specifications that led to it;
`ledger.npz` keeps every sequence's estimates, so that two checkpoints can be compared on the same
sequences.
"""

from pydantic import Field

from discdiff.data.packing import AnyPacking, Wrap
from discdiff.data.store import Store
from discdiff.evaluation.estimate import Estimate
from discdiff.evaluation.estimators import AnyEstimator
from discdiff.evaluation.laws import perfect
from discdiff.evaluation.likelihood import Ledger, Likelihood, Score, compare, unigram
from discdiff.evaluation.mauve import Mauve
from discdiff.evaluation.page import Fact, Model, ZeroShot
from discdiff.evaluation.quality import Quality
from discdiff.networks.ema import trained_parameters
from discdiff.training import load
from discdiff.types import Value
from pipelines.artifacts import Checkpoint, Samples, Scores, Tokens
from pipelines.bound import Precision, Scorer, Scoring, measure, write_ledger
from pipelines.headline import of_excess, of_quality, of_score, tags
from pipelines.judging import opened
from pipelines.known import law_of
from pipelines.measured import Measured, measure_samples
from pipelines.provenance import facts, sampler_of, specs, training_cost, training_curves, versions
from pipelines.stage import stage
from pipelines.texts import Drawn, counts, drawn, readable
from pipelines.train import registered
from pipelines.trajectory import trajectory
from pipelines.work import Work

SCORES = "scores.json"
LEDGER = "ledger.npz"
SHOWN = 3
"""Samples that a report prints."""


class Named(Value, frozen=True):
    """Another store that a model is tried on, by a protocol of its own where one is given."""

    name: str
    tokens: Tokens
    split: str = "test"
    packing: AnyPacking | None = None
    """Rows as of the model's own text by default."""


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
        judge = opened(spec.judge, spec.hugging_face, store.manifest.tokenizer)
        sampled = None if spec.samples is None else drawn(spec.samples)
        score, baseline, zero_shot, known = _likelihood(spec, work)
        rows = None if sampled is None else measure_samples(sampled, store, judge, spec.mauve, work)
        evaluation = Evaluation(
            model=_model(spec, score, sampled, rows, store).model_copy(update=known),
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
    metrics |= of_excess(evaluation.model)
    work.log(metrics)
    work.tracker.tag(tags(score, row))
    work.tracker.attach(work.directory / SCORES)
    told = {name: f"{value:.6g}" for name, value in metrics.items() if not name.startswith("real_")}
    work.tracker.describe(registered(spec.checkpoint), spec.checkpoint.key, {"stage": "evaluated"} | told)
    return Scores(key=work.key, uri=work.uri, metrics=metrics)


def _model(
    spec: Evaluate, score: Score | None, sampled: Drawn | None, rows: Measured | None, store: Store
) -> Model:
    trained = load(spec.checkpoint.uri)
    cost = training_cost(spec.checkpoint)
    return Model(
        name=spec.label,
        family=trained.method.kind,
        parameters=sum(p.numel() for p in trained_parameters(trained.network).values()),
        steps=trained.step,
        seconds_per_step=cost.get("seconds_per_step"),
        peak_memory=cost.get("peak_memory"),
        score=score,
        unscored="" if score else str(getattr(trained.method, "unscored", "no likelihood")),
        quality=_row(spec, rows) if rows else None,
        evaluations=sampled.evaluations if sampled else None,
        sampler=sampler_of(spec.samples) if spec.samples else "",
        training=training_curves(spec.checkpoint),
        samples=tuple(readable(text) for text in sampled.texts[:SHOWN]) if sampled else (),
        trace=trajectory(spec.samples, store.tokenizer) if spec.samples else None,
        settings=trained.method.model_dump(mode="json"),
    )


def _row(spec: Evaluate, rows: Measured) -> Quality:
    return rows.samples.read_by_itself() if spec.judge == spec.checkpoint else rows.samples


def _likelihood(
    spec: Evaluate, work: Work
) -> tuple[Score | None, Score | None, tuple[ZeroShot, ...], dict[str, object]]:
    """The checkpoint's score, the unigram's on the same rows, scores on other stores, what is known of the
    law.
    """
    scorer = _scorer(spec, spec.tokens, spec.split, spec.packing)
    baseline = _unigram(scorer)
    if getattr(scorer.model.method, "bound", None) is None:
        return None, baseline, (), {}
    ledger = measure(scorer, work)
    write_ledger(ledger, str(work.directory / LEDGER))
    others: list[ZeroShot] = []
    for other in spec.zero_shot:
        away = _scorer(spec, other.tokens, other.split, other.packing or spec.packing)
        found = measure(away, work)
        score = found.score(away.text(), away.protocol(found))
        others.append(ZeroShot(model=spec.label, store=other.name, score=score))
    score = ledger.score(scorer.text(), scorer.protocol(ledger))
    return score, baseline, tuple(others), _known(spec, scorer, ledger)


def _known(spec: Evaluate, scorer: Scorer, ledger: Ledger) -> dict[str, object]:
    """The entropy of the data and the model's excess over it, if the data is of a known law."""
    packing = scorer.scoring.packing
    law = law_of(spec.tokens, packing)
    if law is None:
        return {}
    excess: Estimate = compare(perfect(law, scorer.canvases(0, scorer.count)), ledger)
    return {"entropy": law.entropy(packing.length) / packing.length, "excess": excess}


def _scorer(spec: Evaluate, tokens: Tokens, split: str, packing: AnyPacking | None) -> Scorer:
    packing = packing or Wrap(length=load(spec.checkpoint.uri).length)
    limits = (spec.precision, spec.rows)
    return Scorer(Scoring(spec.checkpoint.uri, tokens.uri, split, packing, spec.estimator, *limits))


def _unigram(scorer: Scorer) -> Score | None:
    """The baseline on the same rows, from the counts of the training split."""
    if "train" not in scorer.store.manifest.splits:
        return None
    with Store.open(scorer.store.uri, "train") as training:
        frequencies = counts(training)
    ledger = unigram(frequencies, scorer.canvases(0, scorer.count))
    named = {"estimator": "unigram of the training split, add one", "times": "none"}
    return ledger.score(scorer.text(), scorer.protocol(ledger).model_copy(update=named))
