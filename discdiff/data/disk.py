"""Bytes to a local disk, and there to stay.

A large file that must be on disk before anything goes on gains nothing from the page cache: pages for it are
found, filled, and waited for all the same. Where the system allows it (Linux, most file systems) such data
goes from the writer's memory to the disk directly, which costs the processor next to nothing. Memory and
length must then be of whole pages: `room` gives such memory, and what is left at the end goes the common way.
"""

import errno
import os

import numpy as np

PAGE = 4096
_LARGE = 2**20
"""Bytes from which on it pays."""
_AT_ONCE = 2**30
"""Bytes: Linux writes no 2 GiB in one call."""


def room(size: int) -> np.ndarray:
    """Memory of so many bytes that begins where a page does."""
    memory = np.empty(size + PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE
    return memory[start : start + size]


def write_durably(handle: int, data: memoryview) -> None:
    """Write all of the data to an open file and wait until the disk has it. Raises OSError."""
    data = data.cast("B")
    done = _directly(handle, data) if len(data) >= _LARGE else 0
    _write(handle, data[done:])
    os.fsync(handle)


def _directly(handle: int, data: memoryview) -> int:
    """Write the whole pages of the data past the page cache; how many bytes that were, 0 if it can't be."""
    if not hasattr(os, "O_DIRECT") or np.frombuffer(data, np.uint8).ctypes.data % PAGE:
        return 0
    import fcntl  # not everywhere, as O_DIRECT is not

    whole = len(data) // PAGE * PAGE
    start, flags = os.lseek(handle, 0, os.SEEK_CUR), fcntl.fcntl(handle, fcntl.F_GETFL)
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError:  # the file system knows no such thing
        return 0
    try:
        _write(handle, data[:whole])
        return whole
    except OSError as error:
        if error.errno != errno.EINVAL:  # its blocks are larger than pages, or the file stands within one
            raise
        os.lseek(handle, start, os.SEEK_SET)
        return 0
    finally:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags)


def _write(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data[:_AT_ONCE]) :]
