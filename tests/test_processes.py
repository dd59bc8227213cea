"""Processes: their primitives belong to one Markov process, and draws follow its marginals."""

import math
from typing import get_args

import pytest
import torch
from scipy import stats

from discdiff.algebra import log_one_hot
from discdiff.noise import Noise
from discdiff.processes import AnyProcess, Hybrid, Mask, Matrix, Process, Uniform
from discdiff.processes.exponential import Uniformization
from discdiff.processes.kernels import Gaussian
from discdiff.schedules import Cosine, Geometric, Linear

VOCAB = 4
PROCESSES = [
    Mask(),
    Mask(schedule=Cosine()),
    Uniform(),
    Uniform(schedule=Geometric()),
    Hybrid(),
    Hybrid(uniform=0.4, sharpness=1.5, schedule=Cosine()),
    Hybrid(schedule=Linear(eps=0.05)),
    Matrix(kernel=Gaussian(width=0.5)),
    Matrix(
        kernel=Gaussian(width=0.5, band=2), schedule=Linear(eps=0.01), route=Uniformization(tolerance=1e-15)
    ),
]
EXAMPLES = pytest.mark.parametrize("process", PROCESSES, ids=repr)


def transition(process, s, t):
    """q(x_t = y | x_s = z) as a matrix [z, y]."""
    states = torch.arange(process.states(VOCAB))
    s, t = (torch.full((len(states),), x, dtype=torch.float64) for x in (s, t))
    return process.log_transition(states, s, t, VOCAB, torch.float64).exp().T


def marginal(process, t):
    """q_t(y | x) as a matrix [x, y]."""
    tokens = log_one_hot(torch.arange(VOCAB), VOCAB, torch.float64)
    return process.log_marginal(tokens, torch.full((VOCAB,), t, dtype=torch.float64)).exp()


def test_every_process_is_in_the_table():
    assert {type(process) for process in PROCESSES} == set(get_args(get_args(AnyProcess)[0]))
    assert all(isinstance(process, Process) for process in PROCESSES)


@EXAMPLES
def test_transitions_are_distributions(process):
    for s, t in [(0.0, 0.3), (0.2, 0.7), (0.5, 0.999)]:
        matrix = transition(process, s, t)
        assert bool((matrix >= 0).all())
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix), dtype=torch.float64))


@EXAMPLES
def test_chapman_and_kolmogorov(process):
    torch.testing.assert_close(
        transition(process, 0.1, 0.4) @ transition(process, 0.4, 0.8),
        transition(process, 0.1, 0.8),
        rtol=1e-12,
        atol=1e-14,
    )
    torch.testing.assert_close(
        marginal(process, 0.3) @ transition(process, 0.3, 0.6), marginal(process, 0.6), rtol=1e-12, atol=1e-14
    )


@EXAMPLES
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_rate_is_the_derivative_of_the_transition(process, t):
    states = torch.arange(process.states(VOCAB))
    rate = process.rate(states, torch.full((len(states),), t, dtype=torch.float64), VOCAB)
    h = 1e-6
    slope = (transition(process, t, t + h) - transition(process, t - h, t)) / 2
    slope = (slope + transition(process, t - h, t) - torch.eye(len(states), dtype=torch.float64)) / h
    off = ~torch.eye(len(states), dtype=torch.bool)
    expected = rate.expand(len(states), len(states)).T
    torch.testing.assert_close(slope[off], expected[off], rtol=1e-4, atol=5e-6)


@EXAMPLES
def test_likelihood_is_a_column_of_the_marginal(process):
    states = torch.arange(process.states(VOCAB))
    t = torch.full((len(states),), 0.35, dtype=torch.float64)
    column = process.log_likelihood(states, t, VOCAB, torch.float64).exp()
    torch.testing.assert_close(column.T, marginal(process, 0.35))


@pytest.mark.parametrize("process", PROCESSES[:-1], ids=repr)
def test_unmarginal_undoes_marginal(process):
    clean = torch.randn(50, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    clean = clean.log_softmax(-1)
    t = torch.linspace(0.01, 0.95, 50, dtype=torch.float64)
    torch.testing.assert_close(process.log_unmarginal(process.log_marginal(clean, t), t), clean)


@EXAMPLES
@pytest.mark.parametrize("t", [0.2, 0.6, 1.0])
def test_corruption_follows_the_marginal(process, t):
    draws = 20_000
    noise = Noise(17).on(torch.arange(draws))
    x0 = torch.full((draws, 1), 2)
    x_t = process.corrupt(x0, torch.full((draws, 1), t, dtype=torch.float64), VOCAB, noise)
    assert_follows(x_t, marginal(process, t)[2])


@EXAMPLES
def test_the_prior_is_the_marginal_of_a_uniform_token_at_the_end_of_time(process):
    draws = 20_000
    x = process.prior((draws, 1), VOCAB, Noise(4).on(torch.arange(draws)))
    assert_follows(x, marginal(process, 1.0).mean(0))


def assert_follows(draws, law):
    counts = torch.bincount(draws.flatten(), minlength=len(law)).double()
    seen = law > 0
    assert counts[~seen].sum() == 0
    if seen.sum() > 1:
        assert stats.chisquare(counts[seen].numpy(), (law[seen] * counts.sum()).numpy()).pvalue > 1e-4


def test_hybrid_noise_has_its_share_of_uniform_noise_in_the_middle():
    law = marginal(Hybrid(uniform=0.3), 0.5)[0]
    assert math.isclose(VOCAB * law[1].item(), 0.3, rel_tol=1e-12)
    ends = marginal(Hybrid(uniform=0.3), 1.0)[0]
    assert ends.tolist() == [0, 0, 0, 0, 1]


@EXAMPLES
def test_positions_that_are_not_live_have_no_reverse_rate(process):
    states = torch.arange(process.states(VOCAB))
    t = torch.full((len(states),), 0.5, dtype=torch.float64)
    rate = process.rate(states, t, VOCAB).amax(-1)
    assert torch.equal(process.live(states, VOCAB), rate > 0)
