"""Sums over a row of logits: their values are what they say, and their gradients are their derivatives."""

import subprocess
import sys

import pytest
import torch

from discdiff import sums

ROWS, VOCAB = 6, 5


@pytest.fixture
def row():
    generator = torch.Generator().manual_seed(0)
    raw = (3 * torch.randn(ROWS, VOCAB, dtype=torch.float64, generator=generator)).requires_grad_()
    x0 = torch.tensor([0, 1, 2, 3, 4, 0])
    x_t = torch.tensor([0, 2, VOCAB, 3, 1, VOCAB])
    return raw, x0, x_t


def without(raw, x_t):
    """The entries but x_t, one row after another."""
    return [torch.cat([r[:k], r[k + 1 :]]) for r, k in zip(raw, x_t.tolist(), strict=True)]


def test_the_cross_entropy(row):
    raw, x0, _ = row
    expected = torch.nn.functional.cross_entropy(raw, x0, reduction="none")
    torch.testing.assert_close(sums.cross_entropy(raw, x0), expected, rtol=1e-14, atol=1e-14)
    assert torch.autograd.gradcheck(lambda r: sums.cross_entropy(r, x0), raw)


def test_the_entries_their_surroundings_and_their_total(row):
    raw, x0, x_t = row
    found = sums.with_total(raw, x0, x_t)
    torch.testing.assert_close(found.at_0, raw.gather(-1, x0[:, None])[:, 0])
    token = x_t < VOCAB
    torch.testing.assert_close(found.at_t[token], raw[token].gather(-1, x_t[token, None])[:, 0])
    assert bool((found.at_t[~token] < -1e20).all())
    rest = without(raw, x_t)
    torch.testing.assert_close(found.around, torch.stack([r.logsumexp(0) for r in rest]))
    torch.testing.assert_close(found.rest, torch.stack([r.sum() for r in rest]))
    assert torch.autograd.gradcheck(lambda r: sums.with_total(r, x0, x_t), raw)


@pytest.mark.parametrize("size", [-40.0, 0.0, 3.0, 60.0])
def test_the_softened_sum(row, size):
    raw, x0, x_t = row
    tilt = torch.linspace(-2, 2, ROWS, dtype=torch.float64)
    log_kappa = size + torch.linspace(-1, 1, ROWS, dtype=torch.float64)
    found = sums.with_softened(raw, x0, x_t, tilt, log_kappa)
    tilted = raw + torch.where(torch.arange(VOCAB) == x_t[:, None], tilt[:, None], 0)
    law = tilted.softmax(-1)
    rest = [(1 + k.exp() * w).log().sum() for k, w in zip(log_kappa, without(law, x_t), strict=True)]
    torch.testing.assert_close(found.rest, torch.stack(rest), rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(lambda r: sums.with_softened(r, x0, x_t, tilt, log_kappa), raw)


def test_what_is_left_beside_a_sure_entry_keeps_its_precision():
    raw = torch.zeros(1, VOCAB)
    raw[0, 2] = 200
    here = torch.tensor([2])
    found = sums.with_total(raw, here, here)
    torch.testing.assert_close(found.around, torch.tensor([4.0]).log())


def test_a_row_may_rule_out_all_but_one_entry():
    raw = torch.full((1, VOCAB), -torch.inf)
    raw[0, 2] = 0
    here, zero = torch.tensor([2]), torch.zeros(1, dtype=torch.float64)
    found = sums.with_softened(raw, here, here, zero, zero)
    assert found.around.item() == -torch.inf
    assert found.rest.item() == 0


@pytest.mark.parametrize("rows", [1, 4, ROWS])
def test_without_gradients_the_numbers_are_the_same_and_the_logits_untouched(row, rows, monkeypatch):
    raw, x0, x_t = row
    tilt = torch.linspace(-2, 2, ROWS, dtype=torch.float64)

    def numbers() -> list[torch.Tensor]:
        softened = sums.with_softened(raw, x0, x_t, tilt, 2 * tilt)
        return [*softened, *sums.with_total(raw, x0, x_t), sums.cross_entropy(raw, x0)]

    expected = numbers()
    monkeypatch.setattr(sums, "_CACHED", rows * VOCAB)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    before = raw.detach().clone()
    with torch.no_grad():
        found = numbers()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(raw, before)


@pytest.fixture
def threads():
    """Sets how many threads torch has, until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("log_kappa", [-40.0, -9.0, -3.0, 0.0, 5.0, 60.0, 200.0])
@pytest.mark.parametrize("vocab", [2, 64, 513, 8192])
@pytest.mark.parametrize("number", [1, 3])
def test_in_one_pass_the_numbers_are_those_of_double_precision(vocab, log_kappa, number, threads):
    threads(number)
    generator = torch.Generator().manual_seed(vocab)
    raw = 3 * torch.randn(3, 7, vocab, generator=generator)
    x0 = torch.randint(0, vocab, (3, 7), generator=generator)
    x_t = torch.randint(0, vocab + 1, (3, 7), generator=generator)
    x_t[0, 0], raw[0, 0, 0] = 0, 50  # all but sure of x_t
    x_t[0, 1], raw[0, 1, 0] = vocab, 50  # of another
    x_t[0, 2], raw[0, 2, 1:] = 0, -torch.inf  # nothing is left beside x_t
    tilt, log_kappa = torch.randn(3, 7, generator=generator).double(), torch.full((3, 7), log_kappa).double()
    expected = sums.with_softened(raw.double(), x0, x_t, tilt, log_kappa)
    with torch.no_grad():
        found = sums.with_softened(raw, x0, x_t, tilt, log_kappa)
    for name, a, b in zip(found._fields, found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=4e-7, atol=2e-7 if name == "around" else 0)


def test_in_one_pass_what_is_no_number_stays_none():
    raw = torch.zeros(3, VOCAB)
    raw[1, 1] = torch.nan
    raw[2, 1] = torch.inf
    here, zero = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        found = sums.with_softened(raw, here, here, zero, zero)
    for number in (found.around, found.rest):
        assert number.isnan().tolist() == [False, True, True]


THREADS = """
import torch
from discdiff import sums

torch.set_num_threads({number})
before = torch.get_num_threads()
rows = torch.zeros(64, dtype=torch.int64)
with torch.no_grad():
    sums.with_softened(torch.zeros(64, 8), rows, rows, rows.double(), rows.double())
print(before, torch.get_num_threads())
"""


@pytest.mark.parametrize("number", [1, 3])
def test_in_one_pass_torch_keeps_its_threads(number):
    """In a process of its own, since threads are started once."""
    script = THREADS.format(number=number)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(number)] * 2
