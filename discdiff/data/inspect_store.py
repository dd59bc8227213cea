"""What is inside a store, as text for a reader."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from discdiff.data.audit import audit
from discdiff.data.encoding import Tokenizer
from discdiff.data.folder import Folder
from discdiff.data.manifest import Manifest, Split, read_manifest
from discdiff.data.store import Store

SAMPLED_TOKENS = 2**20
SAMPLED_DOCUMENTS = 4096
SHOWN_TOKENS = 10
SHOWN_CHARACTERS = 300


def inspect(uri: str | Path, **options: Any) -> str:
    """Counts, tokens per document, the most frequent tokens, an example, and whether every byte is right.

    `options` go to the file system. Raises DiscdiffError if there is no store.
    """
    folder = Folder.at(uri, **options)
    manifest = read_manifest(folder)
    bad = audit(uri, **options)
    lines = [*_summary(folder, manifest)]
    for name, split in manifest.splits.items():
        lines += ["", *_counts(name, split)]
        good = [
            shard for shard in split.shards if shard.tokens and shard not in [error.shard for error in bad]
        ]
        if good:
            skip = [error.shard.path for error in bad]
            with Store.open(uri, name, skip=skip, **options) as store:
                lines += _content(store)
    lines += ["", *_verdict(manifest, [str(error) for error in bad])]
    return "\n".join(lines)


def _summary(folder: Folder, manifest: Manifest) -> Iterator[str]:
    closed = "no separator" if manifest.separator is None else f"separator {manifest.separator}"
    yield f"{folder.uri}"
    yield f"  fingerprint  {manifest.fingerprint}"
    yield f"  tokenizer    {manifest.tokenizer}"
    yield f"  vocabulary   {manifest.vocab:,} tokens, stored as {manifest.dtype}, {closed}"
    if manifest.spec_key:
        yield f"  made by      {manifest.spec_key}"
    for source in manifest.sources:
        yield f"  source       {source}"
    for name, result in manifest.checks.items():
        yield f"  check        {name}: {result}"


def _counts(name: str, split: Split) -> Iterator[str]:
    size = sum(shard.size for shard in split.shards)
    shards = f"{len(split.shards):,} shards, {_bytes(size)}"
    yield f"{name}: {split.tokens:,} tokens in {split.documents:,} documents, {shards}"
    yield f"  text         {split.characters:,} characters, {split.bytes:,} bytes of UTF-8"
    if split.tokens:
        characters, encoded = split.characters / split.tokens, split.bytes / split.tokens
        yield f"  per token    {characters:.3f} characters, {encoded:.3f} bytes"


def _content(store: Store) -> Iterator[str]:
    documents = np.unique(np.linspace(0, store.documents - 1, SAMPLED_DOCUMENTS).astype(np.int64))
    begin, sizes = store.borders(documents)
    marks = ", ".join(f"{q}% {int(np.quantile(sizes, q / 100)):,}" for q in (5, 25, 50, 75, 95))
    yield f"  per document {sizes.mean():,.1f} tokens ({marks}; longest {sizes.max():,})" + _of(
        documents, store.documents
    )
    count = min(store.tokens, SAMPLED_TOKENS)
    tokens = store.read(np.array([0]), count)[0]
    ids, counts = np.unique(tokens, return_counts=True)
    often = np.argsort(-counts, kind="stable")[:SHOWN_TOKENS]
    shown = ", ".join(f"{_spell(store.tokenizer, int(ids[i]))} {counts[i] / count:.1%}" for i in often)
    yield f"  most frequent {shown}" + _of(tokens, store.tokens)
    place = int(np.argmax(sizes > 1))
    first = store.read(begin[[place]], int(min(sizes[place], SHOWN_CHARACTERS)))[0]
    yield f"  an example   {store.tokenizer.decode(first)[:SHOWN_CHARACTERS]!r}"


def _of(sample: np.ndarray, whole: int) -> str:
    return "" if len(sample) == whole else f" [of {len(sample):,}]"


def _spell(tokenizer: Tokenizer, token: int) -> str:
    return repr(tokenizer.decode([token]))


def _verdict(manifest: Manifest, bad: list[str]) -> Iterator[str]:
    shards = sum(len(split.shards) for split in manifest.splits.values())
    if not bad:
        yield f"all {shards:,} shards are complete and unaltered (SHA-256)"
    else:
        yield f"{len(bad):,} of {shards:,} shards are bad"
        yield from (f"  {error}" for error in bad)


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
