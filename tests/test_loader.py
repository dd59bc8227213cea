"""The loader: each row once an epoch, the same however it is read, and one integer to remember."""

import gc
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_stores import SEPARATOR, TOKENIZER, draw, make, manifest, stream, write

from discdiff.data.buffers import Recycled
from discdiff.data.folder import Folder
from discdiff.data.loader import Loader
from discdiff.data.manifest import commit
from discdiff.data.mixture import PERIOD, Classes, Mixture
from discdiff.data.packing import AnyPacking, Crop, Isolated, PerDocument, Wrap
from discdiff.data.prefetch import Prefetch
from discdiff.data.resident import BadShardError
from discdiff.data.store import Store
from discdiff.types import Canvas, DiscdiffError

DOCUMENTS = draw(60, longest=50)
STREAM = stream(DOCUMENTS)
PACKINGS = [Wrap(length=16), Isolated(length=16), PerDocument(length=16), Crop(length=16)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(make(tmp_path_factory.mktemp("store"), train=DOCUMENTS))


def same(one: Canvas, other: Canvas) -> bool:
    parts = zip(fields(one), fields(other), strict=True)
    return all(a is b is None or torch.equal(a, b) for a, b in parts)  # type: ignore[arg-type]


def fields(canvas: Canvas) -> list[torch.Tensor | None]:
    return [canvas.tokens, canvas.free, canvas.rows, canvas.condition.documents]


def joined(pieces: list[Canvas]) -> Canvas:
    whole = [None if None in part else torch.cat(part) for part in zip(*map(fields, pieces), strict=True)]  # type: ignore[arg-type]
    tokens, free, rows, documents = whole
    assert tokens is not None and free is not None and rows is not None  # noqa: PT018
    return Canvas(tokens, free, rows, type(pieces[0].condition)(documents=documents))


# Packings, against their definitions


@pytest.mark.parametrize("length", [1, 7, 100, len(STREAM)])
def test_wrap_cuts_the_stream(store: Store, length: int) -> None:
    loader = Loader(store, Wrap(length=length), shuffle=False)
    assert loader.rows_per_epoch == len(STREAM) // length
    canvas = loader.read(0, loader.rows_per_epoch)
    assert canvas.tokens.flatten().tolist() == STREAM[: loader.rows_per_epoch * length].tolist()
    assert canvas.free.all()
    assert canvas.rows.tolist() == list(range(loader.rows_per_epoch))
    assert (canvas.tokens.dtype, canvas.rows.dtype, canvas.free.dtype) == (
        torch.int64,
        torch.int64,
        torch.bool,
    )


@pytest.mark.parametrize("length", [3, 40, 200])
def test_isolated_numbers_the_documents_of_a_row(store: Store, length: int) -> None:
    loader = Loader(store, Isolated(length=length), shuffle=False)
    canvas = loader.read(0, loader.rows_per_epoch)
    owner = np.concatenate([np.full(len(document) + 1, i) for i, document in enumerate(DOCUMENTS)])
    rows = owner[: canvas.tokens.numel()].reshape(canvas.shape)
    assert canvas.condition.documents is not None
    assert np.array_equal(canvas.condition.documents, rows - rows[:, :1])
    assert same(
        Loader(store, Wrap(length=length), shuffle=False).read(3, 5).narrow(0, 5), unmarked(canvas, 3, 8)
    )


def unmarked(canvas: Canvas, start: int, stop: int) -> Canvas:
    return Canvas(canvas.tokens[start:stop], canvas.free[start:stop], canvas.rows[start:stop])


@pytest.mark.parametrize("length", [1, 10, 80])
def test_a_document_a_row(store: Store, length: int) -> None:
    loader = Loader(store, PerDocument(length=length), shuffle=False)
    assert loader.rows_per_epoch == len(DOCUMENTS)
    canvas = loader.read(0, len(DOCUMENTS))
    for document, tokens, free in zip(DOCUMENTS, canvas.tokens, canvas.free, strict=True):
        expected = [*document, SEPARATOR][:length]
        assert tokens.tolist() == expected + [SEPARATOR] * (length - len(expected))
        assert free.tolist() == [True] * len(expected) + [False] * (length - len(expected))


def test_crops_lie_anywhere_in_their_document_and_move_from_visit_to_visit(tmp_path: Path) -> None:
    document = list(range(20))
    with Store.open(make(tmp_path, train=[document])) as opened:
        canvas = Loader(opened, Crop(length=5), seed=3).read(0, 3400)
    assert canvas.free.all()
    starts = canvas.tokens[:, 0].numpy()
    for start, row in zip(starts, canvas.tokens.tolist(), strict=True):
        assert row == [*document, SEPARATOR][start : start + 5]
    counts = np.bincount(starts, minlength=17)
    assert len(counts) == 17
    assert (np.abs(counts - 200) < 5 * np.sqrt(200)).all()


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.kind)
def test_rows_of_a_shuffled_epoch_are_those_of_the_store(store: Store, packing: AnyPacking) -> None:
    shuffled, plain = Loader(store, packing, seed=5), Loader(store, packing, shuffle=False)
    count = plain.rows_per_epoch
    if isinstance(packing, Crop):
        expected = sorted(
            Loader(store, PerDocument(length=16), shuffle=False).read(0, count).free.sum(1).tolist()
        )
        assert sorted(shuffled.read(0, count).free.sum(1).tolist()) == expected
        return
    expected = sorted(plain.read(0, count).tokens.tolist())
    for epoch in (0, 1, 7):
        canvas = shuffled.read(epoch * count, count)
        assert sorted(canvas.tokens.tolist()) == expected
        assert canvas.tokens.tolist() != plain.read(0, count).tokens.tolist()
    assert shuffled.read(0, count).tokens.tolist() != shuffled.read(count, count).tokens.tolist()


# The stream does not depend on who reads it, how, or from where


@given(
    packing=st.sampled_from(PACKINGS),
    start=st.integers(0, 10_000),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    shuffle=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_batches_are_cut_from_one_stream(
    store: Store, packing: AnyPacking, start: int, cuts: list[int], shuffle: bool
) -> None:
    loader = Loader(store, packing, seed=9, shuffle=shuffle)
    pieces: list[Canvas] = []
    for cut in cuts:
        pieces.append(
            Loader(store, packing, seed=9, shuffle=shuffle).read(start + sum(cuts[: len(pieces)]), cut)
        )
    assert same(joined(pieces), loader.read(start, sum(cuts)))


@given(
    worlds=st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 12]), min_size=1, max_size=8),
    micro=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=30, deadline=None)
def test_any_world_reads_the_same_global_batches(
    store: Store, worlds: list[int], micro: int, seed: int
) -> None:
    """The world's size changes at every step, each process starts anew, and micro-batches halve the reads."""
    batch = 24
    whole = Loader(store, Wrap(length=8), seed=seed)
    for step, world in enumerate(worlds):
        part = batch // world // micro if batch // world % micro == 0 else batch // world
        reads = [
            Loader(store, Wrap(length=8), seed=seed).read(step * batch + first, part)
            for first in range(0, batch, part)
        ]
        assert same(joined(reads), whole.read(step * batch, batch))


def test_an_epoch_over_eleven_world_sizes_has_each_row_once(store: Store) -> None:
    length, batch = 2, 27_720 // 120
    loader = Loader(store, Wrap(length=length), seed=1)
    rows, position, sizes = [], 0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    while position < loader.rows_per_epoch:
        world = sizes[position // batch % len(sizes)]
        bounds = np.linspace(position, min(position + batch, loader.rows_per_epoch), world + 1).astype(int)
        for first, last in pairwise(bounds):
            with Loader(store, Wrap(length=length), seed=1).stream(int(first), int(last - first)) as reads:
                rows += next(reads).tokens.tolist()
        position += batch
    plain = Loader(store, Wrap(length=length), shuffle=False)
    assert sorted(rows) == sorted(plain.read(0, plain.rows_per_epoch).tokens.tolist())


def test_later_epochs_on_several_ranks_have_the_rows_of_the_first(store: Store) -> None:
    """Ranks that stream on past the end of an epoch neither lose nor repeat a row, in any epoch."""
    loader = Loader(store, Wrap(length=4), seed=2)
    count, world, batch = loader.rows_per_epoch, 4, 8
    steps = 3 * count // batch + 1
    seen = np.zeros((world, steps, batch // world, 4), np.int64)
    for rank in range(world):
        with loader.stream(rank * batch // world, batch // world, batch) as reads:
            for step in range(steps):
                seen[rank, step] = next(reads).tokens.numpy()
    rows = seen.transpose(1, 0, 2, 3).reshape(-1, 4)[: 3 * count].reshape(3, count, 4)
    expected = sorted(map(tuple, Loader(store, Wrap(length=4), shuffle=False).read(0, count).tokens.tolist()))
    for epoch in rows:
        assert sorted(map(tuple, epoch.tolist())) == expected


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.kind)
@pytest.mark.parametrize(("start", "count", "stride"), [(0, 5, 5), (1000, 3, 12), (7, 1, 1), (0, 700, 900)])
def test_a_stream_is_the_reads(
    store: Store, packing: AnyPacking, start: int, count: int, stride: int
) -> None:
    loader = Loader(store, packing, seed=4)
    with loader.stream(start, count, stride) as reads:
        for step in range(15):
            assert same(next(reads), loader.read(start + step * stride, count))


def test_a_batch_may_be_longer_than_what_is_planned_at_once(store: Store) -> None:
    loader = Loader(store, Wrap(length=8), seed=4)
    with loader.stream(5, 10_000) as reads:
        for step in range(3):
            assert same(next(reads), loader.read(5 + step * 10_000, 10_000))


def test_threads_may_share_a_store(store: Store) -> None:
    loader = Loader(store, Wrap(length=8), seed=6)
    expected = loader.read(0, 400)
    wrong: list[int] = []

    def read(first: int) -> None:
        for start in range(first, 400 - 8, 8):
            if not same(loader.read(start, 8), expected.narrow(start, start + 8)):
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_loaders_of_one_fingerprint_read_the_same(store: Store) -> None:
    base = Loader(store, Wrap(length=8), seed=1)
    assert base.fingerprint == Loader(store, Wrap(length=8), seed=1).fingerprint
    others = [
        Loader(store, Wrap(length=8), seed=2),
        Loader(store, Wrap(length=9), seed=1),
        Loader(store, Isolated(length=8), seed=1),
        Loader(store, Wrap(length=8), seed=1, shuffle=False),
    ]
    assert len({loader.fingerprint for loader in [base, *others]}) == 5
    assert (base.vocab, base.length, base.tokenizer) == (store.vocab, 8, TOKENIZER.fingerprint)


# Mixtures


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    """Two stores that share no token."""
    low = [[token % 100 for token in document] for document in draw(40, 30, seed=1)]
    high = [[100 + token % 100 for token in document] for document in draw(25, 30, seed=2)]
    return [Store.open(make(tmp_path_factory.mktemp("part"), train=documents)) for documents in (low, high)]


@given(weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=2), period=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_shares_are_exact_and_count_on_without_gaps(
    pair: list[Store], weights: list[float], period: int
) -> None:
    mixture = Mixture(pair, weights)
    assert mixture.shares.sum() == PERIOD
    assert np.abs(mixture.shares - np.array(weights) / sum(weights) * PERIOD).max() <= 1
    which, index = mixture.assign(np.arange(period * PERIOD, (period + 1) * PERIOD), seed=3)
    for number, share in enumerate(mixture.shares):
        assert np.array_equal(np.sort(index[which == number]), period * share + np.arange(share))


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.kind)
def test_a_mixture_reads_rows_of_its_stores(pair: list[Store], packing: AnyPacking) -> None:
    mixture = Mixture(pair, [3, 1])
    loader = Loader(mixture, packing, seed=8)
    canvas = loader.read(0, 1000)
    which, _ = mixture.assign(np.arange(1000), seed=8)
    assert abs(which.mean() - 0.25) < 0.06
    text = canvas.free.numpy() & (canvas.tokens.numpy() != SEPARATOR)
    owner = canvas.tokens.numpy() // 100
    assert (owner == which[:, None])[text].all()
    assert same(loader.read(100, 50), canvas.narrow(100, 150))
    with loader.stream(0, 64) as reads:
        assert same(joined([next(reads) for _ in range(8)]), canvas.narrow(0, 512))


def test_each_store_of_a_mixture_has_whole_epochs(pair: list[Store]) -> None:
    """In the order of its own counting, each store gives each of its rows once before any again."""
    mixture = Mixture(pair, [0.9, 0.1])
    loader = Loader(mixture, Wrap(length=4), seed=8)
    canvas = loader.read(0, PERIOD)
    which, index = mixture.assign(np.arange(PERIOD), seed=8)
    for number, store in enumerate(pair):
        rows = canvas.tokens.numpy()[which == number][np.argsort(index[which == number])]
        plain = Loader(store, Wrap(length=4), shuffle=False)
        expected = sorted(plain.read(0, plain.rows_per_epoch).tokens.tolist())
        for epoch in range(3):
            part = rows[epoch * plain.rows_per_epoch : (epoch + 1) * plain.rows_per_epoch]
            assert sorted(part.tolist()) == expected


def test_mixtures_that_make_no_sense_are_refused(pair: list[Store], tmp_path: Path) -> None:
    for weights in ([1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(DiscdiffError, match="give one for each"):
            Mixture(pair, weights)
    for weights in ([1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(DiscdiffError, match="each must be a number above 0"):
            Mixture(pair, weights)
    with pytest.raises(DiscdiffError, match="differ too much"):
        Mixture(pair, [1.0, 1e-9])
    folder = Folder.at(tmp_path)
    other = manifest({"train": write(folder, "train", DOCUMENTS, 7)}, tokenizer="another")
    commit(folder, other, TOKENIZER.to_json())
    with pytest.raises(DiscdiffError, match="were made with different tokenizers"):
        Mixture([pair[0], Store.open(tmp_path)], [1, 1])


# Mistakes and mishaps


def test_a_length_beyond_the_split_is_refused(store: Store) -> None:
    with pytest.raises(
        DiscdiffError, match=f"length 4096 is longer than the split's {len(STREAM)} tokens; take"
    ):
        Loader(store, Wrap(length=4096))


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, 0), (0, -5)])
def test_reads_of_nothing_are_refused(store: Store, start: int, count: int) -> None:
    loader = Loader(store, Wrap(length=8))
    with pytest.raises(DiscdiffError, match="cannot be read; start at 0 or later, read 1 or more"):
        loader.read(start, count)
    with pytest.raises(DiscdiffError, match="cannot be read"):
        loader.stream(start, count)


def test_a_bad_shard_ends_the_stream_where_it_is_met(tmp_path: Path) -> None:
    uri = make(tmp_path, train=DOCUMENTS)
    with Store.open(uri) as opened:
        path, before = Path(uri, opened.shards[5].path), sum(shard.tokens for shard in opened.shards[:5])
        path.write_bytes(path.read_bytes()[::-1])
        with Loader(opened, Wrap(length=4), shuffle=False).stream(0, 1) as reads:
            for _ in range(before // 4 // 64):
                next(reads)
            with pytest.raises(BadShardError, match=path.name):
                list(reads)
            with pytest.raises(StopIteration):
                next(reads)


def prefetchers() -> int:
    return sum(thread.name == "discdiff-prefetch" for thread in threading.enumerate())


def test_streams_end_their_threads(store: Store) -> None:
    before = prefetchers()
    loader = Loader(store, Wrap(length=8))
    closed, dropped, left = loader.stream(0, 2), loader.stream(0, 2), loader.stream(0, 2)
    for reads in (closed, dropped, left):
        next(reads)
    assert prefetchers() == before + 3
    closed.close()
    assert prefetchers() == before + 2
    with pytest.raises(StopIteration):
        next(closed)
    del dropped, reads
    gc.collect()
    deadline = time.monotonic() + 10
    while prefetchers() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert prefetchers() == before + 1
    loader.close()
    assert prefetchers() == before
    with pytest.raises(StopIteration):
        next(left)


def test_the_reader_does_what_a_group_leaves_to_it() -> None:
    me = threading.current_thread()

    def task(drawn_by: threading.Thread):
        done_by = threading.current_thread()
        return ((drawn_by, done_by, threading.current_thread()) for _ in range(2))

    with Prefetch((partial(task, threading.current_thread()) for _ in range(2)), depth=2) as reads:
        found = list(reads)
    assert len(found) == 4
    assert all(drawn_by is finished_by is me is not done_by for drawn_by, done_by, finished_by in found)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_is_made_ahead_than_asked_for(depth: int) -> None:
    made: list[int] = []

    def task(number: int) -> list[int]:
        made.append(number)
        return [number]

    with Prefetch((partial(task, number) for number in range(20)), depth) as reads:
        for number in range(20):
            assert next(reads) == number
            time.sleep(0.01)
            assert len(made) <= number + 1 + depth
        with pytest.raises(StopIteration):
            next(reads)
    assert made == list(range(20))


def test_what_fails_in_the_thread_is_raised_at_its_place() -> None:
    with Prefetch((partial(lambda n: [1 // n], n) for n in (2, 1, 0, 1)), depth=3) as reads:
        assert [next(reads), next(reads)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(reads)
        with pytest.raises(StopIteration):
            next(reads)


def test_waiting_is_counted() -> None:
    def slow(number: int) -> list[int]:
        time.sleep(0.05)
        return [number, number]

    with Prefetch((partial(slow, n) for n in range(3)), depth=2) as reads:
        assert list(reads) == [0, 0, 1, 1, 2, 2]
        assert reads.waited >= 0.14
    with Prefetch((partial(slow, n) for n in range(3)), depth=3) as reads:
        time.sleep(0.4)
        assert list(reads) == [0, 0, 1, 1, 2, 2]
        assert reads.waited < 0.05


def test_memory_does_not_grow_with_what_was_read(tmp_path: Path) -> None:
    """Private memory, in kibibytes: two more passes make 64 MB of batches, and use what two had."""
    documents = np.random.default_rng(0).integers(0, SEPARATOR, (1000, 4000)).tolist()
    with Store.open(make(tmp_path, per_shard=250, train=documents)) as opened:
        loader = Loader(opened, Wrap(length=512))
        with loader.stream(0, 64) as reads:
            held: list[int] = []
            for _ in range(4):
                for _ in range(loader.rows_per_epoch // 64):
                    next(reads)
                held.append(private())
    assert held[3] - held[1] < 8192


def private() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_memory_is_given_out_again_only_when_nobody_holds_it() -> None:
    recycled = Recycled()
    tensor = recycled((4, 8), torch.int64).fill_(7)
    part, place = tensor[2:3], tensor.data_ptr()
    del tensor
    gc.collect()
    assert recycled((4, 8), torch.int64).data_ptr() != place
    assert part.tolist() == [[7] * 8]
    del part
    gc.collect()
    again = recycled((4, 8), torch.int64)
    other = recycled((4, 8), torch.int64)
    assert place in {again.data_ptr(), other.data_ptr()}
    assert again.data_ptr() != other.data_ptr()


def test_batches_that_are_kept_are_not_overwritten(store: Store) -> None:
    loader = Loader(store, Wrap(length=32), seed=3)
    with loader.stream(0, 16) as reads:
        kept = [next(reads).narrow(0, 1) for _ in range(300)]
    for number, canvas in enumerate(kept):
        assert same(canvas, loader.read(16 * number, 1))


@pytest.mark.parametrize("packing", [Wrap(length=8), Isolated(length=8), PerDocument(length=8)])
def test_rows_of_classes_carry_the_number_of_their_store(pair: list[Store], packing: AnyPacking) -> None:
    loader = Loader(Classes(pair), packing, seed=8)
    canvas = loader.read(0, 600)
    labels = canvas.condition.labels
    assert labels is not None
    text = canvas.free & (canvas.tokens != SEPARATOR)
    assert bool((canvas.tokens // 100 == labels[:, None])[text].all())
    share = pair[1].tokens / (pair[0].tokens + pair[1].tokens)
    assert abs(labels.double().mean().item() - share) < 0.07
    assert (canvas.condition.documents is not None) == isinstance(packing, Isolated)
    with loader.stream(0, 64) as reads:
        streamed = [next(reads).condition.labels for _ in range(8)]
    assert torch.equal(torch.cat([each for each in streamed if each is not None]), labels[:512])
