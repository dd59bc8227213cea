"""Memory for batches. Fresh memory costs a page fault for every four kilobytes: more than to fill them."""

import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]
Provider = Callable[[Shape, torch.dtype], Tensor]
"""Gives a tensor of unspecified content."""

UNHELD = 3
"""References to an array that only `Recycled` holds: from its list, from its loop, and from asking."""


def fresh(shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def pinned(shape: Shape, dtype: torch.dtype) -> Tensor:
    """Page-locked, which torch keeps and gives out again by itself."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class Recycled:
    """Gives memory out again once nobody holds the tensor that had it, nor any view of it.

    A tensor made from an array holds a reference to it for as long as its storage lives.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[Shape, torch.dtype], list[np.ndarray]] = {}

    def __call__(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        arrays = self._arrays.setdefault((shape, dtype), [])
        for array in arrays:
            if sys.getrefcount(array) == UNHELD:
                return torch.from_numpy(array)
        arrays.append(torch.empty(shape, dtype=dtype).numpy())
        return torch.from_numpy(arrays[-1])
