"""A place: a folder on a disk or a prefix in an object store, under one small set of operations.

`write` replaces and `create` makes a file, each in one step: a reader sees the whole file or none. `create`
says whether it was the first, on a disk by a hard link, in an object store by a conditional put.
"""

import contextlib
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from discdiff.data.folder import Folder
from discdiff.types import DiscdiffError


@dataclass(frozen=True)
class Place:
    """A folder by its URI; a local one is written as an absolute path."""

    uri: str

    @classmethod
    def at(cls, uri: str) -> "Place":
        """The place of a URI or of a path as a user types it.

        Raises DiscdiffError for a protocol that nothing here can read.
        """
        if "://" not in uri:
            return cls(str(Path(uri).expanduser().absolute()))
        if uri.startswith("file://"):
            return cls(str(Path(uri.removeprefix("file://")).absolute()))
        place = cls(uri.rstrip("/"))
        try:
            place.filesystem()
        except (ValueError, ImportError) as error:
            raise DiscdiffError(
                f"{uri!r} can't be opened: {error}; give a path or a URI that fsspec knows."
            ) from error
        return place

    def __truediv__(self, name: str) -> "Place":
        return Place(f"{self.uri}/{name}")

    @property
    def local(self) -> Path | None:
        """The folder itself where the place is on a disk."""
        return None if "://" in self.uri else Path(self.uri)

    def filesystem(self) -> tuple[Any, str]:
        # Listings are not cached: other processes write here too.
        fs, path = fsspec.url_to_fs(self.uri, use_listings_cache=False)
        return fs, str(path)

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None where there is none."""
        fs, path = self.filesystem()
        try:
            return bytes(fs.cat_file(f"{path}/{name}"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file. Raises DiscdiffError where that is not allowed."""
        Folder(*self.filesystem()).put(name, data)

    def create(self, name: str, data: bytes) -> bool:
        """Make a file and return True, or return False where it already exists.

        Raises DiscdiffError where it can't be made.
        """
        try:
            return self._create_remote(name, data) if self.local is None else _create(self.local, name, data)
        except OSError as error:
            raise DiscdiffError(
                f"{self.uri}/{name} can't be written: {error.strerror or error}; "
                "give a place that you may write to."
            ) from error

    def _create_remote(self, name: str, data: bytes) -> bool:
        fs, path = self.filesystem()
        try:
            fs.pipe_file(f"{path}/{name}", data, mode="create")
        except OSError:  # S3's failed precondition arrives as a bare OSError
            if fs.exists(f"{path}/{name}"):
                return False
            raise
        return True

    def names(self) -> list[str]:
        """What lies directly in the place, files and folders."""
        fs, path = self.filesystem()
        try:
            found = fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(
            str(each).rstrip("/").rsplit("/", 1)[-1] for each in found if str(each).rstrip("/") != path
        )

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder; one that is gone already is no error."""
        if self.local is None:
            fs, path = self.filesystem()
            with contextlib.suppress(FileNotFoundError):
                fs.rm(f"{path}/{name}", recursive=True)
            return
        target = self.local / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)

    def settle(self) -> None:
        """Force what was written here to the disk; an object store has done so by itself."""
        if self.local is None:
            return
        for folder, _, files in os.walk(self.local):
            for each in files:
                _sync(Path(folder) / each)
            _sync(Path(folder))

    def upload(self, folder: Path) -> None:
        """Copy the content of a local folder here."""
        fs, path = self.filesystem()
        for each in sorted(folder.rglob("*")):
            if each.is_file():
                fs.put_file(str(each), f"{path}/{each.relative_to(folder).as_posix()}")


def _create(folder: Path, name: str, data: bytes) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{uuid.uuid4().hex}.part"
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, folder / name)
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)
    _sync(folder)
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
