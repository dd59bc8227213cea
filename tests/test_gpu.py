"""A GPU changes nothing but rounding, and nobody waits for it. Skipped where there is none."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_families_draw import FAMILIES, filled
from test_laws import METHODS_IN_TABLE
from text_stores import draw, make
from training_problem import RECIPE, SUBJECT, VOCAB, Labelled, Table, weights
from training_world import Stop

from discdiff.data.loader import Loader
from discdiff.data.mixture import Classes
from discdiff.data.packing import Isolated
from discdiff.data.store import Store
from discdiff.evaluation.judge import Own
from discdiff.evaluation.likelihood import Likelihood
from discdiff.methods import (
    Autoregressive,
    Block,
    Classifier,
    Diffusion,
    Discriminative,
    Duo,
    Mdlm,
    Multinomial,
    Scored,
    Sedd,
    Udlm,
)
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.samplers.counting import draw as drawn
from discdiff.samplers.guidance import ClassifierBased, Guided
from discdiff.samplers.matrix import PARTS, matrix, prompts, sampler_with
from discdiff.samplers.trace import Recorder
from discdiff.training import Checkpoints, Recipe, Subject, fit, load
from discdiff.training.loss import Loss
from discdiff.types import Canvas, Condition, canvas

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic

if not torch.cuda.is_available():
    pytest.skip("there is no GPU here", allow_module_level=True)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    # torch.compile looks at what it compiles
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

BUSY = 200_000_000
"""Cycles for which the GPU is kept from all else: about a tenth of a second."""


@contextmanager
def nobody_waits() -> Iterator[None]:
    """Raises where the processor waits for the GPU."""
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Classes:
    """Rows with labels and with documents, of two stores."""
    folders = [tmp_path_factory.mktemp("store") for _ in range(2)]
    texts = [draw(400, longest=50, seed=seed) for seed in range(2)]
    return Classes(
        [Store.open(make(folder, train=text)) for folder, text in zip(folders, texts, strict=True)]
    )


def parts(given: Canvas) -> list[torch.Tensor]:
    condition = given.condition
    found = [given.tokens, given.free, given.rows, condition.labels, condition.documents, given.allowed]
    return [part for part in found if part is not None]


# Batches


def test_batches_are_pinned_and_reach_the_gpu_without_a_wait(classes: Classes) -> None:
    """While the GPU is at work, 100 batches are read and sent; each arrives whole, though the memory that it
    came from was given up at once.
    """
    loader = Loader(classes, Isolated(length=16), seed=4)
    with loader.stream(0, 8) as stream:
        torch.cuda._sleep(BUSY)
        arrived = []
        with nobody_waits():
            for _ in range(100):
                batch = next(stream)
                assert all(part.is_pinned() for part in parts(batch))
                arrived.append(batch.to("cuda"))
    for step, batch in enumerate(arrived):
        for there, here in zip(parts(batch), parts(loader.read(8 * step, 8)), strict=True):
            assert torch.equal(there.cpu(), here)


def test_a_judge_reads_on_its_own_device() -> None:
    """Canvases of samples come from the disk."""
    method = Autoregressive()
    net = network(method)
    given = [canvas(torch.randint(0, VOCAB, (3, 8)))]
    here, there = (
        Own("judge", method, net.to(device), "tokenizer").read(given, ["", "", ""])
        for device in ("cpu", "cuda")
    )
    for one, other in zip(astuple(there), astuple(here), strict=True):
        np.testing.assert_allclose(one, other)


# Mathematics


def named(method) -> str:
    return repr(method)[:60]


def network(
    method, labels: int = 0, time: bool = True, width: int = 16, spread: float = 0.3
) -> torch.nn.Module:
    torch.manual_seed(0)
    net = method.network(Transformer(layers=2, width=width, heads=2, labels=labels, time=time), VOCAB)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=spread)
    return net.double().eval()


def losses(method, net: torch.nn.Module, given: Canvas) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Nats of each row, and the gradient of their sum."""
    nats = Loss(method, net)(given, Noise(5).on(given.rows))
    nats.sum().backward()
    gradients = {name: p.grad.cpu() for name, p in net.named_parameters() if p.grad is not None}
    return nats.detach().cpu(), gradients


@pytest.mark.parametrize("method", METHODS_IN_TABLE, ids=named)
def test_losses_and_gradients_are_those_of_a_cpu(method) -> None:
    """Corruption is the same bit for bit, since counters and not generators draw it."""
    labelled = isinstance(method, Discriminative)
    given = (Labelled if labelled else Table)().read(3, 12)
    net = network(method, 3 if labelled else 0)
    here, gradients_here = losses(method, net, given)
    net.zero_grad()
    there, gradients_there = losses(method, net.to("cuda"), given.to("cuda"))
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients_there, gradients_here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", FAMILIES, ids=lambda method: method.kind)
def test_draws_are_those_of_a_cpu(method) -> None:
    blank, net = canvas(torch.zeros(3, 64).long()), network(method)
    here = method.sample(net, blank, method.default_sampler(8), Noise(1))
    there = method.sample(net.to("cuda"), blank.to("cuda"), method.default_sampler(8), Noise(1))
    assert there.device.type == "cuda"
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("kind", list(prompts()))
@pytest.mark.parametrize("method", FAMILIES, ids=lambda method: method.kind)
def test_prompts_are_obeyed_there_too(method, kind: str) -> None:
    (cell,) = [cell for cell in matrix([method]) if (cell.field, cell.part) == ("prompt", kind)]
    if cell.refusal is not None:
        pytest.skip(f"{method.kind} refuses it")
    given, net = filled(kind), network(method)
    here = method.sample(net, given, method.default_sampler(4), Noise(1))
    there = method.sample(net.to("cuda"), given.to("cuda"), method.default_sampler(4), Noise(1))
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("method", FAMILIES, ids=lambda method: method.kind)
def test_every_part_draws_there_too(method) -> None:
    """Each part that a sampler may have, on a network with labels, with what is traced and counted."""
    net = network(method, labels=3 if isinstance(method, Diffusion) else 0, time=False)
    labels = Condition(labels=torch.tensor([2, 0])) if isinstance(method, Diffusion) else Condition()
    tokens, free = torch.arange(16).expand(2, 16) % VOCAB, torch.arange(16).expand(2, 16) >= 4
    blank = replace(canvas(tokens), condition=labels)
    granted = {(cell.field, cell.part) for cell in matrix([method]) if cell.refusal is None}
    for field, choices in PARTS.items():
        for part in choices:
            if (field, getattr(part, "kind", field)) not in granted:
                continue
            asked = net
            if isinstance(part, ClassifierBased):
                asked = Guided(net, network(Classifier(process=method.process), labels=3))
            # Masks alone look alike: which of them is the surest would be a matter of rounding.
            given = replace(blank, free=free) if field == "order" else blank
            sampler, found = sampler_with(method, field, part), []
            for device in ("cpu", "cuda"):
                recorder = Recorder(rows=2)
                tokens, _ = drawn(method, asked.to(device), given.to(device), sampler, Noise(3), recorder)
                assert [trace.states()[-1] for trace in recorder.traces] == tokens.tolist()
                found.append(tokens.cpu())
            assert torch.equal(*found), (field, part)


@pytest.mark.parametrize("method", [each for each in METHODS_IN_TABLE if isinstance(each, Scored)], ids=named)
def test_bounds_are_those_of_a_cpu(method) -> None:
    given, net = Table().read(3, 12), network(method)
    here, there = (
        Likelihood(draws=2).measure(method, net.to(device), [given.to(device)]).sequence_nats
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there, here, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows_differ", [False, True], ids=["blocks", "documents"])
def test_attention_by_blocks_is_dense_attention(rows_differ: bool) -> None:
    """In training, in float32, beside float64 on a CPU: what may not be seen is skipped both ways."""
    method = Block(inner=Mdlm(), size=16)
    tokens = torch.randint(0, VOCAB, (4, 512), generator=torch.Generator().manual_seed(0))
    given = canvas(tokens)
    if rows_differ:
        documents = (torch.arange(512) // torch.tensor([[70], [100], [512], [33]])).long()
        given = replace(given, condition=Condition(documents=documents))
    net = network(method, width=64, spread=0.1).train()
    here, gradients_here = losses(method, net, given)
    net.zero_grad()
    there, gradients_there = losses(method, net.float().to("cuda"), given.to("cuda"))
    assert distance(there, here) < 1e-4
    for name, gradient in gradients_here.items():
        assert distance(gradients_there[name], gradient) < 1e-3, name


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The norm of the difference, of that of the second."""
    return ((one.double() - other).norm() / other.norm()).item()


# Training


class Long(Table):
    """Rows of as many tokens as a GPU sums in no order of its own accord."""

    rows_per_epoch = 96
    length = 256

    def __init__(self, seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, VOCAB, (self.rows_per_epoch, self.length), generator=generator)

    def read(self, start: int, count: int) -> Canvas:
        return canvas(self.tokens[torch.arange(start, start + count) % self.rows_per_epoch], first_row=start)


def trained(
    subject: Subject,
    recipe: Recipe,
    folder: Path | None = None,
    stop: int | None = None,
    device: str = "cuda",
    rows: type[Table] = Table,
) -> tuple[dict[str, torch.Tensor], list[tuple[int, float]]]:
    """The weights at the end, and the losses."""
    net, found = subject.build(seed=3), []

    def log(step: int, metrics: dict[str, float]) -> None:
        found.extend((step, metrics[name]) for name in ("loss", "bound") if name in metrics)
        if step == stop:
            raise Stop

    checkpoints = None if folder is None else Checkpoints(str(folder), subject, recipe)
    fit(
        subject.method,
        net,
        rows(),
        recipe,
        validation=rows(seed=2),
        device=device,
        checkpoints=checkpoints,
        log=log,
    )
    return weights(net), found


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


LONG = Transformer(layers=2, width=64, heads=2, dropout=0.1)
RESUMED = [Autoregressive(), Mdlm(), Sedd(), Udlm(), Duo(), Multinomial(), Block(inner=Mdlm(), size=16)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", RESUMED, ids=lambda method: method.kind)
@pytest.mark.usefixtures("deterministic")
def test_interrupted_and_resumed_equals_uninterrupted(method, precision: str, tmp_path: Path) -> None:
    """Bit for bit, with dropout, or with attention by blocks, which has none. Left to itself a GPU sums in
    whatever order comes first.
    """
    backbone = LONG.model_copy(update={"dropout": 0.0}) if isinstance(method, Block) else LONG
    subject = SUBJECT.model_copy(update={"method": method, "backbone": backbone, "length": Long.length})
    recipe = RECIPE.model_copy(update={"precision": precision, "batch": 32, "microbatch": 16})
    whole, losses_whole = trained(subject, recipe, rows=Long)
    with pytest.raises(Stop):
        trained(subject, recipe, tmp_path, stop=7, rows=Long)
    resumed, losses_resumed = trained(subject, recipe, tmp_path, rows=Long)
    assert losses_resumed == [entry for entry in losses_whole if entry[0] > 4]
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


@pytest.mark.parametrize("method", [Mdlm(), Sedd(), Duo()], ids=lambda method: method.kind)
def test_a_run_on_a_gpu_is_that_on_a_cpu_but_for_rounding(method) -> None:
    subject = SUBJECT.model_copy(update={"method": method})
    (_, here), (_, there) = (trained(subject, RECIPE, device=device) for device in ("cpu", "cuda"))
    assert [step for step, _ in here] == [step for step, _ in there]
    torch.testing.assert_close([v for _, v in there], [v for _, v in here], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_checkpoint_goes_on_and_opens_on_another_device(first: str, then: str, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        trained(SUBJECT, RECIPE, tmp_path, stop=7, device=first)
    average, _ = trained(SUBJECT, RECIPE, tmp_path, device=then)
    for device in ("cpu", "cuda"):
        opened = load(str(tmp_path), device=device).network
        for name, parameter in opened.named_parameters():
            assert parameter.device.type == device
            assert torch.equal(parameter.cpu(), average[name].cpu()), name


def waits(run: Callable[[], object]) -> Counter[str]:
    """Where the processor waits for the GPU, and how often."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.cuda.set_sync_debug_mode("warn")
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{each.filename}:{each.lineno}" for each in caught if "synchronizing" in str(each.message)
    )


@pytest.mark.parametrize("method", [Autoregressive(), Mdlm(), Udlm()], ids=lambda method: method.kind)
def test_a_step_waits_for_the_gpu_once(method) -> None:
    """For the positions that are scored; all else is read when it is logged."""
    never = {"log_every": 99, "validate_every": 99, "checkpoint_every": 99}
    subject = SUBJECT.model_copy(update={"method": method})
    short, long = (
        waits(
            partial(
                fit,
                method,
                subject.build(seed=3),
                Table(),
                RECIPE.model_copy(update={"steps": steps, "warmup": 0, **never}),
                device="cuda",
            )
        )
        for steps in (4, 8)
    )
    assert short.total() > 4  # what is logged after the last step
    assert sorted((long - short).values()) == [4]
