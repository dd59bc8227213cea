"""A folder on a local disk or an object store, in which a file appears whole or not at all."""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from discdiff.data.disk import write_durably
from discdiff.types import DiscdiffError, UnreachableError


@dataclass(frozen=True)
class Folder:
    """A root under which files are read, in part or whole, and put at once, on any fsspec file system."""

    fs: Any
    root: str

    @classmethod
    def at(cls, uri: str | Path, **options: Any) -> "Folder":
        """The folder at a path or an fsspec URL (`s3://`, `https://`); `options` go to the file system."""
        try:
            fs, root = fsspec.core.url_to_fs(str(uri), **options)
        except (ImportError, ValueError) as error:
            message = f"{uri} is not a place that can be opened: {error}; give a path or an fsspec URL"
            raise DiscdiffError(message) from error
        return cls(fs, root.rstrip("/"))

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    @property
    def uri(self) -> str:
        return self.root if self.is_local else str(self.fs.unstrip_protocol(self.root))

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes `start` to `stop` of a file. Raises FileNotFoundError and what the file system raises."""
        data = self.fs.cat_file(self.path(name), start=start, end=stop)
        if stop is not None and len(data) > stop - (
            start or 0
        ):  # a web server that knows no ranges sends it all
            return data[start:stop]
        return data

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if it is not there."""
        try:
            return self.fs.size(self.path(name))
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write a whole file: readers see all of it, on disk, or what was there before."""
        directory, _, last = name.rpartition("/")
        self.put_named(directory, lambda: last, data)

    def put_named(self, directory: str, name: Callable[[], str], data: bytes | memoryview) -> None:
        """The same for a name that is worked out meanwhile: a local disk asks for it when it has the data."""
        place = f"{self.root}/{directory}".rstrip("/")
        try:
            if self.is_local:
                _put_local(Path(place), name, data)
            else:
                self.fs.pipe_file(f"{place}/{name()}", bytes(data))
        except OSError as error:
            where = f"{self.uri}/{directory}".rstrip("/")
            message = f"{where}/{name()} cannot be written: {error}; give a folder that you may write to"
            raise UnreachableError(message) from error

    def sweep(self) -> None:
        """Remove what writers that were killed left behind. Call when nobody writes here any more."""
        if self.is_local:
            for part in Path(self.root).glob("**/.*.part"):
                part.unlink(missing_ok=True)


def _put_local(folder: Path, name: Callable[[], str], data: bytes | memoryview) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{secrets.token_hex(8)}.part"
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_durably(handle, memoryview(data))
        finally:
            os.close(handle)
        part.replace(folder / name())
    finally:
        part.unlink(missing_ok=True)
    _sync_directory(folder)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
