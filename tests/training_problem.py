"""A small training run that tests train again and again: rows of unequal length, a tiny network."""

from dataclasses import replace

import torch

from discdiff.methods import Mdlm
from discdiff.networks import Transformer
from discdiff.training import Recipe, Subject
from discdiff.types import Canvas, Condition

LENGTH = 8
VOCAB = 5
SUBJECT = Subject(
    method=Mdlm(),
    backbone=Transformer(layers=2, width=16, heads=2),
    vocab=VOCAB,
    tokenizer="0123456789abcdef",
    length=LENGTH,
)
RECIPE = Recipe(
    steps=10,
    batch=8,
    learning_rate=1e-2,
    warmup=3,
    weight_decay=0.1,
    clip=0.5,
    ema=0.9,
    log_every=1,
    validate_every=3,
    validate_rows=15,
    checkpoint_every=4,
)


class Table:
    """48 fixed rows, endlessly; a row's free positions are many or few, so means of means would be wrong."""

    rows_per_epoch = 48

    def __init__(self, seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, VOCAB, (self.rows_per_epoch, LENGTH), generator=generator)

    def read(self, start: int, count: int) -> Canvas:
        rows = torch.arange(start, start + count)
        free = torch.arange(LENGTH)[None, :] < (1 + 3 * (rows % 3))[:, None]
        return Canvas(self.tokens[rows % self.rows_per_epoch], free, rows)

    def stream(self, start: int, count: int, stride: int):
        while True:
            yield self.read(start, count)
            start += stride


class Labelled(Table):
    """The same rows, of three classes, some of none."""

    def read(self, start: int, count: int) -> Canvas:
        canvas = super().read(start, count)
        return replace(canvas, condition=Condition(labels=canvas.tokens[:, 0] % 4 - 1))


def network(double: bool = True) -> torch.nn.Module:
    net = SUBJECT.build(seed=3)
    return net.double() if double else net


def weights(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights, whole where they are sharded; with shards, all ranks call it."""
    found = {name: p.detach() for name, p in net.named_parameters()}
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).clone() for name, p in found.items()}
