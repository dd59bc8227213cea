"""Standard laws of independent numbers: bases of a continuous flow."""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from discdiff.types import Value

_LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)
_TAIL = -10.0
"""Below it a Gumbel law's mass is exp(-22026): its log density goes on as a line and stays finite."""


class StandardNormal(Value, frozen=True):
    """exp(-z^2 / 2) / sqrt(2 pi)."""

    kind: Literal["normal"] = "normal"

    def log_prob(self, z: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The log density of each number. `[...] -> [...]` nats"""
        return -z.square() / 2 - _LOG_ROOT_TAU

    def quantile(self, uniform: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The inverse CDF. `[...] -> [...]`"""
        return torch.special.ndtri(uniform)


class StandardGumbel(Value, frozen=True):
    """exp(-z - exp(-z)). The argmax of Gumbel variables with locations phi is softmax(phi), exactly."""

    kind: Literal["gumbel"] = "gumbel"

    def log_prob(self, z: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The log density of each number. `[...] -> [...]` nats"""
        return -z - (-z.clamp_min(_TAIL)).exp() * (1 + (_TAIL - z).clamp_min(0))

    def quantile(self, uniform: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The inverse CDF. `[...] -> [...]`"""
        return -(-uniform.log()).log()


AnyDensity = Annotated[StandardNormal | StandardGumbel, Field(discriminator="kind")]
