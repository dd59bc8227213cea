"""Network calls with a fixed number of rows, so that rounding can't tell what a row was batched with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from discdiff.types import Condition


def fixed(call: Callable[..., Tensor], size: int | None, x: Tensor, *given: Any) -> Tensor:
    """`call(x, *given)` in pieces of exactly `size` rows, the last filled up with copies of its first row.

    Matrix products of one shape round each row alike, whatever else is in the batch and wherever the row
    stands; products of different shapes do not. None calls once. `given` are tensors of as many rows, or
    conditions.
    """
    if size is None or not len(x):
        return call(x, *given)
    pieces: list[Tensor] = []
    for start in range(0, len(x), size):
        rows = torch.arange(start, start + size, device=x.device)
        rows = torch.where(rows < len(x), rows, start)
        several = [g.taken(rows) if isinstance(g, Condition) else g[rows] for g in given]
        pieces.append(call(x[rows], *several)[: len(x) - start])
    return torch.cat(pieces)
