"""Reverse steps: the law of x_s given x_t at every position, from one evaluation of the network.

Each position is drawn independently, so a step of size h is wrong by O(h^2) in law and n steps by O(1/n). For
mask noise a step is a probability of unmasking, which no network decides, and the predicted law of the token.
"""

from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor

from discdiff.processes import Mask, Process
from discdiff.schedules import before_one
from discdiff.types import Value


@runtime_checkable
class Dynamics(Protocol):
    """The reverse dynamics of a method, read off the network's raw output."""

    @property
    def process(self) -> Process: ...
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

    def unmask(self, process: Mask, s: Float64[Tensor, ""], t: Float64[Tensor, ""]) -> Float64[Tensor, ""]:
        """The probability that a masked token is unmasked: (alpha_s - alpha_t) / (1 - alpha_t)."""
        return 1 - process.schedule.beta(s) / process.schedule.beta(t)


Tweedie = Analytic = Ancestral


class GreedyTail(Ancestral, frozen=True):
    """Ancestral steps, the last of which takes the most probable token: Duo's greedy tail (arXiv:2506.10892).

    For noise that changes tokens up to the last step; the most probable of a masked token's is a filter's to
    choose.
    """

    kind: Literal["greedy_tail"] = "greedy_tail"  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_law(
        self,
        dynamics: Dynamics,
        raw: Float[Tensor, "*n W"],
        x_t: Int64[Tensor, "*n"],
        s: Float64[Tensor, "*m"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n K"]:
        """log p(x_s | x_t), certain of its mode where s = 0. `[..., W] -> [..., K]`"""
        law = dynamics.log_bridge(raw, x_t, s, t)
        if not bool((s == 0).all()):
            return law
        return torch.full_like(law, -torch.inf).scatter(-1, law.argmax(-1, keepdim=True), 0)


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

    def unmask(self, process: Mask, s: Float64[Tensor, ""], t: Float64[Tensor, ""]) -> Float64[Tensor, ""]:
        """The probability that a masked token is unmasked: (t - s) times -alpha' / (1 - alpha), one at
        most.
        """
        t = before_one(t)
        left = process.schedule.beta(t)
        rate = -process.schedule.dalpha(t) / left
        last = 1 - process.schedule.beta(s) / left
        return torch.where(s == 0, last, (t - s) * rate).clamp_max(1)


class FlowEuler(Value, frozen=True):
    """Discrete flow matching's step (arXiv:2407.15595), on paths that mix a token with fixed noise: with
    probability (alpha_s - alpha_t) / (1 - alpha_t) draw the token anew from p(x_0 | x_t), else stay.

    The probability is the integral of the paper's rate over the step, so the step to s = 0 needs no
    exception. The marginals are those of the other steps, the paths are not: tokens that are noise jump once.
    """

    kind: Literal["flow"] = "flow"

    def log_law(
        self,
        dynamics: Dynamics,
        raw: Float[Tensor, "*n W"],
        x_t: Int64[Tensor, "*n"],
        s: Float64[Tensor, "*m"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n K"]:
        """log p(x_s | x_t). `[..., W] -> [..., K]`"""
        jump = redraw(dynamics.process, s, t)[..., None].to(raw)
        law = jump * dynamics.log_denoise(raw, x_t, t).exp()
        law = torch.nn.functional.pad(law, (0, dynamics.process.extra))
        return law.scatter_add(-1, x_t[..., None], (1 - jump).expand(*x_t.shape, 1)).log()

    def unmask(self, process: Mask, s: Float64[Tensor, ""], t: Float64[Tensor, ""]) -> Float64[Tensor, ""]:
        """The probability that a masked token is unmasked, which is the ancestral one."""
        return 1 - process.schedule.beta(s) / process.schedule.beta(t)


def redraw(process: Process, s: Float64[Tensor, "*m"], t: Float64[Tensor, "*m"]) -> Float64[Tensor, "*m"]:
    """(alpha_s - alpha_t) / (1 - alpha_t)."""
    now = process.alpha(t)
    return (process.alpha(s) - now) / (1 - now)


class FirstHitting(Value, frozen=True):
    """Mask noise without time steps: draw the times at which tokens are unmasked, one after the other, and
    fill one token at each (arXiv:2409.02908).

    With n tokens masked at time t the next is unmasked at the time s where (1 - alpha_s) = (1 - alpha_t)
    u^(1/n), u uniform on (0, 1), and is any of them alike. This is exact, whatever the network reads, with as
    many evaluations as tokens; the head is asked of the filled position alone. Rows are at different times.
    """

    kind: Literal["first_hitting"] = "first_hitting"


AnyReverse = Annotated[Ancestral | GreedyTail | Euler | FlowEuler | FirstHitting, Field(discriminator="kind")]
