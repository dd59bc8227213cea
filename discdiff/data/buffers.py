"""Memory for batches. Fresh memory costs a page fault for every four kilobytes: more than to fill them."""

import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]
Provider = Callable[[Shape, torch.dtype], Tensor]
"""Gives a tensor of unspecified content."""

KEPT = 8
"""Arrays of one size that wait to be used again."""


def fresh(shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def pinned(shape: Shape, dtype: torch.dtype) -> Tensor:
    """Page-locked, which torch keeps and gives out again by itself."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class Recycled:
    """Gives memory out again once nobody holds the tensor that had it, nor any view of it."""

    def __init__(self) -> None:
        self._idle: dict[int, list[np.ndarray]] = {}

    def __call__(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        size = int(np.prod(shape)) * dtype.itemsize
        idle = self._idle.setdefault(size, [])
        try:
            owner = idle.pop()
        except IndexError:
            owner = np.empty(size, np.uint8)
        held = owner[:]  # the tensor holds this view, the view's end tells that of the tensor
        weakref.finalize(held, _put_back, idle, owner).atexit = False
        return torch.from_numpy(held).view(dtype).view(shape)


def _put_back(idle: list[np.ndarray], owner: np.ndarray) -> None:
    if len(idle) < KEPT:
        idle.append(owner)
