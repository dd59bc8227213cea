"""The importance-weighted bound: several noising paths of T steps for a sequence, weighed together.

A path is drawn from the forward process given the data, x_1 ~ q(. | x_0), then x_s ~ q(. | x_t, x_0) down
to t = 0, and weighs what the model's own sampler gives it over what it was drawn with,

    w = p(x_1) / q(x_1 | x_0) * product over steps of p(x_s | x_t) / q(x_s | x_t, x_0).

E w = p(x_0), the likelihood of the T-step ancestral sampler, so -log of the mean of K weights bounds -log
p(x_0) from above in expectation, tighter with every path (Burda et al. 2016, arXiv:1509.00519); with K = 1
its expectation is the T-step bound.
"""

from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from discdiff.algebra import log_bridge, log_one_hot
from discdiff.chunks import per_row
from discdiff.evaluation.likelihood import Ledger, ledger, merge
from discdiff.methods import Diffusion
from discdiff.noise import Noise, Stream, categorical
from discdiff.types import Canvas, DiscdiffError, Value


class ImportanceWeighted(Value, frozen=True):
    """`paths` paths of `steps` steps: a sequence costs their product in network evaluations."""

    kind: Literal["importance_weighted"] = "importance_weighted"
    paths: int = Field(default=8, ge=1)
    steps: int = Field(default=64, ge=1)
    seed: int = 0

    def check(self, method: object) -> None:
        """Raises `DiscdiffError` if the method is no discrete diffusion."""
        if not isinstance(method, Diffusion):
            name = getattr(method, "kind", type(method).__name__)
            raise DiscdiffError(
                f"{name} has no noising paths to weigh; use the stratified estimator, which is its own bound"
            )

    def evaluations(self, method: object) -> int:
        """Network evaluations a sequence."""
        return self.paths * self.steps

    def describe(self, method: object) -> tuple[str, str]:
        """The estimator and its times, for a protocol."""
        return "upper bound, importance-weighted", f"{self.paths} paths of {self.steps} steps"

    def measure(self, method: object, network: nn.Module, canvases: Iterable[Canvas]) -> Ledger:
        """Every sequence's bound, batch by batch.

        Raises `DiscdiffError` if the method is no discrete diffusion, or where a bound is not a number.
        """
        self.check(method)
        network.eval()
        diffusion = cast(Diffusion, method)
        return merge(
            [ledger(each, self._bound(diffusion, network, each)[:, None, None]) for each in canvases]
        )

    @torch.no_grad()
    def _bound(self, method: Diffusion, network: Any, canvas: Canvas) -> Tensor:
        noise = Noise(self.seed).on(canvas.rows)
        weights = [
            self._path(method, network, canvas, noise, k * (self.steps + 1)) for k in range(self.paths)
        ]
        return torch.tensor(float(self.paths)).log() - torch.stack(weights).logsumexp(0)

    def _path(self, method: Diffusion, net: Any, canvas: Canvas, noise: Noise, first: int) -> Tensor:
        """log w of one path. `-> [B]`"""
        one = torch.ones(canvas.shape[0], 1, dtype=torch.float64, device=canvas.tokens.device)
        x = method.corrupt(canvas, one, net.vocab, noise.at(first))
        total = _prior(method, canvas, x, net.vocab)
        for step in range(self.steps, 0, -1):
            t, s = one * step / self.steps, one * (step - 1) / self.steps
            x, gain = _step(method, net, canvas, x, s, t, noise.at(first + step))
            total = total + gain
        return total + _reconstruction(method, net, canvas, x, 0 * one)


def _prior(method: Diffusion, canvas: Canvas, x: Tensor, vocab: int) -> Tensor:
    """log p(x_1) - log q(x_1 | x_0), zero where the schedule reaches pure noise. `-> [B]`"""
    if method.process.ends[1] == 0:
        return torch.zeros(canvas.shape[0], dtype=torch.float64, device=x.device)
    one = torch.ones_like(x, dtype=torch.float64)
    certain = log_one_hot(canvas.tokens, vocab, torch.float64)
    even = torch.full_like(certain, 0.0).log_softmax(-1)
    laws = [
        method.process.log_marginal(each, one).gather(-1, x[..., None])[..., 0] for each in (even, certain)
    ]
    return ((laws[0] - laws[1]) * canvas.free).sum(-1)


def _step(
    method: Diffusion, net: Any, canvas: Canvas, x: Tensor, s: Tensor, t: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Draw x_s given x_t and the data, and what the model's law of it gains on that. `-> [B, L], [B]`"""
    live = canvas.free & method.process.live(x, net.vocab)
    where = live.nonzero(as_tuple=True)
    raw = net.head(net.trunk(x, t, canvas.condition)[where])
    here, times = x[where], (s.expand_as(x)[where], t.expand_as(x)[where])
    data = log_one_hot(canvas.tokens[where], net.vocab, torch.float64)
    true = log_bridge(method.process, data, here, *times)
    model = method.log_bridge(raw, here, *times).double()
    drawn = categorical(true, noise.uniform(Stream.STEP, x.shape[1])[where])
    gain = (model - true).gather(-1, drawn[:, None])[:, 0]
    x = x.index_put(where, drawn)
    return x, per_row(gain, where, x.shape)


def _reconstruction(method: Diffusion, net: Any, canvas: Canvas, x: Tensor, zero: Tensor) -> Tensor:
    """log p(x_0 | x at t = 0), zero where the schedule starts at the data. `-> [B]`"""
    if method.process.ends[0] == 1:
        return torch.zeros(canvas.shape[0], dtype=torch.float64, device=x.device)
    where = (canvas.free & method.process.live(x, net.vocab)).nonzero(as_tuple=True)
    raw = net.head(net.trunk(x, zero, canvas.condition)[where])
    law = method.log_denoise(raw, x[where], zero.expand_as(x)[where]).double()
    gain = law.gather(-1, canvas.tokens[where][:, None])[:, 0]
    return per_row(gain, where, x.shape)
