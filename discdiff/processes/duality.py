"""The duality: the argmax of a Gaussian diffusion of one-hot vectors is uniform noise. Sahoo et al. 2025,
arXiv:2506.10892.

A token x of V diffuses as w_t = a x + s ε, ε ~ N(0, I), a^2 + s^2 = 1. With r = a / s, the argmax of w_t is x
with probability k and any other token alike, which is uniform noise with alpha = (V k - 1) / (V - 1):

    alpha(r)   = V / (V - 1) * integral of φ(z) (Φ(z + r)^(V-1) - Φ(z)^(V-1)) dz,
    alpha'(r)  = V * integral of φ(z) φ(z + r) Φ(z + r)^(V-2) dz.

This is the paper's operator T, from the ratio of signal to noise. Integrals are sums over equal steps, which
for such integrands miss by less than rounding.

The largest of the V - 1 values besides x's are drawn as order statistics, from the largest down, and their
tokens without replacement: no vector of V normals is made, however large V is. As the noise falls with ε held
fixed, the argmax jumps once, from a token to x: the path is the one that `Uniform.corrupt` draws, called at
several times with the same noise.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from discdiff.noise import Noise, Stream

_REACH, _NODES = 9.0, 577
"""Where φ is below rounding, and a step of 1 / 32."""


def alpha(ratio: Float64[Tensor, "*n"], vocab: int) -> Float64[Tensor, "*n"]:
    """How much of uniform noise is signal, where the Gaussian's signal is `ratio` times its noise."""
    z, weight = _nodes(ratio)
    power = (vocab - 1) * torch.special.log_ndtr(z + ratio[..., None])
    before = (vocab - 1) * torch.special.log_ndtr(z)
    return vocab / (vocab - 1) * ((power.exp() - before.exp()) * weight).sum(-1)


def dalpha(ratio: Float64[Tensor, "*n"], vocab: int) -> Float64[Tensor, "*n"]:
    """The derivative of alpha by the ratio."""
    z, weight = _nodes(ratio)
    moved = z + ratio[..., None]
    power = (vocab - 2) * torch.special.log_ndtr(moved) - moved**2 / 2
    return vocab / math.sqrt(2 * math.pi) * (power.exp() * weight).sum(-1)


@lru_cache(maxsize=64)
def ratio_of(level: float, vocab: int) -> float:
    """The ratio at which alpha is `level`, within 0 and 1: bisection to the last bit."""
    low, high = 0.0, 16.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        below = alpha(torch.tensor(middle, dtype=torch.float64), vocab).item() < level
        low, high = (middle, high) if below else (low, middle)


def leading(
    x0: Int64[Tensor, "B L"], ratio: Float64[Tensor, "B 1"], vocab: int, count: int, noise: Noise
) -> tuple[Int64[Tensor, "B L n"], Float64[Tensor, "B L n"]]:
    """x_0 and the `count` other tokens that are largest in w_t, all others if there are no more; and their
    w_t. `[B, L] -> [B, L, n], [B, L, n]`
    """
    length, others = x0.shape[1], vocab - 1
    count = min(count, others)
    u = noise.uniform(Stream.CORRUPT, length, 1 + count)
    rest = torch.arange(others, others - count, -1, device=x0.device)
    log_u = (u[..., 1:].log() / rest).cumsum(-1)
    largest = torch.where(
        log_u < -0.5, torch.special.ndtri(log_u.exp()), -torch.special.ndtri(-log_u.expm1())
    )
    own = torch.special.ndtri(u[..., :1]) + ratio[..., None]
    token = _distinct(noise.uniform(Stream.CORRUPT_VALUE, length, 2, count), others)
    token = token + (token >= x0[..., None])
    values = torch.cat([own, largest], dim=-1) / (1 + ratio[..., None] ** 2).sqrt()
    return torch.cat([x0[..., None], token], dim=-1), values


def _distinct(u: Float64[Tensor, "B L 2 n"], others: int) -> Int64[Tensor, "B L n"]:
    """Draw n of so many without replacement, in any order alike: Floyd's choice, shuffled."""
    choice, key = u.unbind(-2)
    count = choice.shape[-1]
    drawn = torch.empty_like(choice, dtype=torch.int64)
    for index in range(count):
        last = others - count + index
        pick = (choice[..., index] * (last + 1)).long()
        taken = (drawn[..., :index] == pick[..., None]).any(-1)
        drawn[..., index] = torch.where(taken, last, pick)
    return drawn.gather(-1, key.argsort(-1))


def _nodes(like: Tensor) -> tuple[Float64[Tensor, "Z"], Float64[Tensor, "Z"]]:
    z = torch.linspace(-_REACH, _REACH, _NODES, dtype=torch.float64, device=like.device)
    return z, (-(z**2) / 2).exp() * (z[1] - z[0]) / math.sqrt(2 * math.pi)
