"""Bases of a discrete flow whose -log p of one-hot vectors has a gradient for them.

Values with the outer protocol of a method, for the part of a network that a flow keeps for its base.
"""

import math
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from discdiff.networks.attention import Causal
from discdiff.networks.conditioner import ask
from discdiff.networks.discrete_layers import begin_with
from discdiff.networks.transformer import Transformer, TransformerNetwork
from discdiff.noise import Noise, Stream, categorical
from discdiff.samplers import LeftToRight
from discdiff.types import Canvas, Network, Value

GAIN = 16.0
"""A table's logits move this many times faster than its parameters, about as those of a head do."""


class Table(nn.Module):
    """Logits that repeat every `period` positions: `length -> [L, V]`.

    Token 0 begins with half the mass, so that the layers have something to aim at from the first step:
    were the table uniform, no transform would be better than another.
    """

    def __init__(self, period: int, vocab: int):
        super().__init__()
        self.vocab = vocab
        self.weight = nn.Parameter(torch.zeros(period, vocab))
        with torch.no_grad():
            self.weight[:, 0] = math.log(max(1, vocab - 1)) / GAIN

    def forward(self, length: int) -> Float[Tensor, "L V"]:
        position = torch.arange(length, device=self.weight.device)
        return GAIN * self.weight[position % len(self.weight)]


class Factorized(Value, frozen=True):
    """Independent tokens; their laws repeat every `period` positions."""

    exact: ClassVar[bool] = True
    kind: Literal["factorized"] = "factorized"
    period: int = Field(default=16, ge=1)

    def network(self, backbone: Transformer, vocab: int) -> Table:
        return Table(self.period, vocab)

    def relaxed(self, net: nn.Module, x: Float[Tensor, "B L V"], canvas: Canvas) -> Float[Tensor, "B"]:
        """-log p of the free positions of one-hot vectors. `[B, L, V] -> [B]` nats"""
        nats = -(x * net(x.shape[1]).log_softmax(-1)).sum(-1)
        return (nats * canvas.free).sum(-1)

    def bound(self, net: nn.Module, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """-log p of the free tokens: exact. `-> [B]` nats"""
        log_p = net(canvas.shape[1]).log_softmax(-1).expand(*canvas.shape, -1)
        nats = -log_p.gather(-1, canvas.tokens[..., None])[..., 0]
        return (nats * canvas.free).sum(-1)

    def sample(self, net: nn.Module, canvas: Canvas, sampler: None, noise: Noise) -> Int64[Tensor, "B L"]:
        """Draw the free tokens. `-> [B, L]`"""
        u = noise.on(canvas.rows).uniform(Stream.STEP, canvas.shape[1])
        log_p = net(canvas.shape[1]).expand(*canvas.shape, -1)
        return torch.where(canvas.free, categorical(log_p, u), canvas.tokens)

    def default_sampler(self, steps: int) -> None:
        """None: there is no network to evaluate."""
        return None


class Successive(Value, frozen=True):
    """Each token given all before it: the autoregressive base, with gradients for its tokens."""

    exact: ClassVar[bool] = True
    kind: Literal["successive"] = "successive"

    def network(self, backbone: Transformer, vocab: int) -> TransformerNetwork:
        return backbone.build(inputs=vocab + 1, outputs=vocab, attention=Causal(), vocab=vocab)

    def relaxed(self, net: nn.Module, x: Float[Tensor, "B L V"], canvas: Canvas) -> Float[Tensor, "B"]:
        """-log p of the free positions of one-hot vectors. `[B, L, V] -> [B]` nats"""
        raw = ask(net, begin_with(F.pad(x, (0, 1)), x.shape[-1], canvas.condition), canvas.condition)
        nats = -(x * raw.log_softmax(-1)).sum(-1)
        return (nats * canvas.free).sum(-1)

    def bound(self, net: nn.Module, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """-log p of the free tokens, each given all before it: exact. `-> [B]` nats"""
        raw = ask(net, begin_with(canvas.tokens, cast(int, net.vocab), canvas.condition), canvas.condition)
        nats = F.cross_entropy(raw.transpose(1, 2), canvas.tokens, reduction="none")
        return (nats * canvas.free).sum(-1)

    def sample(
        self, net: Network, canvas: Canvas, sampler: LeftToRight, noise: Noise
    ) -> Int64[Tensor, "B L"]:
        """Fill the free positions from left to right. `-> [B, L]`"""
        return sampler.run(net, canvas, noise.on(canvas.rows))

    def default_sampler(self, steps: int) -> LeftToRight:
        """One evaluation a token, whatever the number of steps."""
        return LeftToRight()
