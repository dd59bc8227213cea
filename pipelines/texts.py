"""Texts that are measured: what a model drew, real text of the same size, and the training text as a "
"stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from discdiff.data.encoding import SEPARATOR
from discdiff.data.loader import Loader
from discdiff.data.packing import Wrap
from discdiff.data.store import Store
from discdiff.evaluation.sequences import Sequences, sequences
from discdiff.types import DiscdiffError
from pipelines.artifacts import Samples
from pipelines.place import Place

_PIECE = 2**20


@dataclass(frozen=True)
class Drawn:
    """Samples as they lie in their shards: ids, text, and network evaluations per sample."""

    ids: list[NDArray[np.int64]]
    texts: list[str]
    evaluations: float


def drawn(samples: Samples) -> Drawn:
    """All shards of an artifact.

    Raises `DiscdiffError` if there is no shard or no sample in them.
    """
    place = Place.at(samples.uri)
    fs, root = place.filesystem()
    ids: list[NDArray[np.int64]] = []
    texts: list[str] = []
    nfe: list[float] = []
    for path in sorted(fs.glob(f"{root}/samples-*.parquet")):
        with fs.open(path) as file:
            table = pq.read_table(file)
        ids += [np.asarray(row, np.int64) for row in table["ids"].to_pylist()]
        texts += table["text"].to_pylist()
        nfe += table["nfe"].to_pylist()
    if not ids:
        raise DiscdiffError(f"{samples.uri} holds no sample: generate some, with count at least 1")
    return Drawn(ids, texts, float(np.mean(nfe)))


def real(store: Store, count: int, length: int) -> Sequences:
    """Real text beside so many samples: up to `count` rows of `length` tokens, spread over the split."""
    packing = Wrap(length=min(length, store.tokens))
    rows, there = Loader(store, packing, seed=0, shuffle=False), packing.count(store)
    take = min(count, there)
    picked = [rows.read(k * there // take, 1).tokens[0].numpy() for k in range(take)]
    return sequences(picked, store.vocab)


def stream(store: Store) -> Iterator[NDArray[np.int64]]:
    """The token stream of a split, a piece at a time."""
    for start in range(0, store.tokens, _PIECE):
        width = min(_PIECE, store.tokens - start)
        yield store.read(np.array([start]), width)[0].astype(np.int64)


def counts(store: Store) -> NDArray[np.int64]:
    """How often each token occurs in a split. `-> [V]`"""
    total = np.zeros(store.vocab, np.int64)
    for piece in stream(store):
        total += np.bincount(piece, minlength=store.vocab)
    return total


def readable(text: str) -> str:
    """Text with its document borders as blank lines."""
    return text.replace(SEPARATOR, "\n\n")


def text_of(store: Store) -> Iterator[str]:
    """The text of a split in pieces that end at a space, so that no word is cut."""
    rest = ""
    for piece in stream(store):
        rest += readable(store.tokenizer.decode(piece))
        whole, space, rest = rest.rpartition(" ")
        yield whole + space
    yield rest


def is_character_level(store: Store) -> bool:
    """Whether a token is a character: all but separators are."""
    totals: Any = store.totals
    closed = totals.documents if store.separator is not None else 0
    return totals.tokens - closed == totals.characters
