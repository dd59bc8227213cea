"""Rows that lie in many memory-mapped files, copied as one.

Rows of a shuffled batch lie in as many files as there are rows. To slice them one by one costs more than to
copy them, so they are gathered by address: a view spans the addresses between the lowest and the highest row,
NumPy's indexing copies the rows, and nothing between them is touched. Who gives the addresses answers for
every one of them.
"""

import contextlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Rows:
    """Rows of `length` items of a type, at addresses aligned to it. `array` copies them.

    `held` is what keeps the memory; it lives as long as this object.
    """

    def __init__(self, addresses: np.ndarray, dtype: np.dtype, length: int, held: object):
        self.held, self.length = held, length
        self._dtype = dtype
        self._width = dtype.itemsize * length
        self._base, self._last = (int(addresses.min()), int(addresses.max())) if len(addresses) else (0, -1)
        self._indices = (addresses - self._base) // dtype.itemsize
        self._items = np.asarray(_Items(self._base, self._last, self._width, dtype.itemsize))

    @classmethod
    def of(cls, rows: np.ndarray) -> "Rows":
        """The rows of an array: `[n, length]`."""
        addresses = rows.ctypes.data + rows.strides[0] * np.arange(len(rows))
        return cls(addresses, rows.dtype, rows.shape[1], rows)

    @property
    def addresses(self) -> np.ndarray:
        return self._base + self._dtype.itemsize * self._indices

    def merged(self, others: "Rows", mine: np.ndarray) -> "Rows":
        """These rows where `mine` is true, in order, and the others elsewhere: bool `[n]`."""
        addresses = np.empty(len(mine), np.int64)
        addresses[mine], addresses[~mine] = self.addresses, others.addresses
        return Rows(addresses, self._dtype, self.length, (self.held, others.held))

    def array(self) -> np.ndarray:
        """A copy of them, `[n, length]`."""
        if not self._width:
            return np.empty((len(self._indices), 0), self._dtype)
        return self._items[self._indices].view(self._dtype).reshape(-1, self.length)


class _Items:
    """Overlapping items of `width` bytes, one at every `step` bytes from `base` to `last`.

    NumPy copies items of one dimension faster than slices of two.
    """

    def __init__(self, base: int, last: int, width: int, step: int):
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "data": (base, True),
            "typestr": f"|V{width}",
            "shape": ((last - base) // step + 1,),
            "strides": (step,),
        }


def mapped(rows: int, length: int, dtype: np.dtype) -> np.ndarray:
    """Zeros among the mapped files, `[rows, length]`: the heap is so far away that no view spans both."""
    memory = mmap.mmap(-1, max(1, rows * length * dtype.itemsize))
    return np.frombuffer(memory, dtype, rows * length).reshape(rows, length)


def sparse(count: int) -> np.ndarray:
    """Zeros, int64 `[count]`, that take memory where they are written: NumPy's would take 2 MiB at a time."""
    memory = mmap.mmap(-1, max(1, 8 * count))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel that has no large pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.int64, count)


def map_file(path: Path, size: int) -> torch.Tensor:
    """The first `size` bytes of a file as memory, uint8. It holds no file descriptor, as `mmap` would."""
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
