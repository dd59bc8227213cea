"""Argmax flows. Hoogeboom et al. 2021, arXiv:2102.05379.

A normalizing flow gives a density p(v) of latents v [L, E], and tokens are x = argmax v at each position (or
a product of argmaxes), so P(x) is p's mass on a region. With a law q(v | x) on that region,

    -log P(x)  <=  E over v ~ q(v | x) of   log q(v | x) - log p(v),
    -log P(x)  <=  E over v_1 .. v_k of    -log (1/k) sum over j of p(v_j) / q(v_j | x),

where the second, importance-weighted, falls to -log P(x) as k grows (Burda et al. 2015, arXiv:1509.00519). p
is a stack of affine couplings or autoregressive layers over a standard law; an encoder, a transformer over
the tokens, gives q its numbers. To sample: draw from the base, run the flow back, take the argmax.

With Gumbel variables for both base and q, and one rightward layer that reads tokens and has scales of 1, this
is the autoregressive model: the argmax of Gumbel variables with locations phi has law softmax(phi), and the
bound can be exact.

What may be given: with rightward layers alone, a prefix. Its latents are drawn from q, which reads tokens
from left to right there, and the free positions follow given those latents: the bound is that model's. Other
flows mix all positions and can be given none. Positions behind the last free one are padding, which isn't
seen.
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor, nn

from discdiff.networks import AnyBackbone, Bidirectional, Causal
from discdiff.networks.affine_layers import (
    AffineLayer,
    AnyAffineLayer,
    Elementwise,
    PositionCoupling,
)
from discdiff.networks.argmax import AnyLift, Softplus
from discdiff.networks.conditioner import ask, share
from discdiff.networks.densities import AnyDensity, StandardNormal
from discdiff.networks.given import given, given_to_sample
from discdiff.noise import Noise, Stream
from discdiff.samplers import AnySampler, Inverse
from discdiff.samplers.compatible import check
from discdiff.samplers.trace import Observer, nobody
from discdiff.types import Canvas, Value


class ArgmaxNetwork(nn.Module):
    """The encoder and the layers, in their order from data to base."""

    def __init__(self, vocab: int, encoder: nn.Module, layers: Sequence[AffineLayer | Elementwise]):
        super().__init__()
        self.vocab = vocab
        self.encoder = encoder
        # Not a ModuleList: sharded training wraps its elements' forward, and layers run both ways instead.
        self.by_index = nn.ModuleDict({str(index): layer for index, layer in enumerate(layers)})

    @property
    def layers(self) -> list[AffineLayer | Elementwise]:
        return cast("list[AffineLayer | Elementwise]", list(self.by_index.values()))


class ArgmaxFlow(Value, frozen=True):
    """The argmax of a normalizing flow; `layers` are in their order from data to base."""

    kind: Literal["argmax_flow"] = "argmax_flow"
    lift: AnyLift = Softplus()
    layers: tuple[AnyAffineLayer, ...] = Field(
        default=tuple(PositionCoupling(stride=2**k) for k in range(3)), min_length=1
    )
    base: AnyDensity = StandardNormal()

    @property
    def rightward(self) -> bool:
        """Whether all runs from left to right."""
        return all(layer.rightward for layer in self.layers)

    def network(self, backbone: AnyBackbone, vocab: int) -> ArgmaxNetwork:
        """A transformer for the encoder and for each layer; the backbone's blocks are shared out."""
        first, *parts = share(backbone, 1 + len(self.layers))
        attention = Causal() if self.rightward else Bidirectional()
        encoder = first.build(
            inputs=vocab, outputs=self.lift.outputs(vocab), attention=attention, vocab=vocab
        )
        layers = [layer.build(part, vocab, self.lift) for layer, part in zip(self.layers, parts, strict=True)]
        return ArgmaxNetwork(vocab, encoder, [*layers, Elementwise(self.lift.size(vocab))])

    def default_sampler(self, steps: int) -> Inverse:
        """The layers, once each, whatever the number of steps."""
        sequential = sum(layer.sequential for layer in self.layers)
        return Inverse(parallel=len(self.layers) - sequential, sequential=sequential)

    def loss(self, net: ArgmaxNetwork, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """The bound, from one draw of the latents. `-> [B]` nats"""
        return self.bound(net, canvas, noise)

    def bound(self, net: ArgmaxNetwork, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """An unbiased estimate, from one draw of the latents, of an upper bound on -log p. `-> [B]` nats"""
        return self.importance_bound(net, canvas, noise, 1)

    def importance_bound(
        self, net: ArgmaxNetwork, canvas: Canvas, noise: Noise, samples: int
    ) -> Float[Tensor, "B"]:
        """An unbiased estimate of the importance-weighted bound of so many draws. `-> [B]` nats"""
        canvas = given(canvas, self.rightward)
        raw = ask(net.encoder, canvas.tokens, canvas.condition)
        weights: list[Tensor] = []
        for uniform in self._uniform(canvas, net.vocab, noise, samples).unbind(1):
            v, log_q = self.lift.lift(raw, canvas.tokens, uniform)
            weights.append(((self.log_density(net, v, canvas) - log_q) * canvas.free).sum(-1))
        return math.log(samples) - torch.stack(weights).logsumexp(0)

    @torch.no_grad()
    def sample(
        self,
        net: ArgmaxNetwork,
        canvas: Canvas,
        sampler: AnySampler,
        noise: Noise,
        observe: Observer = nobody,
    ) -> Int64[Tensor, "B L"]:
        """Draw from the base, run the layers back and decode; a prefix is kept. `observe` is told what each
        layer's output would decode to. `-> [B, L]`
        """
        check(self, sampler)

        def fill(canvas: Canvas, noise: Noise, observe: Observer) -> Tensor:
            return self._fill(net, canvas, noise, observe)

        canvas = given_to_sample(canvas, self.rightward)
        return cast(Inverse, sampler).run(fill, canvas, noise, observe)

    def _fill(
        self, net: ArgmaxNetwork, canvas: Canvas, noise: Noise, observe: Observer
    ) -> Int64[Tensor, "B L"]:
        raw = ask(net.encoder, canvas.tokens, canvas.condition)
        states = [self.lift.lift(raw, canvas.tokens, self._uniform(canvas, net.vocab, noise, 1)[:, 0])[0]]
        for layer in net.layers[:-1]:
            states.append(layer.to_base(states[-1], canvas.condition)[0])
        uniform = noise.on(canvas.rows).uniform(Stream.PRIOR, canvas.shape[1], self.lift.size(net.vocab))
        v = self.base.quantile(uniform).to(states[0])
        x = self._decoded(v, canvas, net.vocab)
        observe(1.0, x)
        for left in reversed(range(len(net.layers))):
            v = net.layers[left].from_base(v, canvas.condition, canvas.free, states[left])
            x = self._decoded(v, canvas, net.vocab)
            observe(left / len(net.layers), x)
        return x

    def _decoded(self, v: Float[Tensor, "B L E"], canvas: Canvas, vocab: int) -> Int64[Tensor, "B L"]:
        return torch.where(canvas.free, self.lift.tokens(v, vocab), canvas.tokens)

    def log_density(
        self, net: ArgmaxNetwork, v: Float[Tensor, "B L E"], canvas: Canvas
    ) -> Float[Tensor, "B L"]:
        """log p(v), as a sum over positions. `[B, L, E] -> [B, L]` nats"""
        log_det = v.new_zeros(v.shape[:2])
        for layer in net.layers:
            v, more = layer.to_base(v, canvas.condition)
            log_det = log_det + more
        return self.base.log_prob(v).sum(-1) + log_det

    def _uniform(self, canvas: Canvas, vocab: int, noise: Noise, samples: int) -> Float64[Tensor, "B S L E"]:
        shape = (samples, canvas.shape[1], self.lift.size(vocab))
        return noise.on(canvas.rows).uniform(Stream.EMBEDDING, *shape)
