"""A store of tokenized text: shards and a manifest, read as a stream of tokens and a list of documents."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np

from discdiff.data.encoding import Tokenizer
from discdiff.data.folder import Folder
from discdiff.data.manifest import TOKENIZER, Manifest, Split, read_manifest
from discdiff.data.memory import gather
from discdiff.data.remote import Remote, RemoteChunks
from discdiff.data.resident import Chunks, LocalChunks, Resident
from discdiff.data.shard import Shard
from discdiff.data.tokenizers import from_json
from discdiff.types import DiscdiffError

T = TypeVar("T")

OFFSET = np.dtype("<i4")
MOST_OFFSETS = 64
"""Shards whose document borders are kept in memory."""


class Store:
    """One split of a store, open for reading by any number of threads; a context manager.

    The tokens of all shards, in the order of the manifest, form one stream; so do the documents. Every chunk
    of every shard is checked against the manifest when this object first touches it.
    """

    def __init__(
        self, folder: Folder, manifest: Manifest, split: str, shards: Sequence[Shard], resident: Resident
    ):
        self.folder = folder
        self.manifest = manifest
        self.split = split
        self.shards = shards
        self.totals = Split.of(shards)
        """Tokens, documents, characters and bytes of the shards that are read."""
        self.dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._resident = resident
        self._lock = RLock()
        self._first_token = _sums([shard.tokens for shard in shards])
        self._first_document = _sums([shard.documents for shard in shards])
        self._first_chunk = Chunks(shards, manifest.chunk).first
        self._values_at = np.array([shard.values_at for shard in shards], np.int64)
        self._offsets_at = np.array([shard.offsets_at for shard in shards], np.int64)
        self._offsets: OrderedDict[int, np.ndarray] = OrderedDict()

    @classmethod
    def open(
        cls,
        uri: str | Path,
        split: str = "train",
        *,
        verify: Literal["checksum", "size"] = "checksum",
        skip: Sequence[str] = (),
        tokenizer: str | None = None,
        remote: Remote | None = None,
        **options: Any,
    ) -> "Store":
        """Open a split of the store at a path or an fsspec URL.

        `verify="size"` trusts shards of the right length. Shards whose paths stand in `skip` are left out:
        give every process the same list (`audit` makes it), and all read the same rows. `tokenizer` is the
        fingerprint of the only one that will do. `options` go to the file system. Raises DiscdiffError if any
        of this cannot be had.
        """
        remote = remote or Remote()
        folder = Folder.at(uri, **options)
        manifest = read_manifest(folder, attempts=remote.attempts, pause=remote.pause)
        _require_tokenizer(folder, manifest, tokenizer)
        shards = _choose(folder, manifest, split, skip)
        chunks = Chunks(shards, manifest.chunk)
        checksums = verify == "checksum"
        resident = (
            LocalChunks(folder, chunks, checksums=checksums)
            if folder.is_local
            else RemoteChunks(folder, chunks, remote, checksums=checksums)
        )
        return cls(folder, manifest, split, shards, resident)

    @property
    def uri(self) -> str:
        return self.folder.uri

    @property
    def vocab(self) -> int:
        return self.manifest.vocab

    @property
    def separator(self) -> int | None:
        """The id that closes each document, None if nothing does."""
        return self.manifest.separator

    @property
    def tokens(self) -> int:
        return self.totals.tokens

    @property
    def documents(self) -> int:
        return self.totals.documents

    @property
    def skipped(self) -> Split:
        """The shards that were left out on request, and what they would have added."""
        read = {shard.path for shard in self.shards}
        return Split.of(
            [shard for shard in self.manifest.splits[self.split].shards if shard.path not in read]
        )

    @property
    def reach(self) -> int:
        """Tokens that are best read at once: more where they are near."""
        return self._resident.reach

    @property
    def fingerprint(self) -> str:
        """Names what is read: the manifest's, and with shards left out another."""
        skipped = [shard.path for shard in self.skipped.shards]
        if not skipped:
            return self.manifest.fingerprint
        return hashlib.sha256(" ".join([self.manifest.fingerprint, *skipped]).encode()).hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the store, from the copy that lies in it."""
        text = self.folder.read(TOKENIZER)
        if hashlib.sha256(text).hexdigest() != self.manifest.tokenizer_sha256:
            raise DiscdiffError(
                f"{self.uri}/{TOKENIZER} has been altered; restore the file or tokenize again"
            )
        return from_json(text.decode())

    def read(self, begin: np.ndarray, width: int) -> np.ndarray:
        """`width` tokens from each place of the stream, 0 past its end: `[n] -> [n, width]`, as stored."""
        batches = self.batches(begin, width, max(len(begin), 1), _as_stored)
        return batches[0] if batches else np.empty((0, width), self.dtype)

    def batches(
        self, begin: np.ndarray, width: int, count: int, convert: Callable[[np.ndarray], T]
    ) -> list[T]:
        """What `read` gives, `count` rows at a time, each batch converted while the cache still holds it."""
        shard = np.searchsorted(self._first_token, begin, side="right") - 1
        shard = np.minimum(shard, len(self.shards) - 1)
        inside = begin + width <= self._first_token[shard + 1]
        if inside.all():
            return self._bytes(shard, self._at(shard, begin), width, self.dtype, count, convert)
        rows = np.zeros((len(begin), width), self.dtype)
        if inside.any():
            at = self._at(shard[inside], begin[inside])
            rows[inside] = self._bytes(shard[inside], at, width, self.dtype, len(at), _as_stored)[0]
        for i in np.flatnonzero(~inside):
            self._read_across(int(begin[i]), rows[i])
        return [convert(rows[i : i + count]) for i in range(0, len(rows), count)]

    def borders(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in the stream each document begins and how many tokens it has: int64 `[n] -> [n], [n]`."""
        shard = np.searchsorted(self._first_document, documents, side="right") - 1
        at = self._offsets_at[shard] + OFFSET.itemsize * (documents - self._first_document[shard])
        ends = self._bytes(shard, at, 2, OFFSET, len(at), _as_stored)[0].astype(np.int64)
        return self._first_token[shard] + ends[:, 0], ends[:, 1] - ends[:, 0]

    def starts(self, begin: int, end: int) -> np.ndarray:
        """Where documents begin from `begin` to before `end`, empty ones left out: rising, int64 `[n]`."""
        found: list[np.ndarray] = []
        shard = int(np.searchsorted(self._first_token, begin, side="right")) - 1
        while shard < len(self.shards) and (base := int(self._first_token[shard])) < end:
            offsets = self._offsets_of(shard)
            low, high = np.searchsorted(
                offsets, [begin - base, min(end, base + self.shards[shard].tokens) - base]
            )
            found.append(np.unique(offsets[low:high]) + base)
            shard += 1
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def close(self) -> None:
        with self._lock:
            self._resident.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.uri!r}, {self.split!r}: {self.tokens:,} tokens, {self.documents:,} documents)"

    def _at(self, shard: np.ndarray, begin: np.ndarray) -> np.ndarray:
        """The byte of the shard's file at which a place of the stream lies."""
        return self._values_at[shard] + self.dtype.itemsize * (begin - self._first_token[shard])

    def _read_across(self, begin: int, row: np.ndarray) -> None:
        """Fill a row that passes the end of a shard."""
        place, end = begin, min(begin + len(row), int(self._first_token[-1]))
        while place < end:
            shard = np.searchsorted(self._first_token, [place], side="right") - 1
            count = min(end, int(self._first_token[shard[0] + 1])) - place
            at = self._at(shard, np.array([place]))
            piece = self._bytes(shard, at, count, self.dtype, 1, _as_stored)[0]
            row[place - begin : place - begin + count] = piece[0]
            place += count

    def _offsets_of(self, shard: int) -> np.ndarray:
        with self._lock:
            if shard not in self._offsets:
                at = self._offsets_at[[shard]]
                count = self.shards[shard].documents + 1
                offsets = self._bytes(np.array([shard]), at, count, OFFSET, 1, _as_stored)[0][0]
                self._offsets[shard] = offsets.astype(np.int64)
            self._offsets.move_to_end(shard)
            if len(self._offsets) > MOST_OFFSETS:
                self._offsets.popitem(last=False)
            return self._offsets[shard]

    def _bytes(
        self,
        shard: np.ndarray,
        at: np.ndarray,
        width: int,
        dtype: np.dtype,
        count: int,
        convert: Callable[[np.ndarray], T],
    ) -> list[T]:
        """`width` items from byte `at` of each shard's file, one at least, `count` rows at a time."""
        if not len(at):
            return []
        chunk = self.manifest.chunk
        base = self._first_chunk[shard]
        first, last = base + at // chunk, base + (at + width * dtype.itemsize - 1) // chunk
        with self._lock:
            self._bring(first, last)
            addresses = self._resident.address[first] + at % chunk
            if self._resident.contiguous or (first == last).all():
                return [convert(rows) for rows in gather(addresses, width, dtype, count)]
            rows = np.empty((len(at), width), dtype)
            if (whole := first == last).any():
                rows[whole] = next(gather(addresses[whole], width, dtype, len(at)))
            for i in np.flatnonzero(~whole):
                rows[i] = self._join(int(first[i]), int(at[i]) % chunk, width * dtype.itemsize).view(dtype)
            return [convert(rows[i : i + count]) for i in range(0, len(at), count)]

    def _bring(self, first: np.ndarray, last: np.ndarray) -> None:
        address = self._resident.address
        if (last - first > 1).any():
            needed = np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)])
        elif address[first].all() and address[last].all():
            return
        else:
            needed = np.concatenate([first, last])
        if not address[needed].all():
            self._resident.bring(np.unique(needed))

    def _join(self, number: int, at: int, size: int) -> np.ndarray:
        """Bytes that pass from chunk to chunk, where chunks do not follow one another in memory."""
        pieces: list[np.ndarray] = []
        while size:
            count = min(size, self.manifest.chunk - at)
            place = self._resident.address[[number]] + at
            pieces.append(next(gather(place, count, np.dtype(np.uint8), 1))[0])
            number, at, size = number + 1, 0, size - count
        return np.concatenate(pieces)


def _as_stored(rows: np.ndarray) -> np.ndarray:
    return rows


def _sums(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.array(counts, np.int64))]).astype(np.int64)


def _require_tokenizer(folder: Folder, manifest: Manifest, tokenizer: str | None) -> None:
    if tokenizer is not None and tokenizer != manifest.tokenizer:
        raise DiscdiffError(
            f"{folder.uri} was made with another tokenizer: it names {manifest.tokenizer[:12]}, wanted is "
            f"{tokenizer[:12]}; tokenize the corpus with the wanted one, or use what belongs to this one"
        )


def _choose(folder: Folder, manifest: Manifest, split: str, skip: Sequence[str]) -> list[Shard]:
    if split not in manifest.splits:
        raise DiscdiffError(f"{folder.uri} has no split {split!r}; it has {', '.join(manifest.splits)}")
    shards = manifest.splits[split].shards
    unknown = set(skip) - {shard.path for shards in manifest.splits.values() for shard in shards.shards}
    if unknown:
        raise DiscdiffError(
            f"{folder.uri} has no shard {min(unknown)} to skip; give paths as in its manifest"
        )
    chosen = [shard for shard in shards if shard.tokens and shard.path not in skip]
    if not chosen:
        raise DiscdiffError(f"split {split!r} of {folder.uri} has no tokens to read; take another split")
    return chosen
