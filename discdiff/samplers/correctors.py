"""Correctors: moves that undo mistakes of earlier steps and leave the law of x_s what it is.

`Remask`, `Psi` and `FlowCorrector` widen the step itself, at no further evaluation of the network.
`ForwardBackward` and `Gibbs` come after it, at an evaluation a sweep.

On the true law of x_s a corrector is exact where positions are independent; else moving all positions at once
is wrong by O(r^2) in law, r the share of positions that it moves. `Gibbs` with one position is exact always.

Mask noise: a step unmasks with probability r = (alpha_s - alpha_t) / (1 - alpha_t). If it also masks anew
with probability sigma, it unmasks with probability r + sigma alpha_t / (1 - alpha_t), so that 1 - alpha_s
are masked after it (ReMDM, Wang et al. 2025, arXiv:2503.00307). All three of the first kind are that, with a
sigma of their own, at most min(1, (1 - alpha_s) / alpha_t).
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field, model_validator
from torch import Tensor

from discdiff.processes import Mask
from discdiff.samplers.reverse import Dynamics, redraw
from discdiff.types import DiscdiffError, Value

At = Float64[Tensor, "*m"]


class _Windowed(Value, frozen=True):
    """Acts in steps that start no later in noise than `start` and end no nearer to data than `stop`."""

    start: float = Field(default=1.0, ge=0, le=1)
    stop: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _has_a_width(self) -> "_Windowed":
        if self.stop >= self.start:
            raise DiscdiffError(
                f"a corrector acts from start down to stop, got start={self.start:g} and stop={self.stop:g}: "
                "make start the larger"
            )
        return self

    def acts(self, s: At, t: At) -> Tensor:
        """Whether the step from t to s is in the window."""
        return (t <= self.start) & (s >= self.stop)


class Cap(Value, frozen=True):
    """sigma = eta, or the most there can be."""

    kind: Literal["cap"] = "cap"
    eta: float = Field(default=0.01, gt=0, le=1)

    def sigma(self, most: At) -> At:
        return most.clamp_max(self.eta)


class Rescale(Value, frozen=True):
    """sigma = eta times the most there can be."""

    kind: Literal["rescale"] = "rescale"
    eta: float = Field(default=0.02, gt=0, le=1)

    def sigma(self, most: At) -> At:
        return most * self.eta


class Remask(_Windowed, frozen=True):
    """ReMDM: tokens are masked again with a probability that is capped or rescaled. Its window is the
    paper's switch; with the grid `Held` and a window around the held time it is the paper's loop.
    """

    kind: Literal["remask"] = "remask"
    strength: Annotated[Cap | Rescale, Field(discriminator="kind")] = Cap()

    def sigma(self, process: Mask, s: At, t: At) -> At:
        """The probability that a token is masked again. `[...] -> [...]`"""
        return torch.where(self.acts(s, t), self.strength.sigma(most(process, s, t)), 0)


class Psi(_Windowed, frozen=True):
    """Psi-samplers (Deschenaux et al. 2026, arXiv:2602.21185): a superposition of the bridge and the forward
    process, for any noise,

        psi(x_s | x_t, x_0) = (1 - share) q(x_s | x_t, x_0) + share q_s(x_s | x_0),

    with x_0 from p(x_0 | x_t). With mask noise this is ReMDM with sigma = share (1 - alpha_s).
    """

    kind: Literal["psi"] = "psi"
    share: float = Field(default=0.02, gt=0, le=1)

    def sigma(self, process: Mask, s: At, t: At) -> At:
        """The probability that a token is masked again. `[...] -> [...]`"""
        return torch.where(self.acts(s, t), self.share * process.schedule.beta(s), 0)

    def log_law(
        self, dynamics: Dynamics, raw: Tensor, x_t: Int64[Tensor, "*n"], s: At, t: At
    ) -> Float[Tensor, "*n K"]:
        """log p(x_s | x_t). `[..., W] -> [..., K]`"""
        step = dynamics.log_bridge(raw, x_t, s, t)
        fresh = dynamics.process.log_marginal(dynamics.log_denoise(raw, x_t, t), s)
        share = torch.where(self.acts(s, t), self.share, 0)[..., None].to(step)
        return torch.logaddexp(step + (1 - share).log(), fresh + share.log())


class FlowCorrector(_Windowed, frozen=True):
    """Discrete flow matching's corrector (Gat et al. 2024, arXiv:2407.15595): to the velocity towards data,
    1 + strength times, that towards noise is added, strength times.

    With c = strength (alpha_s - alpha_t), bounded where probabilities would pass one, a token is drawn from
    p(x_0 | x_t) with probability (alpha_s - alpha_t + c) / (1 - alpha_t) and from noise with c / alpha_t.
    """

    kind: Literal["flow_corrector"] = "flow_corrector"
    strength: float = Field(default=1.0, gt=0)

    def sigma(self, process: Mask, s: At, t: At) -> At:
        """The probability that a token is masked again. `[...] -> [...]`"""
        wanted = self.strength * (process.alpha(s) - process.alpha(t)) / _positive(process.alpha(t))
        return torch.where(self.acts(s, t), torch.minimum(wanted, most(process, s, t)), 0)

    def log_law(
        self, dynamics: Dynamics, raw: Tensor, x_t: Int64[Tensor, "*n"], s: At, t: At
    ) -> Float[Tensor, "*n K"]:
        """log p(x_s | x_t) with uniform noise. `[..., W] -> [..., K]`"""
        process = dynamics.process
        now, before = process.alpha(t), process.alpha(s)
        bound = now * (1 - before)
        extra = torch.where(self.acts(s, t), torch.minimum(self.strength * (before - now), bound), 0)
        towards = (redraw(process, s, t) + extra / (1 - now))[..., None].to(raw)
        away = (extra / _positive(now))[..., None].to(raw)
        clean = dynamics.log_denoise(raw, x_t, t).exp()
        law = towards * clean + away / clean.shape[-1]
        return law.scatter_add(-1, x_t[..., None], (1 - towards - away).expand(*x_t.shape, 1)).log()


class ForwardBackward(_Windowed, frozen=True):
    """Noise x_s again and take the step back (Campbell et al. 2022, arXiv:2205.14987): from s forward by
    `length` of the step just taken, and back to s by the sampler's own step.
    """

    kind: Literal["forward_backward"] = "forward_backward"
    length: float = Field(default=1.0, gt=0, le=1)
    sweeps: int = Field(default=1, ge=1)


class Gibbs(_Windowed, frozen=True):
    """Draw `positions` of the free positions anew, chosen at random, from p(x_s | x_s elsewhere), which is
    q_s of the leave-one-out law. With one position the law of x_s is left as it is, exactly.
    """

    kind: Literal["gibbs"] = "gibbs"
    positions: int = Field(default=1, ge=1)
    sweeps: int = Field(default=1, ge=1)


Within = Remask | Psi | FlowCorrector
"""Correctors that widen the step."""
After = ForwardBackward | Gibbs
"""Correctors that come after it."""
AnyCorrector = Annotated[Remask | Psi | FlowCorrector | ForwardBackward | Gibbs, Field(discriminator="kind")]


def most(process: Mask, s: At, t: At) -> At:
    """The highest probability of masking again that leaves 1 - alpha_s masked: min(1, (1 - alpha_s) /
    alpha_t).
    """
    return (process.schedule.beta(s) / _positive(process.alpha(t))).clamp_max(1)


def _positive(alpha: At) -> At:
    return alpha.clamp_min(torch.finfo(alpha.dtype).tiny)
