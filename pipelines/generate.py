"""Generate: samples of a checkpoint, drawn by Ray actors, as Parquet shards.

The rows of a shard and of a batch follow from the specification alone, and a row's randomness from the seed
and its number. So the samples do not depend on the number of workers, and a shard that is there need not be
drawn again.
"""

import io
from collections.abc import Callable
from collections.abc import Generator as Yields
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import nn

from discdiff.data.tokenizers import Tokenizer, from_json
from discdiff.methods import AnyMethod
from discdiff.noise import Noise
from discdiff.samplers import AnySampler
from discdiff.training import load
from discdiff.types import DiscdiffError, Network, Value, canvas
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

    `length` is the checkpoint's own by default. `batch` rows share a network call; it counts in the key
    because it may change the network's rounding.
    """

    sampler: Annotated[AnySampler | Default, Field(discriminator="kind")] = Default()
    count: int = Field(default=64, ge=1)
    length: int | None = Field(default=None, ge=1)
    batch: int = Field(default=32, ge=1)
    seed: int = Field(default=0, ge=0)


class Generate(Drawing, frozen=True):
    """A checkpoint, and how to draw from it."""

    checkpoint: Checkpoint

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


@stage(version=1, resumable=True)
def generate(spec: Generate, work: Work) -> Samples:
    """Draw the shards that are not there yet."""
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


class Generator:
    """One actor: the checkpoint in memory, shards drawn on request."""

    def __init__(self, spec: Generate, uri: str) -> None:
        self.spec = spec
        self.place = Place(uri)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.trained = load(spec.checkpoint.uri, device=self.device)
        self.tokenizer = _tokenizer(spec.checkpoint, self.trained.tokenizer)
        self.length = spec.length or self.trained.length
        self.sampler = _sampler(spec.sampler, self.trained.method)

    def draw(self, shard: Shard) -> int:
        """Draw a shard, put it in place whole, and say how many rows it has."""
        tables = [
            self._batch(start, min(start + self.spec.batch, shard.stop))
            for start in range(shard.start, shard.stop, self.spec.batch)
        ]
        sink = io.BytesIO()
        pq.write_table(pa.concat_tables(tables), sink)
        self.place.write(shard.name, sink.getvalue())
        return shard.rows

    def _batch(self, start: int, stop: int) -> pa.Table:
        blank = torch.zeros(stop - start, self.length, dtype=torch.int64, device=self.device)
        method: Any = self.trained.method
        network: Any = self.trained.network
        with evaluations(network) as count:
            ids = method.sample(network, canvas(blank, first_row=start), self.sampler, Noise(self.spec.seed))
        calls = count() if isinstance(network, Network) else self.sampler.evaluations(self.length)
        rows = ids.cpu().numpy()
        columns = {
            "row": pa.array(np.arange(start, stop)),
            "seed": pa.repeat(pa.scalar(self.spec.seed, pa.int64()), len(rows)),
            "nfe": pa.repeat(pa.scalar(calls, pa.int32()), len(rows)),
            "ids": pa.array(list(rows), pa.list_(pa.int32())),
            "text": pa.array([self.tokenizer.decode(row) for row in rows], pa.string()),
        }
        return pa.table(columns)


@contextmanager
def evaluations(network: nn.Module) -> Yields[Callable[[], int]]:
    """Count the calls of a network's trunk, which are its evaluations."""
    calls = 0

    def called(*_: object) -> None:
        nonlocal calls
        calls += 1

    trunks = [part for name, part in network.named_children() if name == "trunk"]
    handles = [trunk.register_forward_hook(called) for trunk in trunks]
    try:
        yield lambda: calls
    finally:
        for handle in handles:
            handle.remove()


def _sampler(chosen: AnySampler | Default, method: AnyMethod) -> AnySampler:
    """The sampler to draw with. Raises DiscdiffError for one that the method can't follow."""
    default = method.default_sampler(1)
    if isinstance(chosen, Default):
        return chosen.of(method)
    if not isinstance(chosen, type(default)):
        raise DiscdiffError(
            f"{method.kind} can't be drawn with the sampler {chosen.kind!r}; "
            f"give {default.kind!r}, or 'default' for the method's own."
        )
    return chosen


def _tokenizer(checkpoint: Checkpoint, fingerprint: str) -> Tokenizer:
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
