"""From the documents of a part to shards: clean, filter, split, encode, write."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from pydantic import Field

from discdiff.data.dedup import ledger_of, note
from discdiff.data.encoding import Encoded, Tokenizer
from discdiff.data.folder import Folder
from discdiff.data.pretrained import Audit, PretrainedTokenizer
from discdiff.data.shard import Sealed, Shard, ShardBuilder
from discdiff.data.spans import Span
from discdiff.data.specification import Tokenize
from discdiff.data.splits import SPLITS
from discdiff.data.tokenizers import from_json
from discdiff.types import DiscdiffError, Value

_BATCH = 4 * 2**20
"""Characters that are encoded at once."""


class Part(Value, frozen=True):
    """The record of a part: its shards by split, what was left out, and how the encoding was checked."""

    shards: dict[str, tuple[Shard, ...]]
    read: int = 0
    """Documents that were read."""
    empty: int = 0
    short: int = 0
    long: int = 0
    audit: Audit = Field(default_factory=Audit)
    engine: str = ""
    """What encoded, where there is a choice."""


@dataclass(frozen=True)
class Preparation:
    """Encodes any part of a corpus into a folder; can be sent to another process."""

    spec: Tokenize
    tokenizer_json: str
    uri: str

    def __call__(self, span: Span) -> Part:
        """Write the shards of a part. The same part gives the same shards, wherever and whenever."""
        return _Writer(self.spec, opened(self.tokenizer_json), Folder.at(self.uri), span).run()


@lru_cache(maxsize=2)
def opened(tokenizer_json: str) -> Tokenizer:
    """The tokenizer, opened once in a process."""
    return from_json(tokenizer_json)


class _Batch:
    """Documents of one split, as text and as UTF-8."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.utf8: list[bytes] = []

    def add(self, text: str, utf8: bytes) -> None:
        self.texts.append(text)
        self.utf8.append(utf8)


class _Writer:
    """The work on one part. The shards of its splits are written side by side: a disk takes its time."""

    def __init__(self, spec: Tokenize, tokenizer: Tokenizer, folder: Folder, span: Span):
        self._spec, self._tokenizer, self._folder, self._span = spec, tokenizer, folder, span
        self._builders: dict[str, ShardBuilder] = {}
        self._ledgers: dict[str, list[np.ndarray]] = {}
        self._shards: dict[str, list[Future[Shard]]] = {}
        self._disk = ThreadPoolExecutor(len(SPLITS))
        self._audit = Audit()
        self._left_out = {"read": 0, "empty": 0, "short": 0, "long": 0}

    def run(self) -> Part:
        with self._disk:
            for batch in self._batches():
                for split, documents in batch.items():
                    self._add(split, documents)
            for split in list(self._builders):
                self._write(split)
        shards = {
            split: tuple(shard.result() for shard in self._shards[split]) for split in sorted(self._shards)
        }
        engine = self._tokenizer.engine if isinstance(self._tokenizer, PretrainedTokenizer) else ""
        return Part(shards=shards, audit=self._audit, engine=engine, **self._left_out)

    def _batches(self) -> Iterator[dict[str, _Batch]]:
        """Documents by split, a few MiB at a time."""
        batch: dict[str, _Batch] = {}
        size = 0
        for text in self._kept():
            utf8 = text.encode()
            split = self._span.split or self._spec.splits.of(utf8)
            batch.setdefault(split, _Batch()).add(text, utf8)
            size += len(text)
            if size >= _BATCH:
                yield batch
                batch, size = {}, 0
        if batch:
            yield batch

    def _kept(self) -> Iterator[str]:
        """The documents that pass the filters, cleaned."""
        spec, counts = self._spec, self._left_out
        for text in spec.clean(self._span):
            counts["read"] += 1
            if not text:
                counts["empty"] += 1
            elif len(text) < spec.shortest:
                counts["short"] += 1
            elif spec.longest is not None and len(text) > spec.longest:
                counts["long"] += 1
            else:
                yield text

    def _add(self, split: str, documents: _Batch) -> None:
        encoded = self._encode(documents)
        texts, utf8 = documents.texts, documents.utf8
        builder = self._builders.setdefault(
            split, ShardBuilder(self._tokenizer.size, self._tokenizer.separator)
        )
        characters, size = sum(map(len, texts)), sum(map(len, utf8))
        builder.add(encoded.ids, encoded.offsets, characters=characters, bytes=size)
        if self._spec.duplicates == "drop":
            self._ledgers.setdefault(split, []).append(ledger_of(texts, utf8))
        if builder.size >= self._spec.shard:
            self._write(split)

    def _encode(self, documents: _Batch) -> Encoded:
        try:
            if isinstance(self._tokenizer, PretrainedTokenizer):
                encoded, audit = self._tokenizer.encode_audited(documents.texts, documents.utf8)
                self._audit += audit
                return encoded
            return self._tokenizer.encode_batch(documents.texts)
        except DiscdiffError as error:
            raise DiscdiffError(f"{self._span}: {error}") from error

    def _write(self, split: str) -> None:
        """Begin to write a shard, the one before it being written: no more of a split lie in memory."""
        before = self._shards.setdefault(split, [])
        if before:
            before[-1].result()
        write = partial(
            self._written, self._builders.pop(split).sealed(), split, self._ledgers.pop(split, None)
        )
        before.append(self._disk.submit(write))

    def _written(self, sealed: Sealed, split: str, ledger: list[np.ndarray] | None) -> Shard:
        shard = sealed.write(self._folder, split, str(self._span))
        if ledger is not None:
            note(self._folder, shard, np.concatenate(ledger))
        return shard
