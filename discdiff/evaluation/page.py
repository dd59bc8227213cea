"""What a report says, as data: `report.json` is this value, and the page is drawn from it and from nothing
else.
"""

from typing import Any

from pydantic import Field

from discdiff.evaluation.estimate import Estimate
from discdiff.evaluation.likelihood import Score
from discdiff.evaluation.quality import Quality
from discdiff.evaluation.series import Series
from discdiff.types import Value


class Trace(Value, frozen=True):
    """How one sample came to be: what changed at each step of the sampler.

    `steps[k]` are (position, text) pairs; step 0 writes every position. A text of None is a mask.
    `times[k]` is the time after step k, from 1 (noise) to 0 (data).
    """

    times: tuple[float, ...]
    steps: tuple[tuple[tuple[int, str | None], ...], ...]


class Model(Value, frozen=True):
    """One trained model: a row of the tables, a line of the charts."""

    name: str
    family: str
    parameters: int
    steps: int
    seconds_per_step: float | None = None
    peak_memory: float | None = None
    """Of a worker in training, in GiB."""
    score: Score | None = None
    entropy: float | None = None
    """Nats per token of the law that the data is drawn from, where it is known."""
    excess: Estimate | None = None
    """Nats per token above what a perfect model scores on the same sequences, where the law is known."""
    unscored: str = ""
    """Why there is no likelihood, as a sentence."""
    quality: Quality | None = None
    evaluations: float | None = None
    """Network evaluations per sample."""
    sampler: str = ""
    training: tuple[Series, ...] = ()
    """Curves over training steps, named by what they show: `loss`, `bound`."""
    samples: tuple[str, ...] = ()
    trace: Trace | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    """The method's specification."""


class Cell(Value, frozen=True):
    """One point of a frontier: a sampler's setting, what its samples are worth and what they cost."""

    model: str
    sweep: str
    """What varies along the line: `temperature`, `top-p`, `steps`, or only the `batch`."""
    setting: float
    evaluations: float
    batch: int
    entropy: Estimate
    perplexity: Estimate | None = None
    itself: bool = False
    """Whether the judge drew the samples that it reads."""
    seconds: float
    """Wall-clock seconds a sample."""


class Comparison(Value, frozen=True):
    """Two models on the same sequences, times and noise: `difference` is second minus first, in nats per
    token.
    """

    first: str
    second: str
    difference: Estimate


class ZeroShot(Value, frozen=True):
    """A model on text of another store."""

    model: str
    store: str
    score: Score


class Fact(Value, frozen=True):
    """A line of what ran."""

    group: str
    name: str
    value: str


class Page(Value, frozen=True):
    """A whole report."""

    title: str
    created: str
    summary: str = ""
    models: tuple[Model, ...] = ()
    unigram: Score | None = None
    real: Quality | None = None
    real_samples: tuple[str, ...] = ()
    controls: tuple[Model, ...] = ()
    """The same methods trained on data of a known law."""
    comparisons: tuple[Comparison, ...] = ()
    zero_shot: tuple[ZeroShot, ...] = ()
    frontier: tuple[Cell, ...] = ()
    facts: tuple[Fact, ...] = ()
    specs: dict[str, str] = Field(default_factory=dict)
    """Every specification that ran, by the key of its stage."""
    warnings: tuple[str, ...] = ()
