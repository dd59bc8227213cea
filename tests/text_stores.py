"""Stores for the tests of reading: written with the real writer, from documents that are drawn."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from discdiff.data.folder import Folder
from discdiff.data.manifest import Manifest, commit
from discdiff.data.shard import Shard, ShardBuilder
from discdiff.data.tokenizers import Bytes

TOKENIZER = Bytes().open()
SEPARATOR = 299
VOCAB = 300

Documents = Sequence[Sequence[int]]


def draw(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Documents of 0 to `longest` tokens below the separator."""
    random = np.random.default_rng(seed)
    return [random.integers(0, SEPARATOR, random.integers(0, longest + 1)).tolist() for _ in range(count)]


def write(folder: Folder, split: str, documents: Documents, per_shard: int) -> list[Shard]:
    shards: list[Shard] = []
    for start in range(0, len(documents), per_shard):
        builder = ShardBuilder(VOCAB, SEPARATOR)
        for document in documents[start : start + per_shard]:
            ids = np.array(document, np.uint32)
            builder.add(ids, np.array([0, len(ids)]), characters=len(ids), bytes=2 * len(ids))
        shards.append(builder.write(folder, split, source=f"documents {start} on"))
    return shards


def manifest(splits: dict[str, list[Shard]], **changes: object) -> Manifest:
    """A manifest of shards, under the tokenizer of bytes."""
    fields: dict[str, object] = {
        "tokenizer": TOKENIZER.fingerprint,
        "tokenizer_json": TOKENIZER.to_json(),
        "vocab": VOCAB,
        "separator": SEPARATOR,
        "splits": splits,
    }
    return Manifest.of(**(fields | changes))  # type: ignore[arg-type]


def make(uri: str | Path, per_shard: int = 7, **splits: Documents) -> str:
    """A committed store; the splits are keyword arguments."""
    folder = Folder.at(uri)
    shards = {name: write(folder, name, documents, per_shard) for name, documents in splits.items()}
    commit(folder, manifest(shards), TOKENIZER.to_json())
    return str(uri)


def stream(documents: Documents) -> np.ndarray:
    """The tokens of documents, one after another, each closed by the separator."""
    return np.array([token for document in documents for token in [*document, SEPARATOR]], np.int64)
