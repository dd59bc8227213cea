"""Noise by rate matrices: two routes, one law; known kernels are the processes they should be; V = 50,257
fits.
"""

import hashlib
import resource
from typing import ClassVar

import numpy as np
import pytest
import text_stores
import torch

from discdiff.data.frequencies import token_counts
from discdiff.data.store import Store
from discdiff.methods import D3pm, Sedd
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.objectives import Steps
from discdiff.oracle import Law, exact_bound
from discdiff.parameterizations import LeaveOneOut
from discdiff.processes import Hybrid, Mask, Matrix, Uniform
from discdiff.processes.exponential import Eigenbasis, Uniformization
from discdiff.processes.information import mutual_information, mutual_information_schedule
from discdiff.processes.kernels import Complete, Gaussian, Generator, Neighbors
from discdiff.schedules import Linear
from discdiff.types import canvas

VOCAB = 12


@pytest.fixture
def embeddings(tmp_path):
    def save(vocab):
        table = np.random.default_rng(0).normal(size=(vocab, 8)).astype(np.float32)
        path = tmp_path / f"{vocab}.npy"
        np.save(path, table)
        return {"embeddings": str(path), "digest": hashlib.sha256(path.read_bytes()).hexdigest()}

    return save


def laws(process):
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)[:, None].expand(7, VOCAB)
    x = torch.arange(VOCAB).expand(7, VOCAB)
    certain = torch.nn.functional.one_hot(x, VOCAB).double().log()
    return (
        process.log_marginal(certain, t).exp(),
        process.log_likelihood(x, t, VOCAB, torch.float64).exp(),
        process.log_transition(x, t / 2, t, VOCAB, torch.float64).exp(),
    )


@pytest.mark.parametrize("kernel", ["gaussian", "neighbors", "complete"])
def test_the_two_routes_are_one_law(kernel, embeddings):
    kernels = {
        "gaussian": Gaussian(width=0.1, band=5),
        "neighbors": Neighbors(count=3, **embeddings(VOCAB)),
        "complete": Complete(),
    }
    schedule = Linear(eps=1e-3)
    dense = Matrix(kernel=kernels[kernel], schedule=schedule, route=Eigenbasis())
    sparse = Matrix(kernel=kernels[kernel], schedule=schedule, route=Uniformization(tolerance=1e-14))
    for a, b in zip(laws(dense), laws(sparse), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_complete_kernel_is_uniform_noise():
    for a, b in zip(laws(Matrix(kernel=Complete())), laws(Uniform()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    x, t = torch.arange(VOCAB), torch.full((VOCAB,), 0.3, dtype=torch.float64)
    rate = Matrix(kernel=Complete()).rate(x, t, VOCAB)
    expected = Uniform().rate(x, t, VOCAB) * (1 - torch.eye(VOCAB, dtype=torch.float64))
    torch.testing.assert_close(rate, expected)


class Absorb(Gaussian, frozen=True):
    """Every token jumps to the mask, which stays."""

    def generator(self, vocab):
        token = torch.arange(vocab)
        return Generator(vocab + 1, token, torch.full_like(token, vocab), torch.ones(vocab).double())


class Absorbing(Matrix, frozen=True):
    extra: ClassVar[int] = 1


def test_an_absorbing_kernel_is_mask_noise():
    for a, b in zip(laws(Absorbing(kernel=Absorb())), laws(Mask()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_gaussian_kernel_has_the_ratios_of_the_paper_and_uniform_rest():
    rates = Gaussian(width=0.3, band=VOCAB).generator(VOCAB).dense()
    ratio = (rates[0, 3] / rates[0, 1]).log().item()
    assert ratio == pytest.approx(-4 * (9 - 1) / ((VOCAB - 1) ** 2 * 0.3))
    torch.testing.assert_close(rates, rates.T)
    torch.testing.assert_close(rates.sum(-1), torch.zeros(VOCAB, dtype=torch.float64))
    assert rates.diagonal().min().item() == pytest.approx(-1)


@pytest.mark.parametrize("kernel", [Gaussian(width=0.8), Complete()], ids=repr)
def test_the_bound_is_the_nll_for_the_exact_network(kernel):
    law = Law.random(3, 2, seed=1)
    process = Matrix(kernel=kernel)
    for method in (Sedd(process=process, parameterization=LeaveOneOut()), Sedd(process=process)):
        bound = exact_bound(method, law.network(method), law.sequences[:3], nodes=40)
        torch.testing.assert_close(bound, -law.log_prob(law.sequences[:3]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["banded", "nearest"])
def test_fifty_thousand_tokens_corrupt_push_and_give_a_bound(kind, embeddings):
    """V = 50,257 with 20 neighbors, in memory linear in V: a dense matrix of this size alone is 10 GB in
    float32.
    """
    vocab, before = 50_257, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kernel = Gaussian(width=1e-7, band=10) if kind == "banded" else Neighbors(**embeddings(vocab), count=20)
    process = Matrix(kernel=kernel, schedule=Linear(eps=0.05), route=Uniformization(tolerance=1e-6))
    method = Sedd(process=process, parameterization=LeaveOneOut())
    net = method.network(Transformer(layers=1, width=8, heads=1), vocab)
    x = canvas(torch.randint(0, vocab, (1, 4), generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        bound = method.bound(net, x, Noise(0))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert bool((bound > 0).all())
    assert bool(bound.isfinite().all())
    assert grown * 1024 < 2.5e9


def test_other_embeddings_are_refused(embeddings):
    given = embeddings(VOCAB)
    with pytest.raises(ValueError, match="they are other ones"):
        Neighbors(embeddings=given["embeddings"], digest="0" * 64, count=3).generator(VOCAB)
    with pytest.raises(ValueError, match="this tokenizer"):
        Neighbors(count=3, **given).generator(VOCAB + 1)
    with pytest.raises(ValueError, match="fewer than"):
        Neighbors(count=VOCAB, **given).generator(VOCAB)
    with pytest.raises(ValueError, match="cut its end off"):
        Matrix(route=Uniformization())


FREQUENCIES = [5.0, 1.0, 3.0, 0.0, 2.0]


def test_with_mask_noise_the_mutual_information_schedule_is_linear():
    schedule = mutual_information_schedule(Mask(), FREQUENCIES, points=8)
    assert schedule.values == pytest.approx([1 - k / 8 for k in range(9)], abs=1e-9)


@pytest.mark.parametrize("process", [Mask(), Uniform(), Hybrid()], ids=repr)
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_mutual_information_is_that_of_the_joint_law(process, t):
    p = torch.tensor(FREQUENCIES, dtype=torch.float64) / sum(FREQUENCIES)
    time = torch.full((len(p),), t, dtype=torch.float64)
    joint = p[:, None] * process.log_marginal(torch.eye(len(p), dtype=torch.float64).log(), time).exp()
    apart = joint.sum(0) * joint.sum(1, keepdim=True)
    expected = torch.special.xlogy(joint, joint / apart.clamp_min(1e-300)).sum().item()
    found = mutual_information(process, torch.tensor(FREQUENCIES, dtype=torch.float64), t)
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_schedule_is_estimated_from_the_tokens_of_a_store(tmp_path):
    with Store.open(text_stores.make(tmp_path / "store", train=text_stores.draw(20, 30))) as store:
        counts = token_counts(store)
        assert sum(counts) == store.tokens
        tokens = store.read(np.array([0]), store.tokens)[0]
        assert counts == np.bincount(tokens, minlength=store.vocab).tolist()
    schedule = mutual_information_schedule(Uniform(), counts, points=4)
    method = D3pm(process=Uniform(schedule=schedule), clock=Steps(count=4))
    assert D3pm.model_validate_json(method.model_dump_json()) == method


@pytest.mark.parametrize("process", [Uniform(), Matrix(kernel=Gaussian(width=0.5))], ids=repr)
def test_the_mutual_information_schedule_spends_information_evenly(process):
    schedule = mutual_information_schedule(process, FREQUENCIES, points=8)
    spent = process.model_copy(update={"schedule": schedule})
    frequencies = torch.tensor(FREQUENCIES, dtype=torch.float64)
    whole = mutual_information(spent, frequencies, 0.0)
    left = [mutual_information(spent, frequencies, k / 8) / whole for k in range(9)]
    assert left == pytest.approx([1 - k / 8 for k in range(9)], abs=1e-8)
