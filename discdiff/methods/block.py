"""Block diffusion (BD3-LM): any discrete diffusion inside a block, left to right across blocks.

Arriola et al. 2025, arXiv:2503.09573. With blocks x^1 ... x^B of `size` tokens,

    -log p(x)  <=  sum over b of  the inner method's bound of x^b, given x^1 ... x^(b-1) clean,

each block with a time of its own. One forward pass evaluates all blocks: the sequence is doubled, noisy and
clean; a noisy position attends to its own noisy block and to the clean blocks before it, a clean one to clean
blocks up to its own. Blocks of one token are autoregression; one block of the whole length is the inner
method. On a GPU the pass skips what nobody may attend to.

Training may clip the times to an interval, which lowers the variance of the loss (the paper searches it per
block size: `loss_variance` is what to minimize); the bound never does.
"""

from typing import Literal, cast, no_type_check

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from discdiff.methods.diffusion import Diffusion, Term
from discdiff.networks import AnyBackbone, BlockCausal
from discdiff.networks.patterns import Pattern
from discdiff.noise import Noise
from discdiff.samplers import AnySampler, Blocks, Sampler
from discdiff.samplers.compatible import check
from discdiff.samplers.trace import Observer, nobody
from discdiff.types import Canvas, Condition, DiscdiffError, Network, Value

_GOLDEN = 0.6180339887498949


class Block(Value, frozen=True):
    """A discrete diffusion inside blocks of `size` positions; times of training lie within `clip`."""

    kind: Literal["block"] = "block"
    inner: "AnyMethod"  # pyright: ignore[reportUndefinedVariable]
    size: int = Field(default=16, ge=1)
    clip: tuple[float, float] = (0.0, 1.0)

    @model_validator(mode="after")
    def _fits(self) -> "Block":
        inner: Value = self.inner
        if not isinstance(inner, Diffusion) or type(inner).loss is not Diffusion.loss:
            raise DiscdiffError(
                f"{type(inner).__name__} can't run inside blocks: take a discrete diffusion whose loss is a "
                "sum over positions, as mdlm, md4, udlm, gidd, sedd, d3pm or flow_matching"
            )
        if inner.process.ends != (1.0, 0.0):
            raise DiscdiffError(
                "a block's schedule must run from alpha = 1 to alpha = 0: don't cut its ends off"
            )
        if not 0 <= self.clip[0] < self.clip[1] <= 1:
            raise DiscdiffError(f"clip is an interval of times within 0 and 1, not {self.clip}")
        return self

    @property
    def diffusion(self) -> Diffusion:
        """The method inside a block."""
        return cast(Diffusion, self.inner)

    def network(self, backbone: AnyBackbone, vocab: int) -> nn.Module:
        """The inner method's network, with attention within blocks and to those before."""
        process, reading = self.diffusion.process, self.diffusion.parameterization
        return backbone.build(
            inputs=process.states(vocab),
            outputs=reading.width(process, vocab),
            attention=BlockCausal(size=self.size),
            vocab=vocab,
        )

    def default_sampler(self, steps: int) -> Blocks:
        """Ancestral inside each block, in so many steps or as many as it has positions."""
        return Blocks(size=self.size, inside=Sampler(steps=max(1, min(steps, self.size))))

    def loss(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """What the inner method minimizes, at one time per block within `clip`. `-> [B]` nats"""
        noise = noise.on(canvas.rows)
        low, high = self.clip
        t = low + (high - low) * self.times(canvas, noise)
        return self._noised(net, canvas, t, noise, self.diffusion.objective)

    def bound(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """An unbiased estimate, from one time per block, of an upper bound on -log p. `-> [B]` nats"""
        noise = noise.on(canvas.rows)
        return self._noised(net, canvas, self.times(canvas, noise), noise, self.diffusion.density)

    def density_at(
        self, net: Network, canvas: Canvas, t: Float64[Tensor, "B 1"], noise: Noise
    ) -> Float[Tensor, "B"]:
        """The bound's integrand with all blocks at one time. `-> [B]` nats per unit time"""
        times = t.expand(canvas.shape)
        return self._noised(net, canvas, times, noise.on(canvas.rows), self.diffusion.density)

    def sample(
        self, net: Network, canvas: Canvas, sampler: AnySampler, noise: Noise, observe: Observer = nobody
    ) -> Int64[Tensor, "B L"]:
        """Fill the free positions block by block; `observe` is told each state. `-> [B, L]`"""
        check(self, sampler)
        return cast(Blocks, sampler).run(self.diffusion, net, canvas, noise.on(canvas.rows), observe)

    def times(self, canvas: Canvas, noise: Noise) -> Float64[Tensor, "B L"]:
        """A time per block, evenly spread over the blocks of a row. `-> [B, L]`"""
        block = torch.arange(canvas.shape[1], device=canvas.tokens.device) // self.size
        return (noise.time() + block * _GOLDEN) % 1

    def _noised(
        self, net: Network, canvas: Canvas, t: Float64[Tensor, "B L"], noise: Noise, term: Term
    ) -> Float[Tensor, "B"]:
        inner, length = self.diffusion, canvas.shape[1]
        t = inner.clock.snap(t)
        x_t = inner.corrupt(canvas, t, net.vocab, noise)
        position = torch.arange(length, device=x_t.device)
        hidden = net.trunk(
            torch.cat([x_t, canvas.tokens], dim=1),
            torch.cat([t, torch.zeros_like(t)], dim=1),
            Condition(canvas.condition.labels),
            mask=doubled(length, self.size, canvas.condition.documents),
            positions=torch.cat([position, position]),
        )
        live = canvas.free & inner.process.live(x_t, net.vocab)
        return inner.total(net, hidden[:, :length], live, canvas.tokens, x_t, t, term)


def doubled(length: int, size: int, documents: Int64[Tensor, "B L"] | None = None) -> Pattern:
    """Who attends to whom among L noisy and then L clean positions, within documents."""

    @no_type_check  # compilers trace it, and nothing but it
    def allowed(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        noisy, target = query < length, key < length
        ours, theirs = query % length // size, key % length // size
        own = noisy & target & (ours == theirs)
        before = noisy & ~target & (theirs < ours)
        clean = ~noisy & ~target & (theirs <= ours)
        seen = own | before | clean
        if documents is None:
            return seen
        return seen & (documents[row, query % length] == documents[row, key % length])

    return Pattern(allowed, 2 * length, None if documents is None else len(documents))


@torch.no_grad()
def loss_variance(method: Block, net: Network, canvas: Canvas, noise: Noise, draws: int = 8) -> float:
    """The variance of the training loss over its times and noise, in nats^2 per token: what a search of
    `clip` minimizes.

    Averaged over rows, so that what differs between texts does not count.
    """
    losses = torch.stack([method.loss(net, canvas, noise.at(draw)) for draw in range(draws)])
    per_token = losses.double() / canvas.free.sum(-1).clamp_min(1)
    return per_token.var(0).mean().item()
