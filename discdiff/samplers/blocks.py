"""Block by block: a sampler inside each block, left to right across blocks, exact keys and values of what is
done.

A finished block goes through the network once more, clean and at time 0, and its keys and values are kept;
the steps of later blocks evaluate their own positions only. Block diffusion: Arriola et al. 2025,
arXiv:2503.09573.
"""

from typing import Literal

import torch
from jaxtyping import Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from discdiff.networks import KeyValueCache
from discdiff.noise import Noise
from discdiff.samplers.guidance import ClassifierFree
from discdiff.samplers.predictor import Reversible
from discdiff.samplers.sampler import Sampler
from discdiff.samplers.trace import Observer, nobody, within
from discdiff.types import Canvas, Condition, DiscdiffError, Network, Value

_BLOCK = 2**20
"""Numbers of steps that a block has for itself."""


class Blocks(Value, frozen=True):
    """A sampler for each block of `size` positions in turn."""

    kind: Literal["blocks"] = "blocks"
    size: int = Field(ge=1)
    inside: Sampler = Sampler()

    @model_validator(mode="after")
    def _one_cache_for_all(self) -> "Blocks":
        inside = self.inside
        if isinstance(inside.guidance, ClassifierFree) or inside.microbatch or inside.windows or inside.cache:
            raise DiscdiffError(
                "keys and values are kept for all rows and one condition: leave classifier-free guidance, "
                "microbatch, windows and cache out of the sampler inside blocks"
            )
        return self

    def evaluations(self, length: int) -> int:
        """Evaluations of the network for a sequence, at most: those of its blocks and one for each that is
        done.
        """
        sizes = [min(self.size, length - start) for start in range(0, length, self.size)]
        return sum(self.inside.evaluations(size) for size in sizes) + len(sizes) - 1

    @torch.no_grad()
    def run(
        self,
        method: Reversible,
        net: Network,
        canvas: Canvas,
        noise: Noise,
        observe: Observer = nobody,
    ) -> Int64[Tensor, "B L"]:
        """Fill the free positions, each block given all before it. `-> [B, L]`"""
        check_order(canvas, self.size)
        length, x = canvas.shape[1], canvas.tokens.clone()
        following = Following(net, length)
        for index, start in enumerate(range(0, length, self.size)):
            stop = min(start + self.size, length)
            block = _columns(canvas, start, stop)
            x[:, start:stop] = self.inside.run(
                method,
                following,
                block,
                noise.at(noise.step + index * _BLOCK),
                within(observe, canvas, x, start, net.vocab),
            )
            if stop < length:
                following.keep(x[:, start:stop], block.condition)
        return x


class Following(nn.Module):
    """A network over one block, with the keys and values of all blocks before it."""

    def __init__(self, net: Network, length: int):
        super().__init__()
        self.whole_batch = True  # what is kept is kept for all rows
        self.vocab = net.vocab
        self.cache = KeyValueCache(capacity=length)
        self.inner = net.trunk
        self.trunk: nn.Module = Cached(net.trunk, self.cache)
        self.head: nn.Module = net.head

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.head(self.trunk(x, t, condition))

    def keep(self, x: Tensor, condition: Condition) -> None:
        """Remember a block that is done."""
        zero = torch.zeros(x.shape[0], 1, dtype=torch.float64, device=x.device)
        self.inner(x, zero, condition, cache=self.cache)


class Cached(nn.Module):
    """A trunk whose rows, named by the condition, see their cached positions; it remembers none that it is
    asked about.
    """

    def __init__(self, inner: nn.Module, cache: KeyValueCache):
        super().__init__()
        self.inner = inner
        self.cache = cache

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        rows = condition.rows
        cache = self.cache.taken(torch.arange(x.shape[0], device=x.device) if rows is None else rows)
        return self.inner(x, t, condition, cache=cache)


def check_order(canvas: Canvas, size: int) -> None:
    """Raises DiscdiffError where a later block holds context that an earlier, free one can't see."""
    blocks = torch.arange(canvas.shape[1], device=canvas.tokens.device) // size
    first_free = torch.where(canvas.free, blocks, blocks.max() + 1).amin(-1, keepdim=True)
    if bool((~canvas.free & (blocks > first_free)).any()):
        raise DiscdiffError(
            "context stands in a later block than free positions, which blocks from left to right can't see: "
            "give a prefix, or infill within one block"
        )


def _columns(canvas: Canvas, start: int, stop: int) -> Canvas:
    labels, documents = canvas.condition.labels, canvas.condition.documents
    every_row = torch.arange(canvas.shape[0], device=canvas.tokens.device)
    return Canvas(
        tokens=canvas.tokens[:, start:stop],
        free=canvas.free[:, start:stop],
        rows=canvas.rows,
        condition=Condition(labels, None if documents is None else documents[:, start:stop], every_row),
        allowed=None if canvas.allowed is None else canvas.allowed[:, start:stop],
    )
