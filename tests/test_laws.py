"""The laws of every method: what theory says of it, checked to rounding with a distribution that can be
enumerated.

A method that is missing from `ENTRIES` fails the suite. Families without a discrete process have their laws
in the file that their entry names.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import torch
from scipy import stats

from discdiff import oracle
from discdiff.methods import (
    AnyMethod,
    ArgmaxFlow,
    Autoencoder,
    Autoregressive,
    Block,
    Classifier,
    D3pm,
    Diffusion,
    DiscreteFlow,
    Duo,
    DuoDistilled,
    Embedding,
    FlowMatching,
    GenMd4,
    Gidd,
    Latent,
    Md4,
    Mdlm,
    Method,
    Multinomial,
    Scored,
    Sedd,
    Udlm,
)
from discdiff.methods.flow_matching import GeneralizedKl
from discdiff.methods.gidd import Exact
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.objectives import Steps, rate_divergence
from discdiff.oracle import Law, exact_bound, exact_law, exact_steps, on_tokens, total_variation
from discdiff.parameterizations import LeaveOneOut, Posterior, ScaledScore, Score
from discdiff.processes import Hybrid, Mask, Matrix, Uniform
from discdiff.processes.kernels import Gaussian
from discdiff.samplers import Ancestral, Euler, Sampler
from discdiff.schedules import Cosine, Geometric, Linear, Polynomial, Power, SquaredCosine
from discdiff.types import canvas

VOCAB, LENGTH = 3, 2
LAW = Law.random(VOCAB, LENGTH, seed=1)
NLL = -LAW.log_prob(LAW.sequences)


@dataclass(frozen=True)
class Entry:
    """A method under test, and where its laws are if they are not here."""

    method: Method
    laws: str = "tests/test_laws.py"


ENTRIES = [
    Entry(Autoregressive()),
    Entry(Mdlm()),
    Entry(Mdlm(process=Mask(schedule=Cosine()))),
    Entry(Mdlm(process=Mask(schedule=Polynomial(power=2)))),
    Entry(Udlm()),
    Entry(Udlm(process=Uniform(schedule=SquaredCosine()))),
    Entry(Duo()),
    Entry(DuoDistilled(teacher=Duo())),
    Entry(Gidd()),
    Entry(Gidd(process=Hybrid(uniform=0.4, sharpness=2.0))),
    Entry(Sedd()),
    Entry(Sedd(process=Uniform())),
    Entry(Sedd(process=Hybrid(), parameterization=Score())),
    Entry(D3pm(clock=Steps(count=16))),
    Entry(D3pm(process=Mask(), clock=Steps(count=16))),
    Entry(D3pm(process=Hybrid(), parameterization=Posterior(), clock=Steps(count=16))),
    Entry(D3pm(process=Matrix(kernel=Gaussian(width=0.5)), clock=Steps(count=16))),
    Entry(Sedd(process=Matrix(kernel=Gaussian(width=0.5)))),
    Entry(Mdlm(clock=Steps(count=16))),
    Entry(Md4()),
    Entry(Md4(process=Mask(schedule=Polynomial(power=2)))),
    Entry(GenMd4(), laws="tests/test_genmd4.py"),
    Entry(Gidd(weighting=Exact())),
    Entry(Multinomial(clock=Steps(count=16))),
    Entry(FlowMatching()),
    Entry(FlowMatching(process=Mask(schedule=Cosine()), learns=GeneralizedKl())),
    Entry(FlowMatching(process=Uniform(schedule=Power(power=3)), learns=GeneralizedKl())),
    Entry(Block(inner=Mdlm(), size=4), laws="tests/test_block.py"),
    Entry(DiscreteFlow(), laws="tests/test_flows.py"),
    Entry(ArgmaxFlow(), laws="tests/test_flows.py"),
    Entry(Embedding(), laws="tests/test_embedding.py"),
    Entry(Autoencoder(), laws="tests/test_latent.py"),
    Entry(Latent(), laws="tests/test_latent.py"),
    Entry(Classifier(), laws="tests/test_classifier.py"),
]
METHODS_IN_TABLE = [entry.method for entry in ENTRIES]
METHODS = [entry.method for entry in ENTRIES if entry.laws == "tests/test_laws.py"]
DIFFUSIONS = [method for method in METHODS if isinstance(method, Diffusion)]
CONTINUOUS = [method for method in DIFFUSIONS if not isinstance(method.clock, Steps)]


def every_method(methods):
    return pytest.mark.parametrize("method", methods, ids=lambda method: repr(method)[:60])


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def oracle_network(method):
    return LAW.network(method) if isinstance(method, Diffusion) else LAW.causal_network()


def small_network(method, vocab=5, width=16):
    torch.manual_seed(0)
    net = method.network(Transformer(layers=1, width=width, heads=2), vocab)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def test_every_method_has_an_entry():
    assert {type(entry.method) for entry in ENTRIES} == set(get_args(get_args(AnyMethod)[0]))
    for entry in ENTRIES:
        laws = Path(__file__).parent.parent / entry.laws
        assert type(entry.method).__name__ in laws.read_text(), (
            f"{entry.laws} holds no law of {entry.method.kind}"
        )


@every_method(METHODS)
def test_json_round_trip_and_protocol(method):
    again = type(method).model_validate_json(method.model_dump_json())
    assert again == method
    assert hash(again) == hash(method)
    assert isinstance(method, Method)
    assert isinstance(method, Scored)


@every_method(CONTINUOUS)
def test_the_bound_is_the_nll_for_the_exact_network(method):
    bound = exact_bound(method, LAW.network(method), LAW.sequences, nodes=40)
    torch.testing.assert_close(bound, NLL, rtol=0, atol=3e-6)


@pytest.mark.parametrize("schedule", [Geometric(low=0.1, high=3.0), Linear(eps=0.02)], ids=repr)
@pytest.mark.parametrize("process", [Mask, Uniform], ids=lambda process: process.__name__)
def test_cut_off_ends_leave_exactly_the_gaps_of_prior_and_reconstruction(process, schedule):
    """In expectation over the data the bound exceeds the entropy by KL(p_1 || where sampling starts) and by
    what drawing each position on its own loses at t = 0, the total correlation of p(x_0 | x at t = 0). No
    more.
    """
    method = Sedd(process=process(schedule=schedule))
    bound = exact_bound(method, LAW.network(method), LAW.sequences, nodes=80)
    start = method.process.log_marginal(torch.full((1, VOCAB), -math.log(VOCAB)), torch.ones(1))[0]
    states = oracle.every(method.process.states(VOCAB), LENGTH)
    log_last = joint(method.process, states, 1.0).logsumexp(-1)
    prior = (log_last.exp() * (log_last - start[states].sum(-1))).nansum()
    first = joint(method.process, states, 0.0)
    together = first - first.logsumexp(-1, keepdim=True)
    together_entropy = -(first.exp() * together).nansum()
    apart_entropy = torch.zeros(())
    for i in range(LENGTH):
        for v in range(VOCAB):
            here = first[:, LAW.sequences[:, i] == v].logsumexp(-1)
            apart_entropy -= (here.exp() * (here - first.logsumexp(-1))).nansum()
    gap = prior + apart_entropy - together_entropy
    torch.testing.assert_close((LAW.log_p.exp() * (bound - NLL)).sum(), gap, rtol=0, atol=1e-6)
    assert gap > 1e-4


def joint(process, states, t):
    """log p(x_0, x_t) over all noisy and all clean sequences. `-> [K^L, V^L]`"""
    likelihood = process.log_likelihood(states, torch.full(states.shape, t), VOCAB, torch.float64)
    return LAW.log_p + torch.stack([likelihood[:, i, LAW.sequences[:, i]] for i in range(LENGTH)]).sum(0)


@every_method([Autoregressive()])
def test_an_exact_likelihood_is_the_nll(method):
    x = canvas(LAW.sequences)
    torch.testing.assert_close(method.bound(LAW.causal_network(), x, Noise(0)), NLL)


@every_method(CONTINUOUS)
def test_the_estimate_is_unbiased(method):
    """The drawn bound averages to the enumerated one, for a network that is wrong."""
    wrong = Law.random(VOCAB, LENGTH, seed=7).network(method)
    exact = exact_bound(method, wrong, LAW.sequences[4:5], nodes=40)
    x = canvas(LAW.sequences[4:5].expand(4000, LENGTH))
    drawn = method.bound(wrong, x, Noise(3))
    assert abs(drawn.mean() - exact[0]) < 4 * drawn.std() / math.sqrt(len(drawn))


@every_method(
    [D3pm(process=p) for p in (Mask(), Uniform(), Hybrid(sharpness=2.0), Uniform(schedule=Cosine()))]
)
def test_the_t_step_bound_tends_to_the_nll_like_one_over_t(method):
    gaps = []
    for count in (8, 16, 32):
        stepped = method.model_copy(update={"clock": Steps(count=count)})
        bound = exact_steps(stepped, LAW.network(stepped), LAW.sequences, count)
        gaps.append((LAW.log_p.exp() * (bound - NLL)).sum().item())
    assert min(gaps) > 0
    assert 1.75 < gaps[0] / gaps[1] < 2.25
    assert 1.85 < gaps[1] / gaps[2] < 2.15


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_t_step_bound_is_finite_for_small_t(count):
    for process in (Mask(), Uniform(), Hybrid()):
        method = D3pm(process=process, clock=Steps(count=count))
        bound = exact_steps(method, LAW.network(method), LAW.sequences, count)
        assert bool((LAW.log_p.exp() * (bound - NLL)).sum() > 0)


@every_method(DIFFUSIONS)
def test_the_closed_form_is_the_generic_form(method):
    rows, vocab = 400, 5
    noise = Noise(2).on(torch.arange(rows))
    x0 = torch.randint(0, vocab, (rows, 1), generator=torch.Generator().manual_seed(0))
    t = method.clock.snap(noise.time())
    x_t = method.process.corrupt(x0, t, vocab, noise)[:, 0]
    live = method.process.live(x_t, vocab)
    x0, x_t, t = x0[live, 0], x_t[live], t[live, 0]
    raw = torch.randn(len(x0), method.parameterization.width(method.process, vocab)).requires_grad_()
    generic = method.clock.density(method.process, method.parameterization, raw, x0, x_t, t)
    closed = method.density(raw, x0, x_t, t)
    torch.testing.assert_close(closed, generic, rtol=1e-9, atol=1e-9)
    assert bool((generic > -1e-9).all())
    ours, theirs = (torch.autograd.grad(value.sum(), raw)[0] for value in (closed, generic))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("process", [Mask(), Uniform(), Hybrid()], ids=repr)
def test_every_reading_of_one_law_has_the_same_divergence(process):
    """Express a law in each head, read it back as a score: one number, whichever head."""
    rows, vocab = 200, 4
    noise = Noise(5).on(torch.arange(rows))
    x0 = torch.randint(0, vocab, (rows, 1), generator=torch.Generator().manual_seed(1))
    t = noise.time()
    x_t = process.corrupt(x0, t, vocab, noise)
    live = process.live(x_t, vocab)
    x0, x_t, t = x0[live], x_t[live], t.expand_as(live)[live]
    law = torch.randn(len(x0), vocab).log_softmax(-1)
    values = []
    for reading in (LeaveOneOut(), Posterior(), Score(), ScaledScore()):
        raw = reading.express(process, law, x_t, t)
        torch.testing.assert_close(reading.log_clean(process, raw, x_t, t), law, rtol=1e-7, atol=1e-7)
        values.append(rate_divergence(process, reading.log_score(process, raw, x_t, t), x0, x_t, t))
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("t", [2.0**-53, 1e-9, 0.5, 1 - 1e-9, 1 - 2.0**-53])
@every_method(DIFFUSIONS)
def test_values_and_gradients_are_finite_at_both_ends_of_time(method, t, dtype):
    torch.set_default_dtype(torch.float32)
    rows, vocab = 64, 5
    noise = Noise(8).on(torch.arange(rows))
    x0 = torch.randint(0, vocab, (rows, 1), generator=torch.Generator().manual_seed(2))
    time = method.clock.snap(torch.full((rows, 1), t, dtype=torch.float64))
    x_t = method.process.corrupt(x0, time, vocab, noise)
    live = method.process.live(x_t, vocab)
    features = torch.randn(int(live.sum()), 8).to(dtype).requires_grad_()
    weight = torch.randn(8, method.parameterization.width(method.process, vocab)).to(dtype).requires_grad_()
    raw = (features @ weight).float()
    for term in (method.density, method.objective):
        value = term(raw, x0[live], x_t[live], time[live])
        assert bool(value.isfinite().all())
        for gradient in torch.autograd.grad(value.sum(), (features, weight), retain_graph=True):
            assert bool(gradient.isfinite().all())


@every_method(CONTINUOUS)
@pytest.mark.parametrize("reverse", [Ancestral(), Euler()], ids=repr)
def test_a_sampler_s_error_falls_like_one_over_its_steps(method, reverse):
    net = LAW.network(method)
    errors = []
    for steps in (16, 32, 64):
        p = exact_law(Sampler(steps=steps, reverse=reverse), method, net, LENGTH)
        assert math.isclose(p.sum().item(), 1, rel_tol=1e-9)
        clean = on_tokens(p, LAW, method.process.states(VOCAB))
        errors.append(total_variation(clean, LAW.log_p.exp()))
    assert errors[2] < 0.03
    # Square roots at the ends of GIDD's time slow Euler down: it still gains 2^(1/2) at least a doubling.
    least = 1.4 if isinstance(reverse, Euler) else 1.7
    assert errors[0] / errors[1] > least
    assert errors[1] / errors[2] > least


@every_method(METHODS)
def test_drawn_samples_follow_the_sampler_s_law(method):
    rows = 6000
    blank = canvas(torch.zeros(rows, LENGTH, dtype=torch.int64))
    sampler = method.default_sampler(6)
    drawn = method.sample(oracle_network(method), blank, sampler, Noise(21))
    if isinstance(method, Diffusion):
        p = exact_law(sampler, method, LAW.network(method), LENGTH)
        expected = on_tokens(p, LAW, method.process.states(VOCAB))
    else:
        expected = LAW.log_p.exp()
    counts = torch.bincount(oracle.position(drawn, VOCAB), minlength=len(expected)).double()
    assert stats.chisquare(counts.numpy(), (expected / expected.sum() * rows).numpy()).pvalue > 1e-4


@every_method(DIFFUSIONS)
def test_context_is_never_touched_and_free_tokens_are_filled(method):
    net = small_network(method)
    x = canvas(torch.randint(0, 5, (6, 8), generator=torch.Generator().manual_seed(3)))
    free = torch.rand(6, 8, generator=torch.Generator().manual_seed(4)) < 0.5
    x = type(x)(x.tokens, free, x.rows)
    for reverse in (Ancestral(), Euler()):
        drawn = method.sample(net, x, Sampler(steps=5, reverse=reverse), Noise(0))
        assert torch.equal(drawn[~free], x.tokens[~free])
        assert bool((drawn < 5).all())


@every_method(METHODS)
def test_only_free_positions_are_scored(method):
    net = small_network(method)
    x = canvas(torch.randint(0, 5, (6, 8), generator=torch.Generator().manual_seed(3)))
    nothing = type(x)(x.tokens, torch.zeros_like(x.free), x.rows)
    assert torch.equal(method.bound(net, nothing, Noise(0)), torch.zeros(6))


@every_method(METHODS)
def test_a_row_s_loss_does_not_depend_on_its_company(method):
    net = small_network(method)
    x = canvas(torch.randint(0, 5, (6, 8), generator=torch.Generator().manual_seed(3)), first_row=100)
    whole = method.loss(net, x, Noise(0))
    parts = [method.loss(net, x.narrow(i, i + 1), Noise(0)) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-9, atol=1e-9)


@every_method(DIFFUSIONS)
def test_chunks_of_positions_change_nothing(method, monkeypatch):
    net = small_network(method)
    x = canvas(torch.randint(0, 5, (6, 8), generator=torch.Generator().manual_seed(3)))
    trained = tuple(p for p in net.parameters() if p.requires_grad)
    whole = torch.autograd.grad(method.loss(net, x, Noise(0)).sum(), trained, allow_unused=True)
    monkeypatch.setattr("discdiff.chunks._CHUNK", 7 * 6)
    parts = torch.autograd.grad(method.loss(net, x, Noise(0)).sum(), trained, allow_unused=True)
    for a, b in zip(whole, parts, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
