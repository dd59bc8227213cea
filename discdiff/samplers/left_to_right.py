"""Left to right: one token at a time, each from the law given all before it, with cached keys and values."""

from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from discdiff.networks import KeyValueCache
from discdiff.noise import Noise, Stream, categorical
from discdiff.samplers.allowed import check_allowed
from discdiff.samplers.filters import AnyFilter, apply
from discdiff.samplers.trace import Observer, nobody, within
from discdiff.types import Canvas, Condition, DiscdiffError, Network, Value


class LeftToRight(Value, frozen=True):
    """Decoding of an autoregressive network: one evaluation for a prefix that all rows have, then one for
    each position, of that position alone.
    """

    kind: Literal["left_to_right"] = "left_to_right"
    filters: tuple[AnyFilter, ...] = ()

    def evaluations(self, length: int) -> int:
        """Network evaluations for a sequence, at most."""
        return length

    @torch.no_grad()
    def run(
        self, net: Network, canvas: Canvas, noise: Noise, observe: Observer = nobody
    ) -> Int64[Tensor, "B L"]:
        """Fill the free positions; what stands before them is context. `-> [B, L]`"""
        check_canvas(canvas)
        batch, length = canvas.shape
        u = noise.uniform(Stream.STEP, length)
        time = torch.zeros(batch, 1, dtype=torch.float64, device=canvas.tokens.device)
        shifted = torch.cat([torch.full_like(canvas.tokens[:, :1], net.vocab), canvas.tokens], dim=1)
        observe(1.0, torch.where(canvas.free, net.vocab, canvas.tokens))
        cache, known = KeyValueCache(capacity=length), _prefix(canvas)
        for position in range(known, length):
            read = shifted[:, cache.length : position + 1]
            condition = _columns(canvas.condition, cache.length, position + 1)
            raw = net.head(net.trunk(read, time, condition, cache=cache)[:, -1])
            if canvas.allowed is not None:
                raw = raw.masked_fill(~canvas.allowed[:, position], -torch.inf)
            drawn = categorical(apply(self.filters, raw), u[:, position])
            shifted[:, position + 1] = torch.where(canvas.free[:, position], drawn, shifted[:, position + 1])
            within(observe, canvas, shifted[:, 1:], position, net.vocab)(
                1 - (position + 1) / length, shifted[:, position + 1 : position + 2]
            )
        return shifted[:, 1:]


def _prefix(canvas: Canvas) -> int:
    """How many positions at the front are given in all rows; waits for the device once."""
    return int((~canvas.free).all(0).long().cumprod(0).sum())


def _columns(condition: Condition, start: int, stop: int) -> Condition:
    documents = condition.documents
    return Condition(condition.labels, None if documents is None else documents[:, start:stop])


def check_canvas(canvas: Canvas) -> None:
    """Raises DiscdiffError for context that stands where it can't be seen in time."""
    late = (canvas.free.long().cumsum(-1) > 0) & ~canvas.free
    if bool(late.any()):
        raise DiscdiffError(
            "context stands after free positions, which decoding from left to right can't see: "
            "give a prefix only, or use a diffusion method to infill"
        )
    check_allowed(canvas)
