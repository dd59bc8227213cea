"""The generation stage on real Ray: samples depend on the specification alone, no shard is drawn twice."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from checkpoint_problem import ALPHABET, LENGTH, untrained

from discdiff.data.characters import Characters
from discdiff.data.prompts import Hole, Prefix, Template
from discdiff.methods import AnyMethod, Autoregressive, Block, DiscreteFlow, GenMd4, Mdlm, Udlm
from discdiff.noise import Noise
from discdiff.samplers import ClassifierFree, FirstHitting, LeftToRight, Sampler
from discdiff.training import load
from discdiff.types import DiscdiffError, canvas
from pipelines import traces
from pipelines.artifacts import Checkpoint, Samples
from pipelines.generate import SHARDS, Default, Drawn, Generate, Generator, generate
from pipelines.place import Place
from pipelines.placement import Placement
from pipelines.record import RECORD
from pipelines.runner import Runner
from pipelines.specs import specification
from pipelines.work import Work

COUNT, BATCH = 22, 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return untrained(tmp_path_factory.mktemp("train"), Mdlm())


def table(samples: Samples) -> pa.Table:
    """All shards, in order."""
    names = [name for name in Place(samples.uri).names() if name.startswith("samples-")]
    return pa.concat_tables([pq.read_table(samples.file(name)) for name in names])


@pytest.fixture(scope="module")
def drawn(checkpoint: Checkpoint, ray_cluster, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_cluster.environment.items():
            patch.setenv(name, value)
        with Runner(str(tmp_path_factory.mktemp("runs")), placement=Placement(workers=3)) as run:
            return run(generate, spec_of(checkpoint))


def spec_of(checkpoint: Checkpoint) -> Generate:
    return Generate(checkpoint=checkpoint, sampler=Default(steps=5), count=COUNT, batch=BATCH, seed=7)


def test_rows_are_whole_and_true(checkpoint: Checkpoint, drawn: Samples) -> None:
    found = table(drawn)
    tokenizer = Characters(alphabet=ALPHABET).open()
    assert found["row"].to_pylist() == list(range(COUNT))
    assert set(found["seed"].to_pylist()) == {7}
    assert max(found["nfe"].to_pylist()) == 5
    assert found["text"].to_pylist() == [tokenizer.decode(ids) for ids in found["ids"].to_pylist()]
    assert (drawn.count, drawn.length, drawn.label) == (COUNT, LENGTH, "mdlm")
    trained = load(checkpoint.uri)
    sampler = trained.method.default_sampler(5)
    rows = range(2 * BATCH, 3 * BATCH)
    blank = canvas(torch.zeros(BATCH, LENGTH, dtype=torch.int64), first_row=rows[0])
    direct = trained.method.sample(trained.network, blank, sampler, Noise(7))
    np.testing.assert_array_equal(direct.numpy(), found["ids"].to_pylist()[rows[0] : rows[-1] + 1])


def test_one_worker_draws_what_three_drew_and_only_what_is_missing(
    checkpoint: Checkpoint, drawn: Samples, ray_driver, tmp_path: Path
) -> None:
    before = table(drawn)
    lost = Path(drawn.uri)
    (lost / RECORD).unlink()
    (lost / "samples-00003.parquet").unlink()
    times = {each.name: each.stat().st_mtime_ns for each in lost.glob("*.parquet")}
    with Runner(str(lost.parent), placement=Placement(workers=1)) as run:
        again = run(generate, spec_of(checkpoint))
    assert again == drawn
    assert table(again).equals(before)
    assert times.items() <= {each.name: each.stat().st_mtime_ns for each in lost.glob("*.parquet")}.items()


def test_a_killed_worker_is_replaced(
    checkpoint: Checkpoint, drawn: Samples, ray_driver, tmp_path: Path
) -> None:
    """SIGKILL an actor once the first shard is there."""
    from ray.util.state import list_actors

    spec = spec_of(checkpoint).model_copy(update={"count": 40 * BATCH})
    folder = tmp_path / "runs" / generate.key(spec)
    killed: list[int] = []

    def kill() -> None:
        while not list(folder.glob("*.parquet")):
            time.sleep(0.005)
        actors = list_actors(filters=[("class_name", "=", "Generator"), ("state", "=", "ALIVE")])
        os.kill(actors[0].pid, signal.SIGKILL)
        killed.append(actors[0].pid)

    thread = threading.Thread(target=kill)
    thread.start()
    with Runner(str(tmp_path / "runs"), placement=Placement(workers=2)) as run:
        found = table(run(generate, spec))
    thread.join()
    assert len(killed) == 1
    assert found["row"].to_pylist() == list(range(40 * BATCH))
    whole = COUNT // BATCH * BATCH
    assert found["ids"].to_pylist()[:whole] == table(drawn)["ids"].to_pylist()[:whole]


PROMPTED = """
count = 7
batch = 3
seed = 5
traces = 4
labels = [2, 0]

[sampler]
kind = "reverse"
steps = 6
microbatch = 2
guidance = {kind = "classifier_free", strength = 1.5}
filters = [{kind = "top_p", p = 0.95}]

[prompt]
kind = "several"
prompts = [
    {kind = "prefix", text = "abc"},
    {kind = "template", parts = ["g", 2, {length = 2, allowed = ["d", "e"]}, "f"]},
]
"""


def test_prompts_labels_and_a_sampler_from_toml_for_any_batch_and_number_of_workers(
    ray_driver, tmp_path: Path
) -> None:
    """Row by row what its number says; alone, a row is what it is among others."""
    checkpoint = untrained(tmp_path / "train", Mdlm(), labels=3)
    (tmp_path / "spec.toml").write_text(f'checkpoint = "{checkpoint.uri}"\n{PROMPTED}')
    spec = specification(Generate, [str(tmp_path / "spec.toml")])
    assert Generate.model_validate_json(spec.model_dump_json()) == spec
    with Runner(str(tmp_path / "runs"), placement=Placement(workers=2)) as run:
        samples = run(generate, spec)
        other = run(generate, spec.model_copy(update={"batch": 1}))
    found = table(samples)
    assert found["ids"].to_pylist() == table(other)["ids"].to_pylist()
    assert found["nfe"].to_pylist() == table(other)["nfe"].to_pylist()
    assert len(set(found["nfe"].to_pylist())) > 1
    for row, text in enumerate(found["text"].to_pylist()):
        if row % 2:
            assert (text[0], text[5]) == ("g", "f")
            assert set(text[3:5]) <= {"d", "e"}
        else:
            assert text.startswith("abc")
    kept = [traces.read(Place(samples.uri), row) for row in range(5)]
    assert [trace and trace.states()[-1] for trace in kept] == [*found["ids"].to_pylist()[:4], None]


def test_labels_matter_and_are_of_the_row(tmp_path: Path) -> None:
    checkpoint = untrained(tmp_path, Mdlm(), labels=3)
    given = Generate(checkpoint=checkpoint, labels=(2, 0), count=5)
    shown = Drawn.of(given)
    assert shown.canvas(0, 5).condition.labels.tolist() == [2, 0, 2, 0, 2]  # pyright: ignore
    assert shown.canvas(3, 5).condition.labels.tolist() == [0, 2]  # pyright: ignore


@pytest.mark.parametrize(
    ("method", "asked", "message"),
    [
        (Mdlm(), {"prompt": Prefix(text="xyz")}, "'x'"),
        (Mdlm(), {"prompt": Prefix(text="abcdefgab")}, "takes 9 positions and samples have 8"),
        (Mdlm(), {"prompt": Prefix(text="abc"), "length": 2}, "takes 3 positions and samples have 2"),
        (Mdlm(), {"labels": (0,)}, "the network was trained without"),
        (Autoregressive(), {"prompt": Template(parts=(Hole(), "abc"))}, "use a diffusion method to infill"),
        (
            Block(inner=Mdlm(), size=4),
            {"prompt": Template(parts=(Hole(), "abc"))},
            "give a prefix, or infill",
        ),
        (DiscreteFlow(), {"prompt": Prefix(text="abc")}, "the flow mixes all positions"),
        (GenMd4(), {"prompt": Template(parts=(Hole(allowed=("a",)),))}, "treats tokens differently"),
        (Mdlm(), {"sampler": Sampler(guidance=ClassifierFree())}, "give labels"),
        (Udlm(), {"sampler": Sampler(reverse=FirstHitting())}, "undoes mask noise; udlm"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_can_t_be_drawn_is_refused_before_any_worker_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: AnyMethod, asked: dict[str, Any], message: str
) -> None:
    checkpoint = untrained(tmp_path / "train", method)
    monkeypatch.setattr(Work, "ray", lambda self: pytest.fail("a worker was about to start"))
    with Runner(str(tmp_path / "runs")) as run, pytest.raises(DiscdiffError, match=message):
        run(generate, Generate(checkpoint=checkpoint, **asked))
    assert not list((tmp_path / "runs").glob("generate-*"))


def test_a_label_that_the_network_does_not_know_is_refused(tmp_path: Path) -> None:
    checkpoint = untrained(tmp_path, Udlm(), labels=3)
    for labels in ((3,), (0, 7)):
        with pytest.raises(DiscdiffError, match="labels are 0 to 2"):
            Drawn.of(Generate(checkpoint=checkpoint, labels=labels))


def test_shards_cover_all_rows_in_whole_batches(checkpoint: Checkpoint) -> None:
    for count, batch in [(1, 32), (64, 32), (65, 32), (100_000, 32), (100_000, 1)]:
        shards = Generate(checkpoint=checkpoint, count=count, batch=batch).shards()
        assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(count))
        assert all(shard.rows % batch == 0 for shard in shards[:-1])
        assert len(shards) <= SHARDS


def test_a_sampler_that_the_method_cannot_follow_is_refused(
    checkpoint: Checkpoint, ray_driver, tmp_path: Path
) -> None:
    spec = Generate(checkpoint=checkpoint, sampler=LeftToRight(), count=2)
    with (
        Runner(str(tmp_path / "runs")) as run,
        pytest.raises(DiscdiffError, match=r"mdlm can't .*'left_to_right'"),
    ):
        run(generate, spec)
    assert not list((tmp_path / "runs").glob("generate-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), r"lacks tokenizer\.json"),
        (
            lambda folder: (folder / "tokenizer.json").write_text(Characters(alphabet="ab").open().to_json()),
            "is not the tokenizer",
        ),
    ],
)
def test_a_checkpoint_of_another_tokenizer_is_refused(tmp_path: Path, change, message: str) -> None:
    checkpoint = untrained(tmp_path, Mdlm())
    change(tmp_path)
    with pytest.raises(DiscdiffError, match=message):
        Generator(Generate(checkpoint=checkpoint), str(tmp_path / "out"))
