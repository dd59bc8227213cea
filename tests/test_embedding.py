"""Laws of embedding diffusion: what is scored bounds what is drawn, exactly where all can be enumerated."""

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy import stats
from torch.distributions import Normal, kl_divergence

from discdiff import oracle
from discdiff.methods import AnyMethod, Embedding, Method, Scored
from discdiff.methods.gaussian_diffusion import Exact, SelfConditioning
from discdiff.networks import Transformer
from discdiff.networks.encoders import Nearest, OneHot, Table, TableVectors, Tied
from discdiff.noise import Noise, Stream
from discdiff.objectives import Steps
from discdiff.oracle import Law, every, gauss_legendre
from discdiff.predictions import PredictNoise, PredictVelocity, PredictX0
from discdiff.processes.gaussian import VariancePreserving
from discdiff.samplers import (
    Clamping,
    Ddim,
    Ddpm,
    GaussianSampler,
    Greedy,
    ProbabilityFlow,
    Recorder,
    Sampler,
)
from discdiff.samplers.gaussian import Denoiser
from discdiff.schedules import LinearRate, SquaredCosine
from discdiff.types import DiscdiffError, VectorCanvas, canvas

VOCAB, LENGTH = 3, 2
LAW = Law.random(VOCAB, LENGTH, seed=1)
NLL = -LAW.log_prob(LAW.sequences)
SIGNAL_LEFT = VariancePreserving(stop=0.99)
LINEAR = VariancePreserving(schedule=LinearRate(), start=0.002)
COSINE = VariancePreserving(schedule=SquaredCosine(), start=0.02)
METHODS = [
    Embedding(),
    Embedding(encoder=OneHot(), rounding=Nearest()),
    Embedding(encoder=OneHot(scale=3.0), rounding=Tied(), weighting=Exact()),
    Embedding(prediction=PredictNoise(), process=SIGNAL_LEFT, self_conditioning=SelfConditioning()),
    Embedding(prediction=PredictVelocity(), process=COSINE, clock=Steps(count=20)),
    Embedding(process=LINEAR, rounding=Nearest(), encoder=Table(width=3), weighting=Exact()),
]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def each(methods):
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.model_dump_json()[:60])


def small_network(method, vocab=5, std=0.3, **more):
    torch.manual_seed(0)
    net = method.network(Transformer(layers=1, width=16, heads=2, **more), vocab).eval()
    for parameter in net.trunk.parameters():
        torch.nn.init.normal_(parameter, std=std)
    torch.nn.init.normal_(net.head.weight, std=std)
    return net


def some(rows=6, length=8, vocab=5, first_row=0):
    tokens = torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(3))
    return canvas(tokens, first_row=first_row)


def line(*points):
    """Vectors of one number, at these points."""
    vectors = TableVectors(len(points), 1)
    vectors.weight.data = torch.tensor(points)[:, None]
    return vectors


@dataclass(frozen=True)
class Quadrature(Noise):
    """Nodes of a quadrature rule in place of normal draws: row r has the r-th."""

    nodes: torch.Tensor | None = None

    def normal(self, stream, *shape):
        return self.nodes[self.rows % len(self.nodes)].reshape(-1, *shape)


def hermite(dimensions, count=48):
    """Nodes and weights of the standard normal law. `-> [N, D], [N]`"""
    nodes, weights = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(count))
    grid = torch.cartesian_prod(*[nodes] * dimensions).reshape(-1, dimensions)
    weights = torch.cartesian_prod(*[weights / weights.sum()] * dimensions).reshape(-1, dimensions)
    return grid, weights.prod(-1)


def over_noise(term, sequences, free):
    """The mean of a term of the bound over its noise, by quadrature, for each sequence. `-> [S]`"""
    nodes, weights = hermite(LENGTH)
    x = canvas(sequences.repeat_interleave(len(nodes), 0))
    values = term(replace(x, free=free.expand(x.shape)), Quadrature(0, nodes=nodes))
    return values.reshape(len(sequences), -1) @ weights


ALL = torch.ones(LENGTH, dtype=torch.bool)


def exact_bound(method, net, sequences, free=ALL, nodes=60):
    """The bound of each sequence, nothing drawn. `-> [S]`"""

    def density(t):
        def term(x, noise):
            return method.density_at(net, x, torch.full((len(x.rows), 1), t), noise)

        return over_noise(term, sequences, free)

    if isinstance(method.clock, Steps):
        count = method.clock.count
        terms = [density(k / count) / count for k in range(1, count + 1)]
    else:
        # Nodes crowd at t = 0, where all happens in little time: t = u^4.
        terms = [4 * u**3 * w * density(u**4) for u, w in zip(*gauss_legendre(nodes), strict=True)]
    ends = over_noise(lambda x, noise: method.ends(net, x, noise), sequences, free)
    return torch.stack(terms).sum(0) + ends


# The bound -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", [PredictX0(), PredictVelocity()], ids=lambda p: p.kind)
def test_the_bound_is_the_nll_for_the_exact_network(prediction):
    """Vectors that z_0 tells apart, and z_1 that says nothing: there is no gap, for any sequence."""
    method = Embedding(prediction=prediction, rounding=Nearest())
    net = LAW.vector_network(method, line(-2.0, 0.0, 2.0))
    torch.testing.assert_close(exact_bound(method, net, LAW.sequences), NLL, rtol=0, atol=2e-4)


def log_joint(process, t, z, vectors):
    """log q(z_t, x) over all sequences x. `[N, L] -> [N, S]`"""
    time = torch.tensor(t)
    mean = process.alpha(time).sqrt() * vectors.weight[:, 0][LAW.sequences]
    each = Normal(mean, process.beta(time).sqrt()).log_prob(z[:, None])
    return LAW.log_p + each.sum(-1)


@pytest.mark.parametrize("rounding", [Nearest(), Tied()], ids=lambda r: r.kind)
def test_cut_off_ends_leave_exactly_the_gaps_of_prior_and_rounding(rounding):
    """In expectation over the data the bound exceeds the entropy by KL(q(z_1) || N(0, I)) and by what
    rounding each position on its own loses. No more.
    """
    process = VariancePreserving(schedule=SquaredCosine(), start=0.25, stop=0.75)
    method = Embedding(process=process, rounding=rounding, prediction=PredictNoise())
    vectors = line(-1.5, 0.2, 1.0)
    net = LAW.vector_network(method, vectors)
    with torch.no_grad():
        bound = exact_bound(method, net, LAW.sequences)
        p = LAW.log_p.exp()

        def gap(t, other):
            """E over q(z_t, x) of a difference of logs."""
            nodes, weights = hermite(LENGTH)
            time, total = torch.tensor(t), 0.0
            mean = process.alpha(time).sqrt() * vectors.weight[:, 0][LAW.sequences]
            for index in range(len(p)):
                z = mean[index] + process.beta(time).sqrt() * nodes
                total += p[index] * (weights @ other(log_joint(process, t, z, vectors), z, index))
            return total

        prior = gap(1.0, lambda joint, z, x: joint.logsumexp(-1) - Normal(0.0, 1.0).log_prob(z).sum(-1))

        def lost(joint, z, x):
            tokens = LAW.sequences[x].expand(len(z), LENGTH)
            alone = net.log_tokens(z[..., None]).gather(-1, tokens[..., None]).sum((-1, -2))
            return joint[:, x] - joint.logsumexp(-1) - alone

        rounded = gap(0.0, lost)
    torch.testing.assert_close((p * (bound - NLL)).sum(), prior + rounded, rtol=0, atol=2e-5)
    assert prior > 1e-3
    assert rounded > 1e-3


def test_the_t_step_bound_tends_to_the_nll_like_one_over_t():
    gaps = []
    for count in (16, 32, 64):
        process = VariancePreserving(start=0.05)
        method = Embedding(rounding=Nearest(), clock=Steps(count=count), process=process)
        net = LAW.vector_network(method, line(-6.0, 0.0, 6.0))
        bound = exact_bound(method, net, LAW.sequences)
        gaps.append((LAW.log_p.exp() * (bound - NLL)).sum().item())
    assert min(gaps) > 0
    assert 1.7 < gaps[0] / gaps[1] < 2.3
    assert 1.85 < gaps[1] / gaps[2] < 2.15


@each([method.model_copy(update={"clock": Steps(count=5)}) for method in METHODS])
def test_a_step_is_the_divergence_of_gaussians(method):
    net, x = small_network(method), some()
    t = torch.full((6, 1), 3 / 5)
    nats = method.density_at(net, x, t, Noise(2)) / 5
    e = net.encoder(x.tokens)
    z = method.process.mixed(e, Noise(2).on(x.rows).normal(Stream.CORRUPT, *e.shape[1:]).double(), t)
    first = method.estimate(net, z, t, None, x.condition)
    estimate = method.estimate(net, z, t, first, x.condition)
    ours, theirs, variance = method.process.bridge(t - 1 / 5, t)
    true, model = (
        Normal(ours[..., None] * z + theirs[..., None] * at, variance.sqrt()[..., None])
        for at in (e, estimate)
    )
    torch.testing.assert_close(nats, kl_divergence(true, model).sum((-1, -2)), rtol=1e-8, atol=1e-9)


@each(METHODS)
def test_the_bound_is_density_and_ends(method):
    net, x = small_network(method), some()
    noise = Noise(5)
    time, pace = method.clock.spread(method.process, noise.on(x.rows).time())
    parts = method.density_at(net, x, time, noise) * pace[:, 0] + method.ends(net, x, noise)
    torch.testing.assert_close(method.bound(net, x, noise), parts)
    if isinstance(method.weighting, Exact):
        torch.testing.assert_close(method.loss(net, x, noise), parts)


@pytest.mark.parametrize("rounding", [Nearest(), Tied()], ids=lambda r: r.kind)
def test_what_is_scored_bounds_what_is_drawn(rounding):
    """The bound of four steps against how often four steps of DDPM draw each sequence."""
    law, draws = Law.random(2, 2, seed=4), 20_000
    process = VariancePreserving(start=0.04)
    method = Embedding(rounding=rounding, clock=Steps(count=4), process=process)
    net, x = law.vector_network(method, line(-1.0, 1.0)), every(2, 2)
    with torch.no_grad():
        scored = method.bound(net, canvas(x.repeat(draws, 1)), Noise(1)).reshape(draws, 4)
        drawn = method.sample(net, canvas(torch.zeros(draws, 2).long()), GaussianSampler(steps=4), Noise(2))
    share = oracle.position(drawn, 2).bincount(minlength=4) / draws
    bound, error = scored.mean(0), scored.std(0) / draws**0.5
    assert (-share.log() < bound + 4 * error + 4 * ((1 - share) / share / draws).sqrt()).all()
    assert 0.1 < (-bound).exp().sum() < 1


@each(METHODS)
def test_only_free_positions_are_scored(method):
    net, x = small_network(method), some()
    nothing = replace(x, free=torch.zeros_like(x.free))
    assert method.bound(net, nothing, Noise(0)).eq(0).all()
    assert method.loss(net, nothing, Noise(0)).eq(0).all()


def test_given_context_the_bound_is_the_conditional_s():
    method = Embedding(rounding=Nearest())
    net = LAW.vector_network(method, line(-2.0, 0.0, 2.0))
    conditional = -LAW.log_p.reshape(VOCAB, VOCAB).log_softmax(-1).flatten()

    bound = exact_bound(method, net, LAW.sequences, free=torch.tensor([False, True]))
    torch.testing.assert_close(bound, conditional, rtol=0, atol=2e-4)


# What the network predicts, and what it learns from --------------------------------------------------


def test_predictions_that_say_the_same_are_scored_the_same():
    x = canvas(LAW.sequences)
    vectors = line(-2.0, 0.5, 2.0)
    found = [
        method.bound(LAW.vector_network(method, vectors), x, Noise(3)).detach()
        for method in (
            Embedding(process=SIGNAL_LEFT, prediction=prediction, rounding=Nearest())
            for prediction in (PredictX0(), PredictNoise(), PredictVelocity())
        )
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found[0], found[2], rtol=1e-7, atol=1e-9)


def test_one_hot_vectors_need_no_learned_part():
    net = small_network(METHODS[1])
    assert not list(net.encoder.parameters())
    assert not list(net.rounding.parameters())
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"trunk", "head"}
    tokens = torch.arange(5)
    assert net.encoder(tokens).equal(torch.eye(5))
    assert net.log_tokens(net.encoder(tokens)).argmax(-1).equal(tokens)
    assert net.nearest(net.encoder(tokens) + 0.4 * torch.rand(5, 5)).equal(torch.eye(5))


@pytest.mark.parametrize("encoder", [OneHot(scale=0.3), Table(width=4)], ids=lambda e: e.kind)
def test_nearest_rounding_is_bayes_rule(encoder):
    method = Embedding(encoder=encoder, rounding=Nearest())
    net = small_network(method)
    z = torch.randn(7, encoder.size(5))
    mean = method.process.ends[0] ** 0.5 * net.encoder(torch.arange(5))
    expected = Normal(mean, 0.1).log_prob(z[:, None]).sum(-1).log_softmax(-1)
    torch.testing.assert_close(net.log_tokens(z), expected)


def test_the_simple_loss_is_the_squared_error_and_the_ends():
    method = METHODS[3].model_copy(update={"self_conditioning": None})
    net, x = small_network(method), some()
    noise = Noise(4).on(x.rows)
    e, t = net.encoder(x.tokens), noise.time()
    eps = noise.normal(Stream.CORRUPT, *e.shape[1:]).double()
    error = (net(method.process.mixed(e, eps, t), t, x.condition) - eps).square().sum((-1, -2))
    torch.testing.assert_close(method.loss(net, x, Noise(4)), error + method.ends(net, x, Noise(4)))


@each(METHODS)
def test_all_parameters_learn(method):
    net, x = small_network(method), some()
    method.loss(net, x, Noise(3)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 1e-9 or "modulation" in name, name


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("t", [1e-9, 1 - 1e-9])
@each(METHODS)
def test_gradients_are_finite_at_the_ends_of_time(method, t, precision):
    torch.set_default_dtype(torch.float32)
    net, x = small_network(method), some()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        nats = method.density_at(net, x, torch.full((6, 1), t, dtype=torch.float64), Noise(0))
        loss = method.vector_loss(net, vectors(net, x), torch.full((6, 1), t).double(), Noise(0).on(x.rows))
        total = nats.sum() + loss.sum() + method.ends(net, x, Noise(0)).sum()
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def vectors(net, x):
    return VectorCanvas(net.encoder(x.tokens), x.free, x.condition)


def test_chunks_of_positions_change_nothing(monkeypatch):
    method = Embedding()
    net, x = small_network(method), some()

    def gradients():
        return torch.autograd.grad(method.loss(net, x, Noise(0)).sum(), tuple(net.parameters()))

    whole, bound = gradients(), method.bound(net, x, Noise(0))
    monkeypatch.setattr("discdiff.chunks._CHUNK", 7 * 5)
    for a, b in zip(whole, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(method.bound(net, x, Noise(0)), bound)


# Self-conditioning -----------------------------------------------------------------------------------


def test_training_shows_an_estimate_in_a_share_of_the_rows_that_only_row_and_seed_decide():
    method = METHODS[3]
    net, x = small_network(method), some(rows=64)
    seen = []
    net.trunk.embedding.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    method.loss(net, x, Noise(7))
    first, second = seen
    assert first.shape[-1] == 16
    before = second[..., 16:]
    shown = before.ne(0).any(-1).any(-1)
    expected = Noise(7).on(x.rows).uniform(Stream.SELF_CONDITION, 1)[:, 0] < 0.5
    assert shown.equal(expected)
    assert 20 < shown.sum() < 44
    t = Noise(7).on(x.rows).time()
    estimate = method.estimate(net, first, t, None, x.condition)
    torch.testing.assert_close(before[shown], estimate[shown])


def test_the_bound_with_self_conditioning_is_that_of_two_evaluations_a_step():
    method = METHODS[3]
    net, x = small_network(method), some()
    calls = []
    net.trunk.register_forward_hook(lambda *_: calls.append(1))
    method.bound(net, x, Noise(7))
    assert len(calls) == 2
    method.sample(net, x, GaussianSampler(steps=5), Noise(0))
    assert len(calls) == 7


# Sampling --------------------------------------------------------------------------------------------

REVERSE = [Ddpm(), Ddim(), Ddim(eta=0.5), ProbabilityFlow()]


def draw(sampler, rows=4000, law=LAW, x=None):
    method = Embedding(rounding=Nearest())
    net = law.vector_network(method, line(-2.0, 0.0, 2.0))
    blank = canvas(torch.zeros(rows, LENGTH).long()) if x is None else x
    return method.sample(net, blank, sampler, Noise(21))


def assert_follows(drawn, p):
    counts = oracle.position(drawn, VOCAB).bincount(minlength=len(p)).double()
    assert stats.chisquare(counts.numpy(), (p / p.sum() * len(drawn)).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("reverse", REVERSE, ids=repr)
def test_samples_follow_the_data(reverse):
    assert_follows(draw(GaussianSampler(steps=200, reverse=reverse)), LAW.log_p.exp())


def test_more_steps_come_nearer_to_the_data():
    law = Law.random(VOCAB, LENGTH, seed=5, contrast=2.0)
    far = []
    for steps in (2, 8, 128):
        drawn = draw(GaussianSampler(steps=steps), rows=6000, law=law)
        share = oracle.position(drawn, VOCAB).bincount(minlength=VOCAB**LENGTH) / len(drawn)
        far.append((share - law.log_p.exp()).abs().sum().item() / 2)
    assert far[0] > 2 * far[1] > 4 * far[2]
    assert far[2] < 0.03


@pytest.mark.parametrize("reverse", [Ddpm(), ProbabilityFlow()], ids=repr)
def test_samples_given_context_follow_the_conditional(reverse):
    rows = 4000
    x = canvas(torch.tensor([1, 0]).expand(rows, 2))
    x = replace(x, free=torch.tensor([False, True]).expand(rows, 2))
    drawn = draw(GaussianSampler(steps=200, reverse=reverse), x=x)
    assert drawn[:, 0].eq(1).all()
    expected = LAW.log_p.reshape(VOCAB, VOCAB)[1].softmax(-1)
    counts = drawn[:, 1].bincount(minlength=VOCAB)
    assert stats.chisquare(counts.numpy(), (expected * rows).numpy()).pvalue > 1e-4


@each(METHODS)
def test_context_is_never_touched_and_what_stands_behind_free_is_not_read(method):
    net, x = small_network(method), some()
    free = torch.rand(6, 8, generator=torch.Generator().manual_seed(4)) < 0.5
    x = replace(x, free=free)
    other = x.with_tokens(torch.where(free, (x.tokens + 1) % 5, x.tokens))
    for reverse in REVERSE:
        sampler = GaussianSampler(steps=5, reverse=reverse, clamping=Clamping(below=0.5))
        drawn = method.sample(net, x, sampler, Noise(0))
        assert drawn[~free].equal(x.tokens[~free])
        assert drawn.equal(method.sample(net, other, sampler, Noise(0)))


@each(METHODS)
def test_a_row_does_not_depend_on_its_batch(method):
    torch.set_default_dtype(torch.float32)
    net, x = small_network(method), some(rows=7, first_row=100)
    for reverse in REVERSE:
        sampler = GaussianSampler(steps=4, reverse=reverse, microbatch=2)
        recorders = Recorder(rows=7), Recorder(rows=3)
        whole = method.sample(net, x, sampler, Noise(2), recorders[0])
        part = method.sample(net, x.narrow(3, 6), sampler, Noise(2), recorders[1])
        assert part.equal(whole[3:6])
    torch.set_default_dtype(torch.float64)
    net = net.double()
    whole = method.loss(net, x, Noise(2))
    parts = [method.loss(net, x.narrow(i, i + 1), Noise(2)) for i in range(7)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-9, atol=1e-9)


def test_states_of_a_row_are_the_same_bits_in_any_batch():
    torch.set_default_dtype(torch.float32)
    method = METHODS[3]
    net, x = small_network(method), some(rows=7, first_row=100)
    sampler = GaussianSampler(steps=4, microbatch=2)

    def states(x):
        found = []
        denoiser = Denoiser(
            method.process,
            partial(method.estimate, net),
            net.encoder(x.tokens).detach(),
            x.free,
            x.condition,
            net.nearest,
        )
        sampler.run(denoiser, Noise(2).on(x.rows), lambda t, z: found.append(z))
        return torch.stack(found, 1)

    assert states(x.narrow(3, 6)).equal(states(x)[3:6])


def test_tokens_are_held_to_what_is_allowed_and_filters_edit_rounding():
    method = Embedding()
    net, x = small_network(method), some(rows=50)
    allowed = torch.zeros(50, 8, 5, dtype=torch.bool)
    allowed[..., 2:4] = True
    drawn = method.sample(net, replace(x, allowed=allowed), GaussianSampler(steps=3), Noise(0))
    assert set(drawn.unique().tolist()) == {2, 3}
    with pytest.raises(DiscdiffError, match="allowed no token"):
        method.sample(net, replace(x, allowed=allowed & False), GaussianSampler(steps=3), Noise(0))
    seen = []
    greedy = GaussianSampler(steps=3, filters=(Greedy(),))
    drawn = method.sample(net, x, greedy, Noise(0), lambda t, tokens: seen.append((t, tokens)))
    assert [t for t, _ in seen] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert seen[-1][1].equal(drawn)


# The value -------------------------------------------------------------------------------------------


@each(METHODS)
def test_json_round_trip_and_protocol(method):
    again = TypeAdapter(AnyMethod).validate_json(method.model_dump_json())
    assert again == method
    assert hash(again) == hash(method)
    assert isinstance(method, Method)
    assert isinstance(method, Scored)


def test_what_has_no_bound_is_refused():
    with pytest.raises(ValueError, match="start above 0"):
        Embedding(process=VariancePreserving(start=0))
    with pytest.raises(ValueError, match="stop below 1"):
        Embedding(prediction=PredictNoise())
    with pytest.raises(DiscdiffError, match="give 'gaussian'"):
        Embedding().sample(small_network(Embedding()), some(), Sampler(), Noise(0))


def test_tokens_are_read_as_their_vectors():
    method = METHODS[3]
    net, x = small_network(method), some()
    t = torch.full((6, 1), 0.5)
    assert net(x.tokens, t, x.condition).equal(net(net.encoder(x.tokens), t, x.condition))


# Learning --------------------------------------------------------------------------------------------


@each(
    [
        Embedding(encoder=Table(width=8), weighting=Exact()),
        Embedding(encoder=OneHot(scale=4.0), rounding=Nearest()),
    ]
)
def test_it_learns_more_than_frequencies(method):
    """A token and its successor, in a cycle of five, three times in four: the unigram entropy is log 5."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    vocab, length, steps = 5, 4, 300
    net = method.network(Transformer(layers=2, width=32, heads=2), vocab)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        loss = method.loss(net, cycle(step, 64, vocab, length), Noise(0)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    net.eval()
    with torch.no_grad():
        x = cycle(steps, 500, vocab, length)
        nats = torch.stack([method.bound(net, x, Noise(1).stratum(k, 16)) for k in range(16)])
    assert nats.mean() / length < math.log(vocab) - 0.1
    drawn = method.sample(net, canvas(torch.zeros(1000, length).long()), method.default_sampler(50), Noise(1))
    assert (drawn.diff(dim=1) % vocab == 1).double().mean() > 0.45


def cycle(step, rows, vocab, length):
    u = Noise(9, step, torch.arange(rows)).uniform(Stream.DATA, length + 1)
    x = (u[:, 1:] * 4 >= 1).long().cumsum(-1) + (u[:, :1] * vocab).long()
    return canvas(x % vocab, first_row=10_000 * step)
