"""Files as bytes: found by path, glob, folder or fsspec URL, opened whole, in part, or decompressed."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from discdiff.types import DiscdiffError

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
"""Suffixes of compressed files."""
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

    Raises DiscdiffError if there is none, or the place can't be read.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        return _found(fs, path, url, suffixes)
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, DiscdiffError):
            raise
        raise DiscdiffError(
            f"{url} can't be read: {_reason(error)}; give a path, a glob or an fsspec URL"
        ) from error


def _found(fs: Any, path: str, url: str, suffixes: Sequence[str]) -> list[Input]:
    if "::" in url:
        return [_input(url, fs.info(path))]
    if any(character in path for character in "*[") and not fs.exists(path):
        infos = [info for info in fs.glob(path, detail=True).values() if info["type"] == "file"]
    elif fs.isdir(path):
        infos = [
            each for each in fs.find(path, detail=True).values() if each["name"].endswith(tuple(suffixes))
        ]
    else:
        infos = [fs.info(path)]
    if not infos:
        raise DiscdiffError(
            f"{url} matches no file; give a path, a glob or a URL of {', '.join(suffixes)} files"
        )
    inputs = [
        _input(
            str(info["name"] if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(info["name"])), info
        )
        for info in infos
    ]
    return sorted(inputs, key=lambda each: each.url)


def _input(url: str, info: dict[str, Any]) -> Input:
    size = info.get("size")
    tag = info.get("ETag") or info.get("etag") or ""
    stamp = info.get("mtime") or info.get("LastModified") or ""
    return Input(url, size, f"{size} bytes {tag}".strip(), str(stamp))


def codec_of(suffix: str) -> str | None:
    """The compression of files with this suffix: `.jsonl.gz` -> `gzip`."""
    return next((codec for end, codec in CODECS.items() if suffix.endswith(end)), None)


@contextmanager
def opened(url: str) -> Generator[Any]:
    """The file at a path or URL, for reading bytes; network files are fetched by ranges as they are read."""
    fs, path = fsspec.core.url_to_fs(url)
    options = {} if isinstance(fs, LocalFileSystem) else {"cache_type": "readahead", "block_size": _BLOCK}
    with fs.open(path, "rb", **options) as file:
        yield file


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
    return " ".join(str(error).split()) or type(error).__name__
