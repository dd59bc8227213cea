"""Checkpoints: everything that resuming needs, complete or not there at all, readable at any world size.

A run's folder, on a disk or an object store that all workers see, holds `step-00000500/` and so on, each with

    state/            weights, averaged weights and optimizer as torch.distributed.checkpoint wrote them,
    each rank its part checkpoint.json   what was trained and the size of every file; written last, it makes
    the checkpoint

A folder without `checkpoint.json` was interrupted: readers pass over it and the next writer of that step
clears it. Data and noise are functions of the step, so no generator's state is kept.
"""

import json
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from discdiff.data.folder import Folder
from discdiff.methods import AnyMethod
from discdiff.networks import AnyBackbone
from discdiff.networks.ema import Ema, trained_parameters
from discdiff.training.loss import Loss
from discdiff.training.parallel import World
from discdiff.training.recipe import Recipe
from discdiff.types import DiscdiffError, Value

COMMIT = "checkpoint.json"
STATE = "state"
PREFIX = "step-"
EXTENSIBLE = {"steps", "log_every", "validate_every", "validate_rows", "checkpoint_every", "microbatch"}
"""Fields of a recipe that a run may be resumed with other values of."""


class Subject(Value, frozen=True):
    """What is trained: enough to build the network again and to refuse what does not belong to it."""

    method: AnyMethod
    backbone: AnyBackbone
    vocab: int = Field(ge=1)
    tokenizer: str
    """Fingerprint of the tokenizer."""
    length: int = Field(ge=1)
    """Positions of a training row."""

    def build(self, seed: int) -> nn.Module:
        """The network as training starts with it: a function of the seed alone."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.method.network(self.backbone, self.vocab)


class Commit(Value, frozen=True):
    """The content of `checkpoint.json`."""

    format: int = 1
    step: int
    subject: Subject
    recipe: Recipe
    parameters: int
    """How many numbers are trained."""
    files: dict[str, int]
    """Bytes of each file of the state."""


class Checkpoints:
    """The checkpoints of one run: `save`, `resume`; keeps the newest `keep`."""

    def __init__(self, uri: str, subject: Subject, recipe: Recipe, *, keep: int = 2):
        self.folder = Folder.at(uri)
        self.subject = subject
        self.recipe = recipe
        self.keep = keep

    def save(self, step: int, loss: Loss, optimizer: torch.optim.Optimizer, ema: Ema, world: World) -> None:
        """Write the state after `step` steps; all ranks call it, and it is there when rank 0 returns."""
        name = step_name(step)
        if world.rank == 0:
            _remove(self.folder, name)
        world.barrier()
        with _quiet():
            save(
                _state(loss, optimizer, ema),
                checkpoint_id=f"{self.folder.uri}/{name}/{STATE}",
                no_dist=world.size == 1,
            )
        if world.rank == 0:
            commit = Commit(
                step=step,
                subject=self.subject,
                recipe=self.recipe,
                parameters=sum(p.numel() for p in trained_parameters(loss).values()),
                files=_files(self.folder, name),
            )
            self.folder.put(f"{name}/{COMMIT}", commit.model_dump_json(indent=2).encode())
            for old in complete(self.folder)[: -self.keep]:
                _remove(self.folder, step_name(old))
        world.barrier()

    def resume(self, loss: Loss, optimizer: torch.optim.Optimizer, ema: Ema, world: World) -> int:
        """Load the newest complete checkpoint and return its step; 0 if there is none.

        Raises `DiscdiffError` if the folder belongs to another run.
        """
        steps = complete(self.folder)
        if not steps:
            return 0
        commit = _read(self.folder, step_name(steps[-1]))
        self._refuse_another(commit)
        state = _state(loss, optimizer, ema)
        _load(self.folder, commit, state, no_dist=world.size == 1)
        set_model_state_dict(loss, state["model"])
        set_optimizer_state_dict(loss, optimizer, state["optimizer"])
        ema.updates = commit.step
        return commit.step

    def _refuse_another(self, commit: Commit) -> None:
        ours = self._identity(self.subject, self.recipe)
        theirs = self._identity(commit.subject, commit.recipe)
        differing = [name for name in ours if ours[name] != theirs[name]]
        if differing:
            raise DiscdiffError(
                f"{self.folder.uri} holds another run, which differs in {', '.join(differing)}: "
                "give a new folder, or what it was trained with"
            )

    @staticmethod
    def _identity(subject: Subject, recipe: Recipe) -> dict[str, Any]:
        fields = recipe.model_dump(mode="json", exclude=EXTENSIBLE)
        return subject.model_dump(mode="json") | {f"recipe.{name}": value for name, value in fields.items()}


def step_name(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def complete(folder: Folder) -> list[int]:
    """Steps of the complete checkpoints in a folder, in order."""
    folder.fs.invalidate_cache()  # other processes write here too
    found = folder.fs.glob(f"{folder.root}/{PREFIX}*/{COMMIT}")
    return sorted(int(str(path).split("/")[-2].removeprefix(PREFIX)) for path in found)


def latest_step(uri: str) -> int:
    """The step of the newest complete checkpoint in a run's folder, 0 if there is none."""
    steps = complete(Folder.at(uri))
    return steps[-1] if steps else 0


def open_commit(uri: str) -> tuple[Folder, Commit]:
    """The checkpoint at a URI, or the newest in the run's folder at it.

    Raises `DiscdiffError` if there is none, if it is not one of ours, or if it is not whole.
    """
    folder = Folder.at(uri)
    if folder.size(COMMIT) is not None:
        parent, _, name = folder.root.rpartition("/")
        return Folder(folder.fs, parent), _read(Folder(folder.fs, parent), name)
    steps = complete(folder)
    if not steps:
        raise DiscdiffError(
            f"{uri} holds no complete checkpoint ({COMMIT} is missing): "
            f"give the folder of a training run, or of one of its {PREFIX}... checkpoints"
        )
    return folder, _read(folder, step_name(steps[-1]))


def load_averaged(folder: Folder, commit: Commit, network: nn.Module) -> None:
    """Fill a network on one device with the averaged weights, and with what else of it was kept."""
    averaged = trained_parameters(network)
    rest = {name: x.detach() for name, x in network.state_dict().items() if name not in averaged}
    state = {
        "ema": {name: p.detach() for name, p in averaged.items()},
        "model": {f"network.{name}": x for name, x in rest.items()},
    }
    _load(folder, commit, {name: part for name, part in state.items() if part}, no_dist=True)


def _state(loss: Loss, optimizer: torch.optim.Optimizer, ema: Ema) -> dict[str, dict[str, Any]]:
    averages: dict[str, Tensor] = dict(ema.average)
    return {
        "model": get_model_state_dict(loss),
        "optimizer": get_optimizer_state_dict(loss, optimizer),
        "ema": averages,
    }


def _read(folder: Folder, name: str) -> Commit:
    where = f"{folder.uri}/{name}"
    try:
        commit = Commit.model_validate_json(folder.read(f"{name}/{COMMIT}"))
    except (ValidationError, json.JSONDecodeError) as error:
        raise DiscdiffError(
            f"{where}/{COMMIT} was not written by this library, or by another version of it ({error}): "
            "give a checkpoint of discdiff, or train again"
        ) from error
    sizes = {file: folder.size(f"{name}/{STATE}/{file}") for file in commit.files}
    wrong = [file for file, size in sizes.items() if size != commit.files[file]]
    if wrong:
        raise DiscdiffError(
            f"{where} is not whole: {STATE}/{wrong[0]} has {sizes[wrong[0]] or 0} bytes and was written with "
            f"{commit.files[wrong[0]]}; copy it again, or take an earlier checkpoint"
        )
    return commit


def _load(folder: Folder, commit: Commit, state: dict[str, Any], *, no_dist: bool) -> None:
    where = f"{folder.uri}/{step_name(commit.step)}/{STATE}"
    try:
        with _quiet():
            load(state, checkpoint_id=where, no_dist=no_dist)
    except CheckpointException as error:
        raise DiscdiffError(
            f"{where} can't be read ({error}): copy it again, or take an earlier one"
        ) from error


def _files(folder: Folder, name: str) -> dict[str, int]:
    """Bytes of the files of a state. Raises `DiscdiffError` if a rank wrote where this one can't see."""
    where = f"{folder.uri}/{name}/{STATE}"
    root = folder.path(f"{name}/{STATE}")
    folder.fs.invalidate_cache()
    files = {str(path)[len(root) + 1 :]: int(entry["size"]) for path, entry in _find(folder, root)}
    metadata = FileSystemReader(where).read_metadata() if folder.is_local else None
    written = {info.relative_path for info in metadata.storage_data.values()} if metadata else set[str]()
    if missing := written - files.keys():
        raise DiscdiffError(
            f"{where} misses {len(missing)} files that other workers wrote: "
            "the folder of the run must be on storage that all workers share"
        )
    return files


def _find(folder: Folder, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from folder.fs.find(root, detail=True).items()


def _remove(folder: Folder, name: str) -> None:
    """Take a checkpoint away, its commit first."""
    if folder.size(f"{name}/{COMMIT}") is not None:
        folder.fs.rm_file(folder.path(f"{name}/{COMMIT}"))
    if folder.fs.exists(folder.path(name)):
        folder.fs.rm(folder.path(name), recursive=True)


@contextmanager
def _quiet() -> Generator[None]:
    """torch warns that a save or load in one process is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.distributed\.checkpoint.*")
        yield
