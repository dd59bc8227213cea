"""Axes, units and conventions, stated once.

Axes: B sequences, L positions, V clean tokens, K noisy states (K = V + 1 with a mask token, whose id is V,
else K = V).
Time: t in [0, 1], 0 is data and 1 is noise; every time is a float64 tensor `[B, 1]` or `[B, L]`.
Units: losses and log-probabilities are in nats; bits appear only in reports.
Dtypes: token ids are int64 in the library (stores keep uint8, uint16 or uint32); logits and all after them
are float32 or better.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel
from torch import Tensor, nn


class DiscdiffError(ValueError):
    """A mistake in what was asked for: the message says what was given, what is allowed and what to do."""


class UnreachableError(DiscdiffError):
    """A place that can't be read or written, perhaps only now: what was done before is worth keeping."""


class Value(BaseModel, frozen=True, extra="forbid"):
    """A specification that is its own configuration: immutable, hashable, comparable, JSON both ways."""


def _moved(value: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device. From pinned memory a GPU fetches it by itself; a CPU waits until all is there."""
    return value.to(device, non_blocking=torch.device(device).type != "cpu")


@dataclass(frozen=True)
class Condition:
    """What a network may see besides the noisy tokens.

    `labels`: a class per row, -1 for none. `documents`: attention stays within positions of equal id. `rows`:
    which rows of a batch these are, for a network that remembers something of each.
    """

    labels: Int[Tensor, "B"] | None = None
    documents: Int[Tensor, "B L"] | None = None
    rows: Int[Tensor, "B"] | None = None

    def to(self, device: torch.device | str) -> "Condition":
        return self._each(lambda value: _moved(value, device))

    def narrow(self, start: int, stop: int) -> "Condition":
        return self._each(lambda value: value[start:stop])

    def taken(self, index: Int[Tensor, "R"]) -> "Condition":
        """Of these rows only."""
        return self._each(lambda value: value[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        return Condition(
            *(None if x is None else change(x) for x in (self.labels, self.documents, self.rows))
        )


@dataclass(frozen=True)
class Canvas:
    """Sequences with the part that is the model's: one idea for padding, prompts, infilling and blocks.

    `free` positions are noised and scored in training and filled in sampling; the rest is context, never
    touched. `rows` are global ids by which randomness is keyed: in training the position in the shuffled
    stream, in evaluation the sequence's index, in generation the sample's. `allowed` restricts, per position,
    the tokens that sampling may write.
    """

    tokens: Int[Tensor, "B L"]
    free: Bool[Tensor, "B L"]
    rows: Int[Tensor, "B"]
    condition: Condition = field(default_factory=Condition)
    allowed: Bool[Tensor, "B L V"] | None = None

    @property
    def shape(self) -> torch.Size:
        return self.tokens.shape

    def to(self, device: torch.device | str) -> "Canvas":
        """The same canvas on a device, its tokens as int64."""
        return Canvas(
            tokens=_moved(self.tokens, device).long(),
            free=_moved(self.free, device),
            rows=_moved(self.rows, device),
            condition=self.condition.to(device),
            allowed=None if self.allowed is None else _moved(self.allowed, device),
        )

    def narrow(self, start: int, stop: int) -> "Canvas":
        """Rows `start` to `stop` of the batch."""
        return Canvas(
            tokens=self.tokens[start:stop],
            free=self.free[start:stop],
            rows=self.rows[start:stop],
            condition=self.condition.narrow(start, stop),
            allowed=None if self.allowed is None else self.allowed[start:stop],
        )

    def with_tokens(self, tokens: Int[Tensor, "B L"]) -> "Canvas":
        return replace(self, tokens=tokens)


@dataclass(frozen=True)
class VectorCanvas:
    """A canvas of vectors: where `free` is False they are context, clean and never noised."""

    vectors: Float[Tensor, "B L E"]
    free: Bool[Tensor, "B L"]
    condition: Condition = field(default_factory=Condition)


def canvas(tokens: Int[Tensor, "B L"], *, first_row: int = 0) -> Canvas:
    """Whole sequences, all free, rows numbered from `first_row`: what a law or a notebook needs."""
    rows = torch.arange(first_row, first_row + tokens.shape[0], device=tokens.device)
    return Canvas(tokens.long(), torch.ones_like(tokens, dtype=torch.bool), rows)


@runtime_checkable
class Network(Protocol):
    """A module in two parts, `net(x, t, condition) == net.head(net.trunk(x, t, condition))`.

    Methods call the parts: the head only at the positions that have something to predict.
    """

    vocab: int
    """V, the number of clean tokens."""
    if TYPE_CHECKING:  # from Python 3.12 on isinstance does not see where nn.Module keeps its submodules
        trunk: nn.Module
        """`(x [B, L], t [B, 1] or [B, L], condition) -> [B, L, D]`"""
        head: nn.Module
        """`[..., D] -> [..., W]`, float32 or better"""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Float[Tensor, "B L W"]: ...
    def parameters(self, recurse: bool = True) -> Any: ...
