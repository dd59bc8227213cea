"""Laws of the order: a bijection in every epoch, the same however it is asked, in runs, without memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from discdiff.data.order import BLOCK, DEPTH, LANES, WINDOW, Sequential, Shuffled, below, derive, mix, permute

SEEDS = st.integers(0, 2**64 - 1)


@given(rows=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_each_row_once_an_epoch(rows: int, seed: int, epoch: int) -> None:
    order = Shuffled(rows, seed).at(np.arange(epoch * rows, (epoch + 1) * rows))
    assert np.array_equal(np.sort(order), np.arange(rows))


@pytest.mark.parametrize("rows", [WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 600_001])
@pytest.mark.parametrize("epoch", [0, 3])
def test_each_row_once_an_epoch_of_several_windows(rows: int, epoch: int) -> None:
    order = Shuffled(rows, seed=7).at(np.arange(epoch * rows, (epoch + 1) * rows))
    assert np.array_equal(np.sort(order), np.arange(rows))


@given(
    rows=st.sampled_from([1, 2, 5, 100, WINDOW, WINDOW + 1, 10**6, 10**11]),
    positions=st.lists(st.integers(0, 10**13), min_size=1, max_size=50),
    seed=SEEDS,
)
@settings(max_examples=40, deadline=None)
def test_a_position_has_one_row_whatever_is_asked_with_it(rows: int, positions: list[int], seed: int) -> None:
    together = Shuffled(rows, seed).at(np.array(positions))
    alone = [Shuffled(rows, seed).at(np.array([position]))[0] for position in positions]
    assert together.tolist() == alone
    assert (together >= 0).all()
    assert (together < rows).all()


def test_epochs_seeds_and_streams_differ() -> None:
    first = np.arange(1000)
    orders = [
        Shuffled(1000, 0).at(first),
        Shuffled(1000, 0).at(first + 1000),
        Shuffled(1000, 1).at(first),
        Shuffled(1000, 0, stream=1).at(first),
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 20  # one is expected


def test_every_permutation_of_four_rows_is_as_likely() -> None:
    drawn = Shuffled(4, seed=5).at(np.arange(4 * 24_000)).reshape(-1, 4) @ [64, 16, 4, 1]
    _, counts = np.unique(drawn, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("rows", [50, 3000, WINDOW, 3 * WINDOW + 5])
def test_neighbors_in_the_stream_are_strangers(rows: int) -> None:
    count = min(rows, 50_000) // 2 * 2
    order = Shuffled(rows, seed=1).at(np.arange(count))
    correlation = np.corrcoef(order[0::2], order[1::2])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(count / 2) + 2 / rows
    assert (np.diff(order) == 1).mean() < 3 / rows + 5 / np.sqrt(rows * count)


def test_a_long_stream_reads_in_runs() -> None:
    """Few of the blocks serve a long stretch of the stream, and new ones are needed evenly."""
    rows = 40 * WINDOW
    blocks = Shuffled(rows, seed=3).at(np.arange(5 * WINDOW, 6 * WINDOW)) // BLOCK
    assert len(np.unique(blocks)) <= 2 * LANES * DEPTH
    first = np.sort(np.unique(blocks, return_index=True)[1])
    late = first[first > WINDOW // 4]  # what was in use before has been met again
    counts, _ = np.histogram(late, bins=12, range=(WINDOW // 4, WINDOW))
    assert counts.max() < 1.6 * counts.mean()


def test_batches_touch_as_many_shards_as_chance_would() -> None:
    """Distinct shards in a batch of 64 against rows drawn without order, within 2%."""
    rows, shards, batches = 8 * WINDOW + 77, 100, 4000
    order = Shuffled(rows, seed=11).at(np.arange(64 * batches)).reshape(batches, 64)
    distinct = np.mean([len(np.unique(batch * shards // rows)) for batch in order])
    ideal = shards * (1 - (1 - 1 / shards) ** 64)
    assert distinct == pytest.approx(ideal, rel=0.02)


def test_a_hundred_billion_rows_take_no_memory() -> None:
    order = Shuffled(10**11, seed=2)
    tracemalloc.start()
    rows = order.at(np.arange(7 * 10**10, 7 * 10**10 + 8192))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(rows)) == 8192
    assert peak < 4 * 2**20


def test_the_order_is_the_one_that_was_published() -> None:
    """Streams that were begun with one version go on with the next: these numbers may never change."""
    assert Shuffled(10, seed=0).at(np.arange(20)).tolist() == [
        6,
        9,
        3,
        0,
        7,
        1,
        5,
        2,
        4,
        8,
        7,
        8,
        3,
        6,
        0,
        1,
        9,
        2,
        4,
        5,
    ]
    assert Shuffled(10**9, seed=123456789).at(np.arange(8) * 10**8 + 5).tolist() == [
        771981098,
        901595709,
        465679336,
        323018028,
        379833383,
        992082386,
        121470434,
        26282843,
    ]


def test_sequential_repeats_the_store() -> None:
    assert Sequential(3).at(np.arange(7)).tolist() == [0, 1, 2, 0, 1, 2, 0]


@given(size=st.integers(1, 5000), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection_for_each_key(size: int, seed: int) -> None:
    numbers = np.arange(size, dtype=np.uint64)
    keys = mix(derive(seed) + np.repeat(np.arange(2, dtype=np.uint64), size))
    both = permute(np.tile(numbers, 2), size, keys)
    for half in (both[:size], both[size:]):
        assert np.array_equal(np.sort(half), numbers)
    assert np.array_equal(both[:size], permute(numbers, size, keys[:1]))


def test_below_is_uniform() -> None:
    words = mix(np.arange(60_000, dtype=np.uint64))
    counts = np.bincount(below(words, np.full(60_000, 6)), minlength=6)
    assert stats.chisquare(counts).pvalue > 1e-6
