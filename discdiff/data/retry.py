"""What may fail over a network is tried again, after pauses that double."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LONGEST_PAUSE = 30.0


class GaveUpError(Exception):
    """All attempts failed. The message counts them and gives the last cause."""


def retry(action: Callable[[], T], *, attempts: int, pause: float) -> T:
    """The result of the action. A file that is not there is not asked for twice: FileNotFoundError passes."""
    start, attempt = time.monotonic(), 1
    while True:
        try:
            return action()
        except FileNotFoundError:
            raise
        except Exception as error:  # file systems raise what their clients do
            if attempt >= attempts:
                seconds = time.monotonic() - start
                last = f"{type(error).__name__}: {error}".rstrip(": ")
                raise GaveUpError(
                    f"{attempt} attempts in {seconds:.1f} s; the last failed: {last}"
                ) from error
        time.sleep(min(pause * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.0))
        attempt += 1
