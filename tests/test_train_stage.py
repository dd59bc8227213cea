"""The training stage on real Ray: killed workers and killed drivers leave no trace in the weights."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from discdiff.data.characters import Characters
from discdiff.data.files import Files
from discdiff.data.packing import Wrap
from discdiff.data.specification import Tokenize
from discdiff.methods import Classifier, Md4, Mdlm
from discdiff.networks import Transformer
from discdiff.samplers import ClassifierBased, Sampler
from discdiff.training import Constant, Diverged, FullyShard, Recipe, load
from discdiff.training.checkpoint import latest_step
from discdiff.types import DiscdiffError
from pipelines.artifacts import Samples, Tokens
from pipelines.generate import Generate, generate
from pipelines.placement import Placement
from pipelines.runner import Runner
from pipelines.tokenize import tokenize
from pipelines.train import Mixed, Train, resources, train
from pipelines.work import METRICS

# Ray sets deprecated options of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")

STEPS = 150
RECIPE = Recipe(
    steps=STEPS,
    batch=16,
    learning_rate=1e-2,
    checkpoint_every=30,
    validate_every=50,
    validate_rows=32,
    decay=Constant(),
)


@pytest.fixture(scope="module", autouse=True)
def cluster(ray_cluster):
    """Runners join and leave it by themselves."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_cluster.environment.items():
            patch.setenv(name, value)
        yield ray_cluster


@pytest.fixture(scope="module")
def tokens(cluster, tmp_path_factory) -> Tokens:
    """A store of random lines of three letters."""
    folder = tmp_path_factory.mktemp("store")
    choose = random.Random(1)
    lines = ["".join(choose.choices("abc", k=30)) for _ in range(300)]
    (folder / "text.txt").write_text("\n".join(lines))
    spec = Tokenize(corpus=Files(url=str(folder / "text.txt"), separator="\n"))
    with Runner(str(folder / "root")) as run:
        return run(tokenize, spec)


def specification(tokens: Tokens, **fields) -> Train:
    standard = {
        "method": Mdlm(),
        "backbone": Transformer(layers=1, width=16, heads=2),
        "recipe": RECIPE,
        "packing": Wrap(length=16),
    }
    return Train(tokens=tokens, **{**standard, **fields})


def weights(uri: str) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in load(uri).network.named_parameters()}


def metrics(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tokens, tmp_path_factory):
    """The checkpoint of two workers that nobody disturbed."""
    root = tmp_path_factory.mktemp("uninterrupted")
    with Runner(str(root), placement=Placement(workers=2)) as run:
        return run(train, specification(tokens))


def test_a_trained_checkpoint(uninterrupted, tokens):
    trained = load(uninterrupted.uri)
    assert (trained.step, trained.method, trained.length) == (STEPS, Mdlm(), 16)
    assert uninterrupted.parameters == sum(p.numel() for p in trained.network.parameters())
    logged = metrics(uninterrupted.uri)
    steps = [each["step"] for each in logged if "loss" in each["metrics"]]
    assert steps == list(range(10, STEPS + 1, 10))
    names = {name for each in logged for name in each["metrics"]}
    assert {"loss", "bound", "bound_se", "tokens_per_second", "gradient_norm", "learning_rate"} <= names
    assert {path.name for path in Path(uninterrupted.uri).iterdir()} == {
        "artifact.json",
        METRICS,
        "tokenizer.json",
        "step-00000120",
        "step-00000150",
    }


def test_a_trained_specification_is_not_trained_again(uninterrupted, tokens):
    """Not even Ray is joined."""
    with Runner(str(Path(uninterrupted.uri).parent), placement=Placement(address="127.0.0.1:1")) as run:
        assert run(train, specification(tokens)) == uninterrupted


def test_how_training_is_spread_does_not_count_in_the_key(tokens):
    spec = specification(tokens)
    assert train.key(spec) == train.key(specification(tokens, parallel=FullyShard()))
    assert train.key(spec) != train.key(specification(tokens, packing=Wrap(length=8)))
    assert train.key(spec) != train.key(specification(tokens, recipe=RECIPE.model_copy(update={"seed": 1})))


def test_a_killed_worker_leaves_no_trace(uninterrupted, tokens, cluster, tmp_path):
    """SIGKILL one of two workers after the first checkpoint: the same weights, bit for bit."""
    from ray.util.state import list_actors

    spec = specification(tokens)
    place = tmp_path / "root" / train.key(spec)
    killed: list[tuple[int, int]] = []

    def kill() -> None:
        pids: list[int] = []
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            if len(pids) < 2:
                filters = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
                pids = [actor.pid for actor in list_actors(cluster.dashboard, filters=filters)]
            elif (step := latest_step(str(place))) > 0:
                os.kill(pids[-1], signal.SIGKILL)
                killed.append((pids[-1], step))
                return
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    with Runner(str(tmp_path / "root"), placement=Placement(workers=2)) as run:
        found = run(train, spec)
    thread.join()
    assert 0 < killed[0][1] < STEPS
    failures = [each["metrics"] for each in metrics(found.uri) if "worker_failures" in each["metrics"]]
    assert failures
    one, other = weights(uninterrupted.uri), weights(found.uri)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {path.name for path in place.iterdir()} == {
        path.name for path in Path(uninterrupted.uri).iterdir()
    }


def test_a_killed_driver_leaves_no_trace(uninterrupted, tokens, tmp_path):
    """SIGKILL the process that runs the stage after the first checkpoint; run it again."""
    spec = specification(tokens)
    place = tmp_path / "root" / train.key(spec)
    program = (
        "import sys; from pipelines.placement import Placement; from pipelines.runner import Runner; "
        "from pipelines.train import Train, train; from pipelines.artifacts import Tokens; "
        "spec = Train.model_validate_json(sys.argv[2]); "
        "Runner(sys.argv[1], placement=Placement(workers=2))(train, spec)"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "root"), spec.model_dump_json()]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 200
    while latest_step(str(place)) == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    errors = process.communicate()[1].decode()
    stopped = latest_step(str(place))
    assert 0 < stopped < STEPS, errors
    assert not (place / "artifact.json").exists()
    with Runner(str(tmp_path / "root"), placement=Placement(workers=2)) as run:
        found = run(train, spec)
    assert found.key == uninterrupted.key
    one, other = weights(uninterrupted.uri), weights(found.uri)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def classes(cluster, tmp_path_factory) -> tuple[Tokens, ...]:
    """Two stores whose texts share no letter."""
    choose, found = random.Random(2), []
    for letters in ("ab", "cd"):
        folder = tmp_path_factory.mktemp(letters)
        (folder / "text.txt").write_text(
            "\n".join("".join(choose.choices(letters, k=30)) for _ in range(200))
        )
        corpus = Files(url=str(folder / "text.txt"), separator="\n")
        with Runner(str(folder / "root")) as run:
            found.append(run(tokenize, Tokenize(corpus=corpus, tokenizer=Characters(alphabet="abcd"))))
    return tuple(found)


def test_a_classifier_is_trained_and_leads_a_model_of_both_texts_to_a_class(classes, tmp_path):
    """By the stages: a model of a mixture, a classifier of its noise, samples of one and the other class."""
    first, second = classes
    recipe = RECIPE.model_copy(update={"steps": 100, "ema": 0.95, "checkpoint_every": 50})
    fields = {
        "packing": Wrap(length=8),
        "backbone": Transformer(layers=1, width=32, heads=2),
        "recipe": recipe,
    }
    labelled = fields | {"backbone": Transformer(layers=1, width=32, heads=2, labels=2)}
    with Runner(str(tmp_path), placement=Placement(workers=2)) as run:
        model = run(train, specification(first, mixed=(Mixed(tokens=second, weight=1),), **fields))
        guide = run(train, specification(first, classes=(second,), method=Classifier(), **labelled))
        sampler = Sampler(steps=8, guidance=ClassifierBased(strength=1.5))
        spec = Generate(
            checkpoint=model, classifier=guide, sampler=sampler, labels=(0, 1), count=40, batch=10, traces=0
        )
        found = texts(run(generate, spec))
        bare = Generate(checkpoint=model, sampler=Sampler(steps=8), count=40, batch=10, traces=0)
        other = guide.model_copy(update={"key": "train-of-other-rows"})
        assert generate.key(spec) != generate.key(spec.model_copy(update={"classifier": other}))
        free = texts(run(generate, bare))
    own = [share(text, ("ab", "cd")[row % 2]) for row, text in enumerate(found)]
    assert sum(own) / len(own) > 0.9 > 0.7 > sum(share(text, "ab") for text in free) / len(free) > 0.3
    logged = {name: value for each in metrics(guide.uri) for name, value in each["metrics"].items()}
    assert guide.method == "classifier"
    assert 0 < logged["cross_entropy"] < 0.4
    assert logged["cross_entropy_t0.00-0.25"] < logged["cross_entropy"] < logged["cross_entropy_t0.75-1.00"]
    assert logged["accuracy_t0.00-0.25"] > 0.9
    assert latest_step(guide.uri) == 100


def texts(samples: Samples) -> list[str]:
    shards = sorted(Path(samples.uri).glob("samples-*.parquet"))
    return [text for shard in shards for text in pq.read_table(shard)["text"].to_pylist()]


def share(text: str, letters: str) -> float:
    """The share of a text's letters that are of these."""
    known = [letter for letter in text if letter in "abcd"]
    return sum(letter in letters for letter in known) / len(known)


def test_a_run_that_diverges_stops_with_the_step(tokens, tmp_path):
    """In shards, at once and not after restarts; nothing is left."""
    recipe = RECIPE.model_copy(update={"learning_rate": 1e30, "log_every": 5})
    spec = specification(tokens, recipe=recipe, parallel=FullyShard())
    with (
        Runner(str(tmp_path), placement=Placement(workers=2)) as run,
        pytest.raises(Diverged, match="not finite at step 1"),
    ):
        run(train, spec)
    assert not (tmp_path / train.key(spec)).exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"recipe": RECIPE.model_copy(update={"batch": 15})},
            "batch of 15 rows can't be shared by 2 workers",
        ),
        ({"packing": Wrap(length=10**6)}, "longer than the split's"),
    ],
)
def test_mistakes_are_found_before_ray_is_asked(tokens, tmp_path, fields, words):
    nowhere = Placement(workers=2, address="127.0.0.1:1")
    with Runner(str(tmp_path), placement=nowhere) as run, pytest.raises(DiscdiffError, match=words):
        run(train, specification(tokens, **fields))
    assert not any(path.name.startswith("train-") for path in tmp_path.iterdir())


def test_training_starts_from_a_checkpoint(uninterrupted, tokens, tmp_path):
    """With a vanishing learning rate it ends where it started; another method of the same shape may start."""
    recipe = RECIPE.model_copy(update={"steps": 2, "learning_rate": 1e-12})
    spec = specification(tokens, method=Md4(), start=uninterrupted, recipe=recipe)
    assert train.key(spec) != train.key(specification(tokens, method=Md4(), recipe=recipe))
    with Runner(str(tmp_path), placement=Placement(workers=1)) as run:
        found = run(train, spec)
    one, other = weights(uninterrupted.uri), weights(found.uri)
    assert all(torch.allclose(one[name], other[name], atol=1e-9) for name in one)


def test_a_checkpoint_of_another_backbone_is_no_start(uninterrupted, tokens, tmp_path):
    spec = specification(tokens, start=uninterrupted, backbone=Transformer(layers=2, width=16, heads=2))
    nowhere = Placement(workers=2, address="127.0.0.1:1")
    with (
        Runner(str(tmp_path), placement=nowhere) as run,
        pytest.raises(DiscdiffError, match="another backbone"),
    ):
        run(train, spec)


@pytest.mark.parametrize(
    ("there", "asked", "given"), [(0, 0, 0), (2, 0, 1), (1, 0, 0), (8, 0.5, 0.5), (0, 1, 1)]
)
def test_workers_get_the_gpus_that_the_cluster_has(monkeypatch, there, asked, given):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, **({"GPU": there} if there else {})})
    assert resources(Placement(workers=2, gpus=asked)) == {"CPU": 1, "GPU": given}


def test_a_specification_round_trips(tokens):
    spec = specification(tokens)
    assert Train.model_validate_json(spec.model_dump_json()) == spec
