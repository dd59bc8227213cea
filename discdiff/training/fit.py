"""The training loop: one function, the same on a laptop, under torchrun and inside a Ray worker.

A step's loss is the sum of nats over all free tokens of the global batch, divided by their number (of rows
with a label, where labels are what is learned): neither the number of workers nor the size of a micro-batch
enters it. Rows and noise are functions of the step and the row, so an interrupted run that is resumed goes on
as if it had never stopped.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from discdiff.methods import Method, Staged
from discdiff.networks.ema import Ema
from discdiff.noise import Noise
from discdiff.training.checkpoint import Checkpoints
from discdiff.training.loss import Loss, Rows, Stream
from discdiff.training.meter import Meter
from discdiff.training.optimizer import adamw, clip
from discdiff.training.parallel import AnyParallel, Single, World
from discdiff.training.recipe import Recipe
from discdiff.training.validate import validate
from discdiff.types import Canvas, DiscdiffError

Log = Callable[[int, dict[str, float]], None]
"""Called on every rank with the same steps and the same numbers."""


def ignore(step: int, metrics: dict[str, float]) -> None:
    """Log nothing."""


def fit(
    method: Method,
    network: nn.Module,
    rows: Rows,
    recipe: Recipe,
    *,
    validation: Rows | None = None,
    measure: Method | None = None,
    parallel: AnyParallel | None = None,
    device: torch.device | str = "cpu",
    checkpoints: Checkpoints | None = None,
    log: Log = ignore,
) -> dict[str, float]:
    """Train a network in place and return what was last logged.

    The network ends with the averaged weights, in eval mode.

    Validation is by the bound of `measure`, the method's own by default. With `checkpoints` it resumes from
    the newest one. Raises `DiscdiffError` where the batch can't be shared out, where the folder of
    checkpoints belongs to another run, and `Diverged` where the loss stops being finite.
    """
    world = World.current(torch.device(device))
    share, micro = recipe.share(world.size)
    run = _start(Loss(method, network, measure, recipe.label_dropout), recipe, parallel or Single(), world)
    first = checkpoints.resume(run.loss, run.optimizer, run.ema, world) if checkpoints else 0
    latest: dict[str, float] = {}

    def tell(step: int, metrics: dict[str, float]) -> None:
        latest.update(metrics)
        log(step, metrics)

    stream = rows.stream(first * recipe.batch + world.rank * share, share, recipe.batch)
    with closing(stream), _own_generator(world.device):
        for step in range(first, recipe.steps):
            run.enter(step)
            run.advance(step, run.fetch(stream), micro)
            run.look(step + 1, validation, checkpoints, tell)
    run.ema.swap()
    network.eval()
    return latest


@dataclass
class _Run:
    """What a step works on."""

    recipe: Recipe
    parallel: AnyParallel
    world: World
    loss: Loss
    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    meter: Meter

    def fetch(self, stream: Stream) -> Canvas:
        """The next rows of this rank, on its device."""
        start = time.perf_counter()
        canvas = next(stream)
        self.meter.wait(time.perf_counter() - start)
        return canvas.to(self.world.device)

    def enter(self, step: int) -> None:
        """Be in the stage of a step: a function of the step, so nothing of it has to be saved."""
        method, steps = self.loss.method, self.recipe.steps
        if not isinstance(method, Staged):
            return
        self.loss.stage = method.stage(step / steps)
        if step and self.loss.stage != method.stage((step - 1) / steps):
            with self.ema.swapped():
                method.enter(self.loss.network)

    def advance(self, step: int, canvas: Canvas, micro: int) -> None:
        """One optimizer step."""
        # Dropout alone draws from torch's generator: its state is made of the step, so none has to be saved.
        torch.manual_seed((self.recipe.seed << 40 ^ step << 12 ^ self.world.rank) % 2**63)
        units = self.loss.units(canvas).sum()
        everywhere = self.world.sum(units.double()).clamp(min=1)
        count = canvas.shape[0]
        nats = torch.zeros((), dtype=torch.float64, device=self.world.device)
        noise = Noise(self.recipe.seed)
        for start in range(0, count, micro):
            piece = canvas.narrow(start, start + micro)
            with self.parallel.accumulate(self.module, last=start + micro == count):
                total = self.module(piece, noise.on(piece.rows)).sum()
                (total * (self.world.size / everywhere)).backward()
            nats += total.detach()
        norm = clip(self.loss, self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.meter.add(step, nats, units, canvas.free.sum(), norm)

    def look(self, done: int, validation: Rows | None, checkpoints: Checkpoints | None, log: Log) -> None:
        """Log, validate and save where that is due after `done` steps."""
        recipe = self.recipe
        saves = checkpoints is not None and recipe.due(recipe.checkpoint_every, done)
        if saves or recipe.due(recipe.log_every, done):
            log(done, self.meter.read(recipe.rate(done - 1)))
        start = time.perf_counter()
        if validation is not None and recipe.due(recipe.validate_every, done):
            with self.ema.swapped():
                log(done, validate(self.loss, validation, recipe, self.world))
        if saves and checkpoints is not None:
            checkpoints.save(done, self.loss, self.optimizer, self.ema, self.world)
        self.meter.pause(time.perf_counter() - start)


def _start(loss: Loss, recipe: Recipe, parallel: AnyParallel, world: World) -> _Run:
    loss.to(world.device).train()
    if recipe.precision == "bfloat16":
        _autocast(loss.network, world.device)
    module = parallel.wrap(loss, world)
    optimizer = adamw(loss, recipe)
    return _Run(recipe, parallel, world, loss, module, optimizer, Ema(loss.network, recipe.ema), Meter(world))


def _autocast(network: nn.Module, device: torch.device) -> None:
    """Have trunks, and they alone, compute in bfloat16: logits and all after them stay in float32."""
    trunks = [module for name, module in network.named_modules() if name.split(".")[-1] == "trunk"]
    if not trunks:
        raise DiscdiffError(
            f"precision bfloat16 was given, and {type(network).__name__} has no trunk to compute in it: "
            "take float32"
        )
    for trunk in trunks:
        trunk.forward = torch.autocast(device.type, torch.bfloat16)(trunk.forward)


@contextmanager
def _own_generator(device: torch.device) -> Generator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
