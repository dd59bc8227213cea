"""Divergences between the true and the model's time reversal, for any process, and the two clocks that use
them.

Continuous time: with u(y) = R_t(y -> x_t) q_t(y|x_0)/q_t(x_t|x_0) and the model's û(y) = R_t(y -> x_t) s(y),

    nats per unit time = sum over y != x_t of  û(y) - u(y) + u(y) log(u(y) / û(y)).

Its expectation over t ~ U(0, 1) and x_t, plus the ends, is a bound on -log p(x_0): the one formula behind the
bounds of SEDD (arXiv:2310.16834), MDLM (arXiv:2406.07524), UDLM (arXiv:2412.10193) and GIDD
(arXiv:2503.04482).

T steps: the sum over steps of KL(q(x_s | x_t, x_0) || p(x_s | x_t)); its first step is the reconstruction
term, and it tends to the continuous bound as O(1/T) (D3PM, arXiv:2107.03006).
"""

from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor

from discdiff.algebra import log_bridge, log_one_hot, log_score_from_clean, reverse_rate
from discdiff.processes import Process
from discdiff.processes.gaussian import VariancePreserving
from discdiff.schedules import Schedule
from discdiff.sums import cross_entropy
from discdiff.types import Value


@runtime_checkable
class Reading(Protocol):
    """What a raw output means (`discdiff.parameterizations`)."""

    def log_clean(self, process: Process, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...
    def log_score(self, process: Process, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...


def rate_divergence(
    process: Process,
    log_score: Float[Tensor, "*n K"],
    x0: Int64[Tensor, "*n"],
    x_t: Int64[Tensor, "*n"],
    t: Float64[Tensor, "*m"],
) -> Float[Tensor, "*n"]:
    """Nats per unit time at each position. `[..., K] -> [...]`"""
    clean = log_one_hot(x0, log_score.shape[-1] - process.extra, log_score.dtype)
    log_true = log_score_from_clean(process, clean, x_t, t)
    true = reverse_rate(process, log_true, x_t, t)
    model = reverse_rate(process, log_score, x_t, t)
    excess = torch.where(true > 0, log_true - log_score, 0)
    return (model - true + true * excess).sum(-1)


def bridge_divergence(
    process: Process,
    log_clean: Float[Tensor, "*n V"],
    x0: Int64[Tensor, "*n"],
    x_t: Int64[Tensor, "*n"],
    s: Float64[Tensor, "*m"],
    t: Float64[Tensor, "*m"],
) -> Float[Tensor, "*n"]:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) in nats at each position. `[..., V] -> [...]`"""
    true = log_bridge(process, log_one_hot(x0, log_clean.shape[-1], log_clean.dtype), x_t, s, t)
    return divergence(true, log_bridge(process, log_clean, x_t, s, t))


def divergence(log_p: Float[Tensor, "*n K"], log_q: Float[Tensor, "*n K"]) -> Float[Tensor, "*n"]:
    """KL(p || q) in nats, where 0 log 0 = 0. `[..., K] -> [...]`"""
    return (log_p.exp() * torch.where(log_p > -torch.inf, log_p - log_q, 0)).sum(-1)


def masked_divergence(
    clock: "AnyClock",
    schedule: Schedule,
    logits: Float[Tensor, "*n V"],
    x0: Int64[Tensor, "*n"],
    x_t: Int64[Tensor, "*n"],
    t: Float64[Tensor, "*n"],
) -> Float[Tensor, "*n"]:
    """The bound's integrand with mask noise: weighted cross-entropy at masked positions. `[..., V] ->
    [...]`
    """
    entropy = cross_entropy(logits, x0)
    weight = clock.mask_weight(schedule, t) * (x_t == logits.shape[-1])
    return entropy * weight.to(entropy)


class Continuous(Value, frozen=True):
    """Time runs through [0, 1]: the divergence of rates."""

    kind: Literal["continuous"] = "continuous"

    def snap(self, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The times at which the bound is taken: all."""
        return t

    def density(
        self, process: Process, reading: Reading, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor
    ) -> Float[Tensor, "*n"]:
        """Nats per unit time at each position. `[...] -> [...]`"""
        return rate_divergence(process, reading.log_score(process, raw, x_t, t), x0, x_t, t)

    def mask_weight(self, schedule: Schedule, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The density of a masked token over its cross-entropy, with mask noise: -alpha' / (1 - alpha)."""
        return -schedule.dalpha(t) / schedule.beta(t)

    def snr_weight(self, process: VariancePreserving, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The density over the squared error of a clean vector, with Gaussian noise: -snr' / 2."""
        return -process.dsnr(t) / 2

    def spread(
        self, process: VariancePreserving, u: Float64[Tensor, "*n"]
    ) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        """Times to measure Gaussian noise at, for u ~ U(0, 1), and dt/du: even in log beta."""
        return process.spread(u)


class Steps(Value, frozen=True):
    """Time is cut into T equal steps: T times the divergence of the bridges of one step."""

    kind: Literal["steps"] = "steps"
    count: int = Field(default=1000, ge=1)

    def snap(self, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The end of the step that t falls in. `(0, 1] -> {1/T, ..., 1}`"""
        return (t * self.count).ceil().clamp(1, self.count) / self.count

    def start(self, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The beginning of the step that ends at t. `{1/T, ..., 1} -> {0, ..., 1 - 1/T}`"""
        return ((t * self.count).round() - 1) / self.count

    def density(
        self, process: Process, reading: Reading, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor
    ) -> Float[Tensor, "*n"]:
        """T times the nats of the step that ends at t, at each position. `[...] -> [...]`"""
        log_clean = reading.log_clean(process, raw, x_t, t)
        return self.count * bridge_divergence(process, log_clean, x0, x_t, self.start(t), t)

    def mask_weight(self, schedule: Schedule, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The density of a masked token over its cross-entropy, with mask noise: T (alpha_s - alpha_t) / (1 -
        alpha_t).
        """
        now, before = schedule.alpha(t), schedule.alpha(self.start(t))
        return self.count * (before - now) / schedule.beta(t)

    def snr_weight(self, process: VariancePreserving, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The density over the squared error of a clean vector, with Gaussian noise: T (snr_s - snr_t) /
        2.
        """
        return self.count * (process.snr(self.start(t)) - process.snr(t)) / 2

    def spread(
        self, process: VariancePreserving, u: Float64[Tensor, "*n"]
    ) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        """Times to measure Gaussian noise at, for u ~ U(0, 1), and dt/du: all steps alike."""
        return u, torch.ones_like(u)


AnyClock = Annotated[Continuous | Steps, Field(discriminator="kind")]
