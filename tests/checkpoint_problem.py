"""A checkpoint of a network as training starts with it, as the training stage leaves it."""

from pathlib import Path

import torch

from discdiff.data.characters import Characters
from discdiff.methods import AnyMethod
from discdiff.networks import Transformer
from discdiff.networks.ema import Ema
from discdiff.training import Checkpoints, Loss, Recipe, Subject, World
from discdiff.training.optimizer import adamw
from pipelines.artifacts import Artifact, Checkpoint
from pipelines.place import Place
from pipelines.record import RECORD, Record

LENGTH = 8
ALPHABET = "abcdefg"


def untrained(folder: Path, method: AnyMethod, labels: int = 0) -> Checkpoint:
    """The checkpoint of a network as training starts with it, as the training stage leaves it."""
    tokenizer = Characters(alphabet=ALPHABET).open()
    subject = Subject(
        method=method,
        backbone=Transformer(
            layers=max(1, 4 * (method.kind == "discrete_flow")), width=16, heads=2, labels=labels
        ),
        vocab=tokenizer.size,
        tokenizer=tokenizer.fingerprint,
        length=LENGTH,
    )
    network, recipe = subject.build(seed=1), Recipe(steps=1)
    loss, world = Loss(method, network), World.current(torch.device("cpu"))
    Checkpoints(str(folder), subject, recipe).save(1, loss, adamw(loss, recipe), Ema(network, 0.9), world)
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    made = Checkpoint(key="train-x", uri=str(folder), method=method.kind, step=1, length=LENGTH, parameters=1)
    record("train", made, method.kind)
    return Checkpoint.open(str(folder))


def record(stage: str, made: Artifact, label: str = "") -> None:
    """Make a folder an artifact's, as the runner does, so that it can be named by its path."""
    fields = {"stage": stage, "version": 1, "key": made.key, "label": label, "spec": {}, "created": ""}
    content = Record.model_validate({**fields, "artifact": made.content(), "seconds": 0, "versions": {}})
    Place(made.uri).create(RECORD, content.model_dump_json().encode())
