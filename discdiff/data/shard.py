"""A shard: one uncompressed Arrow IPC file of tokenized documents.

One record batch, one column `tokens: list<uint8 | uint16 | uint32>`, one row a document. The values buffer
of the column is the token stream; its offsets are the borders of documents. A shard is named by the SHA-256
of its bytes, so it never changes, and writing it twice writes the same file.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from discdiff.data.disk import room
from discdiff.data.folder import Folder
from discdiff.types import DiscdiffError, Value

CHUNK = 512 * 1024
"""Bytes that are checked, and over a network fetched, at once."""
_FRAME = 2**16
"""Bytes that the schema, the footer and padding may take."""
MOST_TOKENS = 2**31 - 1
"""What the 32-bit offsets of an Arrow list can count."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Shard(Value, frozen=True):
    """What a manifest says about one shard. The path is relative and cannot leave the manifest's folder."""

    path: Annotated[str, Field(pattern=r"^[a-z0-9_]+/[0-9a-f]{64}\.arrow$")]
    documents: Annotated[int, Field(ge=0)]
    tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)]
    characters: Annotated[int, Field(ge=0)]
    """Unicode characters of the text."""
    bytes: Annotated[int, Field(ge=0)]
    """UTF-8 bytes of the text."""
    size: Annotated[int, Field(ge=0)]
    """Bytes of the file."""
    sha256: Sha256
    xxh3: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    chunks: Annotated[str, Field(pattern=r"^([0-9a-f]{16})*$")]
    """The 64-bit XXH3 of each 512 KiB of the file, 16 hexadecimal digits each."""
    offsets_at: Annotated[int, Field(ge=0)]
    """Where in the file the documents + 1 offsets (int32) begin."""
    values_at: Annotated[int, Field(ge=0)]
    """Where in the file the tokens begin."""
    smallest: int
    largest: int
    """The smallest and the largest id; 0 and -1 if there is none."""
    source: str = ""
    """Which part of which input this was."""


def dtype_for(vocab: int) -> np.dtype:
    """The narrowest unsigned type that holds the ids below `vocab`."""
    if not 0 < vocab <= 2**32:
        raise DiscdiffError(f"a vocabulary of {vocab} tokens cannot be stored; it must be between 1 and 2^32")
    return np.dtype(np.uint8 if vocab <= 2**8 else np.uint16 if vocab <= 2**16 else np.uint32)


class ShardBuilder:
    """Collects tokenized documents in memory and writes them as one shard.

    Each document is closed by `separator`, unless that is None. About 64 MiB a shard reads well.
    """

    def __init__(self, vocab: int, separator: int | None):
        self._vocab = vocab
        self._dtype = dtype_for(vocab)
        self._separator = separator
        self._ids: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._smallest, self._largest = 0, -1
        self.documents = self.tokens = self.characters = self.bytes = 0

    @property
    def size(self) -> int:
        """Bytes of the file so far, nearly."""
        return self.tokens * self._dtype.itemsize + 4 * self.documents

    def add(self, ids: np.ndarray, offsets: np.ndarray, *, characters: int, bytes: int) -> None:
        """Append documents, the i-th `ids[offsets[i] : offsets[i + 1]]`. Counts are those of their text."""
        offsets = np.asarray(offsets).astype(np.int64)
        documents = max(len(offsets) - 1, 0)
        if len(offsets) and (offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any()):
            raise DiscdiffError(f"offsets must rise from 0 to the {len(ids)} ids that were given")
        self._check(ids, documents)
        closed = _close(ids, offsets, self._separator, self._dtype)
        self._ids.append(closed)
        self._lengths.append(np.diff(offsets) + (self._separator is not None))
        self.documents += documents
        self.tokens += len(closed)
        self.characters += characters
        self.bytes += bytes

    def _check(self, ids: np.ndarray, documents: int) -> None:
        """Refuse ids outside the vocabulary, and note the smallest and the largest, separators too."""
        found = [int(ids.min()), int(ids.max())] if len(ids) else []
        if documents and self._separator is not None:
            found.append(self._separator)
        if not found:
            return
        smallest, largest = min(found), max(found)
        if smallest < 0 or largest >= self._vocab:
            wrong = smallest if smallest < 0 else largest
            raise DiscdiffError(f"id {wrong} is outside the vocabulary of {self._vocab} tokens")
        self._smallest = smallest if self._largest < 0 else min(self._smallest, smallest)
        self._largest = max(self._largest, largest)

    def write(self, folder: Folder, split: str, source: str = "") -> Shard:
        """Write the shard under `folder`/`split`, durably and at once; the record is for the manifest."""
        return self.sealed().write(folder, split, source)

    def sealed(self) -> "Sealed":
        """The shard's file in memory, which another thread may write."""
        if self.tokens > MOST_TOKENS:
            raise DiscdiffError(f"a shard of {self.tokens} tokens is too long; {MOST_TOKENS} is the most")
        ids = np.concatenate([*self._ids, np.empty(0, self._dtype)])
        lengths = np.concatenate([*self._lengths, np.empty(0, np.int64)])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        data, offsets_at, values_at = _encode(ids, offsets)
        about = {
            "documents": self.documents,
            "tokens": self.tokens,
            "characters": self.characters,
            "bytes": self.bytes,
            "offsets_at": offsets_at,
            "values_at": values_at,
            "smallest": self._smallest,
            "largest": self._largest,
        }
        return Sealed(data, about)


@dataclass(frozen=True)
class Sealed:
    """A shard's file, and the part of its record that does not follow from its bytes."""

    data: memoryview
    about: Mapping[str, int]

    def write(self, folder: Folder, split: str, source: str = "") -> Shard:
        """Write the file under `folder`/`split`, durably and at once. Its hashes are found meanwhile."""
        data = self.data
        with ThreadPoolExecutor(1) as aside:  # a disk writes by itself
            sha256 = aside.submit(lambda: hashlib.sha256(data).hexdigest())
            folder.put_named(split, lambda: f"{sha256.result()}.arrow", data)
        return Shard(
            path=f"{split}/{sha256.result()}.arrow",
            size=len(data),
            sha256=sha256.result(),
            xxh3=xxhash.xxh3_64_hexdigest(data),
            chunks="".join(xxhash.xxh3_64_hexdigest(data[i : i + CHUNK]) for i in range(0, len(data), CHUNK)),
            source=source,
            **self.about,
        )


def _close(ids: np.ndarray, offsets: np.ndarray, separator: int | None, dtype: np.dtype) -> np.ndarray:
    """The ids with a separator after each document."""
    if separator is None:
        return ids.astype(dtype)
    ends = offsets[1:] + np.arange(len(offsets) - 1)
    closed = np.full(len(ids) + len(ends), separator, dtype)
    text = np.ones(len(closed), bool)
    text[ends] = False
    closed[text] = ids
    return closed


def _encode(ids: np.ndarray, offsets: np.ndarray) -> tuple[memoryview, int, int]:
    """The bytes of an Arrow IPC file, and where in them the offsets and the values begin."""
    values = pa.Array.from_buffers(pa.from_numpy_dtype(ids.dtype), len(ids), [None, pa.py_buffer(ids)])
    kind = pa.list_(pa.field("item", values.type, nullable=False))
    column = pa.Array.from_buffers(
        kind, len(offsets) - 1, [None, pa.py_buffer(offsets)], null_count=0, children=[values]
    )
    schema = pa.schema([pa.field("tokens", kind, nullable=False)])
    memory = pa.py_buffer(room(ids.nbytes + offsets.nbytes + _FRAME))
    sink = pa.FixedSizeBufferWriter(memory)
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))
    file = memory.slice(0, sink.tell())
    buffers = pa.ipc.open_file(file).get_batch(0).column(0).buffers()
    base = file.address
    offsets_at = buffers[1].address - base if buffers[1] is not None and len(offsets) > 1 else 0
    values_at = buffers[3].address - base if len(ids) else 0
    return memoryview(file), offsets_at, values_at
