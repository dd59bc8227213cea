"""Loops over arrays as machine code, by Numba: for a processor, where NumPy and torch would write to memory
what a loop keeps in registers."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def compiled(
    loop: Callable[..., Any],
    *,
    parallel: bool = False,
    inlined: bool = False,
    fastmath: frozenset[str] = frozenset(),
) -> Callable[..., Any]:
    """`loop` as machine code that holds no lock, kept on disk for the next process where there is a place to.

    `parallel` runs its `prange` on several cores. `inlined` makes it part of the compiled functions that call
    it. `fastmath` are the liberties that LLVM may take with its arithmetic, such as `reassoc`. Numba is
    imported here: that takes a quarter of a second, for which only who calls a loop should wait.
    """
    import numba

    plain = inspect.unwrap(loop)
    options: dict[str, Any] = {
        "nogil": True,
        "parallel": parallel,
        "forceinline": inlined,
        "fastmath": set(fastmath) or False,
    }
    try:
        return numba.njit(cache=True, **options)(plain)
    except RuntimeError:  # neither beside the loop's file nor in the user's home can be written
        return numba.njit(**options)(plain)
