"""Laws of Gaussian noise on vectors, what networks predict of it, and the steps that undo it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy.integrate import solve_ivp
from torch.distributions import Normal, kl_divergence

from discdiff.noise import Noise, Stream
from discdiff.objectives import Continuous, Steps
from discdiff.predictions import PredictNoise, PredictVelocity, PredictX0
from discdiff.processes.gaussian import VariancePreserving
from discdiff.samplers import AnySampler, Held, Through
from discdiff.samplers.gaussian import Clamping, Ddim, Ddpm, Denoiser, GaussianSampler, ProbabilityFlow
from discdiff.schedules import LinearRate, Polynomial, SquaredCosine
from discdiff.types import Condition

SQRT = VariancePreserving()
COSINE = VariancePreserving(schedule=SquaredCosine())
LINEAR = VariancePreserving(schedule=LinearRate(), start=0.001)
CUT = VariancePreserving(schedule=SquaredCosine(), start=0.01, stop=0.97)
PROCESSES = [SQRT, COSINE, LINEAR, CUT]
TIMES = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.schedule.kind)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# The process ----------------------------------------------------------------------------------------------


def test_the_schedules_are_the_papers():
    t = TIMES
    torch.testing.assert_close(SQRT.alpha(t), 1 - (1e-4 + (1 - 1e-4) * t).sqrt())
    assert SQRT.ends == (pytest.approx(0.99, rel=1e-12), 0.0)
    late = (1e-4 + (1 - 1e-4) * t + 0.008) / 1.008
    torch.testing.assert_close(
        COSINE.alpha(t), (late * math.pi / 2).cos() ** 2 / math.cos(math.pi / 2 * 0.008 / 1.008) ** 2
    )
    beta = torch.linspace(0.1, 20, 100_001) / 100_000
    stepped = (1 - beta).cumprod(0)
    whole = VariancePreserving(schedule=LinearRate(), start=0)
    torch.testing.assert_close(
        whole.alpha(torch.tensor([0.5, 1.0])), stepped[[50_000, -1]], rtol=2e-3, atol=0
    )


@every_process
def test_derivatives_and_ends(process):
    t = TIMES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(process.alpha(t).sum(), t)
    torch.testing.assert_close(process.dalpha(TIMES), slope, rtol=1e-10, atol=1e-12)
    (slope,) = torch.autograd.grad(process.snr(t).sum(), t)
    torch.testing.assert_close(process.dsnr(TIMES), slope, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(process.alpha(TIMES) + process.beta(TIMES), torch.ones_like(TIMES))
    ends = process.alpha(torch.tensor([0.0, 1.0]))
    assert process.ends == tuple(ends.tolist())
    assert process.ends[0] < 1


@every_process
def test_the_bridge_is_what_bayes_makes_of_a_step(process):
    """q(z_s | z_t, e) from the joint Gaussian of (z_s, z_t) given e, by conditioning."""
    s, t = torch.tensor([0.0, 0.2, 0.7]), torch.tensor([0.1, 0.9, 1.0])
    root = (process.alpha(t) / process.alpha(s)).sqrt()
    covariance, e = root * process.beta(s), 1.7
    ours, theirs, variance = process.bridge(s, t)
    gain = covariance / process.beta(t)
    torch.testing.assert_close(ours, gain)
    torch.testing.assert_close(
        theirs * e, process.alpha(s).sqrt() * e - gain * process.alpha(t).sqrt() * e, rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(variance, process.beta(s) - gain * covariance, rtol=1e-9, atol=1e-14)


@every_process
def test_a_step_s_nats_are_the_divergence_of_its_bridges(process):
    e, estimate, z = 1.3, -0.4, 0.8
    clock = Steps(count=7)
    t = torch.arange(1, 8) / 7
    ours, theirs, variance = process.bridge(clock.start(t), t)
    true, model = (Normal(ours * z + theirs * x, variance.sqrt()) for x in (e, estimate))
    nats = clock.snr_weight(process, t) * (e - estimate) ** 2 / 7
    torch.testing.assert_close(nats, kl_divergence(true, model), rtol=1e-9, atol=1e-14)


@every_process
def test_many_steps_weigh_as_continuous_time_does(process):
    t = torch.tensor([0.25, 0.5, 0.75])
    fine = Steps(count=2**20).snr_weight(process, t)
    torch.testing.assert_close(fine, Continuous().snr_weight(process, t), rtol=1e-4, atol=0)


@every_process
def test_times_are_spread_evenly_in_log_beta(process):
    """And dt/du is the derivative."""
    u = torch.linspace(0, 1, 101).requires_grad_()
    t, pace = process.spread(u)
    middle = slice(1, -1)
    torch.testing.assert_close(t[0], torch.tensor(0.0), atol=1e-9, rtol=0)
    torch.testing.assert_close(t[-1], torch.tensor(1.0), atol=1e-6, rtol=0)
    (slope,) = torch.autograd.grad(t[middle].sum(), u)
    torch.testing.assert_close(slope[middle], pace[middle], rtol=1e-6, atol=1e-12)
    ways = process.beta(t.detach()).log().diff()
    torch.testing.assert_close(ways[1:-1], ways[1:-1].mean().expand(98), rtol=1e-5, atol=0)


@every_process
def test_the_prior_term_is_the_divergence_from_a_standard_normal(process):
    e = torch.randn(3, 5)
    one = torch.ones(())
    last = Normal(process.alpha(one).sqrt() * e, process.beta(one).sqrt())
    expected = kl_divergence(last, Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(process.prior_divergence(e), expected, rtol=1e-9, atol=1e-14)


def test_steps_of_noise_compose():
    """Noise up to s and then on to t is noise up to t, in mean and variance."""
    s, t = torch.tensor(0.3), torch.tensor(0.8)
    kept = SQRT.alpha(t) / SQRT.alpha(s)
    torch.testing.assert_close(kept * SQRT.beta(s) + 1 - kept, SQRT.beta(t))


def test_an_empty_stretch_of_the_schedule_is_refused():
    with pytest.raises(ValueError, match="start < stop"):
        VariancePreserving(start=0.5, stop=0.4)


# What networks predict --------------------------------------------------------------------------------------


@every_process
@pytest.mark.parametrize("prediction", [PredictX0(), PredictNoise(), PredictVelocity()], ids=lambda p: p.kind)
def test_the_target_is_read_as_the_clean_vector(process, prediction):
    e, eps = torch.randn(2, 50, 3)
    t = torch.linspace(0, 0.99, 50)
    z = process.mixed(e, eps, t)
    target = prediction.target(process, e, eps, t)
    torch.testing.assert_close(prediction.clean(process, target, z, t), e, rtol=1e-9, atol=1e-9)


# Steps -----------------------------------------------------------------------------------------------------

POINTS = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.3, -2.0]], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def exact(process):
    """E[e | z_t] for e one of three points: the estimate of a network with nothing left to learn."""

    def estimate(z, t, before, condition):
        signal, left = process.roots(t, z)
        distance = (z[..., None, :] - signal[..., None, :] * POINTS).square().sum(-1)
        return (SHARES.log() - distance / (2 * left**2)).softmax(-1) @ POINTS

    return estimate


def denoiser(process, rows, length=1):
    clean = torch.zeros(rows, length, 2)
    free = torch.ones(rows, length, dtype=torch.bool)
    return Denoiser(process, exact(process), clean, free, Condition())


def noise(rows, seed=0):
    return Noise(seed, rows=torch.arange(rows))


@every_process
def test_ddim_with_eta_one_is_ddpm(process):
    for s, t in [(0.0, 0.1), (0.2, 0.9), (0.7, 1.0)]:
        assert Ddim(eta=1.0).weights(process, s, t) == pytest.approx(Ddpm().weights(process, s, t), rel=1e-9)


@every_process
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_step_with_the_true_vector_keeps_the_marginal(process, eta):
    s, t = torch.tensor(0.2), torch.tensor(0.9)
    ours, theirs, deviation = Ddim(eta=eta).weights(process, 0.2, 0.9)
    mean = ours * process.alpha(t).sqrt() + theirs
    variance = ours**2 * process.beta(t) + deviation**2
    torch.testing.assert_close(mean, process.alpha(s).sqrt())
    torch.testing.assert_close(variance, process.beta(s))


def flow(process, z):
    """The probability-flow equation in its own variables, dz/dt = f z - g^2 / 2 score, by a stiff solver."""
    estimate = exact(process)

    def slope(t, z):
        time = torch.tensor([[t]])
        alpha, beta, rate = (f(time) for f in (process.alpha, process.beta, process.dalpha))
        at = torch.tensor(z).reshape(1, 1, 2)
        score = (alpha.sqrt() * estimate(at, time, None, None) - at) / beta
        return (rate / (2 * alpha) * (at + score)).flatten().numpy()

    found = solve_ivp(slope, (1.0, 0.0), z.numpy(), method="LSODA", rtol=1e-10, atol=1e-12)
    return torch.tensor(found.y[:, -1])


def test_ddim_and_heun_tend_to_the_flow_at_their_orders():
    """Halving the step halves the error of DDIM without noise and quarters that of Heun's method."""
    process = LINEAR
    start = noise(1).normal(Stream.PRIOR, 1, 2).double()
    end = flow(process, start.flatten())
    errors = {}
    for reverse in (Ddim(), ProbabilityFlow()):
        errors[reverse.kind] = [
            (
                GaussianSampler(steps=n, reverse=reverse, grid=Through(schedule=Polynomial(power=2)))
                .run(denoiser(process, 1), noise(1))
                .flatten()
                - end
            ).norm()
            for n in (128, 256, 512)
        ]
    for kind, order in (("ddim", 2), ("probability_flow", 4)):
        coarse, middle, fine = errors[kind]
        assert 0.8 * order < coarse / middle < 1.25 * order
        assert 0.8 * order < middle / fine < 1.25 * order
    assert errors["probability_flow"][-1] < 1e-3


@pytest.mark.parametrize("reverse", [Ddpm(), Ddim(), Ddim(eta=0.5), ProbabilityFlow()], ids=repr)
def test_samples_tend_to_the_data(reverse):
    """To each point its share, and about it the noise that z_0 has."""
    rows = 4000
    sampler = GaussianSampler(steps=200, reverse=reverse)
    z = sampler.run(denoiser(SQRT, rows), noise(rows))[:, 0]
    near = (z[:, None] - SQRT.ends[0] ** 0.5 * POINTS).norm(dim=-1)
    close = near.amin(-1)
    assert (close < 0.5).double().mean() > 0.998
    assert close[close < 0.5].square().mean().item() == pytest.approx(2 * 0.01, rel=0.07)
    share = near.argmin(-1).bincount(minlength=3) / rows
    assert ((share - SHARES).abs() < 4 * (SHARES * (1 - SHARES) / rows).sqrt() + 0.01).all()


@pytest.mark.parametrize("reverse", [Ddpm(), ProbabilityFlow()], ids=repr)
def test_context_is_seen_clean_at_time_zero_and_stays(reverse):
    context = torch.tensor([9.0, -9.0])
    seen = []

    def estimate(z, t, before, condition):
        seen.append((z[:, 0], t))
        return torch.zeros_like(z)

    given = denoiser(SQRT, 3, 2)
    free = given.free.clone()
    free[:, 0] = False
    clean = given.clean.clone()
    clean[:, 0] = context
    given = replace(given, estimate=estimate, clean=clean, free=free)
    z = GaussianSampler(steps=4, reverse=reverse).run(given, noise(3))
    assert z[:, 0].eq(context).all()
    assert len(seen) == GaussianSampler(steps=4, reverse=reverse).evaluations(2)
    for at, t in seen:
        assert at.eq(context).all()
        assert t[:, 0].eq(0).all()
        assert t[:, 1].gt(0).all()


def test_the_estimate_before_is_given_back():
    given = []

    def estimate(z, t, before, condition):
        given.append(before)
        return torch.full_like(z, float(len(given)))

    GaussianSampler(steps=3).run(replace(denoiser(SQRT, 1), estimate=estimate), noise(1))
    assert [before.unique().tolist() for before in given] == [[0.0], [1.0], [2.0]]


def test_clamping_puts_the_nearest_vector_in_the_estimate_s_place():
    def nearest(e):
        return POINTS[(e[..., None, :] - POINTS).norm(dim=-1).argmin(-1)]

    given = replace(denoiser(SQRT, 5), nearest=nearest)
    always = GaussianSampler(steps=1, reverse=Ddim(), clamping=Clamping()).run(given, noise(5))
    expected = Ddim().weights(SQRT, 0.0, 1.0)
    z = noise(5).normal(Stream.PRIOR, 1, 2).double()
    mean = exact(SQRT)(z, torch.ones(5, 1), None, None)
    torch.testing.assert_close(always, expected[0] * z + expected[1] * nearest(mean))
    late = GaussianSampler(steps=1, reverse=Ddim(), clamping=Clamping(below=0.9)).run(given, noise(5))
    torch.testing.assert_close(late, expected[0] * z + expected[1] * mean)


@pytest.mark.parametrize("reverse", [Ddpm(), Ddim(eta=0.5), ProbabilityFlow()], ids=repr)
def test_json_round_trip_and_evaluations(reverse):
    sampler = GaussianSampler(steps=6, reverse=reverse, clamping=Clamping(below=0.5))
    assert TypeAdapter(AnySampler).validate_json(sampler.model_dump_json()) == sampler
    assert sampler.evaluations(9) == (11 if isinstance(reverse, ProbabilityFlow) else 6)


def test_a_grid_that_stands_still_is_refused():
    with pytest.raises(ValueError, match="stands still"):
        GaussianSampler(grid=Held())


def test_watching_tells_every_state():
    seen = []
    z = GaussianSampler(steps=3).run(denoiser(SQRT, 2), noise(2), lambda t, z: seen.append((t, z)))
    assert np.allclose([t for t, _ in seen], [1, 2 / 3, 1 / 3, 0])
    assert seen[-1][1].equal(z)
