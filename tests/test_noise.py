"""Counter-based randomness against its published vectors, and draws against the law they are said to
follow.
"""

import pytest
import torch
from scipy import stats

from discdiff.noise import Cumulative, Noise, Stream, categorical, philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, words):
    assert [int(word) for word in philox([torch.tensor(c) for c in counter], key)] == words


def test_draws_depend_on_the_row_and_not_on_its_company():
    rows = torch.tensor([7, 3_000_000_000, 2**40 + 1, 0])
    together = Noise(5, step=3).on(rows).uniform(Stream.CORRUPT, 11)
    for index, row in enumerate(rows):
        alone = Noise(5, step=3).on(row[None]).uniform(Stream.CORRUPT, 11)
        assert torch.equal(alone[0], together[index])
    longer = Noise(5, step=3).on(rows).uniform(Stream.CORRUPT, 20)
    assert torch.equal(longer[:, :11], together)


def test_seed_step_stream_and_row_each_change_the_draw():
    base = Noise(1, step=1).on(torch.tensor([1]))
    draws = [
        base.uniform(Stream.CORRUPT, 8),
        base.uniform(Stream.STEP, 8),
        base.at(2).uniform(Stream.CORRUPT, 8),
        base.on(torch.tensor([1 + 2**32])).uniform(Stream.CORRUPT, 8),
        Noise(1 + 2**32, step=1).on(torch.tensor([1])).uniform(Stream.CORRUPT, 8),
    ]
    assert len({tuple(draw[0].tolist()) for draw in draws}) == len(draws)


def test_uniform_and_normal_follow_their_laws():
    noise = Noise(0).on(torch.arange(200))
    u = noise.uniform(Stream.CORRUPT, 501).flatten()
    z = noise.normal(Stream.EMBEDDING, 501).flatten()
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("batch", [1, 7, 64, 512])
def test_times_of_consecutive_rows_are_evenly_spread_however_they_are_split(batch):
    rows = torch.arange(10_000, 10_000 + batch)
    t = Noise(3).on(rows).time()[:, 0]
    split = torch.cat([Noise(3).on(part).time()[:, 0] for part in rows.split(3)])
    assert torch.equal(t, split)
    ordered = t.sort().values
    empirical = (torch.arange(batch) + 1) / batch
    assert (ordered - empirical).abs().max() < 2.5 / batch + 1e-9


def test_strata_share_out_the_unit_interval():
    noise = Noise(3).on(torch.arange(5))
    for index in range(4):
        t = noise.stratum(index, 4).time()
        assert bool(((t >= index / 4) & (t < (index + 1) / 4)).all())


def test_categorical_is_exact_in_the_tail_of_a_large_vocabulary():
    """Half of the mass on one of 50,257 classes, the rest even: chi-square of tail mass in 16 bins, float32
    inputs.
    """
    vocab, draws = 50_257, 3_000
    log_p = torch.full((vocab,), -torch.tensor(2.0 * (vocab - 1)).log().item())
    log_p[11] = -torch.tensor(2.0).log()
    u = Noise(9).on(torch.arange(draws)).uniform(Stream.STEP_VALUE, 1)[:, 0]
    drawn = torch.cat([categorical(log_p.expand(len(part), vocab), part) for part in u.split(500)])
    tail = drawn[drawn != 11]
    assert abs(len(tail) / draws - 0.5) < 4 * 0.5 / draws**0.5
    counts = torch.bincount(tail * 16 // vocab, minlength=16)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_categorical_never_draws_what_has_no_mass():
    log_p = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(4, 5)
    u = torch.tensor([1e-300, 0.5 - 1e-16, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert categorical(log_p, u).tolist() == [1, 1, 3, 3]
    assert categorical(log_p[:0], u[:0]).shape == (0,)


@pytest.mark.parametrize("classes", [1, 2, 255, 256, 257, 512, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_levels_draw_what_one_cdf_would(classes, dtype):
    """Groups of neighbors change no draw, at the ends of groups too, and none without mass is drawn."""
    generator = torch.Generator().manual_seed(classes)
    log_p = 3 * torch.randn(200, classes, dtype=dtype, generator=generator)
    log_p[:, 1:] = log_p[:, 1:].masked_fill(
        torch.rand(200, classes - 1, generator=generator) < 0.3, -torch.inf
    )
    if classes > 512:
        log_p[:, 256:512] = -torch.inf
    u = torch.rand(200, dtype=torch.float64, generator=generator)
    u[:4] = torch.tensor([1e-300, 2.0**-53, 1 - 2.0**-53, 1 - 2.0**-52])
    p = log_p.double().softmax(-1)
    cdf = p.cumsum(-1)
    drawn = categorical(log_p, u)
    assert (p.gather(-1, drawn[:, None]) > 0).all()
    point = torch.minimum(u * cdf[:, -1], torch.nextafter(cdf[:, -1], torch.tensor(0.0).double()))
    plain = torch.searchsorted(cdf, point[:, None], right=True)[:, 0]
    assert torch.equal(drawn[4:], plain[4:])
    share = Cumulative.of(log_p).share(drawn)
    torch.testing.assert_close(share, p.gather(-1, drawn[:, None])[:, 0], rtol=1e-5, atol=0)
    for row in (0, 5, 199):
        assert categorical(log_p[row : row + 1], u[row : row + 1]) == drawn[row]
