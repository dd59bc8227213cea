"""Probabilistic inverses of the argmax: laws q(v | x) of a latent v that is certain to decode to the token x.

Each turns uniform draws and an encoder's numbers into v, and gives log q(v | x) by the change of variables:

    Softplus        u normal, v_x = u_x = T, the others v_k = T - softplus(T - u_k) < T
    Gumbel          v Gumbel with locations phi, given argmax v = x: v_x = T is Gumbel(log sum exp phi), the
                    others are Gumbel(phi_k) truncated at T
    GumbelFlow      the same inverse CDFs on learned noise in (0, 1) instead of uniform noise
    Binary          the Cartesian product of argmaxes over ceil(log2 V) bits, a bit the sign of one number

Hoogeboom et al. 2021, arXiv:2102.05379. A truncated Gumbel is v = phi - log(exp(phi - T) + E), E exponential.
Where rounding would make another v_k equal v_x, it is put one float below: the token always decodes.

With b bits and V < 2^b some codes belong to no token; a sample with such a code is read modulo V. The bound
counts the token's own code alone, so it stays a bound, and those codes' mass is lost to it.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor

from discdiff.types import Value

_LIMIT = 3.0
_LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)
Latent = Float[Tensor, "B L E"]
Nats = Float[Tensor, "B L"]


class _OneHot(Value, frozen=True):
    """A latent number for each token, decoded by the argmax."""

    def size(self, vocab: int) -> int:
        """E, the latent numbers of a position."""
        return vocab

    def tokens(self, v: Float[Tensor, "*n E"], vocab: int) -> Int64[Tensor, "*n"]:
        """Decode. `[..., E] -> [...]`"""
        return v.argmax(-1)


class Softplus(_OneHot, frozen=True):
    """Thresholding: a normal law, pressed below its value at the token."""

    kind: Literal["softplus"] = "softplus"

    def outputs(self, vocab: int) -> int:
        """Numbers of the encoder for a position: means and log scales."""
        return 2 * vocab

    def lift(
        self, raw: Float[Tensor, "B L W"], x: Int64[Tensor, "B L"], uniform: Float64[Tensor, "B L E"]
    ) -> tuple[Latent, Nats]:
        """Draw v and give log q(v | x). `-> [B, L, E], [B, L]`

        The token's own mean begins at sqrt(2 log V), where the largest of V normals lies.
        """
        own = F.one_hot(x, uniform.shape[-1]).bool()
        mean, log_scale = raw.chunk(2, dim=-1)
        u, log_q = _normal(mean + own.to(mean) * math.sqrt(2 * math.log(own.shape[-1])), log_scale, uniform)
        top = u.gather(-1, x[..., None])
        log_q = log_q - torch.where(own, 0, F.logsigmoid(top - u))
        return _below(own, top, top - F.softplus(top - u)), log_q.sum(-1)


class Gumbel(_OneHot, frozen=True):
    """Gumbel variables given that the token's is the largest."""

    kind: Literal["gumbel"] = "gumbel"

    def outputs(self, vocab: int) -> int:
        """Numbers of the encoder for a position: locations."""
        return vocab

    def lift(
        self, raw: Float[Tensor, "B L W"], x: Int64[Tensor, "B L"], uniform: Float64[Tensor, "B L E"]
    ) -> tuple[Latent, Nats]:
        """Draw v and give log q(v | x). `-> [B, L, E], [B, L]`"""
        waiting = -uniform.log()
        v, z = _gumbel(raw, x, waiting.log().to(raw))
        return v, (-z - waiting.to(raw)).sum(-1)


class GumbelFlow(_OneHot, frozen=True):
    """Gumbel thresholding: the Gumbel law's inverse CDFs on noise whose logit is shifted and scaled."""

    kind: Literal["gumbel_flow"] = "gumbel_flow"

    def outputs(self, vocab: int) -> int:
        """Numbers of the encoder for a position: locations, and shifts and log scales of the noise."""
        return 3 * vocab

    def lift(
        self, raw: Float[Tensor, "B L W"], x: Int64[Tensor, "B L"], uniform: Float64[Tensor, "B L E"]
    ) -> tuple[Latent, Nats]:
        """Draw v and give log q(v | x). `-> [B, L, E], [B, L]`"""
        location, shift, log_scale = raw.chunk(3, dim=-1)
        log_scale = soft_clamp(log_scale)
        noise = shift + log_scale.exp() * uniform.logit().to(raw)
        v, z = _gumbel(location, x, _log_softplus(-noise))
        log_noise = (uniform.log() + (-uniform).log1p()).to(raw) - log_scale
        return v, (log_noise - z - F.logsigmoid(-noise)).sum(-1)


class Binary(Value, frozen=True):
    """The bits of the token as signs of normal variables that a softplus makes positive."""

    kind: Literal["binary"] = "binary"

    def size(self, vocab: int) -> int:
        """E, the bits of a token."""
        return max(1, (vocab - 1).bit_length())

    def outputs(self, vocab: int) -> int:
        """Numbers of the encoder for a position: means and log scales."""
        return 2 * self.size(vocab)

    def tokens(self, v: Float[Tensor, "*n E"], vocab: int) -> Int64[Tensor, "*n"]:
        """Decode. `[..., E] -> [...]`"""
        return ((v > 0).long() << torch.arange(v.shape[-1], device=v.device)).sum(-1) % vocab

    def lift(
        self, raw: Float[Tensor, "B L W"], x: Int64[Tensor, "B L"], uniform: Float64[Tensor, "B L E"]
    ) -> tuple[Latent, Nats]:
        """Draw v and give log q(v | x). `-> [B, L, E], [B, L]`"""
        sign = 2 * (x[..., None] >> torch.arange(uniform.shape[-1], device=x.device) & 1) - 1
        mean, log_scale = raw.chunk(2, dim=-1)
        u, log_q = _normal(mean, log_scale, uniform)
        size = F.softplus(u).clamp_min(torch.finfo(u.dtype).tiny)
        return sign * size, (log_q - F.logsigmoid(u)).sum(-1)


AnyLift = Annotated[Softplus | Gumbel | GumbelFlow | Binary, Field(discriminator="kind")]


def soft_clamp(log_scale: Tensor) -> Tensor:
    """Keep a log scale within (-3, 3): no product of a few scales leaves float32."""
    return _LIMIT * (log_scale / _LIMIT).tanh()


def _normal(mean: Tensor, log_scale: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """A normal variable and its log density."""
    log_scale = soft_clamp(log_scale)
    standard = torch.special.ndtri(uniform).to(mean)
    return mean + log_scale.exp() * standard, -standard.square() / 2 - _LOG_ROOT_TAU - log_scale


def _log_softplus(x: Tensor) -> Tensor:
    """log log(1 + exp x), which is x where exp x is small."""
    return torch.where(x < -30, x, F.softplus(x.clamp_min(-30)).log())


def _gumbel(location: Tensor, x: Tensor, log_waiting: Tensor) -> tuple[Tensor, Tensor]:
    """Gumbel variables given their argmax, from the logs of exponential ones, and their distances from the
    locations.

    Distances are from log sum exp phi at the token, from phi_k elsewhere.
    """
    own = F.one_hot(x, location.shape[-1]).bool()
    top = location.logsumexp(-1, keepdim=True) - log_waiting.gather(-1, x[..., None])
    z = -torch.where(own, log_waiting, torch.logaddexp(location - top, log_waiting))
    return _below(own, top, location + z), z


def _below(own: Tensor, top: Tensor, others: Tensor) -> Tensor:
    limit = torch.nextafter(top.detach(), torch.full_like(top, -torch.inf))
    return torch.where(own, top, torch.minimum(others, limit))
