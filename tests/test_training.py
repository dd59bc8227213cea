"""Laws of training: resuming, micro-batches and workers change nothing; averages have a closed form."""

import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from training_problem import LENGTH, RECIPE, SUBJECT, VOCAB, Table, network, weights
from training_world import families

from discdiff.data.folder import Folder
from discdiff.methods import Autoregressive, Embedding, Mdlm, Udlm
from discdiff.networks import Transformer
from discdiff.networks.ema import Ema
from discdiff.noise import Noise
from discdiff.training import (
    Checkpoints,
    Constant,
    Cosine,
    DataParallel,
    Diverged,
    FullyShard,
    Recipe,
    Single,
    World,
    fit,
    load,
    start_from,
)
from discdiff.training.checkpoint import COMMIT, STATE, complete, step_name
from discdiff.training.loss import Loss
from discdiff.training.optimizer import adamw, clip
from discdiff.training.validate import SEED_OFFSET, validate
from discdiff.types import Canvas, DiscdiffError

TIMED = {"tokens_per_second", "seconds_per_step", "peak_memory", "data_wait", "data_wait_per_step"}


class Stop(Exception):  # noqa: N818
    pass


def train(folder=None, *, recipe=RECIPE, net=None, stop=None, rows=None, validation=None, subject=SUBJECT):
    """Train on one device: the network at the end, the logs, the weights after every step."""
    net = network(double=False) if net is None else net
    logs, path = [], []

    def log(step, metrics):
        logs.append((step, {name: value for name, value in metrics.items() if name not in TIMED}))
        if "loss" in metrics:
            path.append(weights(net))
        if step == stop:
            raise Stop

    checkpoints = None if folder is None else Checkpoints(str(folder), subject, recipe)
    fit(subject.method, net, rows or Table(), recipe, validation=validation, checkpoints=checkpoints, log=log)
    return net, logs, path


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal but for the rounding of float64 sums in another order."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-8, atol=1e-9)


def state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor that a checkpoint holds."""
    where = folder / "whole.pt"
    dcp_to_torch_save(folder / step_name(step) / STATE, where)
    tensors: dict[str, torch.Tensor] = {}

    def walk(tree, name):
        if isinstance(tree, torch.Tensor):
            tensors[name] = tree
        elif isinstance(tree, dict):
            for key, value in tree.items():
                walk(value, f"{name}/{key}")

    walk(torch.load(where, weights_only=False), "")
    return tensors


# Resuming ---------------------------------------------------------------------------------------------------


class Slow(Table):
    """Rows that come a tenth of a second late."""

    def stream(self, start: int, count: int, stride: int):
        for canvas in super().stream(start, count, stride):
            time.sleep(0.1)
            yield canvas


def test_how_long_steps_wait_for_data_is_logged() -> None:
    """As a share of the time, and in seconds a step, whatever the number of steps that a log is of."""
    logs: list[dict[str, float]] = []
    recipe = RECIPE.model_copy(
        update={"steps": 6, "log_every": 2, "validate_every": 99, "checkpoint_every": 99}
    )
    for rows in (Slow(), Table()):
        log = lambda step, metrics: logs.append(metrics)  # noqa: E731
        fit(SUBJECT.method, network(double=False), rows, recipe, log=log)
    slow, fast = ([each["data_wait"] for each in part] for part in (logs[:3], logs[3:]))
    assert 0 < max(fast) < min(slow) <= 1
    assert all(0.1 <= each["data_wait_per_step"] <= each["seconds_per_step"] for each in logs[:3])
    assert all(each["data_wait_per_step"] < 0.1 for each in logs[3:])
    for each in logs:
        share = each["data_wait_per_step"] / each["seconds_per_step"]
        assert share == pytest.approx(each["data_wait"], rel=1e-9)


@pytest.mark.parametrize("stop", [5, 7, 9])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, stop, dropout):
    subject = SUBJECT.model_copy(
        update={"backbone": SUBJECT.backbone.model_copy(update={"dropout": dropout})}
    )
    whole, logs, _ = train(tmp_path / "a", subject=subject, net=subject.build(3), validation=Table(2))
    with pytest.raises(Stop):
        train(tmp_path / "b", subject=subject, net=subject.build(3), validation=Table(2), stop=stop)
    # What the resumed run starts from must not matter.
    resumed, later, _ = train(
        tmp_path / "b", subject=subject, net=subject.build(seed=99), validation=Table(2)
    )
    assert_same(weights(whole), weights(resumed))
    assert_same(state(tmp_path / "a", 10), state(tmp_path / "b", 10))
    first = later[0][0]
    assert first == 1 + (stop - 1) // 4 * 4
    assert later == [entry for entry in logs if entry[0] >= first]


def test_a_finished_run_is_loaded_not_trained(tmp_path):
    whole, _, _ = train(tmp_path)
    again, logs, _ = train(tmp_path)
    assert logs == []
    assert_same(weights(whole), weights(again))


def test_a_checkpoint_without_commit_is_passed_over(tmp_path):
    whole, _, _ = train(tmp_path)
    (tmp_path / step_name(10) / COMMIT).unlink()
    assert complete(Folder.at(tmp_path)) == [8]
    again, logs, _ = train(tmp_path)
    assert [step for step, _ in logs] == [9, 10]
    assert_same(weights(whole), weights(again))


def test_a_failed_save_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    whole, _, _ = train(tmp_path / "a")
    put = Folder.put

    def fail(self, name, data):
        if step_name(8) in name:
            raise OSError("no space left on device")
        put(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "put", fail)
        with pytest.raises(OSError, match="no space"):
            train(tmp_path / "b")
    assert complete(Folder.at(tmp_path / "b")) == [4]
    assert_same(weights(whole), weights(train(tmp_path / "b")[0]))


def test_a_run_in_an_object_store_resumes_bit_for_bit(tmp_path, bucket):
    whole, _, _ = train(tmp_path)
    with pytest.raises(Stop):
        train(f"{bucket}/run", stop=7)
    assert complete(Folder.at(f"{bucket}/run")) == [4]
    resumed, logs, _ = train(f"{bucket}/run")
    assert logs[0][0] == 5
    assert_same(weights(whole), weights(resumed))
    assert_same(weights(whole), weights(load(f"{bucket}/run").network))
    assert complete(Folder.at(f"{bucket}/run")) == [8, 10]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    train(tmp_path, recipe=RECIPE.model_copy(update={"checkpoint_every": 2}))
    assert sorted(path.name for path in tmp_path.iterdir()) == [step_name(8), step_name(10)]


def test_a_run_can_be_lengthened(tmp_path):
    train(tmp_path)
    _, logs, _ = train(tmp_path, recipe=RECIPE.model_copy(update={"steps": 12}))
    assert [step for step, _ in logs] == [11, 12]


# The step's loss --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("microbatch", [1, 2, 4])
def test_microbatches_change_nothing_but_rounding(microbatch):
    _, logs, path = train(net=network())
    _, micro_logs, micro_path = train(
        net=network(), recipe=RECIPE.model_copy(update={"microbatch": microbatch})
    )
    for one, other in zip(path, micro_path, strict=True):
        assert_close(one, other)
    for (_, one), (_, other) in zip(logs, micro_logs, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_the_loss_is_nats_over_tokens_of_the_whole_batch():
    _, logs, _ = train(net=network())
    canvas = Table().read(0, RECIPE.batch).to("cpu")
    nats = SUBJECT.method.loss(network(), canvas, Noise(RECIPE.seed).on(canvas.rows)).detach()
    assert logs[0][1]["loss"] == pytest.approx(float(nats.sum() / canvas.free.sum()), rel=1e-12)


def test_a_step_is_adamw_on_the_clipped_gradient_of_that_loss():
    """The first step, written out with plain torch."""
    net = network()
    canvas = Table().read(0, RECIPE.batch).to("cpu")
    nats = SUBJECT.method.loss(net, canvas, Noise(RECIPE.seed).on(canvas.rows))
    (nats.sum() / canvas.free.sum()).backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in net.parameters() if p.grad is not None))
    scale = min(1.0, RECIPE.clip / (norm + 1e-6))
    beta1, beta2 = RECIPE.betas
    rate = RECIPE.learning_rate / RECIPE.warmup
    _, logs, path = train(net=network())
    assert logs[0][1]["gradient_norm"] == pytest.approx(norm, rel=1e-9)
    for name, p in net.named_parameters():
        matrix = p.ndim == 2 and "embedding" not in name
        gradient = torch.zeros_like(p) if p.grad is None else p.grad * scale
        first, second = (1 - beta1) * gradient, (1 - beta2) * gradient**2
        step = first / (1 - beta1) / ((second / (1 - beta2)).sqrt() + 1e-8)
        expected = p * (1 - rate * RECIPE.weight_decay * matrix) - rate * step
        torch.testing.assert_close(path[0][name], expected.detach(), rtol=1e-9, atol=1e-12)


def test_validation_leaves_training_as_it_was():
    quiet, _, _ = train()
    watched, logs, _ = train(validation=Table(2), recipe=RECIPE.model_copy(update={"validate_every": 1}))
    assert sum("bound" in metrics for _, metrics in logs) == RECIPE.steps
    assert_same(weights(quiet), weights(watched))


def test_validation_is_the_ratio_of_sums_with_its_standard_error():
    net = network()
    count = 15
    measured = validate(Loss(SUBJECT.method, net), Table(2), RECIPE, World(0, 1, torch.device("cpu")))
    canvas = Table(2).read(0, count).to("cpu")
    nats = SUBJECT.method.bound(net, canvas, Noise(RECIPE.seed + SEED_OFFSET).on(canvas.rows)).detach()
    tokens = canvas.free.sum(1)
    ratio = nats.sum() / tokens.sum()
    residual = ((nats - ratio * tokens) ** 2).sum()
    error = (count / (count - 1) * residual).sqrt() / tokens.sum()
    assert measured["bound"] == pytest.approx(float(ratio), rel=1e-12)
    assert measured["bound_se"] == pytest.approx(float(error), rel=1e-9)


def test_validation_uses_the_averaged_weights():
    net, logs, path = train(net=network(), validation=Table(2))
    plain = network()
    plain.load_state_dict(path[-1])
    world = World(0, 1, torch.device("cpu"))
    averaged = validate(Loss(SUBJECT.method, net), Table(2), RECIPE, world)
    assert logs[-1][1] == averaged
    assert averaged != validate(Loss(SUBJECT.method, plain), Table(2), RECIPE, world)


def test_training_learns_what_there_is_to_learn():
    """Rows of one repeated token: the loss must fall far below that of guessing, log V."""

    class Constants(Table):
        def __init__(self):
            super().__init__()
            self.tokens = (torch.arange(self.rows_per_epoch) % VOCAB)[:, None].expand(-1, LENGTH)

    recipe = RECIPE.model_copy(update={"steps": 100, "batch": 16, "clip": 1.0})
    _, logs, _ = train(recipe=recipe, rows=Constants(), subject=SUBJECT, validation=Constants())
    # log(V) nats are in the first token that is seen, none in the others.
    assert logs[-1][1]["bound"] < 0.8 * math.log(VOCAB)


@pytest.mark.parametrize("method", [Mdlm(), Autoregressive(), Embedding()])
def test_bfloat16_computes_the_trunk_and_nothing_else(method):
    net = method.network(SUBJECT.backbone, VOCAB)
    seen = {}
    for block in net.trunk.blocks:
        block.project.register_forward_hook(lambda _, __, out: seen.update(trunk=out.dtype))
    net.head.register_forward_hook(lambda _, __, out: seen.update(head=out.dtype))
    recipe = RECIPE.model_copy(update={"precision": "bfloat16"})
    latest = fit(method, net, Table(), recipe)
    assert seen == {"trunk": torch.bfloat16, "head": torch.float32}
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    torch.manual_seed(0)
    assert math.isfinite(latest["loss"])


# Averaged weights -------------------------------------------------------------------------------------------


def closed_form(path: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """sum_k d^(n-k) theta_k / sum_k d^(n-k)"""
    powers = [decay ** (len(path) - 1 - k) for k in range(len(path))]
    return {
        name: sum(power * step[name] for power, step in zip(powers, path, strict=True)) / sum(powers)
        for name in path[0]
    }


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_the_average_has_a_closed_form(decay):
    net, _, path = train(net=network(), recipe=RECIPE.model_copy(update={"ema": decay}))
    assert_close(weights(net), closed_form(path, decay))


def test_swapping_twice_is_nothing():
    net = network(double=False)
    ema = Ema(net, 0.9)
    for _ in range(3):
        for p in net.parameters():
            p.data.add_(torch.randn_like(p))
        ema.update()
    before = weights(net)
    with ema.swapped():
        inside = weights(net)
    assert any(not torch.equal(before[name], inside[name]) for name in before)
    assert_same(before, weights(net))


# Several processes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two processes that train as replicas and as shards, whole and interrupted."""
    folder = tmp_path_factory.mktemp("world")
    program = Path(__file__).with_name("training_world.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    arguments = [[sys.executable, str(program), str(rank), "2", str(folder)] for rank in range(2)]
    processes = [subprocess.Popen(each, env=environment, stderr=subprocess.PIPE) for each in arguments]
    errors = [process.communicate(timeout=200)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return folder, torch.load(folder / "found.pt")


@pytest.mark.parametrize("name", ["replicas", "shards"])
def test_two_processes_change_nothing_but_rounding(world, name):
    net, logs, path = train(net=network(), validation=Table(2))
    found = world[1][name]
    for one, other in zip(path, found["path"], strict=True):
        assert_close(one, other)
    assert_close(weights(net), found["average"])
    assert [step for step, _ in logs] == [step for step, _ in found["logs"]]
    for (_, one), (_, other) in zip(logs, found["logs"], strict=True):
        assert one == pytest.approx({name: other[name] for name in one}, rel=1e-8)


@pytest.mark.parametrize("name", ["replicas", "shards"])
def test_two_processes_average_as_one(world, name):
    found = world[1][name]
    assert_close(found["average"], closed_form(found["path"], RECIPE.ema))


@pytest.mark.parametrize("name", ["replicas", "shards"])
def test_two_processes_resume_bit_for_bit(world, name):
    assert_same(world[1][name]["average"], world[1][f"{name} resumed"]["average"])


@pytest.mark.parametrize("name", ["replicas", "shards"])
def test_a_checkpoint_of_two_processes_goes_on_in_one(world, name, tmp_path):
    """Saved at step 8 by two processes, resumed by one: equal up to rounding; `load` reads it too."""
    folder = world[0] / name
    assert_close(weights(load(str(folder)).network.double()), weights_in_float32(world[1][name]["average"]))
    copy = tmp_path / "copy"
    shutil.copytree(folder / step_name(8), copy / step_name(8))
    resumed, logs, _ = train(copy, net=network(), recipe=RECIPE.model_copy(update={"microbatch": 4}))
    assert [step for step, _ in logs] == [9, 10]
    assert_close(weights(resumed), world[1][name]["average"])


@pytest.fixture(scope="module")
def alone():
    return families(Single())


@pytest.mark.parametrize("how", ["replicas", "shards"])
def test_every_family_trains_in_two_processes(world, alone, how):
    """In float32: some families compute parts of their loss in it, whatever the network."""
    found = world[1][f"families in {how}"]
    assert len(alone) >= 6
    assert alone.keys() == found.keys()
    for kind in alone:
        for name, p in alone[kind].items():
            assert float((p - found[kind][name]).norm()) < 1e-3 * float(p.norm()) + 1e-4, (kind, name)


def weights_in_float32(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.float().double() for name, tensor in found.items()}


# Optimizer and recipe ---------------------------------------------------------------------------------------


def test_only_matrices_decay():
    net = network()
    groups = adamw(net, RECIPE).param_groups
    names = {id(p): name for name, p in net.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert decayed | spared == set(names.values())
    assert not decayed & spared
    assert "head.weight" in decayed
    assert "trunk.blocks.0.project.weight" in decayed
    assert "trunk.embedding.weight" in spared
    assert all(net.get_parameter(name).ndim >= 2 for name in decayed)


def test_clipping_bounds_the_norm_and_reports_what_it_was():
    net = torch.nn.Linear(3, 2)
    for p in net.parameters():
        p.grad = torch.full_like(p, 2.0)
    assert float(clip(net, 1.0)) == pytest.approx(2 * math.sqrt(8))
    assert math.sqrt(sum(float((p.grad**2).sum()) for p in net.parameters())) == pytest.approx(1.0, rel=1e-4)


def test_the_learning_rate_warms_up_and_falls():
    recipe = Recipe(steps=110, warmup=10, learning_rate=2.0, decay=Cosine(final=0.1))
    assert [recipe.rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert recipe.rate(60) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert recipe.rate(110) == pytest.approx(0.2)
    assert Recipe(steps=10, learning_rate=2.0, decay=Constant()).rate(9) == 2.0


def test_a_recipe_round_trips():
    assert Recipe.model_validate_json(RECIPE.model_dump_json()) == RECIPE


@pytest.mark.parametrize(
    ("update", "workers", "words"),
    [
        ({"batch": 8}, 3, "batch of 8 rows can't be shared by 3 workers"),
        ({"batch": 8, "microbatch": 3}, 1, "microbatch of 3 rows doesn't divide the 8 rows"),
        ({"batch": 8, "microbatch": 8}, 2, "microbatch of 8 rows doesn't divide the 4 rows"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(update, workers, words):
    with pytest.raises(DiscdiffError, match=words):
        Recipe(**update).share(workers)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 5, "warmup": 5},
        {"betas": (0.9, 1.0)},
        {"batch": 0},
        {"learning_rate": 0},
        {"ema": 1.0},
        {"precision": "float16"},
        {"decay": {"kind": "linear"}},
        {"lr": 1e-3},
    ],
)
def test_a_wrong_recipe_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Recipe(**fields)


# What is said of mistakes -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_step(tmp_path):
    class Poisoned(Mdlm, frozen=True):
        def loss(self, net, canvas, noise):
            nats = super().loss(net, canvas, noise)
            return nats * math.nan if int(canvas.rows[0]) == 5 * RECIPE.batch else nats

    recipe = RECIPE.model_copy(update={"log_every": 100})
    with pytest.raises(Diverged, match="not finite at step 5"):
        fit(Poisoned(), network(), Table(), recipe, checkpoints=Checkpoints(str(tmp_path), SUBJECT, recipe))
    assert complete(Folder.at(tmp_path)) == [4]


def test_replicas_and_shards_need_a_process_group():
    for parallel in (DataParallel(), FullyShard()):
        with pytest.raises(DiscdiffError, match="torchrun"):
            fit(SUBJECT.method, network(), Table(), RECIPE, parallel=parallel)


def test_one_device_refuses_two_processes():
    with pytest.raises(DiscdiffError, match="data_parallel or fully_shard"):
        Single().wrap(Loss(SUBJECT.method, network()), World(0, 2, torch.device("cpu")))


def test_load_gives_the_averaged_weights(tmp_path):
    net, _, path = train(tmp_path)
    trained = load(str(tmp_path), tokenizer=SUBJECT.tokenizer)
    assert_same(weights(trained.network), weights(net))
    assert any(not torch.equal(path[-1][name], p) for name, p in weights(net).items())
    assert (trained.method, trained.step, trained.vocab, trained.length) == (
        SUBJECT.method,
        10,
        VOCAB,
        LENGTH,
    )
    assert not trained.network.training
    assert load(str(tmp_path / step_name(8))).step == 8


def test_loading_draws_from_nobody_elses_generator(tmp_path):
    train(tmp_path)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load(str(tmp_path))
    train()
    assert torch.equal(torch.rand(3), expected)


def test_another_tokenizer_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(DiscdiffError, match="trained with tokenizer 0123456789ab and the data is of fedcba"):
        load(str(tmp_path), tokenizer="fedcba9876543210")


def test_a_folder_without_checkpoint_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(DiscdiffError, match="no complete checkpoint"):
        load(str(tmp_path))


def test_a_foreign_checkpoint_is_refused(tmp_path):
    (tmp_path / COMMIT).write_text('{"model": "gpt"}')
    with pytest.raises(DiscdiffError, match="not written by this library"):
        load(str(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path, damage):
    train(tmp_path)
    largest = max((tmp_path / step_name(10) / STATE).iterdir(), key=lambda path: path.stat().st_size)
    if damage == "cut":
        largest.write_bytes(largest.read_bytes()[:-100])
    else:
        largest.unlink()
    with pytest.raises(DiscdiffError, match="is not whole"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("subject", "recipe", "words"),
    [
        (SUBJECT.model_copy(update={"tokenizer": "other"}), RECIPE, "tokenizer"),
        (
            SUBJECT.model_copy(update={"backbone": Transformer(layers=1, width=16, heads=2)}),
            RECIPE,
            "backbone",
        ),
        (SUBJECT, RECIPE.model_copy(update={"seed": 1}), "recipe.seed"),
    ],
)
def test_another_runs_folder_is_refused(tmp_path, subject, recipe, words):
    train(tmp_path)
    with pytest.raises(DiscdiffError, match=f"another run, which differs in {words}"):
        train(tmp_path, subject=subject, recipe=recipe, net=subject.build(0))


def test_a_network_of_another_shape_is_no_start():
    other = SUBJECT.model_copy(update={"method": Udlm()}).build(seed=1)
    with pytest.raises(DiscdiffError, match=r"another shape, in .*give one of mdlm"):
        start_from(SUBJECT.method, network(), other)


def test_a_canvas_without_free_tokens_trains_on():
    class Full(Table):
        def read(self, start, count):
            canvas = super().read(start, count)
            return Canvas(canvas.tokens, torch.zeros_like(canvas.free), canvas.rows)

    net = network()
    before = weights(net)
    recipe = RECIPE.model_copy(update={"weight_decay": 0.0, "steps": 4})
    fit(SUBJECT.method, net, Full(), recipe.model_copy(update={"log_every": 1}))
    assert_same(before, weights(net))
