"""Filters of the law that tokens are drawn from.

They act on the law of the clean token given the rest of the sequence (leave-one-out; with mask noise the
network's own), before the bridge to less noise is taken of it, in the order in which they are listed, each on
what the one before left, normalized.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from discdiff.types import Value


class Temperature(Value, frozen=True):
    """p^(1 / value), normalized."""

    kind: Literal["temperature"] = "temperature"
    value: float = Field(default=1.0, gt=0)

    def apply(self, log_p: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
        """The filtered law, unnormalized. `[..., V] -> [..., V]`"""
        return log_p / self.value


class TopK(Value, frozen=True):
    """The k most probable tokens."""

    kind: Literal["top_k"] = "top_k"
    k: int = Field(ge=1)

    def apply(self, log_p: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
        """The filtered law, unnormalized. `[..., V] -> [..., V]`"""
        kept = log_p.topk(min(self.k, log_p.shape[-1]), dim=-1)
        return torch.full_like(log_p, -torch.inf).scatter(-1, kept.indices, kept.values)


class TopP(Value, frozen=True):
    """The fewest most probable tokens whose probabilities add up to p at least: the token that crosses p is
    kept (nucleus sampling, arXiv:1904.09751).
    """

    kind: Literal["top_p"] = "top_p"
    p: float = Field(gt=0, le=1)

    def apply(self, log_p: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
        """The filtered law, unnormalized. `[..., V] -> [..., V]`"""
        if self.p == 1:
            return log_p
        ordered, index = log_p.sort(dim=-1, descending=True, stable=True)
        mass = ordered.double().exp()
        above = mass.cumsum(-1) - mass
        return torch.full_like(log_p, -torch.inf).scatter(
            -1, index, torch.where(above < self.p, ordered, -torch.inf)
        )


class MinP(Value, frozen=True):
    """The tokens at least `share` as probable as the most probable one (arXiv:2407.01082)."""

    kind: Literal["min_p"] = "min_p"
    share: float = Field(gt=0, le=1)

    def apply(self, log_p: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
        """The filtered law, unnormalized. `[..., V] -> [..., V]`"""
        least = log_p.amax(-1, keepdim=True).exp() * self.share
        return torch.where(log_p.exp() >= least, log_p, -torch.inf)


class Greedy(Value, frozen=True):
    """The most probable token alone. With mask noise in an order that follows the law, and from left to
    right, sampling is then deterministic.
    """

    kind: Literal["greedy"] = "greedy"

    def apply(self, log_p: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
        """The filtered law. `[..., V] -> [..., V]`"""
        best = log_p.argmax(-1, keepdim=True)
        return torch.full_like(log_p, -torch.inf).scatter(-1, best, 0)


AnyFilter = Annotated[Temperature | TopK | TopP | MinP | Greedy, Field(discriminator="kind")]


def apply(filters: tuple[AnyFilter, ...], log_p: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
    """All filters in their order; the result is normalized. `[..., V] -> [..., V]`"""
    for each in filters:
        log_p = each.apply(log_p.log_softmax(-1))
    return log_p.log_softmax(-1)
