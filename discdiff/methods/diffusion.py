"""The body that discrete diffusions share: noise the free tokens, read the network's output, measure,
reverse.

A family is a subclass that fixes a process and a reading, and overrides what its paper states in closed form:

    density    the bound's integrand: nats per unit time at a position, given (raw, x0, x_t, t)
    objective  what training minimizes, same signature; the density unless the paper says otherwise
    log_bridge, rates    the reverse dynamics that samplers use

With t ~ U(0, 1), E[sum over free positions of density] + ends bounds -log p(free tokens | context), in nats.
`ends` is zero for a schedule that runs from alpha = 1 to alpha = 0 and else the sum of the prior and the
reconstruction term.

Densities are evaluated only at positions that time reversal can still change, a chunk of positions at a time
(`discdiff.chunks`): no tensor `[B, L, V]` is ever held where V is large.
"""

import math
from collections.abc import Callable
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from discdiff import algebra
from discdiff.chunks import in_chunks, per_row
from discdiff.networks import AnyBackbone
from discdiff.noise import Noise
from discdiff.objectives import AnyClock, Continuous, divergence
from discdiff.parameterizations import AnyParameterization
from discdiff.processes import AnyProcess
from discdiff.samplers import AnySampler, Sampler
from discdiff.samplers.compatible import check
from discdiff.samplers.trace import Observer, nobody
from discdiff.types import Canvas, Network, Value

Term = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(raw [N, W], x0 [N], x_t [N], t [N]) -> [N]"""


class Diffusion(Value, frozen=True):
    """A discrete diffusion: a noise process, the meaning of the network's output, and a clock for the
    bound.
    """

    tokens_alike: ClassVar[bool] = True
    """All tokens are noised alike: the schedule then says when mask noise is undone, not the network."""
    process: AnyProcess
    parameterization: AnyParameterization
    clock: AnyClock = Continuous()

    def network(self, backbone: AnyBackbone, vocab: int) -> nn.Module:
        """A network that reads noisy states and answers with this family's raw output."""
        return backbone.build(
            inputs=self.process.states(vocab),
            outputs=self.parameterization.width(self.process, vocab),
            vocab=vocab,
        )

    def default_sampler(self, steps: int) -> Sampler:
        """Ancestral, in so many steps."""
        return Sampler(steps=steps)

    # What a family may state in closed form -------------------------------------------------------

    def density(
        self, raw: Tensor, x0: Int64[Tensor, "*n"], x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*n"]
    ) -> Float[Tensor, "*n"]:
        """The bound's integrand, in nats per unit time at each position. `[..., W] -> [...]`"""
        return self.clock.density(self.process, self.parameterization, raw, x0, x_t, t)

    def objective(
        self, raw: Tensor, x0: Int64[Tensor, "*n"], x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*n"]
    ) -> Float[Tensor, "*n"]:
        """What training minimizes, in place of the density. `[..., W] -> [...]`"""
        return self.density(raw, x0, x_t, t)

    def log_bridge(
        self, raw: Tensor, x_t: Int64[Tensor, "*n"], s: Float64[Tensor, "*m"], t: Float64[Tensor, "*m"]
    ) -> Float[Tensor, "*n K"]:
        """log p(x_s | x_t) for s < t: the ancestral step. `[..., W] -> [..., K]`"""
        log_clean = self.parameterization.log_clean(self.process, raw, x_t, t)
        return algebra.log_bridge(self.process, log_clean, x_t, s, t)

    def rates(self, raw: Tensor, x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*m"]) -> Float[Tensor, "*n K"]:
        """Rates of the reversed jumps out of x_t: what Euler steps use. `[..., W] -> [..., K]`"""
        log_score = self.parameterization.log_score(self.process, raw, x_t, t)
        return algebra.reverse_rate(self.process, log_score, x_t, t)

    def log_denoise(
        self, raw: Tensor, x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*m"]
    ) -> Float[Tensor, "*n V"]:
        """log p(x_0 | x_t), the jump straight to data. `[..., W] -> [..., V]`"""
        return self.parameterization.log_posterior(self.process, raw, x_t, t)

    # The outer protocol ---------------------------------------------------------------------------

    def loss(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """What training minimizes, at one time per row. `-> [B]` nats"""
        noise = noise.on(canvas.rows)
        t = self.clock.snap(noise.time())
        return self._noised(net, canvas, t, noise, self.objective) + self.ends(net, canvas, noise)

    def bound(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """An unbiased estimate, from one time per row, of an upper bound on -log p. `-> [B]` nats"""
        noise = noise.on(canvas.rows)
        return self.density_at(net, canvas, noise.time(), noise) + self.ends(net, canvas, noise)

    def density_at(
        self, net: Network, canvas: Canvas, t: Float64[Tensor, "B 1"], noise: Noise
    ) -> Float[Tensor, "B"]:
        """The bound's integrand at given times, summed over free positions. `-> [B]` nats per unit time"""
        return self._noised(net, canvas, self.clock.snap(t), noise.on(canvas.rows), self.density)

    def sample(
        self, net: Network, canvas: Canvas, sampler: AnySampler, noise: Noise, observe: Observer = nobody
    ) -> Int64[Tensor, "B L"]:
        """Fill the free positions of a canvas; `observe` is told each state. `-> [B, L]`"""
        check(self, sampler)
        return cast(Sampler, sampler).run(self, net, canvas, noise.on(canvas.rows), observe)

    # ----------------------------------------------------------------------------------------------

    def corrupt(
        self, canvas: Canvas, t: Float64[Tensor, "B _"], vocab: int, noise: Noise
    ) -> Int64[Tensor, "B L"]:
        """Noise the free positions up to time t. `-> [B, L]`"""
        x_t = self.process.corrupt(canvas.tokens, t, vocab, noise)
        return torch.where(canvas.free, x_t, canvas.tokens)

    def _noised(
        self, net: Network, canvas: Canvas, t: Float64[Tensor, "B 1"], noise: Noise, term: Term
    ) -> Float[Tensor, "B"]:
        """Noise the canvas up to t and sum a term over the positions that are live then. `-> [B]`"""
        x_t = self.corrupt(canvas, t, net.vocab, noise)
        hidden = net.trunk(x_t, t, canvas.condition)
        live = canvas.free & self.process.live(x_t, net.vocab)
        return self.total(net, hidden, live, canvas.tokens, x_t, t, term)

    def total(
        self, net: Network, hidden: Tensor, live: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, term: Term
    ) -> Float[Tensor, "B"]:
        """Sum a term over the live positions of each row. `[B, L, D] -> [B]`"""

        def nats(h: Tensor, *at: Tensor) -> Tensor:
            return term(net.head(h), *at)

        return self.summed(net, nats, live, hidden, x0, x_t, t.expand_as(x_t))

    def summed(
        self, net: Network, nats: Callable[..., Tensor], live: Tensor, *columns: Tensor
    ) -> Float[Tensor, "B"]:
        """Sum a function of some columns over the live positions of each row. `[B, L, ...], ... -> [B]`"""
        where = live.nonzero(as_tuple=True)
        width = self.parameterization.width(self.process, net.vocab)
        values = in_chunks(nats, width, *(column[where] for column in columns))
        return per_row(values, where, live.shape)

    def ends(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """The prior and reconstruction terms of a schedule with cut-off ends, else zero. `-> [B]` nats"""
        start, stop = self.process.ends
        ends = torch.zeros(canvas.shape[0], device=canvas.tokens.device)
        if stop > 0:
            ends = ends + self.prior_divergence(net.vocab) * canvas.free.sum(-1)
        if start < 1:
            zero = torch.zeros(canvas.shape[0], 1, dtype=torch.float64, device=canvas.tokens.device)
            ends = ends + self._noised(net, canvas, zero, noise, self.reconstruction)
        return ends

    def prior_divergence(self, vocab: int) -> float:
        """KL(q_1(. | x_0) || the law sampling starts from, q_1 of a uniform token), in nats per position."""
        one = torch.ones(1, dtype=torch.float64)
        token = torch.zeros(1, dtype=torch.int64)
        certain = self.process.log_marginal(algebra.log_one_hot(token, vocab, torch.float64), one)
        spread = self.process.log_marginal(torch.full((1, vocab), -math.log(vocab), dtype=torch.float64), one)
        return divergence(certain, spread).item()

    def reconstruction(
        self, raw: Tensor, x0: Int64[Tensor, "*n"], x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*n"]
    ) -> Float[Tensor, "*n"]:
        """-log p(x_0 | x_t) at each position: the bound's last term, at t = 0. `[..., W] -> [...]`"""
        return -self.log_denoise(raw, x_t, t).gather(-1, x0[..., None])[..., 0]
