"""Arithmetic modulo V on tokens, and its straight-through gradient on one-hot vectors.

The affine maps x = (mu + sigma u) mod V are bijections of Z_V where sigma is a unit, that is coprime to V; a
prime V has V - 1 units. In use mu and sigma are the argmax of logits, and all is done on integers. In
training the tokens are one-hot vectors, for which the inverse map is a form linear in each of its arguments,

    u[k] = sum over m, s, j with (j - m) / s = k (mod V) of   mu[m] sigma[s] x[j],

so at one-hot arguments the gradient for each is the gradient for u, reordered: no product of size V^2 is
formed. The argmax passes gradients as a softmax of low temperature would (Bengio, Léonard and Courville
2013, arXiv:1308.3432; Tran et al. 2019, arXiv:1905.10347).
"""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from discdiff.types import Value


class Location(Value, frozen=True):
    """x = (mu + u) mod V."""

    kind: Literal["location"] = "location"

    def units(self, vocab: int) -> Int64[Tensor, "U"]:
        """The scales to choose from: 1 alone."""
        return torch.ones(1, dtype=torch.int64)


class LocationScale(Value, frozen=True):
    """x = (mu + sigma u) mod V with sigma coprime to V."""

    kind: Literal["location_scale"] = "location_scale"

    def units(self, vocab: int) -> Int64[Tensor, "U"]:
        """The scales to choose from: the units of Z_V, ascending."""
        numbers = torch.arange(1, max(2, vocab))
        return numbers[torch.gcd(numbers, torch.tensor(vocab)) == 1]


AnyTransform = Annotated[Location | LocationScale, Field(discriminator="kind")]


def reciprocals(units: Int64[Tensor, "U"], vocab: int) -> Int64[Tensor, "U"]:
    """1 / sigma in Z_V."""
    return torch.tensor([pow(unit, -1, vocab) if vocab > 1 else 0 for unit in units.tolist()])


def one_hot_argmax(logits: Float[Tensor, "*n K"], temperature: float) -> Float[Tensor, "*n K"]:
    """The one-hot argmax, with the gradient of softmax(logits / temperature). `[..., K] -> [..., K]`"""
    return _OneHotArgmax.apply(logits, temperature)


def subtract_and_divide(
    x: Float[Tensor, "*n V"],
    location: Float[Tensor, "*n V"],
    scale: Float[Tensor, "*n U"],
    reciprocal: Int64[Tensor, "U"],
) -> Float[Tensor, "*n V"]:
    """(x - mu) / sigma mod V of one-hot vectors, differentiable in each. `[..., V] -> [..., V]`

    `reciprocal` holds 1 / sigma of the units over which `scale` is one-hot.
    """
    return _SubtractAndDivide.apply(x, location, scale, reciprocal)


class _OneHotArgmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.temperature = temperature
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (logits,) = ctx.saved_tensors
        soft = (logits / ctx.temperature).softmax(-1)
        return soft * (grad - (soft * grad).sum(-1, keepdim=True)) / ctx.temperature, None


class _SubtractAndDivide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, location: Tensor, scale: Tensor, reciprocal: Tensor) -> Tensor:
        at, mu, choice = x.argmax(-1), location.argmax(-1), scale.argmax(-1)
        ctx.save_for_backward(at, mu, choice, reciprocal)
        return F.one_hot(reciprocal[choice] * (at - mu) % x.shape[-1], x.shape[-1]).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        at, mu, choice, reciprocal = (saved[..., None] for saved in ctx.saved_tensors)
        vocab = grad.shape[-1]
        every = torch.arange(vocab, device=grad.device)
        divisor = reciprocal[:, 0][choice]
        for_x = grad.gather(-1, divisor * (every - mu) % vocab)
        for_location = grad.gather(-1, divisor * (at - every) % vocab)
        for_scale = grad.gather(-1, reciprocal[:, 0] * (at - mu) % vocab)
        return for_x, for_location, for_scale, None
