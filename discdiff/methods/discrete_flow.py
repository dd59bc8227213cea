"""Discrete flows. Tran et al. 2019, arXiv:1905.10347.

Base tokens u have a law p_0 and data are x = f(u), f a bijection of V^L. There is no volume to correct for:

    log p(x) = log p_0(f^-1(x)),

exactly. f is a stack of layers, x_i = (mu_i + sigma_i u_i) mod V with sigma_i coprime to V, where mu and
sigma are the argmax of a transformer's logits: bipartite layers, which run both ways in one evaluation, or
autoregressive ones, which run to the base in one evaluation and from it in L. In training the argmax passes
the gradient of a softmax at a low temperature; its value, hence the loss, is the true one.

The base is factorized, autoregressive, or any method with a bound, and then the flow has that bound. A method
gives no gradient for its tokens, so over such a base the layers learn to make u factorized: they follow a
factorized law that is fitted beside the base and enters no likelihood.

What may be given: with rightward layers alone, u_1 .. u_i and x_1 .. x_i determine each other, so a prefix is
exact context. Other layers mix all positions, and the law of some tokens given others is out of reach.
Positions behind the last free one are padding, which the flow doesn't see.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from discdiff.networks import AnyBackbone
from discdiff.networks.conditioner import share
from discdiff.networks.discrete_bases import Factorized, Successive
from discdiff.networks.discrete_layers import AnyModularLayer, Bipartite, Layer
from discdiff.networks.given import given, given_to_sample
from discdiff.noise import Noise
from discdiff.samplers import AnySampler, Inverse
from discdiff.samplers.compatible import check
from discdiff.samplers.trace import Observer, nobody
from discdiff.types import Canvas, DiscdiffError, Value


@runtime_checkable
class Relaxed(Protocol):
    """A base whose -log p of one-hot vectors has a gradient for them."""

    def relaxed(self, net: nn.Module, x: Tensor, canvas: Canvas) -> Tensor: ...


class FlowNetwork(nn.Module):
    """The conditioners of the layers, from data to base, and the network of the base.

    `beside` is the factorized law that layers follow over a base that gives them no gradient.
    """

    def __init__(self, vocab: int, layers: Sequence[Layer], base: nn.Module, beside: nn.Module | None):
        super().__init__()
        self.vocab = vocab
        # Not a ModuleList: sharded training wraps its elements' forward, and layers run both ways instead.
        self.by_index = nn.ModuleDict({str(index): layer for index, layer in enumerate(layers)})
        self.base = base
        self.beside = beside

    @property
    def layers(self) -> list[Layer]:
        return cast("list[Layer]", list(self.by_index.values()))


class DiscreteFlow(Value, frozen=True):
    """A bijection of token sequences over a simpler law; `layers` are in their order from data to base."""

    kind: Literal["discrete_flow"] = "discrete_flow"
    layers: tuple[AnyModularLayer, ...] = Field(
        default=tuple(Bipartite(stride=2**k) for k in range(4)), min_length=1
    )
    # The union of all methods is completed after this class, and holds it.
    base: "Factorized | Successive | AnyMethod" = Field(  # pyright: ignore[reportUndefinedVariable]
        default=Factorized(), discriminator="kind"
    )
    temperature: float = Field(default=0.1, gt=0)

    @property
    def rightward(self) -> bool:
        """Whether prefixes of data and base determine each other."""
        return all(layer.rightward for layer in self.layers)

    @property
    def exact(self) -> bool:
        """Whether `bound` is -log p itself: it is where the base's is."""
        return bool(getattr(self.base, "exact", False))

    def network(self, backbone: AnyBackbone, vocab: int) -> FlowNetwork:
        """A transformer for each layer and the base's network; the backbone's blocks are shared out."""
        if not hasattr(self.base, "bound"):
            raise DiscdiffError(
                f"{self.base.kind} is the base of a discrete flow and has no likelihood bound, so the flow "
                "would have none: choose a base with a bound, or factorized, or successive"
            )
        parts = share(backbone, len(self.layers) + (not isinstance(self.base, Factorized)))
        layers = [layer.build(part, vocab) for layer, part in zip(self.layers, parts, strict=False)]
        base = self.base.network(parts[-1], vocab)
        beside = None if isinstance(self.base, Relaxed) else Factorized().network(backbone, vocab)
        return FlowNetwork(vocab, layers, base, beside)

    def default_sampler(self, steps: int) -> Inverse:
        """The base's own sampler, of so many steps if it has steps, then the layers."""
        sequential = sum(layer.sequential for layer in self.layers)
        return Inverse(
            parallel=len(self.layers) - sequential,
            sequential=sequential,
            base=self.base.default_sampler(steps),
        )

    def loss(self, net: FlowNetwork, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """The bound's value, with straight-through gradients. `-> [B]` nats"""
        canvas = given(canvas, self.rightward)
        u = F.one_hot(canvas.tokens, net.vocab).to(torch.get_default_dtype())
        for layer in net.layers:
            u = layer.relax(u, canvas.condition, self.temperature)
        if isinstance(self.base, Relaxed):
            return self.base.relaxed(net.base, u, canvas)
        beside = Factorized().relaxed(cast(nn.Module, net.beside), u, canvas)
        base = self.base.loss(net.base, canvas.with_tokens(u.argmax(-1)), noise)
        return base + (beside - beside.detach())

    def bound(self, net: FlowNetwork, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """-log p where the base knows its own exactly, else the base's bound on it. `-> [B]` nats"""
        canvas = given(canvas, self.rightward)
        u = self._states(net, canvas)[-1]
        return self.base.bound(net.base, canvas.with_tokens(u), noise)

    @torch.no_grad()
    def sample(
        self, net: FlowNetwork, canvas: Canvas, sampler: AnySampler, noise: Noise, observe: Observer = nobody
    ) -> Int64[Tensor, "B L"]:
        """Draw from the base and run the layers; a prefix is kept. `observe` is told the tokens after each.
        `-> [B, L]`
        """
        check(self, sampler)
        inverse = cast(Inverse, sampler)

        def fill(canvas: Canvas, noise: Noise, observe: Observer) -> Tensor:
            return self._fill(net, canvas, inverse, noise, observe)

        return inverse.run(fill, given_to_sample(canvas, self.rightward), noise, observe)

    def _fill(
        self, net: FlowNetwork, canvas: Canvas, inverse: Inverse, noise: Noise, observe: Observer
    ) -> Int64[Tensor, "B L"]:
        states = self._states(net, canvas)
        base = canvas.with_tokens(states[-1])
        x = self.base.sample(cast(Any, net.base), base, inverse.base_in_groups, noise)
        observe(1.0, x)
        for left in reversed(range(len(net.layers))):
            x = net.layers[left].from_base(x, canvas.condition, canvas.free, states[left])
            observe(left / len(net.layers), x)
        return x

    def _states(self, net: FlowNetwork, canvas: Canvas) -> list[Int64[Tensor, "B L"]]:
        """The tokens on their way from data to base."""
        states = [canvas.tokens]
        for layer in net.layers:
            states.append(layer.to_base(states[-1], canvas.condition))
        return states
