"""Autoregression: the baseline, on the same transformer. log p(x) = sum over i of log p(x_i | x_1 ...
x_(i-1)), exactly.

The network reads the sequence shifted by one, with a begin symbol (id V) in front, through causal attention.
"""

from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from discdiff.chunks import by_chunks, per_row
from discdiff.networks import AnyBackbone, Causal
from discdiff.noise import Noise
from discdiff.samplers import AnySampler, LeftToRight
from discdiff.samplers.compatible import check
from discdiff.samplers.trace import Observer, nobody
from discdiff.sums import cross_entropy
from discdiff.types import Canvas, Network, Value


class Autoregressive(Value, frozen=True):
    """Left to right, one token at a time."""

    kind: Literal["autoregressive"] = "autoregressive"
    exact: ClassVar[bool] = True
    """`bound` is -log p itself and takes no randomness."""

    def network(self, backbone: AnyBackbone, vocab: int) -> nn.Module:
        """A causal network over V tokens and a begin symbol; it has no use for a time."""
        timeless = backbone.model_copy(update={"time": False})
        return timeless.build(inputs=vocab + 1, outputs=vocab, attention=Causal(), vocab=vocab)

    def default_sampler(self, steps: int) -> LeftToRight:
        """One evaluation a token, whatever the number of steps."""
        return LeftToRight()

    def loss(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """-log p of the free tokens, each given all before it. `-> [B]` nats"""
        return self.bound(net, canvas, noise)

    def bound(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """-log p of the free tokens, each given all before it: exact. `-> [B]` nats"""
        shifted = F.pad(canvas.tokens[:, :-1], (1, 0), value=net.vocab)
        time = torch.zeros(canvas.shape[0], 1, dtype=torch.float64, device=shifted.device)
        hidden = net.trunk(shifted, time, canvas.condition)
        where = canvas.free.nonzero(as_tuple=True)
        entropy = by_chunks(net.head, net.vocab, cross_entropy, hidden[where], canvas.tokens[where])
        return per_row(entropy, where, canvas.shape)

    def sample(
        self, net: Network, canvas: Canvas, sampler: AnySampler, noise: Noise, observe: Observer = nobody
    ) -> Int64[Tensor, "B L"]:
        """Fill the free positions from left to right; `observe` is told each state. `-> [B, L]`"""
        check(self, sampler)
        return cast(LeftToRight, sampler).run(net, canvas, noise.on(canvas.rows), observe)
