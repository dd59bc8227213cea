"""Exact deduplication without reading the text twice.

While documents are tokenized, the 128-bit XXH3 of each is noted beside its shard. When all are known, the
first of each text in the order of the corpus stays, and shards that hold others are written again without
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from discdiff.data.bookkeeping import Each, Notes
from discdiff.data.folder import Folder
from discdiff.data.shard import Shard, ShardBuilder

LEDGER = np.dtype([("digest", "V16"), ("characters", "<i8"), ("bytes", "<i8")])
"""What is noted of each document of a shard."""


def ledger_of(texts: Sequence[str], raw: Sequence[bytes]) -> np.ndarray:
    """The notes on some documents, given as text and as UTF-8."""
    rows = np.empty(len(texts), LEDGER)
    rows["digest"] = np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, raw)), "V16")
    rows["characters"] = [len(text) for text in texts]
    rows["bytes"] = [len(data) for data in raw]
    return rows


def note(folder: Folder, shard: Shard, ledger: np.ndarray) -> None:
    Notes(folder).put(_name(shard), ledger.tobytes())


def without_duplicates(folder: Folder, split: str, shards: Sequence[Shard], each: Each) -> list[Shard]:
    """The shards of a split, in order, with only the first document of each text."""
    ledgers = [_read(folder, shard) for shard in shards]
    digests = np.concatenate([np.empty(0, "V16"), *(ledger["digest"] for ledger in ledgers)])
    first = np.zeros(len(digests), bool)
    first[np.unique(digests, return_index=True)[1]] = True
    keeps = np.split(first, np.cumsum([len(ledger) for ledger in ledgers])[:-1])
    pruned = [index for index, keep in enumerate(keeps) if not keep.all()]
    kept: list[Shard | None] = list(shards)
    work = [_Pruning(folder, split, shards[index], keeps[index]) for index in pruned]
    for index, shard in each(_Pruning.run, work):
        kept[pruned[index]] = shard
    return [shard for shard in kept if shard is not None]


@dataclass(frozen=True)
class _Pruning:
    """A shard to be written again with only some of its documents."""

    folder: Folder
    split: str
    shard: Shard
    keep: np.ndarray

    def run(self) -> Shard | None:
        if not self.keep.any():
            return None
        file = pa.ipc.open_file(pa.py_buffer(self.folder.read(self.shard.path)))
        column = file.get_batch(0).column(0).filter(pa.array(self.keep))
        ids = column.values.to_numpy()
        ledger = _read(self.folder, self.shard)[self.keep]
        # The separators are among the ids already.
        builder = ShardBuilder(2 ** (8 * ids.itemsize), None)
        totals = {name: int(ledger[name].sum()) for name in ("characters", "bytes")}
        builder.add(ids, column.offsets.to_numpy(), **totals)
        return builder.write(self.folder, self.split, self.shard.source)


def _read(folder: Folder, shard: Shard) -> np.ndarray:
    return np.frombuffer(Notes(folder).get(_name(shard)) or b"", LEDGER)


def _name(shard: Shard) -> str:
    return f"ledger-{shard.sha256}"
