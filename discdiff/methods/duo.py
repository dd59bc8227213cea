"""Duo: uniform-noise diffusion trained through a Gaussian one. Sahoo et al. 2025, arXiv:2506.10892.

The noisy token x_t is the argmax of a Gaussian latent w_t (`discdiff.processes.duality`), and early in
training the network reads a mixture of tokens in its place,

    softmax(w_t / τ)   in place of   its limit for τ -> 0, which is x_t,

so that it sees more of the data and its gradients vary less. The loss stays that of x_t,

    integral over a window of t of   density(raw(softmax(w_t / τ), t), x_0, x_t, t),

where the window leaves out what is nearly data and nearly noise, and the logarithm of the Gaussian's ratio of
signal to noise is drawn evenly within it. After the curriculum, training minimizes the bound. The bound, the
sampler and the network are those of uniform noise throughout.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field, model_validator
from torch import Tensor

from discdiff.closed_forms import uniform_divergence
from discdiff.methods.diffusion import Diffusion
from discdiff.noise import Noise
from discdiff.objectives import Continuous
from discdiff.parameterizations import LeaveOneOut
from discdiff.processes import Uniform, duality
from discdiff.types import Canvas, DiscdiffError, Network, Value


class Curriculum(Value, frozen=True):
    """How training begins: with mixtures of tokens at a temperature, at levels alpha within a window."""

    share: float = Field(default=0.5, gt=0, le=1)
    """Of all steps of training."""
    temperature: float = Field(default=1e-3, gt=0)
    window: tuple[float, float] = (0.05, 0.95)
    leading: int = Field(default=64, ge=1)
    """Tokens that may be mixed, those of the largest latents; in effect all, unless the temperature is
    high.
    """

    @model_validator(mode="after")
    def _window_is_one(self) -> "Curriculum":
        if not 0 < self.window[0] < self.window[1] < 1:
            raise DiscdiffError(f"window is an interval of levels alpha within 0 and 1, not {self.window}")
        return self

    def time(
        self, u: Float64[Tensor, "B 1"], vocab: int
    ) -> tuple[Float64[Tensor, "B 1"], Float64[Tensor, "B 1"], Float64[Tensor, "B 1"]]:
        """The ratio of signal to noise at u in [0, 1], its alpha, and -d alpha / du. `[B, 1] -> 3 [B, 1]`"""
        low, high = (math.log(duality.ratio_of(level, vocab)) for level in self.window)
        ratio = (high + u * (low - high)).exp()
        pace = duality.dalpha(ratio, vocab) * ratio * (high - low)
        return ratio, duality.alpha(ratio, vocab), pace


class Duo(Diffusion, frozen=True):
    """Uniform-noise diffusion in continuous time, with a Gaussian curriculum or without one."""

    kind: Literal["duo"] = "duo"
    process: Uniform = Uniform()
    parameterization: LeaveOneOut = LeaveOneOut()
    clock: Continuous = Continuous()  # pyright: ignore[reportIncompatibleVariableOverride]
    curriculum: Curriculum | None = Curriculum()

    @model_validator(mode="after")
    def _schedule_spans_the_window(self) -> "Duo":
        high, low = self.process.ends
        if self.curriculum and not low <= self.curriculum.window[0] < self.curriculum.window[1] <= high:
            raise DiscdiffError(
                f"the curriculum's window is {self.curriculum.window} and alpha goes from {high:g} to "
                f"{low:g}: take a narrower window, or a schedule that is not cut off so far"
            )
        return self

    def stage(self, progress: float) -> "Duo":
        """Past its share of training, without the curriculum."""
        done = self.curriculum is not None and progress >= self.curriculum.share
        return self.model_copy(update={"curriculum": None}) if done else self

    def enter(self, net: Any) -> None:
        """The end of the curriculum changes the loss and nothing in the network."""

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The divergence of rates in closed form. `[N, V] -> [N]`"""
        return uniform_divergence(self.process, self.parameterization, raw, x0, x_t, t)

    def loss(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """The bound's integrand, with mixtures for x_t while there is a curriculum. `-> [B]` nats"""
        if self.curriculum is None:
            return super().loss(net, canvas, noise)
        noise, schedule = noise.on(canvas.rows), self.process.schedule
        ratio, alpha, pace = self.curriculum.time(noise.time(), net.vocab)
        t = schedule.inverse(alpha)
        mixture, x_t = self.mix(self.curriculum, canvas, ratio, net.vocab, noise)
        hidden = net.trunk(mixture, t, canvas.condition)
        nats = self.total(net, hidden, canvas.free, canvas.tokens, x_t, t, self.density)
        return nats * (pace / -schedule.dalpha(t))[:, 0].to(nats)

    @staticmethod
    def mix(
        curriculum: Curriculum, canvas: Canvas, ratio: Float64[Tensor, "B 1"], vocab: int, noise: Noise
    ) -> tuple[Float[Tensor, "B L V"], Int64[Tensor, "B L"]]:
        """softmax(w_t / τ) and x_t, the argmax of w_t, at the free positions. `-> [B, L, V], [B, L]`

        The weights are the one tensor of this size that training holds.
        """
        tokens, latent = duality.leading(canvas.tokens, ratio, vocab, curriculum.leading, noise)
        weights = (latent / curriculum.temperature).softmax(-1)
        x_t = tokens.gather(-1, latent.argmax(-1, keepdim=True))[..., 0]
        given = torch.zeros_like(weights)
        given[..., 0] = 1  # a token leads its own list
        weights = torch.where(canvas.free[..., None], weights, given).float()
        mixture = torch.zeros(*canvas.shape, vocab, dtype=weights.dtype, device=weights.device)
        return mixture.scatter(-1, tokens, weights), torch.where(canvas.free, x_t, canvas.tokens)
