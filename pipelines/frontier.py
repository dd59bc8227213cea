"""The frontier of a model's samples: quality against entropy, against network evaluations and against time.

A single point of generative perplexity can be bought with entropy, so models are compared along lines:
over temperature or top-p at a fixed number of evaluations, and over the number of evaluations at several
batch sizes. Each point is a stage of its own, run as a Ray task: points run beside each other as widely as
the placement says, and those that are there are not drawn again.
"""

import time
from collections.abc import Iterator
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field

from discdiff.evaluation.diversity import entropy
from discdiff.evaluation.judge import Own, judged
from discdiff.evaluation.mauve import Mauve
from discdiff.evaluation.page import Cell
from discdiff.evaluation.sequences import sequences
from discdiff.noise import Noise
from discdiff.samplers import AnySampler
from discdiff.samplers.counting import draw
from discdiff.samplers.filters import Temperature, TopP
from discdiff.training import Trained, load
from discdiff.types import Canvas, DiscdiffError, Value, canvas
from pipelines.artifacts import Checkpoint, Scores
from pipelines.stage import stage
from pipelines.work import Work

CELL = "cell.json"
Sweep = Literal["temperature", "top-p", "steps"]


class Point(Value, frozen=True):
    """One point: a checkpoint, a sampler's setting, how many samples are drawn and how many at a time."""

    checkpoint: Checkpoint
    judge: Checkpoint | None = None
    sweep: Sweep
    setting: float = Field(gt=0)
    steps: int = Field(default=64, ge=1)
    batch: int = Field(default=32, ge=1)
    count: int = Field(default=32, ge=1)
    seed: int = 0

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label} {self.sweep} {self.setting:g} batch {self.batch}"


class Frontier(Value, frozen=True):
    """The lines that are drawn for every checkpoint."""

    temperatures: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0)
    top_ps: tuple[float, ...] = (0.8, 0.9, 0.95, 1.0)
    steps: tuple[int, ...] = (8, 16, 32, 64, 128)
    batches: tuple[int, ...] = (1, 8, 32)
    at: int = Field(default=64, ge=1)
    """Steps at which temperature and top-p are varied, in the largest of the batches."""
    count: int = Field(default=32, ge=1)
    seed: int = 0

    def points(self, checkpoint: Checkpoint, judge: Checkpoint | None) -> Iterator[Point]:
        """Every point of a checkpoint's lines."""
        most = max(self.batches)
        swept = [
            *(self._line("temperature", self.temperatures, most)),
            *(self._line("top-p", self.top_ps, most)),
            *(("steps", value, value, batch) for batch in self.batches for value in self.steps),
        ]
        for sweep, setting, steps, batch in swept:
            yield Point(
                checkpoint=checkpoint,
                judge=judge,
                sweep=cast(Sweep, sweep),
                setting=setting,
                steps=steps,
                batch=batch,
                count=self.count,
                seed=self.seed,
            )

    def _line(self, sweep: str, values: tuple[float, ...], batch: int) -> list[tuple[str, float, int, int]]:
        return [(sweep, value, self.at, batch) for value in values]


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
    judge = _judge(spec, trained, device)
    sampler = _sampler(spec, trained)
    ids, calls, seconds = _draw(spec, trained, sampler, device)
    found = sequences(list(ids.numpy()), trained.vocab)
    reading = judge.read(_batches(ids), []) if judge else None
    return Cell(
        model=spec.checkpoint.label or spec.checkpoint.method,
        sweep=spec.sweep,
        setting=spec.setting,
        evaluations=calls,
        batch=spec.batch,
        entropy=entropy(found),
        perplexity=judged(judge, reading, None, Mauve()).perplexity if judge and reading else None,
        seconds=seconds,
    )


def _draw(
    spec: Point, trained: Trained, sampler: AnySampler, device: torch.device
) -> tuple[torch.Tensor, float, float]:
    """The samples, evaluations per sample, and seconds per sample without the first use of the device."""
    network: Any = trained.network
    parts: list[torch.Tensor] = []
    evaluations, passed = 0, 0.0
    _warm(network, _blank(spec, trained, 0, device))
    for start in range(0, spec.count, spec.batch):
        blank = _blank(spec, trained, start, device)
        begun = time.perf_counter()
        tokens, calls = draw(trained.method, network, blank, sampler, Noise(spec.seed))
        parts.append(tokens.cpu())
        passed += time.perf_counter() - begun
        evaluations += int(calls.sum())
    return torch.cat(parts), evaluations / spec.count, passed / spec.count


def _blank(spec: Point, trained: Trained, start: int, device: torch.device) -> Canvas:
    size = min(spec.batch, spec.count - start)
    empty = torch.zeros(size, trained.length, dtype=torch.int64, device=device)
    return canvas(empty, first_row=start)


@torch.no_grad()
def _warm(network: Any, blank: Canvas) -> None:
    time_zero = torch.zeros(blank.shape[0], 1, dtype=torch.float64, device=blank.tokens.device)
    network(blank.tokens, time_zero, blank.condition)


def _sampler(spec: Point, trained: Trained) -> AnySampler:
    """The method's own sampler with the setting. Raises DiscdiffError where it has no such setting."""
    own = trained.method.default_sampler(spec.steps)
    if spec.sweep == "steps" or spec.setting == 1:
        return own
    if "filters" not in type(own).model_fields:
        raise DiscdiffError(
            f"{spec.checkpoint.method} draws with the sampler {own.kind!r}, which has no {spec.sweep}; "
            "vary its steps, or leave it out"
        )
    chosen = Temperature(value=spec.setting) if spec.sweep == "temperature" else TopP(p=spec.setting)
    return type(own).model_validate(own.model_dump() | {"filters": (chosen,)})


def _judge(spec: Point, trained: Trained, device: torch.device) -> Own | None:
    if spec.judge is None:
        return None
    reader = load(spec.judge.uri, device=device)
    judge = Own(spec.judge.label or spec.judge.method, reader.method, reader.network, reader.tokenizer)
    judge.check(trained.tokenizer)
    return judge


def _batches(ids: torch.Tensor) -> list[Canvas]:
    starts = np.arange(0, len(ids), 32)
    return [canvas(ids[start : start + 32], first_row=int(start)) for start in starts]
