"""A folder of files that together stay below a limit; the least recently used make room."""

import os
import secrets
from pathlib import Path
from threading import Lock

SCANS = 16
"""The folder is measured again each time that a process has added this part of the limit: others add, too."""


class Cache:
    def __init__(self, directory: Path, limit: int):
        self._directory = directory
        self._limit = limit
        self._lock = Lock()
        self._held = sum(size for _, size, _ in self._files())
        self._unmeasured = 0

    def find(self, name: str) -> Path | None:
        """The file, from now on the most recently used, or None."""
        path = self._directory / name
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def put(self, name: str, data: bytes) -> Path:
        """Add a file, whole at once, and let others go if it is one too many."""
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        with self._lock:
            self._held += len(data)
            self._unmeasured += len(data)
            if self._held > self._limit or self._unmeasured > self._limit // SCANS:
                self._make_room(keep=path)
        return path

    def drop(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def _make_room(self, keep: Path) -> None:
        files = sorted(self._files())
        self._held, self._unmeasured = sum(size for _, size, _ in files), 0
        goal = self._limit if self._held <= self._limit else self._limit * 9 // 10
        for _, size, path in files:
            if self._held <= goal:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                self._held -= size

    def _files(self) -> list[tuple[int, int, Path]]:
        """When each was last used, its size, its path."""
        found: list[tuple[int, int, Path]] = []
        for path in self._directory.glob("*/*"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process let it go
                continue
            found.append((stat.st_mtime_ns, stat.st_size, path))
        return found
