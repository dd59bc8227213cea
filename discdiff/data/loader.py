"""Batches from a store: any row of an endless shuffled stream at any time, so the state is one integer."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from discdiff.data.mixture import Mixture
from discdiff.data.order import Sequential, Shuffled
from discdiff.data.packing import AnyPacking, Rows
from discdiff.data.prefetch import Prefetch
from discdiff.data.store import Store
from discdiff.types import Canvas, Condition, DiscdiffError

PLAN = 8192
"""Rows whose places are worked out at once."""
COPY = 2**18
"""Tokens that are copied at once: about what a core's cache holds."""
AHEAD = 4
"""Copies that are made ahead of the reader."""


@dataclass(frozen=True)
class _Places:
    """Where the rows at some positions of the stream lie."""

    positions: np.ndarray
    stores: np.ndarray | None
    rows: np.ndarray

    def part(self, start: int, stop: int) -> "_Places":
        stores = None if self.stores is None else self.stores[start:stop]
        return _Places(self.positions[start:stop], stores, self.rows[start:stop])


class Loader:
    """Rows of a store or a mixture, epoch after epoch, each in an order of its own if shuffled.

    `read(start, count)` depends on its arguments, the text, the packing and the seed, and on nothing else:
    whatever the number of processes, micro-batches or restarts, each row is read once an epoch. Rank r of W
    reads rows `(k G + r G / W, G / W)` at step k of global batch G.
    """

    def __init__(self, source: Store | Mixture, packing: AnyPacking, seed: int = 0, shuffle: bool = True):
        self.packing = packing
        self.seed = seed
        self._stores = source.stores if isinstance(source, Mixture) else (source,)
        self._mixture = source if isinstance(source, Mixture) else None
        counts = [packing.count(store) for store in self._stores]
        self._orders = [
            Shuffled(rows, seed, stream) if shuffle else Sequential(rows)
            for stream, rows in enumerate(counts)
        ]
        self.rows_per_epoch = sum(counts)
        """Rows of one pass over the store; over a mixture, the rows of all its stores."""
        self._streams: WeakSet[Prefetch[Canvas]] = WeakSet()

    @property
    def length(self) -> int:
        return self.packing.length

    @property
    def vocab(self) -> int:
        return self._stores[0].vocab

    @property
    def tokenizer(self) -> str:
        """Fingerprint of the tokenizer."""
        return self._stores[0].manifest.tokenizer

    @property
    def fingerprint(self) -> str:
        """Names the stream: loaders of one fingerprint read the same rows."""
        shares = () if self._mixture is None else self._mixture.shares.tolist()
        texts = [store.fingerprint for store in self._stores]
        words = [*texts, *map(str, shares), self.packing.model_dump_json(), repr(self._orders[0])]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()

    def read(self, start: int, count: int) -> Canvas:
        """Rows `start` to `start + count` of the stream, tokens int64, on the CPU."""
        _require(start, count)
        return self._canvas(self._places(np.arange(start, start + count)), pin=False)

    def stream(self, start: int, count: int, stride: int | None = None) -> Prefetch[Canvas]:
        """`read(start, count)`, `read(start + stride, count)` and so on, read ahead in a thread.

        The stride is `count` unless given. Memory is pinned where there is a GPU. The iterator's `waited`
        tells the seconds that its reader has waited; close it, or use it in a `with` statement.
        """
        _require(start, count)
        groups = self._groups(start, count, count if stride is None else stride)
        stream = Prefetch(groups, AHEAD)
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        """End the streams. The stores stay open: they belong to who opened them."""
        for stream in list(self._streams):
            stream.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _groups(self, start: int, count: int, stride: int) -> Iterator[list[Canvas]]:
        pin = torch.cuda.is_available()
        batches = max(1, PLAN // count)
        together = max(1, COPY // (count * self.length))
        offsets = (stride * np.arange(batches)[:, None] + np.arange(count)).ravel()
        while True:
            places = self._places(start + offsets)
            for first in range(0, batches, together):
                stop = min(first + together, batches)
                canvas = self._canvas(places.part(first * count, stop * count), pin=pin)
                yield [canvas.narrow(i * count, (i + 1) * count) for i in range(stop - first)]
            start += batches * stride

    def _places(self, positions: np.ndarray) -> _Places:
        if self._mixture is None:
            return _Places(positions, None, self._orders[0].at(positions))
        stores, indices = self._mixture.assign(positions, self.seed)
        rows = np.empty_like(positions)
        for number, order in enumerate(self._orders):
            rows[stores == number] = order.at(indices[stores == number])
        return _Places(positions, stores, rows)

    def _canvas(self, places: _Places, *, pin: bool) -> Canvas:
        rows = self._read(places)
        tokens = _widened(rows.tokens, pin=pin)
        free = torch.ones(tokens.shape, dtype=torch.bool, pin_memory=pin)
        if rows.sizes is not None:
            torch.lt(torch.arange(self.length), torch.from_numpy(rows.sizes)[:, None], out=free)
        documents = None if rows.documents is None else _widened(rows.documents, pin=pin)
        return Canvas(tokens, free, _widened(places.positions, pin=pin), Condition(documents=documents))

    def _read(self, places: _Places) -> Rows:
        if places.stores is None:
            return self.packing.read(self._stores[0], places.rows, places.positions, self.seed)
        parts: list[tuple[np.ndarray, Rows]] = []
        for number, store in enumerate(self._stores):
            here = np.flatnonzero(places.stores == number)
            parts.append(
                (here, self.packing.read(store, places.rows[here], places.positions[here], self.seed))
            )
        return _merged(parts, len(places.positions))


def _require(start: int, count: int) -> None:
    if start < 0 or count < 1:
        raise DiscdiffError(
            f"{count} rows from row {start} cannot be read; start at 0 or later, read 1 or more"
        )


def _widened(values: np.ndarray, *, pin: bool) -> Tensor:
    if not pin:
        return torch.from_numpy(values.astype(np.int64))
    wide = torch.empty(values.shape, dtype=torch.int64, pin_memory=True)
    np.copyto(wide.numpy(), values)
    return wide


def _merged(parts: list[tuple[np.ndarray, Rows]], count: int) -> Rows:
    """Rows of several stores, each where it belongs."""

    def merge(pieces: list[np.ndarray]) -> np.ndarray:
        merged = np.empty((count, *pieces[0].shape[1:]), pieces[0].dtype)
        for (here, _), piece in zip(parts, pieces, strict=True):
            merged[here] = piece
        return merged

    tokens = merge([rows.tokens for _, rows in parts])
    sizes = [rows.sizes for _, rows in parts if rows.sizes is not None]
    documents = [rows.documents for _, rows in parts if rows.documents is not None]
    return Rows(tokens, merge(sizes) if sizes else None, merge(documents) if documents else None)
