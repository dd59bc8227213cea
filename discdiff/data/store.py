"""A store of tokenized text: shards and a manifest, read as a stream of tokens and a list of documents."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any, Literal

import numpy as np

from discdiff.data.encoding import Tokenizer
from discdiff.data.folder import Folder
from discdiff.data.manifest import TOKENIZER, Manifest, Split, read_manifest
from discdiff.data.memory import Rows, mapped
from discdiff.data.remote import Remote, RemoteChunks
from discdiff.data.resident import Chunks, LocalChunks, Resident
from discdiff.data.shard import Shard
from discdiff.data.tokenizers import from_json
from discdiff.types import DiscdiffError

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
        self.dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._resident = resident
        self._lock = RLock()
        self._chunk = manifest.chunk
        # Shards are numbered bytes of one space, in which each begins at a chunk.
        base = self._chunk * Chunks(shards, self._chunk).first[:-1]
        tokens = _sums([shard.tokens for shard in shards])
        documents = _sums([shard.documents for shard in shards])
        values = np.array([shard.values_at for shard in shards], np.int64)
        offsets = np.array([shard.offsets_at for shard in shards], np.int64)
        self._first_token, self._last_token = tokens[:-1], tokens[1:]
        self._first_document, self._last_document = documents[:-1], documents[1:]
        self._token_zero = base + values - self.dtype.itemsize * self._first_token
        self._document_zero = base + offsets - OFFSET.itemsize * self._first_document
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
        return int(self._last_token[-1])

    @property
    def documents(self) -> int:
        return int(self._last_document[-1])

    @cached_property
    def totals(self) -> Split:
        """Tokens, documents, characters and bytes of the shards that are read."""
        return Split.of(self.shards)

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
        return self.rows(begin, width).array()

    def rows(self, begin: np.ndarray, width: int) -> Rows:
        """As `read`, in memory and checked, not copied yet."""
        shard = np.searchsorted(self._last_token[:-1], begin, side="right")
        at = self._token_zero[shard] + self.dtype.itemsize * begin
        inside = begin <= self._last_token[shard] - width
        if inside.all():
            return self._rows(at, self.dtype, width)
        whole = self._rows(at[inside], self.dtype, width)
        pieced = mapped(int((~inside).sum()), width, self.dtype)
        for row, start in zip(pieced, begin[~inside].tolist(), strict=True):
            self._read_across(start, row)
        return whole.merged(Rows.of(pieced), inside)

    def borders(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in the stream each document begins and how many tokens it has: int64 `[n] -> [n], [n]`."""
        shard = np.searchsorted(self._last_document[:-1], documents, side="right")
        at = self._document_zero[shard] + OFFSET.itemsize * documents
        ends = self._rows(at, OFFSET, 2).array()
        return self._first_token[shard] + ends[:, 0], ends[:, 1] - ends[:, 0]

    def starts(self, begin: int, end: int) -> np.ndarray:
        """Where documents begin from `begin` to before `end`, empty ones left out: rising, int64 `[n]`."""
        found: list[np.ndarray] = []
        shard = int(np.searchsorted(self._last_token, begin, side="right"))
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

    def _read_across(self, begin: int, row: np.ndarray) -> None:
        """Fill a row that passes the end of a shard."""
        place, end = begin, min(begin + len(row), self.tokens)
        row[end - begin :] = 0
        while place < end:
            shard = np.searchsorted(self._last_token, [place], side="right")
            stop = min(end, int(self._last_token[shard[0]]))
            at = self._token_zero[shard] + self.dtype.itemsize * place
            row[place - begin : stop - begin] = self._rows(at, self.dtype, stop - place).array()[0]
            place = stop

    def _offsets_of(self, shard: int) -> np.ndarray:
        with self._lock:
            if shard not in self._offsets:
                at = self._document_zero[[shard]] + OFFSET.itemsize * self._first_document[shard]
                count = self.shards[shard].documents + 1
                self._offsets[shard] = self._rows(at, OFFSET, count).array()[0]
            self._offsets.move_to_end(shard)
            if len(self._offsets) > MOST_OFFSETS:
                self._offsets.popitem(last=False)
            return self._offsets[shard]

    def _rows(self, at: np.ndarray, dtype: np.dtype, length: int) -> Rows:
        """Rows of items from a byte on, in memory and checked; none may pass the end of its shard's."""
        size = length * dtype.itemsize
        if not len(at) or not size:
            return Rows.of(np.empty((len(at), length), dtype))
        first, last = at // self._chunk, (at + size - 1) // self._chunk
        with self._lock:
            self._bring(first, last, most=1 + size // self._chunk)
            addresses = self._resident.address[first] + at % self._chunk
            held = self._resident.held
            if self._resident.contiguous or (first == last).all():
                return Rows(addresses, dtype, length, held)
            across = np.flatnonzero(first != last)
            joined = mapped(len(across), length, dtype)
            for row, i in zip(joined, across.tolist(), strict=True):
                row[:] = self._join(int(first[i]), int(at[i]) % self._chunk, size).view(dtype)
        whole = Rows(addresses[first == last], dtype, length, held)
        return whole.merged(Rows.of(joined), first == last)

    def _bring(self, first: np.ndarray, last: np.ndarray, most: int) -> None:
        """Have the chunks `first` to `last` of each row in memory; `last - first` is at most `most`."""
        address = self._resident.address
        if most == 1 and address[first].all() and address[last].all():
            return
        ranges = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
        needed = np.unique(np.concatenate(ranges))
        if not address[needed].all():
            self._resident.bring(needed)

    def _join(self, number: int, at: int, size: int) -> np.ndarray:
        """Bytes that pass from chunk to chunk, where chunks do not follow one another in memory."""
        joined, done = np.empty(size, np.uint8), 0
        while done < size:
            count = min(size - done, self._chunk - at)
            place = self._resident.address[[number]] + at
            joined[done : done + count] = Rows(place, joined.dtype, count, None).array()[0]
            number, at, done = number + 1, 0, done + count
        return joined


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
