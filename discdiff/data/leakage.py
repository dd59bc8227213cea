"""How much of an evaluation split a model has seen: n-grams of tokens that the training split has too.

N-grams stay within documents and are compared by 64-bit hashes: for a training split of N n-grams, one of
an evaluation split is matched falsely with a chance of about N / 2^64. GPT-3 (Brown et al. 2020,
arXiv:2005.14165) counted 13-grams of words; here n counts tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from discdiff.data.bookkeeping import Each
from discdiff.data.folder import Folder
from discdiff.data.shard import Shard


@dataclass(frozen=True)
class Grams:
    """The n-grams of a shard: their hashes `[N]`, and which document each is of `[N]`."""

    hashes: np.ndarray
    documents: np.ndarray


def leakage(
    folder: Folder, splits: Mapping[str, Sequence[Shard]], n: int, separator: int | None, each: Each
) -> dict[str, Any]:
    """For each evaluation split, its n-grams and documents, and how many the training split shares."""
    read = partial(_grams, folder, n, separator)
    evaluated = {
        name: [read(shard) for shard in shards] for name, shards in splits.items() if name != "train"
    }
    wanted = np.unique(
        np.concatenate([np.empty(0, np.uint64), *(g.hashes for gs in evaluated.values() for g in gs)])
    )
    seen = np.zeros(len(wanted), bool)
    for _, found in each(partial(_seen, folder, n, separator, wanted), splits.get("train", ())):
        seen |= found
    leaked = wanted[seen]
    return {"n": n} | {name: _count(grams, leaked) for name, grams in evaluated.items()}


def ngrams(ids: np.ndarray, offsets: np.ndarray, n: int) -> Grams:
    """Hash all runs of n ids within documents."""
    mixed = _mix(ids.astype(np.uint64))
    count = max(len(ids) - n + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for i in range(n):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += mixed[i : i + count]
    document = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    inside = document[:count] == document[n - 1 :]
    return Grams(_mix(hashes[inside]), document[:count][inside])


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: a bijection that spreads each bit over all."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _grams(folder: Folder, n: int, separator: int | None, shard: Shard) -> Grams:
    column = pa.ipc.open_file(pa.py_buffer(folder.read(shard.path))).get_batch(0).column(0)
    ids, offsets = column.values.to_numpy(), column.offsets.to_numpy().astype(np.int64)
    if separator is not None:  # each document ends in one
        keep = np.ones(len(ids), bool)
        keep[offsets[1:] - 1] = False
        ids, offsets = ids[keep], offsets - np.arange(len(offsets))
    return ngrams(ids, offsets, n)


def _seen(folder: Folder, n: int, separator: int | None, wanted: np.ndarray, shard: Shard) -> np.ndarray:
    return np.isin(wanted, _grams(folder, n, separator, shard).hashes)


def _count(grams: Sequence[Grams], leaked: np.ndarray) -> dict[str, int]:
    hits = [np.isin(part.hashes, leaked) for part in grams]
    return {
        "ngrams": sum(len(part.hashes) for part in grams),
        "leaked": int(sum(hit.sum() for hit in hits)),
        "documents": sum(len(np.unique(part.documents)) for part in grams),
        "leaked_documents": sum(
            len(np.unique(part.documents[hit])) for part, hit in zip(grams, hits, strict=True)
        ),
    }
