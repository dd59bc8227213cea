"""The trajectory of a sample, compact: at which times which positions changed, and to what."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from discdiff.types import Canvas

Observer = Callable[[float | Tensor, Tensor], None]
"""Is told the state after each step: its time, one for all rows or `[B, 1]`, and its tokens `[B, L]`."""


def nobody(t: float | Float64[Tensor, "B 1"], x: Int64[Tensor, "B L"]) -> None:
    """Looks away."""


def within(observe: Observer, canvas: Canvas, x: Int64[Tensor, "B L"], start: int, vocab: int) -> Observer:
    """An observer of the part of x from `start` on; what is free behind that part is shown as masks."""

    def shown(t: float | Tensor, part: Tensor) -> None:
        after = start + part.shape[1]
        pending = torch.where(canvas.free[:, after:], vocab, canvas.tokens[:, after:])
        observe(t, torch.cat([x[:, :start], part, pending], dim=1))

    return observe if observe is nobody else shown


@dataclass(frozen=True)
class Trace:
    """One row's trajectory. `steps[k]` lists (position, token) that changed on the way to `times[k]`; the
    first step lists all positions. A mask is the token V.
    """

    times: list[float]
    steps: list[list[tuple[int, int]]]

    def to_json(self) -> dict[str, list[float] | list[list[tuple[int, int]]]]:
        """`{"times": [...], "steps": [[(position, token), ...], ...]}`"""
        return {"times": self.times, "steps": self.steps}

    @staticmethod
    def from_json(read: dict[str, Any]) -> "Trace":
        """The trace that `to_json` wrote."""
        return Trace(list(read["times"]), [[(p, v) for p, v in step] for step in read["steps"]])

    def states(self) -> list[list[int]]:
        """The tokens after each step."""
        tokens: dict[int, int] = {}
        states: list[list[int]] = []
        for step in self.steps:
            tokens.update(step)
            states.append([tokens[i] for i in sorted(tokens)])
        return states


@dataclass
class Recorder:
    """An observer that keeps the traces of the first `rows` rows of a batch; copying them to the host costs a
    wait a step.
    """

    rows: int = 1
    _times: list[list[float]] = field(default_factory=list)
    _states: list[list[list[int]]] = field(default_factory=list)

    def __call__(self, t: float | Float64[Tensor, "B 1"], x: Int64[Tensor, "B L"]) -> None:
        shown = x[: self.rows].tolist()
        time = t if isinstance(t, Tensor) else torch.full((len(x), 1), t, dtype=torch.float64)
        self._times.append(time[: self.rows].flatten().tolist())
        self._states.append(shown)

    @property
    def traces(self) -> list[Trace]:
        """One for each row; steps in which it did not change are left out."""
        rows = len(self._states[0]) if self._states else 0
        return [
            _trace([times[row] for times in self._times], [state[row] for state in self._states])
            for row in range(rows)
        ]


def _trace(times: Sequence[float], states: Sequence[list[int]]) -> Trace:
    kept, steps, before = list[float](), list[list[tuple[int, int]]](), [-1] * len(states[0])
    for time, state in zip(times, states, strict=True):
        step = [(i, b) for i, (a, b) in enumerate(zip(before, state, strict=True)) if a != b]
        if step:
            kept.append(time)
            steps.append(step)
        before = state
    return Trace(kept, steps)
