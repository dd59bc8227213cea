"""What the network's raw output means: the type of the head, explicit.

Each value reads raw outputs `[..., W]` as any of the three readings of `discdiff.algebra`, so any checkpoint
works with any sampler and any bound; `express` goes the other way, from the leave-one-out law to the raw
output that states it.
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor

from discdiff.algebra import (
    log_clean_from_posterior,
    log_clean_from_score,
    log_posterior,
    log_score_from_clean,
)
from discdiff.processes import Interpolating, Process
from discdiff.schedules import before_one
from discdiff.types import Value


@runtime_checkable
class Parameterization(Protocol):
    """Reads raw outputs; `...` is any shape of positions, and times broadcast to it."""

    def width(self, process: Process, vocab: int) -> int: ...
    def log_clean(self, process: Process, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...
    def log_posterior(self, process: Process, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...
    def log_score(self, process: Process, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...
    def express(self, process: Process, log_clean: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...


class _Reading(Value, frozen=True):
    """Defaults that go through the leave-one-out law."""

    def width(self, process: Process, vocab: int) -> int:
        """Outputs per position."""
        return vocab

    @abstractmethod
    def log_clean(
        self,
        process: Process,
        raw: Float[Tensor, "*n W"],
        x_t: Int64[Tensor, "*n"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n V"]:
        """The leave-one-out law. `[..., W] -> [..., V]`"""

    def log_posterior(
        self,
        process: Process,
        raw: Float[Tensor, "*n W"],
        x_t: Int64[Tensor, "*n"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n V"]:
        """The posterior. `[..., W] -> [..., V]`"""
        return log_posterior(process, self.log_clean(process, raw, x_t, t), x_t, t)

    def log_score(
        self,
        process: Process,
        raw: Float[Tensor, "*n W"],
        x_t: Int64[Tensor, "*n"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n K"]:
        """The log score, zero at x_t. `[..., W] -> [..., K]`"""
        return log_score_from_clean(process, self.log_clean(process, raw, x_t, t), x_t, t)


class LeaveOneOut(_Reading, frozen=True):
    """Logits of p(x_0 | x_t without this position): multinomial diffusion, D3PM's bound, UDLM, Duo, GIDD."""

    kind: Literal["leave_one_out"] = "leave_one_out"

    def tilt(
        self, process: Interpolating, x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*m"], vocab: int
    ) -> Float64[Tensor, "*n"]:
        """What the logit at x_t lacks for that of the leave-one-out law: nothing. `[...] -> [...]`"""
        return torch.zeros(x_t.shape, dtype=torch.float64, device=x_t.device)

    def log_clean(self, process: Process, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return raw.log_softmax(-1)

    def express(self, process: Process, log_clean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return log_clean


class Posterior(_Reading, frozen=True):
    """Logits of p(x_0 | x_t): what cross-entropy learns (MDLM, discrete flow matching, D3PM's auxiliary
    loss).
    """

    kind: Literal["posterior"] = "posterior"

    def tilt(
        self, process: Interpolating, x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*m"], vocab: int
    ) -> Float64[Tensor, "*n"]:
        """What the logit at x_t lacks for that of the leave-one-out law: log(u / (alpha + u)). `[...] ->
        [...]`
        """
        level = process.levels(t, vocab)
        share = level.uniform / (level.alpha + level.uniform)
        return torch.where(x_t == vocab, 0, share.log())

    def log_clean(self, process: Process, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return log_clean_from_posterior(process, raw, x_t, t)

    def log_posterior(self, process: Process, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The posterior, with tokens ruled out that could not have become x_t. `[..., V] -> [..., V]`"""
        likelihood = process.log_likelihood(x_t, t, raw.shape[-1], raw.dtype)
        return raw.masked_fill(likelihood == -torch.inf, -torch.inf).log_softmax(-1)

    def express(self, process: Process, log_clean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return log_posterior(process, log_clean, x_t, t)


class Score(_Reading, frozen=True):
    """Log ratios log p_t(y) / p_t(x_t), one per noisy state: SEDD (Lou et al. 2023, arXiv:2310.16834).

    Ratios say nothing of the data where alpha = 0: at t = 1 they are read as just before it.
    """

    kind: Literal["score"] = "score"

    def width(self, process: Process, vocab: int) -> int:
        return process.states(vocab)

    def log_clean(self, process: Process, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        t = before_one(t)
        return log_clean_from_score(process, self.log_score(process, raw, x_t, t), t)

    def log_score(self, process: Process, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return raw.scatter(-1, x_t[..., None], 0)

    def offsets(
        self, process: Interpolating, x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*n"], vocab: int
    ) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        """What outputs lack for log ratios, at tokens and at the mask: nothing. `[...] -> [...], [...]`"""
        zero = torch.zeros(x_t.shape, dtype=torch.float64, device=x_t.device)
        return zero, zero

    def express(self, process: Process, log_clean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return log_score_from_clean(process, log_clean, x_t, before_one(t))


class ScaledScore(Score, frozen=True):
    """Log ratios over those of a law that knows nothing: raw + log (q_t(y | uniform) / q_t(x_t | uniform)).

    A network whose outputs are near zero is then near the right magnitude at every noise level. With mask
    noise this is SEDD's scaling by log(e^sigma - 1) (arXiv:2310.16834), where they write V - 1 for V; with
    uniform noise it is no scaling, as there.
    """

    kind: Literal["scaled_score"] = "scaled_score"  # pyright: ignore[reportIncompatibleVariableOverride]

    def offsets(
        self, process: Interpolating, x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*n"], vocab: int
    ) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        """The scale, which is one number for all tokens and one for the mask. `[...] -> [...], [...]`"""
        level = process.levels(before_one(t), vocab)
        token, mask = (level.alpha / vocab + level.uniform).log(), level.mask.log()
        here = torch.where(x_t == vocab, mask, token)
        return token - here, mask - here

    def _scale(self, process: Process, vocab: int, like: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        spread = torch.full((), -math.log(vocab), dtype=like.dtype, device=like.device)
        return log_score_from_clean(process, spread.expand(*x_t.shape, vocab), x_t, before_one(t))

    def log_score(self, process: Process, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        scale = self._scale(process, raw.shape[-1] - process.extra, raw, x_t, t)
        return super().log_score(process, raw + scale, x_t, t)

    def express(self, process: Process, log_clean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        score = super().express(process, log_clean, x_t, t)
        return score - self._scale(process, log_clean.shape[-1], log_clean, x_t, t)


AnyParameterization = Annotated[LeaveOneOut | Posterior | Score | ScaledScore, Field(discriminator="kind")]
