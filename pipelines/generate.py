"""Generate: samples of a checkpoint, drawn by Ray actors, as Parquet shards.

The rows of a shard and of a batch follow from the specification alone, and a row's prompt, label and
randomness from the seed and its number. So the samples do not depend on the number of workers, and a shard
that is there need not be drawn again.
"""

import io
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, model_validator
from torch import Tensor

from discdiff.data.prompts import AnyPrompt, Blank, Prompts
from discdiff.data.tokenizers import Tokenizer, from_json
from discdiff.methods import AnyMethod
from discdiff.noise import Noise
from discdiff.samplers import AnySampler
from discdiff.samplers.compatible import check, check_canvas, check_labels
from discdiff.samplers.counting import draw
from discdiff.samplers.guidance import ClassifierBased, Guided
from discdiff.samplers.trace import Recorder, nobody
from discdiff.training import Subject, check_classifier, load
from discdiff.training.checkpoint import open_commit
from discdiff.types import Canvas, DiscdiffError, Value
from pipelines import traces
from pipelines.artifacts import Checkpoint, Samples
from pipelines.place import Place
from pipelines.stage import stage
from pipelines.work import Work

SHARDS = 256
"""At most so many shards; a small run has one a batch."""
RESTARTS = 3
TOKENIZER = "tokenizer.json"


class Default(Value, frozen=True):
    """The sampler that the method itself would choose, for a number of steps."""

    kind: Literal["default"] = "default"
    steps: int = Field(default=64, ge=1)

    def of(self, method: AnyMethod) -> AnySampler:
        return method.default_sampler(self.steps)


class Drawing(Value, frozen=True):
    """How to draw: `count` samples, numbered from 0.

    `length` is the checkpoint's own by default. Of n prompts or labels, sample r has those of number r mod n.
    Of the first `traces` samples the way from noise to data is kept. `batch` rows share a network call; it
    counts in the key because it may change the network's rounding, which `sampler.microbatch`, or a batch of
    one, keeps from depending on what a row is drawn with.
    """

    sampler: Annotated[AnySampler | Default, Field(discriminator="kind")] = Default()
    prompt: AnyPrompt = Blank()
    labels: tuple[Annotated[int, Field(ge=0)], ...] = ()
    count: int = Field(default=64, ge=1)
    length: int | None = Field(default=None, ge=1)
    batch: int = Field(default=32, ge=1)
    seed: int = Field(default=0, ge=0)
    traces: int = Field(default=1, ge=0)


class Generate(Drawing, frozen=True):
    """A checkpoint, and how to draw from it."""

    checkpoint: Checkpoint
    classifier: Checkpoint | None = None
    """The checkpoint of the classifier that classifier-based guidance asks."""

    @model_validator(mode="after")
    def _asks_its_classifier(self) -> "Generate":
        asked = isinstance(getattr(self.sampler, "guidance", None), ClassifierBased)
        if asked and self.classifier is None:
            raise DiscdiffError(
                "classifier_based guidance asks a classifier of noisy sequences and none was given: train "
                "method classifier on stores that are classes and give its folder as classifier"
            )
        if self.classifier is not None and not asked:
            raise DiscdiffError(
                "a classifier was given and the sampler doesn't ask it: take the sampler reverse with "
                "guidance.kind=classifier_based, or leave the classifier out"
            )
        return self

    @classmethod
    def of(cls, checkpoint: Checkpoint, drawing: Drawing) -> "Generate":
        return cls(checkpoint=checkpoint, **dict(drawing))

    @property
    def label(self) -> str:
        return self.checkpoint.label

    def shards(self) -> list["Shard"]:
        """The rows of each shard: whole batches, but for the last."""
        batches = -(-self.count // self.batch)
        rows = self.batch * -(-batches // SHARDS)
        starts = range(0, self.count, rows)
        return [Shard(index, start, min(start + rows, self.count)) for index, start in enumerate(starts)]


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop`, in one file."""

    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        return f"samples-{self.index:05d}.parquet"

    @property
    def traces(self) -> str:
        return f"traces-{self.index:05d}.parquet"


@stage(version=2, resumable=True)
def generate(spec: Generate, work: Work) -> Samples:
    """Draw the shards that are not there yet."""
    Drawn.of(spec)
    there = set(Place(work.uri).names())
    missing = [shard for shard in spec.shards() if shard.name not in there]
    if missing:
        work.ray()
        _draw(spec, work, missing)
    length = spec.length or spec.checkpoint.length
    return Samples(key=work.key, uri=work.uri, count=spec.count, length=length)


def _draw(spec: Generate, work: Work, missing: list[Shard]) -> None:
    import ray
    from ray.util.actor_pool import ActorPool

    place = work.placement
    options = {"num_cpus": place.cpus, "num_gpus": place.gpus}
    remote: Any = ray.remote(Generator)  # pyright: ignore[reportUnknownVariableType]
    workers = remote.options(**options, max_restarts=RESTARTS, max_task_retries=RESTARTS)
    actors = [workers.remote(spec, work.uri) for _ in range(min(place.workers, len(missing)))]
    done = spec.count - sum(shard.rows for shard in missing)
    work.progress(done, spec.count)
    pool: Any = ActorPool(actors)
    try:
        for rows in pool.map_unordered(lambda actor, shard: actor.draw.remote(shard), missing):
            done += rows
            work.progress(done, spec.count, "samples")
    finally:
        for actor in actors:
            ray.kill(actor)


@dataclass(frozen=True)
class Drawn:
    """What a specification means for a checkpoint: the sampler, and the canvas of any rows."""

    tokenizer: Tokenizer
    method: AnyMethod
    sampler: AnySampler
    prompts: Prompts
    labels: Tensor | None

    @classmethod
    def of(cls, spec: Generate) -> "Drawn":
        """Finds mistakes before any worker is started.

        Raises DiscdiffError for a sampler, a prompt, labels or a classifier that the checkpoint can't follow.
        """
        subject = _subject(spec.checkpoint)
        tokenizer = kept_tokenizer(spec.checkpoint, subject.tokenizer)
        method, chosen = subject.method, spec.sampler
        sampler = chosen.of(method) if isinstance(chosen, Default) else chosen
        check(method, sampler)
        guide = subject if spec.classifier is None else _subject(spec.classifier)
        if spec.classifier is not None:
            check_classifier(subject, guide)
        check_labels(sampler, spec.labels, guide.backbone.labels)
        prompts = Prompts(spec.prompt, tokenizer, spec.length or subject.length)
        drawn = cls(tokenizer, method, sampler, prompts, torch.tensor(spec.labels) if spec.labels else None)
        for row in range(min(len(prompts), spec.count)):
            check_canvas(method, sampler, drawn.canvas(row, row + 1))
        return drawn

    def canvas(self, start: int, stop: int) -> Canvas:
        """Samples `start` to `stop`, on the CPU."""
        blank = self.prompts.canvas(start, stop)
        if self.labels is None:
            return blank
        labels = self.labels[blank.rows % len(self.labels)]
        return replace(blank, condition=replace(blank.condition, labels=labels))


def _subject(checkpoint: Checkpoint) -> Subject:
    return open_commit(checkpoint.uri)[1].subject


class Generator:
    """One actor: the checkpoint in memory, with the classifier that leads it if there is one, shards drawn on
    request.
    """

    def __init__(self, spec: Generate, uri: str) -> None:
        self.spec = spec
        self.place = Place(uri)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.drawn = Drawn.of(spec)
        self.tokenizer = self.drawn.tokenizer
        self.network: Any = load(spec.checkpoint.uri, device=self.device).network
        if spec.classifier is not None:
            self.network = Guided(self.network, load(spec.classifier.uri, device=self.device).network)

    def draw(self, shard: Shard) -> int:
        """Draw a shard, put it in place whole, and say how many rows it has."""
        starts = range(shard.start, shard.stop, self.spec.batch)
        batches = [self._batch(start, min(start + self.spec.batch, shard.stop)) for start in starts]
        seen = [trace for _, some in batches for trace in some]
        if seen:
            self.place.write(shard.traces, _parquet(traces.table(seen, shard.start)))
        self.place.write(shard.name, _parquet(pa.concat_tables([table for table, _ in batches])))
        return shard.rows

    def _batch(self, start: int, stop: int) -> tuple[pa.Table, list[traces.Trace]]:
        """The samples `start` to `stop`, and the traces of those that are to have one."""
        recorder = Recorder(rows=min(max(self.spec.traces - start, 0), stop - start))
        ids, calls = draw(
            self.drawn.method,
            self.network,
            self.drawn.canvas(start, stop).to(self.device),
            self.drawn.sampler,
            Noise(self.spec.seed),
            recorder if recorder.rows else nobody,
        )
        return self._table(start, ids.cpu().numpy(), calls.numpy()), recorder.traces

    def _table(self, start: int, ids: np.ndarray, calls: np.ndarray) -> pa.Table:
        columns = {
            "row": pa.array(np.arange(start, start + len(ids))),
            "seed": pa.repeat(pa.scalar(self.spec.seed, pa.int64()), len(ids)),
            "nfe": pa.array(calls, pa.int32()),
            "ids": pa.array(list(ids), pa.list_(pa.int32())),
            "text": pa.array([self.tokenizer.decode(row) for row in ids], pa.string()),
        }
        return pa.table(columns)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def kept_tokenizer(checkpoint: Checkpoint, fingerprint: str) -> Tokenizer:
    """The tokenizer that training kept beside the weights. Raises DiscdiffError if it is not theirs."""
    kept = Place(checkpoint.uri).read(TOKENIZER)
    if kept is None:
        raise DiscdiffError(f"{checkpoint.uri} lacks {TOKENIZER}; give the whole folder of a training run.")
    tokenizer = from_json(kept.decode())
    if tokenizer.fingerprint != fingerprint:
        raise DiscdiffError(
            f"{checkpoint.file(TOKENIZER)} is not the tokenizer that the checkpoint was trained with "
            f"({tokenizer.fingerprint[:12]}, not {fingerprint[:12]}); copy the whole folder of the run again."
        )
    return tokenizer
