"""Shards on an object store or behind HTTP, read in chunks through a bounded cache on the local disk.

A chunk is downloaded, checked and put into the cache at once, so that the processes of a machine may share
one. What the cache holds is checked again when a process first touches it.
"""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from pydantic import Field

from discdiff.data.cache import Cache
from discdiff.data.folder import Folder
from discdiff.data.memory import map_file, sparse
from discdiff.data.resident import BadShardError, Chunks
from discdiff.data.retry import GaveUpError, retry
from discdiff.types import Value

MOST_CHUNKS = 8192
"""Chunks mapped at once: 4 GiB of address space."""


class Remote(Value, frozen=True):
    """How a store that is not on a local disk is read."""

    cache: Path = Field(default_factory=lambda: Path.home() / ".cache" / "discdiff" / "chunks")
    limit: int = Field(default=32 * 2**30, gt=0)
    """Bytes that the cache may hold. A shuffled pass works on 1,024 blocks of 256 rows at once; if the cache
    holds fewer, chunks are downloaded more than once."""
    attempts: int = Field(default=5, ge=1)
    pause: float = Field(default=0.5, ge=0)
    """Seconds before the second attempt, doubled for each further one, up to 30."""
    connections: int = Field(default=16, ge=1)


class _AlteredError(Exception):
    """What arrived does not have the checksum of the manifest."""


class RemoteChunks:
    """Chunks of shards that are far away, each mapped from a file of the cache."""

    contiguous = False
    reach = 1

    def __init__(self, folder: Folder, chunks: Chunks, remote: Remote, *, checksums: bool):
        self._folder = folder
        self._chunks = chunks
        self._remote = remote
        self._checksums = checksums
        self._cache = Cache(remote.cache, remote.limit)
        self._pool = ThreadPoolExecutor(remote.connections, thread_name_prefix="discdiff-chunks")
        self._lock = Lock()
        self._maps: OrderedDict[int, torch.Tensor] = OrderedDict()
        self.address = sparse(int(chunks.first[-1]))
        self.downloaded = 0
        """Bytes that came over the network."""

    def bring(self, chunks: np.ndarray) -> None:
        numbers = [int(number) for number in chunks]
        missing = [number for number in numbers if number not in self._maps]
        for number, memory in zip(missing, self._pool.map(self._fetch, missing), strict=True):
            self._maps[number] = memory
            self.address[number] = memory.data_ptr()
        for number in numbers:
            self._maps.move_to_end(number)
        while len(self._maps) > max(MOST_CHUNKS, len(numbers)):
            number, _ = self._maps.popitem(last=False)
            self.address[number] = 0

    @property
    def held(self) -> object:
        return tuple(self._maps.values())

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.address[:] = 0
        self._maps.clear()

    def _fetch(self, number: int) -> torch.Tensor:
        shard, index = self._chunks.locate(number)
        start, stop = self._chunks.span(shard, index)
        name = f"{self._chunks.shards[shard].sha256}/{start}-{stop}"
        if (path := self._cache.find(name)) is not None:
            try:
                memory = map_file(path, stop - start)
            except RuntimeError:  # another process has just let it go, or it was cut short
                memory = None
            if memory is not None and self._is_right(shard, index, memory.numpy().data):
                return memory
            self._cache.drop(name)
        return map_file(self._cache.put(name, self._download(shard, index)), stop - start)

    def _download(self, shard: int, index: int) -> bytes:
        record = self._chunks.shards[shard]
        start, stop = self._chunks.span(shard, index)

        def ask() -> bytes:
            data = self._folder.read(record.path, start, stop)
            if not self._is_right(shard, index, data):
                raise _AlteredError(f"bytes {start} to {stop} do not have the checksum of the manifest")
            return data

        try:
            data = retry(ask, attempts=self._remote.attempts, pause=self._remote.pause)
        except FileNotFoundError as error:
            raise BadShardError(self._folder.uri, record, "is missing") from error
        except GaveUpError as error:
            verb = "is corrupt" if isinstance(error.__cause__, _AlteredError) else "cannot be reached"
            raise BadShardError(self._folder.uri, record, f"{verb}: {error}") from error
        with self._lock:
            self.downloaded += len(data)
        return data

    def _is_right(self, shard: int, index: int, data: bytes | memoryview) -> bool:
        start, stop = self._chunks.span(shard, index)
        return len(data) == stop - start and (not self._checksums or self._chunks.holds(shard, index, data))
