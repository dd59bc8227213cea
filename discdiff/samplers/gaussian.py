"""Sampling from Gaussian diffusion on vectors: a grid of times, a reverse step, and perhaps clamping.

With e^ the network's estimate of e at z_t, beta = 1 - alpha and alpha_(t|s) = alpha_t / alpha_s, a step from
t to s is

    Ddpm             a draw from the bridge q(z_s | z_t, e = e^)
    Ddim             z_s = sqrt(alpha_s) e^ + sqrt(beta_s - v) eps^ + sqrt(v) eps,
                     eps^ = (z_t - sqrt(alpha_t) e^) / sqrt(beta_t),
                     v = eta^2 beta_s (1 - alpha_(t|s)) / beta_t
    ProbabilityFlow  Heun's method on  dw/dr = e^,  w = z / sqrt(beta),  r = sqrt(alpha / beta)

(Ho et al. 2020, arXiv:2006.11239; Song et al. 2020, arXiv:2010.02502). The last is the probability-flow
equation of Song et al. 2021 (arXiv:2011.13456) in variables in which its coefficients are one; it has no
singular end where alpha = 0, and Euler's method on it is Ddim with eta = 0. Ddim with eta = 1 is Ddpm.

Context has its clean vectors from first to last, and time 0 in the network's eyes: it is conditioned on, not
written over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from discdiff.noise import Noise, Stream
from discdiff.processes.gaussian import VariancePreserving, standard
from discdiff.samplers.filters import AnyFilter
from discdiff.samplers.grid import AnyGrid, Even, Held
from discdiff.samplers.microbatch import fixed
from discdiff.types import Condition, DiscdiffError, Value

Vectors = Float[Tensor, "B L E"]
Estimate = Callable[[Tensor, Tensor, Tensor, Condition], Tensor]
"""(z_t [B, L, E], t [B, 1] or [B, L], the estimate before [B, L, E], condition) -> e^ [B, L, E]"""
Look = Callable[[Tensor, float, Tensor], Tensor]
"""(z_t, t, the estimate before) -> e^"""
Watch = Callable[[float, Tensor], None]
"""Is told the state after each step: its time and its vectors."""


def unwatched(t: float, z: Vectors) -> None:
    """Looks away."""


@dataclass(frozen=True)
class Denoiser:
    """A network on a batch of vectors as one method reads it.

    `clean` holds the vectors of context, where `free` is False. `nearest`, for clamping, takes an estimate to
    the nearest vector that stands for something.
    """

    process: VariancePreserving
    estimate: Estimate
    clean: Vectors
    free: Bool[Tensor, "B L"]
    condition: Condition
    nearest: Callable[[Tensor], Tensor] | None = None


class Ddpm(Value, frozen=True):
    """A draw from the bridge to the estimate: the model that the T-step bound scores."""

    kind: Literal["ddpm"] = "ddpm"

    def evaluations(self, steps: int) -> int:
        """Network evaluations in so many steps."""
        return steps

    def weights(self, process: VariancePreserving, s: float, t: float) -> tuple[float, float, float]:
        """Of z_t and of the estimate in the mean of z_s, and the deviation."""
        ours, theirs, variance = process.bridge(_time(s), _time(t))
        return ours.item(), theirs.item(), variance.sqrt().item()

    def move(
        self, denoiser: Denoiser, look: Look, z: Vectors, before: Vectors, s: float, t: float, noise: Noise
    ) -> tuple[Vectors, Vectors]:
        """z_s and the estimate, from z_t and the estimate before. `[B, L, E] -> [B, L, E], [B, L, E]`"""
        return _drawn(self.weights(denoiser.process, s, t), z, look(z, t, before), noise)


class Ddim(Value, frozen=True):
    """The same marginals with less noise: none for eta = 0, as much as Ddpm for eta = 1."""

    kind: Literal["ddim"] = "ddim"
    eta: float = Field(default=0.0, ge=0, le=1)

    def evaluations(self, steps: int) -> int:
        """Network evaluations in so many steps."""
        return steps

    def weights(self, process: VariancePreserving, s: float, t: float) -> tuple[float, float, float]:
        """Of z_t and of the estimate in the mean of z_s, and the deviation."""
        before, left = process.alpha(_time(s)), process.beta(_time(s))
        alpha, now = process.alpha(_time(t)), process.beta(_time(t))
        share = self.eta**2
        # (beta_s - v) / beta_t, without the difference.
        ours = (left * ((1 - share) * now + share * alpha / before * left)).sqrt() / now
        theirs = before.sqrt() - ours * alpha.sqrt()
        _, _, variance = process.bridge(_time(s), _time(t))
        return ours.item(), theirs.item(), self.eta * variance.sqrt().item()

    def move(
        self, denoiser: Denoiser, look: Look, z: Vectors, before: Vectors, s: float, t: float, noise: Noise
    ) -> tuple[Vectors, Vectors]:
        """z_s and the estimate, from z_t and the estimate before. `[B, L, E] -> [B, L, E], [B, L, E]`"""
        return _drawn(self.weights(denoiser.process, s, t), z, look(z, t, before), noise)


class ProbabilityFlow(Value, frozen=True):
    """The deterministic flow with the process's marginals, by Heun's method: two evaluations a step, one in
    the last.
    """

    kind: Literal["probability_flow"] = "probability_flow"

    def evaluations(self, steps: int) -> int:
        """Network evaluations in so many steps."""
        return 2 * steps - 1

    def move(
        self, denoiser: Denoiser, look: Look, z: Vectors, before: Vectors, s: float, t: float, noise: Noise
    ) -> tuple[Vectors, Vectors]:
        """z_s and the estimate, from z_t and the estimate before. `[B, L, E] -> [B, L, E], [B, L, E]`"""
        ours, theirs, _ = Ddim().weights(denoiser.process, s, t)
        first = look(z, t, before)
        guess = ours * z + theirs * first
        if s == 0:
            return guess, first
        second = look(torch.where(denoiser.free[..., None], guess, z), s, first)
        return ours * z + theirs * (first + second) / 2, second


AnyGaussianStep = Annotated[Ddpm | Ddim | ProbabilityFlow, Field(discriminator="kind")]


class Clamping(Value, frozen=True):
    """Diffusion-LM's trick: at times up to `below`, the nearest token's vector in place of the estimate."""

    kind: Literal["clamping"] = "clamping"
    below: float = Field(default=1.0, gt=0, le=1)


class GaussianSampler(Value, frozen=True):
    """From t = 1 to t = 0 in `steps` steps. `filters` edit the law of the tokens at the end.

    `microbatch`: call the network with exactly so many rows at a time, so that its rounding doesn't depend on
    what a row is batched with.
    """

    kind: Literal["gaussian"] = "gaussian"
    steps: int = Field(default=64, ge=1)
    grid: AnyGrid = Even()
    reverse: AnyGaussianStep = Ddpm()
    clamping: Clamping | None = None
    filters: tuple[AnyFilter, ...] = ()
    microbatch: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _composes(self) -> "GaussianSampler":
        if isinstance(self.grid, Held):
            raise DiscdiffError("nothing moves while time stands still: take another grid than held")
        self.grid.times(self.steps)
        return self

    def check(self, method: Any) -> None:
        """Raises DiscdiffError, with the reason, for a method that this sampler can't draw from."""
        tabled = bool(getattr(method, "tabled", False))
        for part in ("clamping", "filters"):
            if getattr(self, part) and not tabled:
                raise DiscdiffError(
                    f"{method.kind} has no vector for each token, which {part} needs: leave {part} out"
                )

    def evaluations(self, length: int) -> int:
        """Network evaluations for a sequence."""
        return self.reverse.evaluations(self.steps)

    @torch.no_grad()
    def run(self, denoiser: Denoiser, noise: Noise, watch: Watch = unwatched) -> Vectors:
        """Vectors at t = 0. Rows of `noise` are those of the batch. `-> [B, L, E]`"""
        free, clean = denoiser.free[..., None], denoiser.clean
        z = torch.where(free, standard(Stream.PRIOR, clean, noise), clean)
        before = torch.zeros_like(z)
        look = self._look(denoiser)
        watch(1.0, z)
        for index, (t, s) in enumerate(pairwise(self.grid.times(self.steps))):
            new, before = self.reverse.move(denoiser, look, z, before, s, t, noise.at(noise.step + index))
            z = torch.where(free, new, z)
            watch(s, z)
        return z

    def _look(self, denoiser: Denoiser) -> Look:
        free, condition = denoiser.free, denoiser.condition
        given = not bool(free.all())

        def clamped(z: Tensor, *given: Any) -> Tensor:
            found = denoiser.estimate(z, *given)
            return found if denoiser.nearest is None else denoiser.nearest(found)

        def look(z: Tensor, t: float, before: Tensor) -> Tensor:
            times = torch.full((len(z), 1), t, dtype=torch.float64, device=z.device)
            times = torch.where(free, times, 0) if given else times
            clamp = self.clamping is not None and t <= self.clamping.below
            call = clamped if clamp else denoiser.estimate
            return fixed(call, self.microbatch, z, times, before, condition)

        return look


def _time(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def _drawn(
    weights: tuple[float, float, float], z: Vectors, estimate: Vectors, noise: Noise
) -> tuple[Vectors, Vectors]:
    ours, theirs, deviation = weights
    mean = ours * z + theirs * estimate
    return (mean + deviation * standard(Stream.STEP, z, noise) if deviation else mean), estimate
