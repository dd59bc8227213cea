"""An experiment, from corpus to report, on one page.

What is made from what: tokens of a corpus; a model of each method, on the same tokens, network and budget;
samples of each model; scores of each model and its samples; one report. Every line is a stage, so each thing
is made at most once, and a change re-makes only what lies after it.
"""

from functools import cached_property
from typing import Any, cast

from pydantic import Field, model_validator

from discdiff.data.packing import AnyPacking, Wrap
from discdiff.data.specification import Tokenize
from discdiff.evaluation.estimators import AnyEstimator
from discdiff.evaluation.likelihood import Likelihood
from discdiff.methods import AnyMethod, Follows
from discdiff.networks import AnyBackbone, Transformer
from discdiff.training import Recipe
from discdiff.types import DiscdiffError, Value
from pipelines.artifacts import Checkpoint, Report, Samples, Scores, Tokens, Trials
from pipelines.evaluate import Evaluate, evaluate
from pipelines.generate import Drawing, Generate, generate
from pipelines.report import ReportSpec, report
from pipelines.runner import Runner
from pipelines.tokenize import tokenize
from pipelines.train import Train, train
from pipelines.tune import Tune, tune


class Measuring(Value, frozen=True):
    """What of the test split is scored, and how."""

    split: str = "test"
    rows: int | None = Field(default=None, ge=1)
    """At most so many sequences; all by default."""
    estimator: AnyEstimator = Likelihood()


class Search(Value, frozen=True):
    """A search for a version of a method: what is tried, and by which short training."""

    candidates: tuple[AnyMethod, ...] = Field(min_length=1)
    recipe: Recipe = Recipe()
    timesteps: int = Field(default=64, ge=2)


class Experiment(Value, frozen=True):
    """Several methods on the same data, network and budget."""

    name: str
    corpus: Tokenize = Tokenize()
    methods: tuple[AnyMethod, ...]
    search: Search | None = None
    """Trained besides the methods is the best of a search, if there is one."""
    backbone: AnyBackbone = Transformer()
    recipe: Recipe = Recipe()
    packing: AnyPacking = Wrap(length=128)
    drawing: Drawing = Drawing()
    measuring: Measuring = Measuring()
    summary: str = ""

    @model_validator(mode="after")
    def _compares_something(self) -> "Experiment":
        if not self.methods and self.search is None:
            raise DiscdiffError("no method was given; an experiment compares one or more.")
        return self


def experiment(spec: Experiment, run: Runner) -> Report:
    """Make the report, and before it all that it is made from."""
    return Lineage(spec, run).report


class Lineage:
    """What an experiment makes; each thing is made when it is first asked for."""

    def __init__(self, spec: Experiment, run: Runner) -> None:
        self.spec = spec
        self.run = run

    @cached_property
    def tokens(self) -> Tokens:
        return self.run(tokenize, self.spec.corpus)

    @cached_property
    def trials(self) -> Trials | None:
        return (
            None
            if self.spec.search is None
            else self.run(tune, Tune(**self._shared, **dict(self.spec.search)))
        )

    @cached_property
    def models(self) -> list[Checkpoint]:
        specs = [self._train(method) for method in self.spec.methods]
        if self.trials is not None:
            specs.append(Train(trials=self.trials, recipe=self.spec.recipe, **self._shared))
        return self.run.all(train, specs)

    def _train(self, method: AnyMethod) -> Train:
        """How a method is trained: after the one that it starts from, if it follows another."""
        first = cast(AnyMethod, method.first) if isinstance(method, Follows) else None
        start = None if first is None else self.run(train, self._train(first))
        return Train(method=method, start=start, recipe=self.spec.recipe, **self._shared)

    @property
    def _shared(self) -> dict[str, Any]:
        """What is the same for all methods."""
        return {"tokens": self.tokens, "backbone": self.spec.backbone, "packing": self.spec.packing}

    @cached_property
    def samples(self) -> list[Samples]:
        return self.run.all(generate, [Generate.of(model, self.spec.drawing) for model in self.models])

    @cached_property
    def scores(self) -> list[Scores]:
        how = dict(self.spec.measuring)
        return self.run.all(
            evaluate,
            [
                Evaluate(checkpoint=model, tokens=self.tokens, samples=samples, **how)
                for model, samples in zip(self.models, self.samples, strict=True)
            ],
        )

    @cached_property
    def report(self) -> Report:
        spec = self.spec
        return self.run(report, ReportSpec(scores=tuple(self.scores), summary=spec.summary))
