"""Files as bytes: found by path, glob, folder or fsspec URL, opened whole, in part, or decompressed."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from discdiff.types import DiscdiffError, UnreachableError

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
"""Suffixes of compressed files."""
NOT_THERE = (
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    ImportError,
    NotImplementedError,
    ValueError,
)
"""What file systems raise for a URL that names nothing that they know."""
_BLOCK = 4 * 2**20


@dataclass(frozen=True)
class Input:
    """A file that can be read: its URL, its size if known, its version and its time of modification."""

    url: str
    size: int | None
    version: str
    stamp: str


def find(url: str, suffixes: Sequence[str]) -> list[Input]:
    """The files at a path, glob, folder or URL, by name; of a folder those with these suffixes.

    Raises DiscdiffError if there is none, UnreachableError if the place can't be asked.
    """
    try:
        with reaching(url):
            fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
            fs.invalidate_cache()  # of Hugging Face's file system, which keeps listings all the same
            infos = _infos(fs, path, url, suffixes)
    except NOT_THERE as error:
        if isinstance(error, DiscdiffError):
            raise
        raise DiscdiffError(
            f"{url} can't be read: {_reason(error)}; give a path, a glob or an fsspec URL"
        ) from error
    if not infos:
        raise DiscdiffError(
            f"{url} matches no file; give a path, a glob or a URL of {', '.join(suffixes)} files"
        )
    inputs = [_input(url if "::" in url else _url(fs, info["name"]), info) for info in infos]
    return sorted(inputs, key=lambda each: each.url)


@contextmanager
def reaching(url: str) -> Generator[None]:
    """What a file system raises within as UnreachableError, unless it is one of NOT_THERE.

    File systems raise what their clients do, so that is anything: ask them within, and do nothing else.
    """
    try:
        yield
    except NOT_THERE:
        raise
    except Exception as error:
        raise UnreachableError(
            f"{url} can't be read: {_reason(error)}; see that it can be reached from here, then try again"
        ) from error


def _infos(fs: Any, path: str, url: str, suffixes: Sequence[str]) -> list[dict[str, Any]]:
    """What a file system says of the files that are found."""
    if "::" in url:
        return [fs.info(path)]
    if any(character in path for character in "*[") and not fs.exists(path):
        return [info for info in fs.glob(path, detail=True).values() if info["type"] == "file"]
    if fs.isdir(path):
        return [
            info for info in fs.find(path, detail=True).values() if info["name"].endswith(tuple(suffixes))
        ]
    return [fs.info(path)]


def _url(fs: Any, name: str) -> str:
    return str(name if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name))


def _input(url: str, info: dict[str, Any]) -> Input:
    size = info.get("size")
    tag = info.get("ETag") or info.get("etag") or info.get("blob_id") or ""
    stamp = info.get("mtime") or info.get("LastModified") or ""
    return Input(url, size, f"{size} bytes {tag}".strip(), str(stamp))


def codec_of(suffix: str) -> str | None:
    """The compression of files with this suffix: `.jsonl.gz` -> `gzip`."""
    return next((codec for end, codec in CODECS.items() if suffix.endswith(end)), None)


@contextmanager
def opened(url: str) -> Generator[Any]:
    """The file at a path or URL, for reading bytes; network files are fetched by ranges as they are read.

    Opening it and reading it raise UnreachableError where the network fails.
    """
    with reaching(url):
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)  # the one that `find` has asked
        is_local = isinstance(fs, LocalFileSystem)
        options = {} if is_local else {"cache_type": "readahead", "block_size": _BLOCK}
        file = fs.open(path, "rb", **options)
    with file:
        yield file if is_local else _Distant(file, url)


class _Distant:
    """A file that is read over a network, for those who read it as one on a disk."""

    def __init__(self, file: Any, url: str):
        self._file, self._url = file, url

    def read(self, size: int = -1) -> bytes:
        with reaching(self._url):
            return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def blocks(url: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes of a file from `start`, in blocks, small ones after `stop`, as far as the reader goes."""
    with opened(url) as file:
        if start:
            file.seek(start)
        at = start
        while data := file.read(_BLOCK if stop is None else min(_BLOCK, max(stop - at, 2**16))):
            at += len(data)
            yield data


def decompressed(url: str, codec: str) -> Iterator[bytes]:
    """The decompressed bytes of a file, in blocks. Raises DiscdiffError if it is damaged or cut short."""
    with opened(url) as file:
        try:
            with pa.CompressedInputStream(pa.PythonFile(file, "r"), codec) as stream:
                while data := stream.read(_BLOCK):
                    yield data
        except OSError as error:
            raise DiscdiffError(
                f"{url} is no whole {codec} file: {_reason(error)}; fetch it again"
            ) from error


def _reason(error: Exception) -> str:
    """What an error says, in a line; many file systems say no more of a missing file than its name."""
    said = " ".join(str(error).split()) or type(error).__name__
    return f"there is no {said}" if isinstance(error, FileNotFoundError) and error.errno is None else said
