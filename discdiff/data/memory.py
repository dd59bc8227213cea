"""One vectorized copy out of many memory-mapped files.

Rows of a shuffled batch lie in as many files as there are rows. To slice them one by one costs more than to
copy them, so they are gathered by address: a view spans the addresses between the lowest and the highest row,
NumPy's indexing copies the rows, and nothing between them is touched. The caller answers for every address.
"""

import contextlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch

STEP = 2**17
"""Bytes that are gathered before they are widened: they stay in the cache, and cost no page faults."""


class _Rows:
    """Overlapping rows of `width` bytes, one at every `step` bytes from `base` to `last`, each a single item.

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


def gather(addresses: np.ndarray, dtype: np.dtype, out: np.ndarray) -> None:
    """Copy into each row of `out`, of whatever type, from an address aligned to `dtype`: `[n], [n, L]`."""
    base, length = int(addresses.min()), out.shape[1]
    width = length * dtype.itemsize
    rows = np.asarray(_Rows(base, int(addresses.max()), width, dtype.itemsize))
    indices = (addresses - base) // dtype.itemsize
    step = max(1, STEP // width)
    for start in range(0, len(indices), step):
        gathered = rows[indices[start : start + step]].view(dtype)
        np.copyto(out[start : start + step], gathered.reshape(-1, length))


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
