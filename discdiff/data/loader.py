"""Batches from a store: any row of an endless shuffled stream at any time, so the state is one integer."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from weakref import WeakSet

import numpy as np
import torch

from discdiff.data.buffers import Provider, Recycled, fresh, pinned
from discdiff.data.mixture import Classes, Mixture
from discdiff.data.order import Sequential, Shuffled
from discdiff.data.packing import AnyPacking
from discdiff.data.prefetch import Prefetch
from discdiff.data.store import Store
from discdiff.types import Canvas, Condition, DiscdiffError

PLAN = 65_536
"""Rows whose places are worked out at once."""
AHEAD = 2
"""Groups of batches that are made ready ahead of the reader."""
_NOTHING = Condition()


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
        return self._prepared(self._places(np.arange(start, start + count))).canvas(0, count, fresh)

    def stream(self, start: int, count: int, stride: int | None = None) -> Prefetch[Canvas]:
        """`read(start, count)`, `read(start + stride, count)` and so on, made ready ahead in a thread.

        The thread gathers the rows from the shards, checked. What is left to the reader is to work out which
        rows come, arithmetic that in a thread would only wait for the lock, and to widen them into memory
        that stays in the caches of its core. The stride is `count` unless given. Memory is pinned where there
        is a GPU. The iterator's `waited` tells for how many seconds the thread was waited for; close it, or
        use it in a `with` statement.
        """
        _require(start, count)
        new = pinned if torch.cuda.is_available() else Recycled()

        def ready(places: _Places) -> Iterator[Canvas]:
            return self._prepared(places).canvases(count, new)

        groups = self._groups(start, count, count if stride is None else stride)
        reads = Prefetch((partial(ready, places) for places in groups), AHEAD)
        self._streams.add(reads)
        return reads

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

    def _groups(self, start: int, count: int, stride: int) -> Iterator[_Places]:
        """Groups of batches, which grow, so that the first comes at once and the later ones cost less."""
        batches = max(1, PLAN // count)
        offsets = (stride * np.arange(batches)[:, None] + np.arange(count)).ravel()
        near = min(store.reach for store in self._stores)
        group, most = 1, max(1, near // (count * self.length))
        while True:
            places = self._places(start + offsets)
            first = 0
            while first < batches:
                stop = min(first + group, batches)
                yield places.part(first * count, stop * count)
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

    def _prepared(self, places: _Places) -> "_Prepared":
        labels = places.stores if isinstance(self._mixture, Classes) else None
        if places.stores is not None:
            return self._mixed(places, places.stores, labels)
        store = self._stores[0]
        spans = self.packing.spans(store, places.rows, places.positions, self.seed)
        tokens = store.read(spans.begin, self.length)
        documents = self.packing.documents(store, spans.begin)
        return _Prepared(tokens, places.positions, spans.sizes, self._padding, labels, documents)

    def _mixed(self, places: _Places, stores: np.ndarray, labels: np.ndarray | None) -> "_Prepared":
        """As `_prepared`, of several stores."""
        tokens = np.empty((len(places.rows), self.length), self._stores[0].dtype)
        sizes = np.full(len(tokens), self.length)
        documents: np.ndarray | None = None
        for number, store in enumerate(self._stores):
            here = np.flatnonzero(stores == number)
            spans = self.packing.spans(store, places.rows[here], places.positions[here], self.seed)
            tokens[here] = store.read(spans.begin, self.length)
            sizes[here] = self.length if spans.sizes is None else spans.sizes
            if (ids := self.packing.documents(store, spans.begin)) is not None:
                documents = np.empty(tokens.shape, np.int64) if documents is None else documents
                documents[here] = ids
        return _Prepared(tokens, places.positions, sizes, self._padding, labels, documents)

    @property
    def _padding(self) -> int:
        return self._stores[0].separator or 0


@dataclass(frozen=True)
class _Prepared:
    """Rows as they are stored, `[n, L]`, and all else that their batches say of them."""

    tokens: np.ndarray
    positions: np.ndarray
    sizes: np.ndarray | None
    """Tokens of each row that are text; None if all are."""
    padding: int
    labels: np.ndarray | None
    documents: np.ndarray | None

    def canvas(self, start: int, stop: int, new: Provider) -> Canvas:
        """Rows `start` to `stop` as a batch in memory of the provider."""
        shape = (stop - start, self.tokens.shape[1])
        tokens, free = new(shape, torch.int64), new(shape, torch.bool)
        text, scored = tokens.numpy(), free.numpy()
        np.copyto(text, self.tokens[start:stop])
        if self.sizes is None:
            scored.fill(True)
        else:
            np.less(np.arange(shape[1]), self.sizes[start:stop, None], out=scored)
            text[~scored] = self.padding
        numbers = _held(self.positions[start:stop], new)
        if self.labels is None and self.documents is None:
            return Canvas(tokens, free, numbers, _NOTHING)
        labels, documents = (
            None if values is None else _held(values[start:stop], new)
            for values in (self.labels, self.documents)
        )
        return Canvas(tokens, free, numbers, Condition(labels=labels, documents=documents))

    def canvases(self, count: int, new: Provider) -> Iterator[Canvas]:
        """All rows, `count` to a batch, each batch widened when it is asked for."""
        for start in range(0, len(self.positions), count):
            yield self.canvas(start, start + count, new)


def _held(values: np.ndarray, new: Provider) -> torch.Tensor:
    """The values themselves, or a copy of them where memory is to be pinned; int64."""
    tensor = torch.from_numpy(np.asarray(values, np.int64))
    return tensor.pin_memory() if new is pinned else tensor


def _require(start: int, count: int) -> None:
    if start < 0 or count < 1:
        raise DiscdiffError(
            f"{count} rows from row {start} cannot be read; start at 0 or later, read 1 or more"
        )
