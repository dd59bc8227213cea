"""The process that sends what is tracked: `python -m pipelines.sender SPOOL PID`.

It sends the sessions of the process PID as they grow, and those that dead processes left behind. A session is
a file of operations, one a line, in order; a cursor beside it says how far MLflow has them. After a crash
some may be sent twice, never not at all: MLflow ignores a metric that it has, and a run is looked up before
it is made again. Standard input is the lifeline: when it ends, the sender sends what is left and ends too, at
once if the server is away.
"""

import contextlib
import fcntl
import json
import os
import select
import sys
from pathlib import Path
from typing import IO, Any

from pipelines.delivery import AwayError, Delivery
from pipelines.process import dead

LINES = 2000
POLL, RETRY = 0.25, 3.0


class Session:
    """One process's operations and how far they are sent."""

    def __init__(self, path: Path, file: IO[str], header: dict[str, Any]) -> None:
        self.path = path
        self.file = file
        self.header = header
        self.cursor = path.with_suffix(".cursor")
        state = json.loads(self.cursor.read_text()) if self.cursor.exists() else {}
        self.offset: int = state.get("offset", file.tell())
        self.open: dict[str, str] = state.get("open", {})
        self.delivery: Delivery | None = None

    def send(self) -> bool:
        """Send the next lines; False if there are none. Raises AwayError."""
        self.file.seek(self.offset)
        lines: list[str] = []
        while len(lines) < LINES and (line := self.file.readline()).endswith("\n"):
            lines.append(line)
        if not lines:
            return False
        self._deliver([json.loads(line) for line in lines])
        self.offset += sum(len(line.encode()) for line in lines)
        self._save()
        return True

    def finish(self) -> None:
        """End the runs that never ended and forget the session. Raises AwayError."""
        ends = [{"op": "end", "run": run, "status": "KILLED", "time": None} for run in reversed(self.open)]
        if ends:
            self._deliver(ends)
        self.path.unlink()
        self.cursor.unlink(missing_ok=True)

    def _deliver(self, operations: list[dict[str, Any]]) -> None:
        if self.delivery is None:
            self.delivery = Delivery(self.header, self.open, self.path.with_suffix(".rejected"))
        self.delivery.send(operations)

    def _save(self) -> None:
        part = self.cursor.with_suffix(".part")
        part.write_text(json.dumps({"offset": self.offset, "open": self.open}))
        os.replace(part, self.cursor)


class Outbox:
    """The sessions that are this sender's to send: its owner's and the orphans."""

    def __init__(self, spool: Path, owner: int) -> None:
        self.spool = spool
        self.owner = owner
        self._sessions: dict[Path, Session] = {}

    def send(self, *, over: bool) -> bool:
        """Send a part of every session; False if nothing was left. Raises AwayError if nothing could be sent.

        `over` says that the owner writes no more.
        """
        self._look()
        sent, away = False, None
        for session in list(self._sessions.values()):
            try:
                if session.send():
                    sent = True
                elif over or session.header["owner"]["pid"] != self.owner:
                    self._finish(session)
            except AwayError as error:
                away = error
        if away is not None and not sent:
            raise away
        return sent

    def _finish(self, session: Session) -> None:
        session.finish()
        self._sessions.pop(session.path).file.close()

    def _look(self) -> None:
        for path in sorted(self.spool.glob("*.jsonl")):
            if path not in self._sessions and (session := self._claim(path)) is not None:
                self._sessions[path] = session

    def _claim(self, path: Path) -> Session | None:
        """The session if it is ours to send and no other sender has it."""
        with contextlib.suppress(OSError):
            file = path.open(newline="\n")
            header = json.loads(file.readline())
            if header["owner"]["pid"] == self.owner or dead(header["owner"]):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return Session(path, file, header)
            file.close()
        return None


def main(spool: Path, owner: int) -> None:
    """Send until the owner is gone and nothing is left, or the server is away."""
    os.nice(5)
    voice = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # MLflow prints to standard output
    outbox = Outbox(spool, owner)
    alive, warned = True, False
    kept = f"the work goes on, and what is tracked is kept in {spool} and sent when it answers."
    while True:
        try:
            pause = 0.0 if outbox.send(over=not alive) else POLL
        except AwayError as reason:
            if not warned:
                with contextlib.suppress(BrokenPipeError):
                    print(f"MLflow can't be reached ({reason}); {kept}", file=voice, flush=True)
            warned, pause = True, RETRY
        if not alive and pause:
            return
        alive = alive and _wait(pause)


def _wait(seconds: float) -> bool:
    """Sleep; False once the lifeline has ended."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return not ready


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
