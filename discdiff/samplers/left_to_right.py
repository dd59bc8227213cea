"""Left to right: one token at a time, each from the law given all before it, with cached keys and values."""

from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from discdiff.networks import KeyValueCache
from discdiff.noise import Noise, Stream, categorical
from discdiff.types import Canvas, DiscdiffError, Network, Value


class LeftToRight(Value, frozen=True):
    """Decoding of an autoregressive network: as many evaluations as positions, each of one position."""

    kind: Literal["left_to_right"] = "left_to_right"

    def evaluations(self, length: int) -> int:
        """Network evaluations for a sequence."""
        return length

    @torch.no_grad()
    def run(self, net: Network, canvas: Canvas, noise: Noise) -> Int64[Tensor, "B L"]:
        """Fill the free positions; what stands before them is context. `-> [B, L]`"""
        _check_order(canvas)
        batch, length = canvas.shape
        u = noise.uniform(Stream.STEP, length)
        time = torch.zeros(batch, 1, dtype=torch.float64, device=canvas.tokens.device)
        x = canvas.tokens.clone()
        before = torch.full_like(x[:, :1], net.vocab)
        cache = KeyValueCache(capacity=length)
        for position in range(length):
            raw = net.head(net.trunk(before, time, canvas.condition, cache=cache)[:, -1])
            drawn = categorical(raw, u[:, position])
            x[:, position] = torch.where(canvas.free[:, position], drawn, x[:, position])
            before = x[:, position : position + 1]
        return x


def _check_order(canvas: Canvas) -> None:
    late = (canvas.free.long().cumsum(-1) > 0) & ~canvas.free
    if bool(late.any()):
        raise DiscdiffError(
            "context stands after free positions, which decoding from left to right can't see: "
            "give a prefix only, or use a diffusion method to infill"
        )
