"""Batches from a store: any row of an endless shuffled stream at any time, so the state is one integer."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from weakref import WeakSet

import numpy as np
import torch

from discdiff.data.buffers import Provider, Recycled, fresh, pinned
from discdiff.data.mixture import Classes, Mixture
from discdiff.data.order import Sequential, Shuffled
from discdiff.data.packing import AnyPacking, Spans
from discdiff.data.prefetch import Prefetch
from discdiff.data.store import Store
from discdiff.types import Canvas, Condition, DiscdiffError

PLAN = 8192
"""Rows whose places are worked out at once."""
AHEAD = 2
"""Groups of batches that are made ahead of the reader."""


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
        return self._canvases(self._places(np.arange(start, start + count)), count, fresh)[0]

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
        """Batches in groups that grow, so that the first comes at once and the later ones cost less."""
        new = pinned if torch.cuda.is_available() else Recycled()
        batches = max(1, PLAN // count)
        offsets = (stride * np.arange(batches)[:, None] + np.arange(count)).ravel()
        most = max(1, min(store.reach for store in self._stores) // (count * self.length))
        group = 1
        while True:
            places = self._places(start + offsets)
            first = 0
            while first < batches:
                stop = min(first + group, batches)
                yield self._canvases(places.part(first * count, stop * count), count, new)
                first, group = stop, min(2 * group, most)
            start += batches * stride

    def _places(self, positions: np.ndarray) -> _Places:
        if self._mixture is None:
            return _Places(positions, None, self._orders[0].at(positions))
        stores, indices = self._mixture.assign(positions, self.seed)
        rows = np.empty_like(positions)
        for number, order in enumerate(self._orders):
            rows[stores == number] = order.at(indices[stores == number])
        return _Places(positions, stores, rows)

    def _canvases(self, places: _Places, count: int, new: Provider) -> list[Canvas]:
        """The rows at some places, `count` to a batch."""
        shape = (len(places.rows), self.length)
        tokens, free = new(shape, torch.int64), new(shape, torch.bool)
        spans, documents = self._copy(places, tokens.numpy())
        if spans.sizes is None:
            free.numpy().fill(True)
        else:
            np.less(np.arange(self.length), spans.sizes[:, None], out=free.numpy())
            tokens.numpy()[~free.numpy()] = self._stores[0].separator or 0
        rows = new(places.positions.shape, torch.int64)
        np.copyto(rows.numpy(), places.positions)
        parts = _batches(tokens, count), _batches(free, count), _batches(rows, count)
        labels = places.stores if isinstance(self._mixture, Classes) else None
        if documents is None and labels is None:
            return [Canvas(*batch) for batch in zip(*parts, strict=True)]
        batches = len(parts[0])
        conditions = [
            Condition(labels=label, documents=ids)
            for label, ids in zip(
                _copied(labels, new, count, batches), _copied(documents, new, count, batches), strict=True
            )
        ]
        return [Canvas(*batch) for batch in zip(*parts, conditions, strict=True)]

    def _copy(self, places: _Places, tokens: np.ndarray) -> tuple[Spans, np.ndarray | None]:
        """Fill in the tokens; tell where they lay, and their documents, if asked for."""
        if places.stores is not None:
            return self._mix(places, places.stores, tokens)
        store = self._stores[0]
        spans = self.packing.spans(store, places.rows, places.positions, self.seed)
        store.read_into(spans.begin, tokens)
        return spans, self.packing.documents(store, spans.begin)

    def _mix(
        self, places: _Places, stores: np.ndarray, tokens: np.ndarray
    ) -> tuple[Spans, np.ndarray | None]:
        """As `_copy`, of several stores."""
        begin, sizes = np.empty_like(places.rows), np.full(len(places.rows), self.length)
        documents: np.ndarray | None = None
        for number, store in enumerate(self._stores):
            here = np.flatnonzero(stores == number)
            spans = self.packing.spans(store, places.rows[here], places.positions[here], self.seed)
            tokens[here], begin[here] = store.read(spans.begin, self.length), spans.begin
            sizes[here] = self.length if spans.sizes is None else spans.sizes
            if (ids := self.packing.documents(store, spans.begin)) is not None:
                documents = np.empty(tokens.shape, np.int64) if documents is None else documents
                documents[here] = ids
        return Spans(begin, sizes), documents


def _copied(
    values: np.ndarray | None, new: Provider, count: int, batches: int
) -> Sequence[torch.Tensor | None]:
    """Values in memory of the provider, `count` rows to a batch; None for each batch if there are none."""
    if values is None:
        return [None] * batches
    copy = new(values.shape, torch.int64)
    np.copyto(copy.numpy(), values)
    return _batches(copy, count)


def _batches(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """`[N, ...] -> N / count of [count, ...]`, views."""
    return rows.view(-1, count, *rows.shape[1:]).unbind()


def _require(start: int, count: int) -> None:
    if start < 0 or count < 1:
        raise DiscdiffError(
            f"{count} rows from row {start} cannot be read; start at 0 or later, read 1 or more"
        )
