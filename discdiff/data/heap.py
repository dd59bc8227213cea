"""Freed memory that stays with its process.

The allocator of the C library maps large blocks one by one and gives them back as they are freed, and each
new one then costs a page fault for every four kilobytes: more than most work on it, and several times more in
virtual machines that hand idle pages on. Who encodes batch after batch needs the same blocks again and again.
"""

import ctypes

KEPT = 2**30
"""Bytes: blocks below this come from the heap, and so much of it that is free stays."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed() -> None:
    """Have glibc keep what is freed in this process, up to a GiB; other C libraries go on as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, KEPT)
        mallopt(_TRIM_THRESHOLD, KEPT)
