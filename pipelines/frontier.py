"""The frontier of a model's samples: quality against entropy, against network evaluations and against time.

A single point of generative perplexity can be bought with entropy, so models are compared along lines:
over temperature or top-p at a fixed number of steps, and over the number of steps at several batch sizes. A
sampler that has no such setting has no such line. Each point is a stage of its own, run as a Ray task: points
run beside each other as widely as the placement says, and those that are there are not drawn again.
"""

import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from discdiff.data.tokenizers import from_json
from discdiff.evaluation.diversity import entropy
from discdiff.evaluation.judge import judged
from discdiff.evaluation.mauve import Mauve
from discdiff.evaluation.page import Cell
from discdiff.evaluation.sequences import sequences
from discdiff.methods import AnyMethod
from discdiff.noise import Noise
from discdiff.samplers import AnyFilter, AnySampler, LeftToRight, Sampler, Temperature, TopP
from discdiff.samplers.blocks import Blocks
from discdiff.samplers.compatible import check
from discdiff.samplers.counting import draw
from discdiff.training import Trained, load
from discdiff.types import Canvas, DiscdiffError, Value, canvas
from pipelines.artifacts import Checkpoint, Scores
from pipelines.generate import TOKENIZER
from pipelines.judging import opened
from pipelines.place import Place
from pipelines.stage import stage
from pipelines.work import Work

CELL = "cell.json"
READ = 32
"""Samples that a judge reads at a time."""
Sweep = Literal["temperature", "top-p", "steps", "batch"]


class Point(Value, frozen=True):
    """One point: a checkpoint, a sampler's setting, how many samples are drawn and how many at a time."""

    checkpoint: Checkpoint
    judge: Checkpoint | None = None
    hugging_face: str | None = None
    sweep: Sweep
    setting: float = Field(gt=0)
    steps: int = Field(default=64, ge=1)
    batch: int = Field(default=32, ge=1)
    count: int = Field(default=32, ge=1)
    seed: int = 0

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label} {self.sweep} {self.setting:g} batch {self.batch}"


class Setting(NamedTuple):
    """What varies along a line, and where on it."""

    sweep: Sweep
    setting: float
    steps: int
    batch: int


class Frontier(Value, frozen=True):
    """The lines that are drawn for every checkpoint."""

    temperatures: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0)
    top_ps: tuple[float, ...] = (0.8, 0.9, 0.95, 1.0)
    steps: tuple[int, ...] = (8, 16, 32, 64, 128)
    batches: tuple[int, ...] = Field(default=(1, 8, 32), min_length=1)
    at: int = Field(default=64, ge=1)
    """Steps at which temperature and top-p are varied, in the largest of the batches."""
    count: int = Field(default=32, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _fills_its_batches(self) -> Self:
        if self.count < max(self.batches):
            raise DiscdiffError(
                f"count {self.count} does not fill a batch of {max(self.batches)}: draw as many or more"
            )
        return self

    def points(
        self,
        checkpoint: Checkpoint,
        method: AnyMethod,
        judge: Checkpoint | None = None,
        hugging_face: str | None = None,
    ) -> Iterator[Point]:
        """Every point of the lines that a checkpoint's method has."""
        for each in self._lines(method):
            yield Point(
                checkpoint=checkpoint,
                judge=judge,
                hugging_face=hugging_face,
                count=self.count,
                seed=self.seed,
                **each._asdict(),
            )

    def _lines(self, method: AnyMethod) -> Iterator[Setting]:
        most = max(self.batches)
        if has(method, "temperature"):
            yield from (Setting("temperature", value, self.at, most) for value in self.temperatures)
        if has(method, "top-p"):
            yield from (Setting("top-p", value, self.at, most) for value in self.top_ps)
        for batch in self.batches:
            if has(method, "steps"):
                yield from (Setting("steps", value, value, batch) for value in self.steps)
            else:
                yield Setting("batch", batch, self.at, batch)


def has(method: AnyMethod, sweep: Sweep) -> bool:
    """Whether the method's own sampler has a setting to vary."""
    if sweep == "steps":
        return method.default_sampler(1) != method.default_sampler(2)
    try:
        sampler(method, sweep, 0.5, 1)
    except DiscdiffError:
        return False
    return True


def sampler(method: AnyMethod, sweep: Sweep, setting: float, steps: int) -> AnySampler:
    """The method's own sampler with a setting. Raises DiscdiffError where it has no such setting."""
    own = method.default_sampler(steps)
    if sweep in ("steps", "batch") or setting == 1:
        return own
    chosen = _filtered(own, Temperature(value=setting) if sweep == "temperature" else TopP(p=setting))
    if chosen is None:
        raise DiscdiffError(
            f"{method.kind} draws with the sampler {own.kind!r}, which has no {sweep}; "
            "vary its steps, or leave it out"
        )
    check(method, chosen)
    return chosen


def _filtered(own: AnySampler | None, chosen: AnyFilter) -> AnySampler | None:
    """A sampler with a filter where it draws tokens; None where it draws none from a network's law."""
    if own is None:
        return None
    if isinstance(own, Sampler | LeftToRight):
        return own.model_copy(update={"filters": (chosen,)})
    name = "inside" if isinstance(own, Blocks) else "base"
    part = _filtered(getattr(own, name, None), chosen)
    return None if part is None else own.model_copy(update={name: part})


@stage(version=1)
def point(spec: Point, work: Work) -> Scores:
    """Draw the samples of a point on a Ray worker and measure them."""
    work.ray()
    import ray

    place = work.placement
    task: Any = ray.remote(measure)  # pyright: ignore[reportUnknownVariableType]
    reference = task.options(num_cpus=place.cpus, num_gpus=place.gpus, max_retries=3).remote(spec)
    cell: Cell = ray.get(reference)
    (work.directory / CELL).write_text(cell.model_dump_json(indent=1))
    metrics = {"entropy": cell.entropy.value, "evaluations": cell.evaluations, "seconds": cell.seconds}
    if cell.perplexity is not None:
        metrics["judge_perplexity"] = cell.perplexity.value
    work.log(metrics)
    return Scores(key=work.key, uri=work.uri, metrics=metrics)


def measure(spec: Point) -> Cell:
    """Draw and measure, here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load(spec.checkpoint.uri, device=device)
    judge = opened(spec.judge, spec.hugging_face, trained.tokenizer)
    chosen = sampler(trained.method, spec.sweep, spec.setting, spec.steps)
    ids, calls, seconds = _draw(spec, trained, chosen, device)
    found = sequences(list(ids.cpu().numpy()), trained.vocab)
    reading = judge.read(_batches(ids), _texts(spec, ids)) if judge else None
    return Cell(
        model=spec.checkpoint.label or spec.checkpoint.method,
        sweep=spec.sweep,
        setting=spec.setting,
        evaluations=calls,
        batch=spec.batch,
        entropy=entropy(found),
        perplexity=judged(judge, reading, None, Mauve()).perplexity if judge and reading else None,
        itself=spec.judge == spec.checkpoint,
        seconds=seconds,
    )


def _draw(
    spec: Point, trained: Trained, chosen: AnySampler, device: torch.device
) -> tuple[torch.Tensor, float, float]:
    """The samples, evaluations per sample, and seconds per sample without the first use of the device."""
    network: Any = trained.network
    parts: list[torch.Tensor] = []
    evaluations, passed = 0, 0.0
    method: Any = trained.method
    method.sample(network, _blank(spec, trained, 0, device), method.default_sampler(1), Noise(spec.seed))
    for start in range(0, spec.count, spec.batch):
        blank = _blank(spec, trained, start, device)
        begun = time.perf_counter()
        tokens, calls = draw(trained.method, network, blank, chosen, Noise(spec.seed))
        parts.append(tokens.cpu())
        passed += time.perf_counter() - begun
        evaluations += int(calls.sum())
    return torch.cat(parts).to(device), evaluations / spec.count, passed / spec.count


def _blank(spec: Point, trained: Trained, start: int, device: torch.device) -> Canvas:
    size = min(spec.batch, spec.count - start)
    empty = torch.zeros(size, trained.length, dtype=torch.int64, device=device)
    return canvas(empty, first_row=start)


def _batches(ids: torch.Tensor) -> list[Canvas]:
    starts = np.arange(0, len(ids), READ)
    return [canvas(ids[start : start + READ], first_row=int(start)) for start in starts]


def _texts(spec: Point, ids: torch.Tensor) -> list[str]:
    """The samples as text, for a judge that reads text."""
    if spec.hugging_face is None:
        return []
    kept = Place.at(spec.checkpoint.uri).read(TOKENIZER)
    if kept is None:
        raise DiscdiffError(f"{spec.checkpoint.uri} lacks {TOKENIZER}; give the whole folder of the run")
    tokenizer = from_json(kept.decode())
    return [tokenizer.decode(row) for row in ids.cpu().numpy()]
