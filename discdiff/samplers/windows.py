"""Sequences longer than the network was trained for: windows from left to right, each continuing the last."""

from dataclasses import replace

from pydantic import Field, model_validator
from torch import Tensor

from discdiff.types import Canvas, DiscdiffError, Value


class Windows(Value, frozen=True):
    """Semi-autoregressive: the network sees `size` positions at a time; each window after the first moves on
    by `stride` and keeps the others as context.
    """

    size: int = Field(ge=1)
    stride: int = Field(ge=1)

    @model_validator(mode="after")
    def _leaves_no_gap(self) -> "Windows":
        if self.stride > self.size:
            raise DiscdiffError(
                f"windows of {self.size} that move on by {self.stride} leave gaps: "
                f"take a stride of {self.size} at most"
            )
        return self

    def spans(self, length: int) -> list[tuple[int, int]]:
        """First and last-but-one position of each window."""
        stops = [min(self.size, length)]
        while stops[-1] < length:
            stops.append(min(stops[-1] + self.stride, length))
        return [(max(0, stop - self.size), stop) for stop in stops]


def cut(canvas: Canvas, x: Tensor, start: int, stop: int, done: int) -> Canvas:
    """The canvas of a window onto x, where the positions before `done` are context now."""
    free = canvas.free[:, start:stop].clone()
    free[:, : max(0, done - start)] = False
    documents = canvas.condition.documents
    here = None if documents is None else documents[:, start:stop]
    return replace(
        canvas,
        tokens=x[:, start:stop],
        free=free,
        condition=replace(canvas.condition, documents=here),
        allowed=None if canvas.allowed is None else canvas.allowed[:, start:stop],
    )
