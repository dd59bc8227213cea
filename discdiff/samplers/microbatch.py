"""Network calls with a fixed number of rows, so that rounding can't tell what a row was batched with.

Matrix products of one shape round each row alike, whatever else is in the batch and wherever the row stands;
products of different shapes do not. Samplers that ask the network of some rows at a time fill each call up
(`fixed`); those that keep something of all rows, as keys and values, draw so many rows by themselves
(`in_groups`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from discdiff.noise import Noise
from discdiff.samplers.trace import Observer, nobody
from discdiff.types import Canvas, Condition

Filling = Callable[[Canvas, Noise, Observer], Tensor]
"""Fills a canvas with the randomness of its rows."""


def fixed(call: Callable[..., Tensor], size: int | None, x: Tensor, *given: Any) -> Tensor:
    """`call(x, *given)` in pieces of exactly `size` rows, the last filled up with copies of its first row.

    None calls once. `given` are tensors of as many rows, or conditions.
    """
    if size is None or len(x) in (0, size):
        return call(x, *given)
    pieces: list[Tensor] = []
    for start in range(0, len(x), size):
        rows = torch.arange(start, start + size, device=x.device)
        rows = torch.where(rows < len(x), rows, start)
        several = [g.taken(rows) if isinstance(g, Condition) else g[rows] for g in given]
        pieces.append(call(x[rows], *several)[: len(x) - start])
    return torch.cat(pieces)


def in_groups(
    fill: Filling,
    size: int | None,
    canvas: Canvas,
    noise: Noise,
    observe: Observer,
    alike: Int64[Tensor, "B"] | None = None,
) -> Int64[Tensor, "B L"]:
    """`fill(canvas, noise, observe)` for exactly `size` rows at a time, one group after the other; rows share
    a group if they have the same number in `alike`. `-> [B, L]`

    A group is filled up with copies of its first row. None fills all rows at once. The observer is told when
    all are done: of the first states of all groups, then of the second ones, to the last.
    """
    if size is None:
        return fill(canvas, noise, observe)
    x, seen = canvas.tokens.clone(), list[_Seen]()
    for rows in _groups(torch.zeros_like(canvas.rows) if alike is None else alike, size):
        group = _taken(canvas, rows[torch.arange(size, device=rows.device) % len(rows)])
        seen.append(_Seen(rows))
        watch = nobody if observe is nobody else seen[-1]
        x[rows] = fill(group, noise.on(group.rows), watch)[: len(rows)]
    _tell(observe, x, seen)
    return x


def _groups(alike: Int64[Tensor, "B"], size: int) -> Iterator[Int64[Tensor, "R"]]:
    """The rows of each group, `size` at most; waits for the device."""
    for number in alike.unique():
        yield from (alike == number).nonzero()[:, 0].split(size)


def _taken(canvas: Canvas, rows: Int64[Tensor, "R"]) -> Canvas:
    """These rows of a canvas; its condition says which they are."""
    condition = canvas.condition.taken(rows)
    return Canvas(
        tokens=canvas.tokens[rows],
        free=canvas.free[rows],
        rows=canvas.rows[rows],
        condition=condition if condition.rows is not None else replace(condition, rows=rows),
        allowed=None if canvas.allowed is None else canvas.allowed[rows],
    )


@dataclass
class _Seen:
    """An observer that keeps what it is told of some rows."""

    rows: Int64[Tensor, "R"]
    states: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, t: float | Tensor, x: Tensor) -> None:
        count = len(self.rows)
        times = (
            t if isinstance(t, Tensor) else torch.full((count, 1), t, dtype=torch.float64, device=x.device)
        )
        self.states.append((times[:count].clone(), x[:count].clone()))


def _tell(observe: Observer, x: Tensor, seen: list[_Seen]) -> None:
    """Tell of all groups in step; those with fewer states stay at their last."""
    for index in range(max((len(group.states) for group in seen), default=0)):
        now = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        state = torch.empty_like(x)
        for group in seen:
            times, tokens = group.states[min(index, len(group.states) - 1)]
            now[group.rows], state[group.rows] = times, tokens
        observe(now, state)
