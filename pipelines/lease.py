"""A lease: at most one runner works in a place, on a disk and in an object store alike.

Leases are numbered files, made by exclusive creation, so two runners never hold the same number; the highest
number holds the place. The holder rewrites its file every few seconds. Whoever finds a lease that has stood
still for `PATIENCE` seconds of its *own* clock, or whose process it can see to be dead, creates the next
number and goes on: no clocks are compared between machines. A holder that was only asleep notices the higher
number and knows that it lost.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable

from pipelines.place import Place
from pipelines.process import dead, identity

BEAT = 5.0
PATIENCE = 30.0


class Lease:
    """Hold with `acquire` and `release`; `held` turns False once another runner took over."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.held = False
        self._owner = {"id": uuid.uuid4().hex, **identity()}
        self._number = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, waiting: Callable[[str], None], settled: Callable[[], bool]) -> bool:
        """Wait for the place; False if `settled` became true meanwhile, that is, another runner did the work.

        `waiting` is told, once, who is at work.
        """
        seen, since, told = "", time.monotonic(), False
        while not settled():
            number, content = self._latest()
            if not number or self._abandoned(content, seen == content, since):
                if self._create(number + 1):
                    return True
                continue
            if seen != content:
                seen, since = content, time.monotonic()
            if not told:
                waiting(_holder(content))
                told = True
            time.sleep(min(0.5, BEAT / 2))
        return False

    def release(self) -> None:
        """Give the place back and forget the leases before this one."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for name in self.place.names():
            if name.endswith(".json") and int(name.removesuffix(".json")) <= self._number:
                self.place.remove(name)
        self.held = False

    def _latest(self) -> tuple[int, str]:
        numbers = [int(name.removesuffix(".json")) for name in self.place.names() if name.endswith(".json")]
        if not numbers:
            return 0, ""
        return max(numbers), (self.place.read(f"{max(numbers):06d}.json") or b"").decode()

    def _create(self, number: int) -> bool:
        self._number = number
        name = f"{number:06d}.json"
        if not self.place.create(name, self._content(0)):
            owner = json.loads(self.place.read(name) or b"{}")
            if owner.get("id") != self._owner["id"]:
                return False
        self.held = True
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return True

    def _content(self, beat: int) -> bytes:
        return json.dumps({**self._owner, "beat": beat}).encode()

    def _beat(self) -> None:
        beat = 0
        while not self._stop.wait(BEAT):
            try:
                number, content = self._latest()
                if number != self._number or json.loads(content).get("id") != self._owner["id"]:
                    self.held = False
                    return
                beat += 1
                self.place.write(f"{number:06d}.json", self._content(beat))
            except (OSError, ValueError):
                continue  # a beat that fails is made up by the next; patience is several beats

    def _abandoned(self, content: str, unchanged: bool, since: float) -> bool:
        if unchanged and time.monotonic() - since > PATIENCE:
            return True
        try:
            return dead(json.loads(content))
        except ValueError:
            return False


def _holder(content: str) -> str:
    try:
        owner = json.loads(content)
        return f"{owner['host']}, process {owner['pid']}"
    except (ValueError, KeyError):
        return "an unknown process"
