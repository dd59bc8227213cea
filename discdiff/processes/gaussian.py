"""Gaussian noise on vectors: z_t = sqrt(alpha_t) e + sqrt(1 - alpha_t) eps, eps ~ N(0, I).

The variance-preserving process of Ho et al. 2020 (arXiv:2006.11239) and Song et al. 2021 (arXiv:2011.13456);
alpha is their alpha-bar. It is Markov: for s < t, with alpha_(t|s) = alpha_t / alpha_s and beta = 1 - alpha,

    q(z_t | z_s)     = N(sqrt(alpha_(t|s)) z_s,  1 - alpha_(t|s))
    q(z_s | z_t, e)  = N(sqrt(alpha_(t|s)) beta_s / beta_t z_t + sqrt(alpha_s) (1 - alpha_(t|s)) / beta_t e,
                         beta_s (1 - alpha_(t|s)) / beta_t)

and with snr = alpha / beta, two such bridges, to e and to an estimate of it, are apart by

    KL = (snr(s) - snr(t)) / 2 |e - estimate|^2,    in continuous time  -snr'(t) / 2 |e - estimate|^2 dt

(Kingma et al. 2021, arXiv:2107.00630). Any schedule of `discdiff.schedules` will do: the papers' are

    sqrt     Polynomial(power=0.5)   alpha = 1 - sqrt(t)     Diffusion-LM, arXiv:2205.14217, with start = 1e-4
    cosine   SquaredCosine()                                 Improved DDPM, arXiv:2102.09672
    linear   LinearRate()            a rate that grows       DDPM, in continuous time
"""

from typing import Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field, model_validator
from torch import Tensor

from discdiff.noise import Noise, Stream
from discdiff.schedules import AnySchedule, Polynomial
from discdiff.types import DiscdiffError, Value


class VariancePreserving(Value, frozen=True):
    """Noise that keeps unit variance. As t runs from 0 to 1 the schedule's own time runs from `start` to
    `stop`.

    With `start` > 0 some noise is on z_0, so that it has a density however few vectors there are; with `stop`
    < 1 some signal is left in z_1. What is cut off is in the bound.
    """

    kind: Literal["variance_preserving"] = "variance_preserving"
    schedule: AnySchedule = Polynomial(power=0.5)
    start: float = Field(default=1e-4, ge=0, lt=1)
    stop: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> "VariancePreserving":
        if self.start >= self.stop:
            raise DiscdiffError(f"noise needs start < stop, got {self.start} and {self.stop}")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """alpha at t = 0 and t = 1."""
        low, high = self.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return low, high

    def alpha(self, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The share of the variance of z_t that is signal, the papers' alpha-bar."""
        return self.schedule.alpha(self._time(t))

    def beta(self, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """1 - alpha, to relative precision near t = 0."""
        return self.schedule.beta(self._time(t))

    def dalpha(self, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The derivative of alpha at t."""
        return (self.stop - self.start) * self.schedule.dalpha(self._time(t))

    def snr(self, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The ratio of signal to noise, alpha / beta."""
        return self.alpha(t) / self.beta(t)

    def dsnr(self, t: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The derivative of the ratio at t."""
        return self.dalpha(t) / self.beta(t) ** 2

    def spread(self, u: Float64[Tensor, "*n"]) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        """The t at which log beta has come the share u of its way, and dt/du. `[...] -> [...], [...]`

        -snr' dt is d beta / beta^2, so evenly spread times see most of it rarely: this is where it is.
        """
        first, last = (self.beta(torch.tensor(t, dtype=torch.float64, device=u.device)) for t in (0.0, 1.0))
        reach = (last / first).log()
        beta = first * (u * reach).exp()
        t = (self.schedule.inverse(1 - beta) - self.start) / (self.stop - self.start)
        t = t.clamp(0, 1)
        return t, self.beta(t) * reach / -self.dalpha(t)

    def mixed(
        self, e: Float[Tensor, "*n E"], eps: Float[Tensor, "*n E"], t: Float64[Tensor, "*m"]
    ) -> Float[Tensor, "*n E"]:
        """sqrt(alpha_t) e + sqrt(beta_t) eps. Times broadcast. `[..., E], [..., E], [...] -> [..., E]`"""
        signal, left = self.roots(t, e)
        return signal * e + left * eps

    def roots(self, t: Float64[Tensor, "*m"], like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_t) and sqrt(beta_t), in the type of `like`. `[...] -> [..., 1], [..., 1]`"""
        return self.alpha(t).sqrt()[..., None].to(like), self.beta(t).sqrt()[..., None].to(like)

    def bridge(
        self, s: Float64[Tensor, "*m"], t: Float64[Tensor, "*m"]
    ) -> tuple[Float64[Tensor, "*m"], Float64[Tensor, "*m"], Float64[Tensor, "*m"]]:
        """The weights of z_t and of e in the mean of q(z_s | z_t, e), and its variance, for s < t."""
        before, left, now = self.alpha(s), self.beta(s), self.beta(t)
        kept = self.alpha(t) / before
        fresh = (now - left) / before
        return kept.sqrt() * left / now, before.sqrt() * fresh / now, left * fresh / now

    def prior_divergence(self, e: Float[Tensor, "*n E"]) -> Float[Tensor, "*n"]:
        """KL(q(z_1 | e) || N(0, I)) in nats. `[..., E] -> [...]`"""
        one = torch.ones(1, dtype=torch.float64)
        signal = self.alpha(one).item()
        spread = (-signal - self.beta(one).log().item()) * e.shape[-1]
        return (signal * e.square().sum(-1) + spread) / 2

    def _time(self, t: Tensor) -> Tensor:
        return self.start * (1 - t) + self.stop * t


def standard(stream: Stream, like: Float[Tensor, "B L E"], noise: Noise) -> Float[Tensor, "B L E"]:
    """Standard normal vectors, in shape and type those of `like`."""
    return noise.normal(stream, *like.shape[1:]).to(like)
