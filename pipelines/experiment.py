"""An experiment, from corpus to report, on one page.

What is made from what: tokens of a corpus; a model of each method, on the same tokens, network and budget;
samples of each model; scores of each model and its samples, which an autoregressive model reads if there is
one; the frontier of each model, if it is asked for; one report. Every line is a stage, so each thing is made
at most once, and a change re-makes only what lies after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from pydantic import Field, model_validator

from discdiff.data.packing import AnyPacking, Wrap
from discdiff.data.specification import Tokenize
from discdiff.evaluation.estimators import AnyEstimator
from discdiff.evaluation.likelihood import Likelihood
from discdiff.evaluation.mauve import Mauve
from discdiff.methods import AnyMethod, Autoregressive, Follows
from discdiff.networks import AnyBackbone, Transformer
from discdiff.training import Recipe
from discdiff.types import DiscdiffError, Value
from pipelines.artifacts import Checkpoint, Report, Samples, Scores, Tokens, Trials
from pipelines.bound import Precision
from pipelines.evaluate import Evaluate, Named, evaluate
from pipelines.frontier import Frontier, point
from pipelines.generate import Drawing, Generate, generate
from pipelines.report import ReportSpec, report
from pipelines.runner import Runner
from pipelines.tokenize import tokenize
from pipelines.train import Mixed, Train, train
from pipelines.tune import Tune, tune


class Elsewhere(Value, frozen=True):
    """Other text that models are tried on, zero-shot: rows of the models' length by default."""

    name: str
    corpus: Tokenize
    split: str = "test"
    packing: AnyPacking | None = None


class Beside(Value, frozen=True):
    """Another corpus to train on: `weight` rows of it for each row of the experiment's own."""

    corpus: Tokenize
    weight: float = Field(gt=0, allow_inf_nan=False)


class Measuring(Value, frozen=True):
    """What of the test split is scored, and how; who reads the samples; on what else the models are tried.

    The judge is the experiment's own autoregressive model, if it has one, or the folder of a Hugging Face
    model.
    """

    split: str = "test"
    rows: int | None = Field(default=None, ge=1)
    """At most so many sequences; all by default."""
    estimator: AnyEstimator = Likelihood()
    estimators: dict[str, AnyEstimator] = Field(default_factory=dict)
    """Of methods that are to have one of their own, by the kind of the method."""
    precision: Precision = "float32"
    hugging_face: str | None = None
    mauve: Mauve = Mauve()
    zero_shot: tuple[Elsewhere, ...] = ()

    def estimator_of(self, kind: str) -> AnyEstimator:
        """By what a method is scored."""
        return self.estimators.get(kind, self.estimator)

    def check(self, methods: Sequence[AnyMethod]) -> None:
        """Raises `DiscdiffError` for an estimator of no method, or of one that it can't score."""
        kinds = {method.kind for method in methods}
        for kind in self.estimators.keys() - kinds:
            raise DiscdiffError(
                f"there is an estimator for {kind!r}, which is no method here; "
                f"name one of {', '.join(sorted(kinds))}"
            )
        for method in methods:
            if method.kind in self.estimators or hasattr(method, "bound"):
                self.estimator_of(method.kind).check(method)


class Search(Value, frozen=True):
    """A search for a version of a method: what is tried, and by which short training."""

    candidates: tuple[AnyMethod, ...] = Field(min_length=1)
    recipe: Recipe = Recipe()
    timesteps: int = Field(default=64, ge=2)


class Control(Value, frozen=True):
    """Data of a known law, on which each method with a likelihood is trained too: whatever it needs above the
    entropy there is its own.
    """

    corpus: Tokenize
    packing: AnyPacking
    recipe: Recipe = Recipe()
    measuring: Measuring = Measuring()


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
    mixed: tuple[Beside, ...] = ()
    """More text to train on and to search with; what is scored is the test split of `corpus`."""
    drawing: Drawing = Drawing()
    measuring: Measuring = Measuring()
    control: Control | None = None
    frontier: Frontier | None = None
    """Quality against entropy and cost, along lines that every model has; none by default."""
    summary: str = ""

    @model_validator(mode="after")
    def _compares_something(self) -> "Experiment":
        if not self.methods and self.search is None:
            raise DiscdiffError("no method was given; an experiment compares one or more.")
        return self

    @model_validator(mode="after")
    def _can_be_scored(self) -> "Experiment":
        candidates = list(self.search.candidates) if self.search is not None else []
        self.measuring.check([*self.methods, *candidates[:1]])
        for other in candidates[1:]:
            self.measuring.estimator_of(candidates[0].kind).check(other)
        if self.control is not None:
            self.control.measuring.check(self.methods)
        return self

    @model_validator(mode="after")
    def _reads_one_vocabulary(self) -> "Experiment":
        others = {repr(other.name): other.corpus for other in self.measuring.zero_shot}
        others |= {f"mixed.{i}": other.corpus for i, other in enumerate(self.mixed)}
        for name, corpus in others.items():
            if corpus.tokenizer != self.corpus.tokenizer:
                raise DiscdiffError(
                    f"the text {name} has a tokenizer of its own: give it the experiment's, "
                    f"{self.corpus.tokenizer.kind}, since a model reads one vocabulary"
                )
        return self


def experiment(spec: Experiment, run: Runner) -> Report:
    """Make the report, and before it all that it is made from."""
    return Lineage(spec, run).report


@dataclass(frozen=True)
class Ground:
    """What is the same for all methods that are compared: data, network and budget."""

    tokens: Tokens
    packing: AnyPacking
    backbone: AnyBackbone
    recipe: Recipe
    mixed: tuple[Mixed, ...] = ()


class Lineage:
    """What an experiment makes; each thing is made when it is first asked for."""

    def __init__(self, spec: Experiment, run: Runner) -> None:
        self.spec = spec
        self.run = run

    @cached_property
    def tokens(self) -> Tokens:
        return self.run(tokenize, self.spec.corpus)

    @cached_property
    def mixed(self) -> tuple[Mixed, ...]:
        others = self.spec.mixed
        stores = self.run.all(tokenize, [other.corpus for other in others])
        return tuple(
            Mixed(tokens=store, weight=other.weight) for store, other in zip(stores, others, strict=True)
        )

    @cached_property
    def trials(self) -> Trials | None:
        if self.spec.search is None:
            return None
        return self.run(tune, Tune(**(vars(self._ground) | dict(self.spec.search))))

    @cached_property
    def models(self) -> list[Checkpoint]:
        specs = [self._train(method, self._ground) for method in self.spec.methods]
        if self.trials is not None:
            specs.append(Train(trials=self.trials, **vars(self._ground)))
        return self.run.all(train, specs)

    def _train(self, method: AnyMethod, ground: Ground) -> Train:
        """How a method is trained: after the one that it starts from, if it follows another."""
        first = cast(AnyMethod, method.first) if isinstance(method, Follows) else None
        start = None if first is None else self.run(train, self._train(first, ground))
        return Train(method=method, start=start, **vars(ground))

    @property
    def _ground(self) -> Ground:
        spec = self.spec
        return Ground(self.tokens, spec.packing, spec.backbone, spec.recipe, self.mixed)

    @cached_property
    def samples(self) -> list[Samples]:
        return self.run.all(generate, [Generate.of(model, self.spec.drawing) for model in self.models])

    @cached_property
    def judge(self) -> Checkpoint | None:
        """The first autoregressive model, if there is one and no other judge was named."""
        if self.spec.measuring.hugging_face is not None:
            return None
        pairs = zip(self.spec.methods, self.models, strict=False)
        return next((model for method, model in pairs if isinstance(method, Autoregressive)), None)

    @cached_property
    def scores(self) -> list[Scores]:
        how = self._measured(self.spec.measuring)
        made = zip(self._methods, self.models, self.samples, strict=True)
        return self.run.all(
            evaluate,
            [
                Evaluate(
                    checkpoint=model, tokens=self.tokens, samples=samples, judge=self.judge, **how(method)
                )
                for method, model, samples in made
            ],
        )

    @cached_property
    def controls(self) -> list[Scores]:
        """Scores on data of a known law."""
        control = self.spec.control
        if control is None:
            return []
        tokens = self.run(tokenize, control.corpus)
        ground = Ground(tokens, control.packing, self.spec.backbone, control.recipe)
        scored = [method for method in self.spec.methods if hasattr(method, "bound")]
        models = self.run.all(train, [self._train(method, ground) for method in scored])
        how = self._measured(control.measuring)
        pairs = zip(scored, models, strict=True)
        return self.run.all(
            evaluate, [Evaluate(checkpoint=model, tokens=tokens, **how(method)) for method, model in pairs]
        )

    def _measured(self, how: Measuring) -> Callable[[AnyMethod], dict[str, Any]]:
        """How evaluations of a method measure, other text as stores."""
        stores = self.run.all(tokenize, [other.corpus for other in how.zero_shot])
        named = [
            Named(tokens=tokens, **other.model_dump(exclude={"corpus"}))
            for other, tokens in zip(how.zero_shot, stores, strict=True)
        ]
        same = {**dict(how), "zero_shot": tuple(named)}
        del same["estimators"]
        return lambda method: same | {"estimator": how.estimator_of(method.kind)}

    @cached_property
    def points(self) -> list[Scores]:
        """The frontier of every model: each point a stage of its own."""
        lines, reader = self.spec.frontier, self.spec.measuring.hugging_face
        if lines is None:
            return []
        pairs = zip(self._methods, self.models, strict=True)
        points = [each for method, model in pairs for each in lines.points(model, method, self.judge, reader)]
        return self.run.all(point, points)

    @property
    def _methods(self) -> list[AnyMethod]:
        """The method of each model; what a search finds is sampled and scored as its first candidate is."""
        search = self.spec.search
        return [*self.spec.methods, *(search.candidates[:1] if search is not None else ())]

    @cached_property
    def report(self) -> Report:
        spec = ReportSpec(
            scores=tuple(self.scores),
            controls=tuple(self.controls),
            points=tuple(self.points),
            summary=self.spec.summary,
        )
        return self.run(report, spec)
