"""Reverse steps: the law of x_s given x_t at every position, from one evaluation of the network.

Each position is drawn independently, so a step of size h is wrong by O(h^2) in law and n steps by O(1/n).
"""

from typing import Annotated, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor

from discdiff.schedules import before_one
from discdiff.types import Value


@runtime_checkable
class Dynamics(Protocol):
    """The reverse dynamics of a method, read off the network's raw output."""

    def log_bridge(self, raw: Tensor, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor: ...
    def rates(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...
    def log_denoise(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...


class Ancestral(Value, frozen=True):
    """Draw from the bridge p(x_s | x_t) of the predicted law: D3PM's step, and SEDD's analytic (Tweedie)
    one.
    """

    kind: Literal["ancestral"] = "ancestral"

    def log_law(
        self,
        dynamics: Dynamics,
        raw: Float[Tensor, "*n W"],
        x_t: Int64[Tensor, "*n"],
        s: Float64[Tensor, "*m"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n K"]:
        """log p(x_s | x_t). `[..., W] -> [..., K]`"""
        return dynamics.log_bridge(raw, x_t, s, t)


class Euler(Value, frozen=True):
    """Jump to y with probability (t - s) times its reverse rate, else stay (tau-leaping, arXiv:2205.14987).

    Where the probabilities of jumping add up to more than one, they are scaled to one. The last step, to s =
    0, is ancestral, since rates alone leave noise behind.
    """

    kind: Literal["euler"] = "euler"

    def log_law(
        self,
        dynamics: Dynamics,
        raw: Float[Tensor, "*n W"],
        x_t: Int64[Tensor, "*n"],
        s: Float64[Tensor, "*m"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n K"]:
        """log p(x_s | x_t). `[..., W] -> [..., K]`"""
        if bool((s == 0).all()):
            return dynamics.log_bridge(raw, x_t, s, t)
        t = before_one(t)
        jump = dynamics.rates(raw, x_t, t) * (t - s)[..., None].to(raw)
        total = jump.sum(-1, keepdim=True)
        jump = jump / total.clamp_min(1)
        return jump.scatter(-1, x_t[..., None], (1 - total).clamp_min(0)).log()


AnyReverse = Annotated[Ancestral | Euler, Field(discriminator="kind")]
