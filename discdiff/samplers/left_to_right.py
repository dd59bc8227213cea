"""Left to right: one token at a time, each from the law given all before it, with cached keys and values."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from discdiff.networks import KeyValueCache
from discdiff.noise import Noise, Stream, categorical
from discdiff.samplers.allowed import check_allowed
from discdiff.samplers.filters import AnyFilter, apply
from discdiff.samplers.microbatch import in_groups
from discdiff.samplers.trace import Observer, nobody, within
from discdiff.types import Canvas, Condition, DiscdiffError, Network, Value


class LeftToRight(Value, frozen=True):
    """Decoding of an autoregressive network: one evaluation for a prefix that all rows have, then one for
    each position, of that position alone.

    `microbatch`: draw exactly so many rows at a time, whose prefixes are of one length, so that rounding
    doesn't depend on what a row is batched with.
    """

    kind: Literal["left_to_right"] = "left_to_right"
    filters: tuple[AnyFilter, ...] = ()
    microbatch: int | None = Field(default=None, ge=1)

    def evaluations(self, length: int) -> int:
        """Network evaluations for a sequence, at most."""
        return length

    @torch.no_grad()
    def run(
        self, net: Network, canvas: Canvas, noise: Noise, observe: Observer = nobody
    ) -> Int64[Tensor, "B L"]:
        """Fill the free positions; what stands before them is context. `-> [B, L]`"""
        check_canvas(canvas)

        def fill(canvas: Canvas, noise: Noise, observe: Observer) -> Tensor:
            return self._fill(net, canvas, noise, observe)

        return in_groups(fill, self.microbatch, canvas, noise, observe, _prefixes(canvas))

    def _fill(self, net: Network, canvas: Canvas, noise: Noise, observe: Observer) -> Int64[Tensor, "B L"]:
        batch, length = canvas.shape
        u = noise.uniform(Stream.STEP, length)
        time = torch.zeros(batch, 1, dtype=torch.float64, device=canvas.tokens.device)
        shifted = torch.cat([torch.full_like(canvas.tokens[:, :1], net.vocab), canvas.tokens], dim=1)
        observe(1.0, torch.where(canvas.free, net.vocab, canvas.tokens))
        cache, known = KeyValueCache(capacity=length), int(_prefixes(canvas).min())
        for position in range(known, length):
            read = shifted[:, cache.length : position + 1]
            condition = _columns(canvas.condition, cache.length, position + 1)
            raw = net.head(net.trunk(read, time, condition, cache=cache)[:, -1])
            if canvas.allowed is not None:
                raw = raw.masked_fill(~canvas.allowed[:, position], -torch.inf)
            drawn = categorical(apply(self.filters, raw) if self.filters else raw, u[:, position])
            shifted[:, position + 1] = torch.where(canvas.free[:, position], drawn, shifted[:, position + 1])
            within(observe, canvas, shifted[:, 1:], position, net.vocab)(
                1 - (position + 1) / length, shifted[:, position + 1 : position + 2]
            )
        return shifted[:, 1:]


def _prefixes(canvas: Canvas) -> Int64[Tensor, "B"]:
    """How many positions at the front of each row are given. `-> [B]`"""
    return (~canvas.free).long().cumprod(-1).sum(-1)


def _columns(condition: Condition, start: int, stop: int) -> Condition:
    documents = condition.documents
    return replace(condition, documents=None if documents is None else documents[:, start:stop])


def check_canvas(canvas: Canvas) -> None:
    """Raises DiscdiffError for context that stands where it can't be seen in time."""
    late = (canvas.free.long().cumsum(-1) > 0) & ~canvas.free
    if bool(late.any()):
        raise DiscdiffError(
            "context stands after free positions, which decoding from left to right can't see: "
            "give a prefix only, or use a diffusion method to infill"
        )
    check_allowed(canvas)
