"""What a store under construction remembers, and how its work is handed out.

Notes lie in `_build/` beside the shards and are gone when the store is finished. A writer that was killed
finds them again: what is noted is not done a second time.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from discdiff.data.folder import Folder
from discdiff.data.manifest import Manifest
from discdiff.data.splits import SPLITS

T = TypeVar("T")
R = TypeVar("R")

_NOTES = "_build"
_STARTED = "started"
UNPACKED = f"{_NOTES}/unpacked"
"""Where the files of an archive lie meanwhile."""


@runtime_checkable
class Each(Protocol):
    """Applies a function to each item, anywhere and in any order; yields index and result."""

    def __call__(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]: ...


def here(function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
    """One after the other, in this process."""
    return ((index, function(item)) for index, item in enumerate(items))


@dataclass(frozen=True)
class Notes:
    """Small files that outlive a killed writer."""

    folder: Folder

    def put(self, name: str, data: bytes) -> None:
        self.folder.put(f"{_NOTES}/{name}", data)

    def start(self, key: str) -> None:
        """Note that the work has begun: a folder that can't be written is found before it."""
        self.put(_STARTED, key.encode())

    def has_results(self) -> bool:
        """Whether more is noted than that the work has begun."""
        fs, path = self.folder.fs, self.folder.path(_NOTES)
        fs.invalidate_cache(path)
        return any(not str(file).endswith(f"/{_STARTED}") for file in fs.find(path))

    def get(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return self.folder.read(f"{_NOTES}/{name}")
        return None


def tidy(folder: Folder, manifest: Manifest | None) -> None:
    """Remove notes and shards that are not the store's; without a manifest, all that was written."""
    splits = manifest.splits.values() if manifest else ()
    wanted = {folder.path(shard.path) for split in splits for shard in split.shards}
    folder.sweep()
    for name in (_NOTES, *SPLITS):
        _remove(folder, name, wanted)


def _remove(folder: Folder, name: str, wanted: set[str]) -> None:
    fs, path = folder.fs, folder.path(name)
    fs.invalidate_cache(path)
    with contextlib.suppress(FileNotFoundError):
        found = [str(file) for file in fs.find(path)]
        for file in found:
            if file not in wanted:
                fs.rm_file(file)
        if folder.is_local and not wanted.intersection(found):
            fs.rm(path, recursive=True)
