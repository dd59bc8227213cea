"""Multinomial diffusion. Hoogeboom et al. 2021, arXiv:2102.05379.

Uniform noise in T steps with the cosine schedule of improved DDPM; the network states the leave-one-out law,
and the bound is the sum over steps of KL(q(x_s | x_t, x_0) || p(x_s | x_t)).

Training draws the step t with probability proportional to the root mean square of its past losses and divides
by T times that probability, which leaves the mean alone and lowers the variance (Nichol and Dhariwal 2021,
arXiv:2102.09672). The history is a buffer of the network: it is saved with it, survives resume, and every
rank adds the losses of all ranks, in the same order. Until each step has been seen `warm` times, steps are
drawn evenly. The bound never uses the history.
"""

from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor, nn

from discdiff.closed_forms import Stand, bridge_divergence
from discdiff.methods.diffusion import Diffusion
from discdiff.networks import AnyBackbone
from discdiff.noise import Noise
from discdiff.objectives import Steps
from discdiff.parameterizations import LeaveOneOut
from discdiff.processes import Uniform
from discdiff.schedules import SquaredCosine
from discdiff.types import Canvas, Network


class LossHistory(nn.Module):
    """A running mean square of the loss of each of T steps, and how often each was seen."""

    squares: Float64[Tensor, "T"]
    seen: Int64[Tensor, "T"]

    def __init__(self, steps: int):
        super().__init__()
        self.register_buffer("squares", torch.zeros(steps, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.int64))

    def probabilities(self, warm: int) -> Float64[Tensor, "T"]:
        """The law by which training draws its step."""
        even = torch.full_like(self.squares, 1 / len(self.squares))
        root = self.squares.sqrt()
        informed = 0.999 * root / root.sum().clamp_min(1e-300) + 0.001 * even
        return torch.where((self.seen < warm).any(), even, informed)

    @torch.no_grad()
    def add(self, step: Int64[Tensor, "B"], nats: Float[Tensor, "B"]) -> None:
        """Add losses, of this rank and all others: a running mean over a tenth of what is new."""
        step, square = _gathered(step), _gathered(nats.detach().double() ** 2)
        at = torch.arange(len(self.seen), device=step.device)[:, None] == step
        count, total = at.sum(-1), torch.where(at, square, 0).sum(-1)
        mean = total / count.clamp_min(1)
        weight = torch.where(self.seen == 0, 1.0, 1 - 0.9 ** count.double())
        self.squares.copy_(
            torch.where(count > 0, self.squares + weight * (mean - self.squares), self.squares)
        )
        self.seen += count


def _gathered(values: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()):
        return values
    ranks = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, values)
    return torch.cat(ranks)


class Multinomial(Diffusion, frozen=True):
    """Uniform noise in T steps, with importance-sampled steps in training."""

    kind: Literal["multinomial"] = "multinomial"
    process: Uniform = Uniform(schedule=SquaredCosine())
    parameterization: LeaveOneOut = LeaveOneOut()
    clock: Steps = Steps(count=1000)  # pyright: ignore[reportIncompatibleVariableOverride]
    warm: int = Field(default=10, ge=1)

    def network(self, backbone: AnyBackbone, vocab: int) -> nn.Module:
        """The backbone, with the history of losses beside it."""
        net = super().network(backbone, vocab)
        net.history = LossHistory(self.clock.count)
        return net

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """T times the divergence of the bridges of the step that ends at t. `[N, V] -> [N]`"""
        s = self.clock.start(t)
        stand = Stand.of(self.process, self.parameterization, raw, x0, x_t, t, s)
        return (self.clock.count * bridge_divergence(self.process, stand, t)).to(raw)

    def loss(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """The bound at one step per row, drawn by its past losses and weighted back. `-> [B]` nats"""
        noise = noise.on(canvas.rows)
        history = history_of(net)
        law = history.probabilities(self.warm).to(canvas.tokens.device)
        step = torch.searchsorted(law.cumsum(0), noise.time()[:, 0] * law.sum()).clamp_max(
            self.clock.count - 1
        )
        t = ((step + 1).double() / self.clock.count)[:, None]
        nats = self._noised(net, canvas, t, noise, self.objective)
        history.add(step, nats)
        return nats / (law[step] * self.clock.count).to(nats)


def history_of(net: Network) -> LossHistory:
    """The losses that a network of `Multinomial` remembers."""
    history = getattr(net, "history", None)
    if not isinstance(history, LossHistory):
        raise TypeError(
            "a network of multinomial diffusion has a history of losses; make it by method.network"
        )
    return history
