"""The sampling loop of discrete diffusion: a grid of times, a reverse step, exact draws."""

from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from discdiff.noise import Noise, Stream, categorical
from discdiff.processes import Process
from discdiff.samplers.reverse import Ancestral, AnyReverse, Dynamics
from discdiff.types import Canvas, Network, Value


@runtime_checkable
class Reversible(Dynamics, Protocol):
    """A method whose forward process is discrete: what the loop needs of it."""

    @property
    def process(self) -> Process: ...


class Sampler(Value, frozen=True):
    """From t = 1 to t = 0 in `steps` equal steps, one evaluation of the network each."""

    kind: Literal["reverse"] = "reverse"
    steps: int = Field(default=64, ge=1)
    reverse: AnyReverse = Ancestral()

    def evaluations(self, length: int) -> int:
        """Network evaluations for a sequence."""
        return self.steps

    def times(self) -> list[float]:
        """t_0 = 1 > t_1 > ... > t_n = 0."""
        return [1 - k / self.steps for k in range(self.steps)] + [0.0]

    @torch.no_grad()
    def run(self, dynamics: Reversible, net: Network, canvas: Canvas, noise: Noise) -> Int64[Tensor, "B L"]:
        """Fill the free positions of a canvas; its context is never touched. `-> [B, L]`"""
        process, times = dynamics.process, self.times()
        shape = (canvas.shape[0], canvas.shape[1])
        x = torch.where(canvas.free, process.prior(shape, net.vocab, noise), canvas.tokens)
        for step, (t, s) in enumerate(pairwise(times)):
            x = self._step(dynamics, net, canvas, x, s, t, noise.at(step + 1))
        start, _ = process.ends
        return x if start == 1 else self._denoise(dynamics, net, canvas, x, noise.at(self.steps + 1))

    def _step(
        self,
        dynamics: Reversible,
        net: Network,
        canvas: Canvas,
        x: Tensor,
        s: float,
        t: float,
        noise: Noise,
    ) -> Tensor:
        live = canvas.free & dynamics.process.live(x, net.vocab)
        now = torch.full((x.shape[0], 1), t, dtype=torch.float64, device=x.device)
        raw = net.head(net.trunk(x, now, canvas.condition)[live])
        at = torch.full((len(raw),), t, dtype=torch.float64, device=x.device)
        log_law = self.reverse.log_law(dynamics, raw, x[live], torch.full_like(at, s), at)
        u = noise.uniform(Stream.STEP, x.shape[1])
        return x.masked_scatter(live, categorical(log_law, u[live]))

    def _denoise(self, dynamics: Reversible, net: Network, canvas: Canvas, x: Tensor, noise: Noise) -> Tensor:
        """What is left where the schedule does not end at alpha = 1: a jump straight to data."""
        live = canvas.free & dynamics.process.live(x, net.vocab)
        zero = torch.zeros(x.shape[0], 1, dtype=torch.float64, device=x.device)
        raw = net.head(net.trunk(x, zero, canvas.condition)[live])
        at = torch.zeros(len(raw), dtype=torch.float64, device=x.device)
        log_law = dynamics.log_denoise(raw, x[live], at)
        u = noise.uniform(Stream.STEP, x.shape[1])
        return x.masked_scatter(live, categorical(log_law, u[live]))
