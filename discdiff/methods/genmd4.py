"""GenMD4: masked diffusion whose schedule depends on the token and is learned. Shi et al. 2024,
arXiv:2406.04329.

Token v is masked by time t with probability t^p_v, alpha_t(v) = 1 - t^p_v; the exponents p are parameters of
the network. With mu(v) the network's law of x_0 given x_t, a masked position is unmasked to v at the rate
(p_v / t) mu(v), and the bound's integrand there is the divergence of rates

    nats per unit time = sum over v of (p_v / t) mu(v)  -  (p_x / t)  +  (p_x / t) log(1 / mu(x)),       x =
    x_0.

A masked token tells when it was masked, hence something of which it was: mu is a posterior, and depends on t.
The loss also needs the gradient through the law of x_t, q(x_t | x_0) with parameters p: two draws of x_t and
the leave-one-out estimate of REINFORCE, (f_1 - f_2) / 2 * grad (log q_1 - log q_2), as in the paper.

The raw output carries the exponents behind the logits, `[..., 2V]`, so that densities and steps need nothing
else.
"""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from discdiff.chunks import by_chunks, per_row
from discdiff.methods.diffusion import Diffusion, Term
from discdiff.networks import AnyBackbone
from discdiff.noise import Noise, Stream
from discdiff.objectives import Continuous
from discdiff.parameterizations import Posterior
from discdiff.processes import Mask
from discdiff.sums import cross_entropy
from discdiff.types import Canvas, Network


class ExponentHead(nn.Module):
    """Logits and, behind them, the learned exponents of the schedule. `[..., D] -> [..., 2V]`"""

    def __init__(self, logits: nn.Module, vocab: int, start: float):
        super().__init__()
        self.logits = logits
        # softplus keeps exponents positive.
        self.free = nn.Parameter(torch.full((vocab,), math.log(math.expm1(start))))

    @property
    def exponents(self) -> Float[Tensor, "V"]:
        return nn.functional.softplus(self.free)

    def forward(self, h: Float[Tensor, "*n D"]) -> Float[Tensor, "*n W"]:
        logits = self.logits(h)
        return torch.cat([logits, self.exponents.to(logits).expand_as(logits)], dim=-1)


class GenMd4(Diffusion, frozen=True):
    """Masked diffusion with a learned exponent per token, all starting at `start`."""

    tokens_alike: ClassVar[bool] = False
    kind: Literal["genmd4"] = "genmd4"
    process: Mask = Mask()
    parameterization: Posterior = Posterior()
    clock: Continuous = Continuous()  # pyright: ignore[reportIncompatibleVariableOverride]
    start: float = Field(default=1.0, gt=0)

    def network(self, backbone: AnyBackbone, vocab: int) -> nn.Module:
        """The backbone, its head extended by the exponents."""
        net = backbone.build(inputs=vocab + 1, outputs=vocab, vocab=vocab)
        net.head = ExponentHead(net.head, vocab, self.start)  # pyright: ignore[reportAttributeAccessIssue]
        return net

    def loss(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """The mean of two estimates of the bound, with the gradient through what was masked. `-> [B]` nats

        A surrogate: its value is the bound's estimate, its gradient is the bound's.
        """
        noise = noise.on(canvas.rows)
        t = noise.time()
        first, log_first = self._estimate(net, canvas, t, noise, Stream.CORRUPT)
        second, log_second = self._estimate(net, canvas, t, noise, Stream.AUXILIARY)
        score = (first - second).detach() / 2 * (log_first - log_second)
        return (first + second) / 2 + score - score.detach()

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The divergence of rates at masked positions. `[N, 2V] -> [N]`"""
        logits, exponents = raw.chunk(2, dim=-1)
        here = exponents.gather(-1, x0[..., None])[..., 0]
        mean = (logits.softmax(-1) * exponents).sum(-1)
        return self._nats(logits, mean, here, x0, t) * (x_t == logits.shape[-1])

    @staticmethod
    def _nats(logits: Tensor, mean: Tensor, here: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The divergence from the mean of p under mu, and p of x_0. `[N, V] -> [N]`"""
        return (mean - here + here * cross_entropy(logits, x0)) / t.to(logits)

    def log_bridge(self, raw: Tensor, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """A masked token becomes v with probability (1 - (s/t)^p_v) mu(v). `[..., 2V] -> [..., V + 1]`"""
        log_mu, exponents = self._read(raw)
        log_stay = exponents * (s / t).log()[..., None].to(raw)
        unmask = log_mu + torch.log(-torch.expm1(log_stay))
        stay = (log_mu + log_stay).logsumexp(-1, keepdim=True)
        masked = (x_t == log_mu.shape[-1])[..., None]
        certain = torch.full_like(torch.cat([unmask, stay], dim=-1), -torch.inf)
        certain = certain.scatter(-1, x_t[..., None], 0)
        return torch.where(masked, torch.cat([unmask, stay], dim=-1), certain)

    def rates(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """A masked token becomes v at the rate (p_v / t) mu(v). `[..., 2V] -> [..., V + 1]`"""
        log_mu, exponents = self._read(raw)
        rate = log_mu.exp() * exponents / t[..., None].to(raw)
        masked = (x_t == log_mu.shape[-1])[..., None]
        return nn.functional.pad(torch.where(masked, rate, 0), (0, 1))

    def log_denoise(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """log mu at masked positions, certainty elsewhere. `[..., 2V] -> [..., V]`"""
        return self.parameterization.log_posterior(self.process, self._read(raw)[0], x_t, t)

    def _noised(self, net: Network, canvas: Canvas, t: Tensor, noise: Noise, term: Term) -> Tensor:
        return self._estimate(net, canvas, t, noise, Stream.CORRUPT)[0]

    def _estimate(
        self, net: Network, canvas: Canvas, t: Tensor, noise: Noise, stream: Stream
    ) -> tuple[Tensor, Tensor]:
        """The bound's integrand at x_t ~ q(. | x_0), and log q(x_t | x_0), whose gradient reaches the
        exponents.
        """
        exponents = exponents_of(net)
        log_masked = exponents[canvas.tokens].double() * t.log()
        masked = canvas.free & (noise.uniform(stream, canvas.shape[1]) < log_masked.detach().exp())
        x_t = torch.where(masked, net.vocab, canvas.tokens)
        log_q = torch.where(masked, log_masked, torch.log(-torch.expm1(log_masked)))
        hidden = net.trunk(x_t, t, canvas.condition)

        def term(logits: Tensor, x0: Tensor, t: Tensor) -> Tensor:
            p = exponents.to(logits)
            return self._nats(logits, logits.softmax(-1) @ p, p[x0], x0, t)

        where = masked.nonzero(as_tuple=True)
        columns = (canvas.tokens[where], t.expand_as(x_t)[where])
        values = by_chunks(head_of(net).logits, net.vocab, term, hidden[where], *columns)
        nats = per_row(values, where, x_t.shape)
        return nats, (log_q * canvas.free).sum(-1).to(nats)

    @staticmethod
    def _read(raw: Tensor) -> tuple[Tensor, Tensor]:
        logits, exponents = raw.chunk(2, dim=-1)
        return logits.log_softmax(-1), exponents


def exponents_of(net: Network) -> Float[Tensor, "V"]:
    """The exponents that a network of `GenMd4` has learned."""
    return head_of(net).exponents


def head_of(net: Network) -> ExponentHead:
    """The head of a network of `GenMd4`."""
    head = net.head
    if not isinstance(head, ExponentHead):
        raise TypeError(f"a network of genmd4 ends in an ExponentHead, this one in {type(head).__name__}")
    return head
