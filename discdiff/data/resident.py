"""Chunks of shards that lie in memory and have been checked: the ground on which a store reads.

A chunk is 512 KiB of a shard. Its address is 0 until it has been mapped and its checksum found right, which
happens when it is first touched, in each process anew.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import xxhash

from discdiff.data.folder import Folder
from discdiff.data.memory import map_file, sparse
from discdiff.data.shard import Shard
from discdiff.types import DiscdiffError

MOST_MAPS = 16_384
"""Files mapped at once: the kernel allows a process 65,530."""


class BadShardError(DiscdiffError):
    """A shard that is missing, truncated or altered, or that cannot be reached."""

    def __init__(self, where: str, shard: Shard, reason: str):
        remedy = "restore the file or tokenize again; to go on without it, open the store with it in `skip`"
        super().__init__(f"shard {where}/{shard.path} {reason}; {remedy}")
        self.shard = shard
        self.reason = reason


@runtime_checkable
class Resident(Protocol):
    contiguous: bool
    """Whether the chunks of a shard follow one another in memory."""
    reach: int
    """Tokens that are best read at once."""
    address: np.ndarray
    """Where each chunk lies, 0 if it does not, int64 `[chunks]`."""

    def bring(self, chunks: np.ndarray) -> None:
        """Have all these chunks in memory, checked. Raises BadShardError."""
        ...

    @property
    def held(self) -> object:
        """What keeps the memory at the addresses of now, whatever is brought later, for who holds it."""
        ...

    def close(self) -> None: ...


class Chunks:
    """The numbering of the chunks of a split, one shard after another."""

    def __init__(self, shards: Sequence[Shard], chunk: int):
        self.shards = shards
        self.chunk = chunk
        counts = [-(-shard.size // chunk) for shard in shards]
        self.first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def locate(self, number: int) -> tuple[int, int]:
        """Which shard, and which chunk of it."""
        shard = int(np.searchsorted(self.first, number, side="right")) - 1
        return shard, number - int(self.first[shard])

    def span(self, shard: int, index: int) -> tuple[int, int]:
        """The bytes of the shard's file that the chunk covers."""
        start = index * self.chunk
        return start, min(start + self.chunk, self.shards[shard].size)

    def holds(self, shard: int, index: int, data: bytes | memoryview) -> bool:
        """Whether the data have the checksum that the manifest names."""
        expected = self.shards[shard].chunks[16 * index : 16 * index + 16]
        return xxhash.xxh3_64_hexdigest(data) == expected


class LocalChunks:
    """Shards on a local disk, memory-mapped as a whole, checked chunk by chunk, or by size alone."""

    contiguous = True
    reach = 2**21

    def __init__(self, folder: Folder, chunks: Chunks, *, checksums: bool):
        self._folder = folder
        self._chunks = chunks
        self._checksums = checksums
        self._maps: OrderedDict[int, torch.Tensor] = OrderedDict()
        self.address = sparse(int(chunks.first[-1]))

    def bring(self, chunks: np.ndarray) -> None:
        places = [self._chunks.locate(int(number)) for number in chunks]
        needed = {shard for shard, _ in places}
        for shard in needed:
            if shard in self._maps:
                self._maps.move_to_end(shard)
            else:
                self._maps[shard] = self._map(shard)
        for number, (shard, index) in zip(chunks, places, strict=True):
            if not self.address[number]:
                self._check(shard, index)
                self.address[number] = self._maps[shard].data_ptr() + index * self._chunks.chunk
        while len(self._maps) > max(MOST_MAPS, len(needed)):
            shard, _ = self._maps.popitem(last=False)
            self.address[self._chunks.first[shard] : self._chunks.first[shard + 1]] = 0

    @property
    def held(self) -> object:
        return tuple(self._maps.values())

    def close(self) -> None:
        self.address[:] = 0
        self._maps.clear()

    def _map(self, number: int) -> torch.Tensor:
        shard = self._chunks.shards[number]
        size = self._folder.size(shard.path)
        if size is None:
            raise BadShardError(self._folder.uri, shard, "is missing")
        if size != shard.size:
            raise BadShardError(
                self._folder.uri, shard, f"has {size} bytes where the manifest says {shard.size}"
            )
        return map_file(Path(self._folder.path(shard.path)), shard.size)

    def _check(self, shard: int, index: int) -> None:
        start, stop = self._chunks.span(shard, index)
        data = self._maps[shard][start:stop].numpy().data
        if self._checksums and not self._chunks.holds(shard, index, data):
            reason = f"is corrupt: its bytes {start} to {stop} do not have the checksum of the manifest"
            raise BadShardError(self._folder.uri, self._chunks.shards[shard], reason)
