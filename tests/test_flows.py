"""Laws of flows: bijections undo themselves, probabilities sum to one, bounds bound what is integrated."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter
from scipy import stats

from discdiff.evaluation.likelihood import Likelihood
from discdiff.methods import AnyMethod, ArgmaxFlow, Autoregressive, DiscreteFlow, Mdlm, Method, Scored
from discdiff.networks import Causal, Transformer
from discdiff.networks.affine_layers import ChannelCoupling, Elementwise, PositionCoupling, RightwardAffine
from discdiff.networks.argmax import Binary, Gumbel, GumbelFlow, Softplus
from discdiff.networks.conditioner import share
from discdiff.networks.densities import StandardGumbel, StandardNormal
from discdiff.networks.discrete_bases import Factorized, Successive, Table
from discdiff.networks.discrete_layers import Bipartite, Leftward, Rightward
from discdiff.networks.modular import (
    Location,
    LocationScale,
    one_hot_argmax,
    reciprocals,
    subtract_and_divide,
)
from discdiff.noise import Noise, Stream
from discdiff.oracle import every, gauss_legendre
from discdiff.samplers import AnySampler
from discdiff.types import Condition, DiscdiffError, canvas

VOCAB, LENGTH = 3, 4
EXACT = [
    DiscreteFlow(layers=(Bipartite(), Bipartite(stride=2))),
    DiscreteFlow(layers=(Rightward(transform=Location()), Rightward())),
    DiscreteFlow(layers=(Rightward(), Leftward()), base=Factorized(period=1)),
    DiscreteFlow(layers=(Bipartite(), Leftward()), base=Successive()),
    DiscreteFlow(layers=(Rightward(),), base=Successive()),
    DiscreteFlow(layers=(Bipartite(),), base=DiscreteFlow(layers=(Leftward(),), base=Autoregressive())),
]
RIGHTWARD = [flow for flow in EXACT if flow.rightward]
CAUSAL = ChannelCoupling(attention=Causal())
ARGMAX = [
    ArgmaxFlow(),
    ArgmaxFlow(lift=Gumbel(), base=StandardGumbel(), layers=(RightwardAffine(),)),
    ArgmaxFlow(lift=GumbelFlow(), layers=(PositionCoupling(), ChannelCoupling(first=1))),
    ArgmaxFlow(lift=Binary(), layers=(RightwardAffine(), CAUSAL)),
]
LIFTS = [Softplus(), Gumbel(), GumbelFlow(), Binary()]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def each(values):
    return pytest.mark.parametrize("method", values, ids=lambda value: value.model_dump_json()[:80])


def small_network(method, vocab=VOCAB, std=0.5):
    """A network that does something, its tables (which have a gain) as much as the rest."""
    torch.manual_seed(1)
    net = method.network(Transformer(layers=1, width=8, heads=2), vocab).eval()
    for module in net.modules():
        for parameter in module.parameters(recurse=False):
            gain = 16 if isinstance(module, Table | Elementwise) else 1
            torch.nn.init.normal_(parameter, std=std / gain)
    return net


def given(tokens, free):
    return replace(canvas(tokens), free=torch.tensor(free).expand(tokens.shape))


# Discrete flows ------------------------------------------------------------------------------------


@each([*EXACT, *ARGMAX, DiscreteFlow(base=Mdlm())])
def test_json_round_trip_and_protocol(method):
    again = TypeAdapter(AnyMethod).validate_json(method.model_dump_json())
    assert again == method
    assert hash(again) == hash(method)
    assert isinstance(method, Method)
    assert isinstance(method, Scored)
    sampler = method.default_sampler(7)
    assert TypeAdapter(AnySampler).validate_json(sampler.model_dump_json()) == sampler


def test_evaluations_are_counted():
    flow = DiscreteFlow(layers=(Bipartite(), Rightward(), Leftward()), base=Mdlm())
    assert flow.default_sampler(7).evaluations(10) == 7 + 1 + 2 * 10
    assert DiscreteFlow().default_sampler(7).evaluations(10) == 4
    assert ArgmaxFlow(layers=(RightwardAffine(), CAUSAL)).default_sampler(7).evaluations(10) == 11


@pytest.mark.parametrize("vocab", range(1, 13))
def test_units_are_those_whose_multiples_are_all_tokens(vocab):
    units = LocationScale().units(vocab)
    tokens = torch.arange(vocab)
    onto = [s for s in range(1, max(2, vocab)) if len(set((s * tokens % vocab).tolist())) == vocab]
    assert units.tolist() == onto
    assert (units * reciprocals(units, vocab) % vocab == 1 % vocab).all()


@each(EXACT)
def test_probabilities_sum_to_one(method):
    net = small_network(method)
    x = canvas(every(VOCAB, LENGTH))
    log_p = -method.bound(net, x, Noise(0))
    assert log_p.std() > 0.1
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)


@each(EXACT)
def test_layers_undo_themselves(method):
    net = small_network(method)
    x = every(VOCAB, LENGTH)
    free, unknown = torch.ones_like(x, dtype=torch.bool), torch.zeros_like(x)
    for layer in net.layers:
        u = layer.to_base(x, Condition())
        assert len(u.unique(dim=0)) == len(x)
        assert (u != x).any()
        assert layer.from_base(u, Condition(), free, unknown).equal(x)


@each(EXACT)
def test_one_hot_and_integer_arithmetic_agree(method):
    net = small_network(method)
    x = every(VOCAB, LENGTH)
    one_hot = torch.nn.functional.one_hot(x, VOCAB).double()
    for layer in net.layers:
        relaxed = layer.relax(one_hot, Condition(), 0.1)
        assert relaxed.sum(-1).eq(1).all()
        assert relaxed.argmax(-1).equal(layer.to_base(x, Condition()))


@each([*EXACT, DiscreteFlow(base=Mdlm())])
def test_loss_has_the_bound_s_value_and_gradients_for_every_part(method):
    """Rows are weighted: over all of V^L a bijection changes no sum."""
    method = method.model_copy(update={"temperature": 1.0})
    net = small_network(method)
    x = canvas(every(VOCAB, LENGTH))
    loss = method.loss(net, x, Noise(3))
    torch.testing.assert_close(loss, method.bound(net, x, Noise(3)))
    (loss * torch.linspace(0, 1, len(loss)) ** 2).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    for layer in net.layers:
        assert max(p.grad.abs().max().item() for p in layer.parameters()) > 1e-3


def test_the_straight_through_gradient_is_that_of_the_dense_form():
    vocab = 6
    units = LocationScale().units(vocab)
    torch.manual_seed(0)
    hot = [torch.eye(k)[torch.randint(k, (5,))].requires_grad_() for k in (vocab, vocab, len(units))]
    reciprocal = reciprocals(units, vocab)
    k = reciprocal[:, None, None] * (torch.arange(vocab)[:, None] - torch.arange(vocab)) % vocab
    dense = torch.einsum("sjmk,nj,nm,ns->nk", torch.eye(vocab)[k], *hot)
    ours = subtract_and_divide(*hot, reciprocal)
    assert ours.equal(dense)
    weight = torch.randn(5, vocab)
    expected = torch.autograd.grad((dense * weight).sum(), hot)
    torch.testing.assert_close(torch.autograd.grad((ours * weight).sum(), hot), expected)


def test_the_argmax_passes_the_gradient_of_a_softmax():
    logits = torch.randn(4, 5, requires_grad=True)
    weight = torch.randn(4, 5)
    (ours,) = torch.autograd.grad((one_hot_argmax(logits, 0.3) * weight).sum(), logits)
    (expected,) = torch.autograd.grad(((logits / 0.3).softmax(-1) * weight).sum(), logits)
    torch.testing.assert_close(ours, expected)
    assert one_hot_argmax(logits, 0.3).argmax(-1).equal(logits.argmax(-1))


@each(EXACT)
def test_samples_follow_the_law(method):
    net = small_network(method)
    p = (-method.bound(net, canvas(every(VOCAB, 3)), Noise(0))).exp()
    drawn = method.sample(net, canvas(torch.zeros(1500, 3).long()), method.default_sampler(8), Noise(5))
    assert_follows(drawn, p)


@each(RIGHTWARD)
def test_given_a_prefix_it_is_the_joint_s_conditional(method):
    net = small_network(method)
    x = every(VOCAB, 3)
    joint = (-method.bound(net, canvas(x), Noise(0))).exp().reshape(VOCAB, -1)
    conditional = (-method.bound(net, given(x, [False, True, True]), Noise(0))).exp().reshape(VOCAB, -1)
    torch.testing.assert_close(conditional, joint / joint.sum(-1, keepdim=True))
    start = given(torch.full((1500, 3), 2), [False, True, True])
    drawn = method.sample(net, start, method.default_sampler(8), Noise(6))
    assert (drawn[:, 0] == 2).all()
    assert_follows(drawn[:, 1:], conditional[2])


@each([*EXACT, *ARGMAX, DiscreteFlow(layers=(Rightward(),), base=Mdlm())])
def test_padding_is_not_seen(method):
    net = small_network(method)
    x = every(VOCAB, 3)
    short = method.bound(net, canvas(x), Noise(0))
    before = None
    for pad in range(2):
        padded = torch.nn.functional.pad(x, (0, 2), value=pad)
        bound = method.bound(net, given(padded, [True, True, True, False, False]), Noise(0))
        if not isinstance(method.base, Mdlm):
            torch.testing.assert_close(bound, short)
        assert before is None or bound.equal(before)
        before = bound


@each([*EXACT, *ARGMAX, DiscreteFlow(base=Mdlm())])
def test_a_row_does_not_depend_on_its_batch(method):
    net = small_network(method)
    x = canvas(every(VOCAB, LENGTH))
    sampler = method.default_sampler(3)
    one = x.narrow(7, 8)
    torch.testing.assert_close(
        method.bound(net, one, Noise(2)), method.bound(net, x, Noise(2))[7:8], rtol=1e-9, atol=0
    )
    assert method.sample(net, one, sampler, Noise(2)).equal(method.sample(net, x, sampler, Noise(2))[7:8])


@each([*EXACT, *ARGMAX])
def test_what_cannot_be_given_is_refused(method):
    net = small_network(method)
    x, sampler = every(VOCAB, 3), method.default_sampler(1)
    message = "prefix only" if method.rightward else "mixes all positions"
    with pytest.raises(DiscdiffError, match=message):
        method.bound(net, given(x, [True, False, True]), Noise(0))
    with pytest.raises(DiscdiffError, match="what comes after"):
        method.sample(net, given(x, [True, True, False]), sampler, Noise(0))
    restricted = replace(canvas(x), allowed=torch.ones(*x.shape, VOCAB, dtype=torch.bool))
    with pytest.raises(DiscdiffError, match="restricted"):
        method.sample(net, restricted, sampler, Noise(0))


def test_blocks_are_shared_out():
    assert [part.layers for part in share(Transformer(layers=7), 3)] == [3, 2, 2]
    assert [part.layers for part in share(Transformer(layers=2), 3)] == [1, 1, 1]
    assert not any(part.time for part in share(Transformer(layers=2), 2))


# Argmax flows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("lift", LIFTS, ids=lambda lift: lift.kind)
def test_the_argmax_of_the_encoding_is_the_token(lift, spread, dtype):
    vocab = 5
    noise = Noise(0, rows=torch.arange(2000))
    x = torch.arange(2000)[:, None] % vocab
    raw = (spread * noise.normal(Stream.DATA, 1, lift.outputs(vocab)).to(dtype)).requires_grad_()
    v, log_q = lift.lift(raw, x, noise.uniform(Stream.PRIOR, 1, lift.size(vocab)))
    assert v.dtype == log_q.dtype == dtype
    assert lift.tokens(v, vocab).equal(x)
    assert log_q.isfinite().all()
    (v.sum() + log_q.sum()).backward()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("lift", LIFTS, ids=lambda lift: lift.kind)
def test_log_q_is_the_change_of_variables(lift):
    vocab = 4
    uniform = Noise(0).uniform(Stream.PRIOR, 1, lift.size(vocab))
    raw = torch.randn(1, 1, lift.outputs(vocab))
    x = torch.tensor([[2]])

    def encode(u):
        return lift.lift(raw, x, u.reshape(uniform.shape))[0].flatten()

    jacobian = torch.autograd.functional.jacobian(encode, uniform.flatten())
    log_q = lift.lift(raw, x, uniform)[1].item()
    assert log_q == pytest.approx(-torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-9)


@each(ARGMAX)
def test_the_flow_undoes_itself_and_its_volume_is_the_jacobian_s(method):
    net = small_network(method)
    size = method.lift.size(VOCAB)
    v = torch.randn(1, LENGTH, size)
    free = torch.ones(1, LENGTH, dtype=torch.bool)
    for layer in net.layers:

        def run(flat, layer=layer):
            return layer.to_base(flat.reshape(v.shape), Condition())[0].flatten()

        z, log_det = layer.to_base(v, Condition())
        jacobian = torch.autograd.functional.jacobian(run, v.flatten())
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(log_det.sum(), expected)
        assert (z - v).abs().max() > 0.1
        torch.testing.assert_close(layer.from_base(z, Condition(), free, torch.zeros_like(v)), v)


def cells(method, nodes=64, reach=14.0):
    """Gauss-Legendre nodes and log weights on the region of R^2 that belongs to each of the sequences."""
    at, weight = (torch.tensor(part) for part in gauss_legendre(nodes))
    a, b = torch.cartesian_prod(at, at).unbind(-1)
    log_weight = torch.cartesian_prod(weight, weight).log().sum(-1)
    if isinstance(method.lift, Binary):
        signs = [torch.tensor(sign) for sign in ((-1, -1), (1, -1), (-1, 1), (1, 1))]
        quadrant = reach * torch.stack([a, b], -1)
        return [sign * quadrant for sign in signs], log_weight + 2 * math.log(reach)
    top, gap = reach * (2 * a - 1), 2 * reach * b
    halves = [torch.stack([top, top - gap], -1), torch.stack([top - gap, top], -1)]
    return halves, log_weight + 2 * math.log(2 * reach)


CHANNELS = (ChannelCoupling(first=1), ChannelCoupling())
INTEGRABLE = [
    (ArgmaxFlow(lift=Softplus(), layers=(RightwardAffine(),)), 2, 1),
    (ArgmaxFlow(lift=Gumbel(), base=StandardGumbel(), layers=(RightwardAffine(),)), 2, 1),
    (ArgmaxFlow(lift=GumbelFlow(), base=StandardGumbel(), layers=(RightwardAffine(),)), 2, 1),
    (ArgmaxFlow(lift=Binary(), layers=CHANNELS), 4, 1),
    (ArgmaxFlow(lift=Binary(), layers=(PositionCoupling(),)), 2, 2),
    (ArgmaxFlow(lift=Binary(), layers=(RightwardAffine(),)), 2, 2),
]


def integrated(method, net, length):
    """P(x) of every sequence, by quadrature, and the sequences."""
    regions, log_weight = cells(method)
    p, sequences = [], []
    for region in regions:
        v = region.reshape(len(region), length, -1)
        log_p = method.log_density(net, v, canvas(torch.zeros(v.shape[:2]).long())).sum(-1)
        p.append((log_p + log_weight).exp().sum())
        sequences.append(method.lift.tokens(v[0], net.vocab))
    return torch.stack(p), torch.stack(sequences)


def lighten(net):
    """Make p narrower than q, so that importance weights have a variance."""
    table = net.layers[-1].weight
    with torch.no_grad():
        table[:, table.shape[1] // 2 :] -= 0.5 / 16


@pytest.mark.parametrize(("method", "vocab", "length"), INTEGRABLE, ids=str)
def test_importance_weights_are_unbiased_and_their_bound_falls_to_the_nll(method, vocab, length):
    """E p(v) / q(v | x) = P(x): the lift covers the token's region, with the density it claims."""
    net = small_network(method, vocab, std=0.15)
    lighten(net)
    draws = 1024
    with torch.no_grad():
        p, x = integrated(method, net, length)
        assert p.sum().item() == pytest.approx(1, abs=1e-4)
        many = canvas(x.repeat(draws, 1))
        log_weight = -method.bound(net, many, Noise(1)).reshape(draws, -1)
        bounds = [
            method.importance_bound(net, canvas(x.repeat(draws // k, 1)), Noise(2), k).reshape(draws // k, -1)
            for k in (1, 4, 32)
        ]
    weight = log_weight.exp()
    assert ((weight.mean(0) - p).abs() < 5 * weight.std(0) / draws**0.5).all()
    means = torch.stack([bound.mean(0) for bound in bounds])
    errors = torch.stack([bound.std(0) / len(bound) ** 0.5 for bound in bounds])
    nll = -p.log()
    assert (means > nll - 4 * errors).all()
    gaps = (means - nll).mean(-1)
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.5 * gaps[0]
    assert gaps[0] > 0.03


@pytest.mark.parametrize(("method", "vocab", "length"), INTEGRABLE[2:], ids=str)
def test_argmax_samples_follow_the_integrated_law(method, vocab, length):
    net = small_network(method, vocab, std=0.15)
    with torch.no_grad():
        p, x = integrated(method, net, length)
    start = canvas(torch.zeros(1500, length).long())
    drawn = method.sample(net, start, method.default_sampler(1), Noise(4))
    order = (x * vocab ** torch.arange(length).flip(0)).sum(-1).argsort()
    assert_follows(drawn, p[order], vocab)


def test_samples_given_a_prefix_follow_the_law_that_the_bound_scores():
    method = ArgmaxFlow(lift=Binary(), layers=(RightwardAffine(),))
    net = small_network(method, 2, std=0.2)
    x = torch.tensor([[1, 0], [1, 1]])
    draws = 2000
    with torch.no_grad():
        weight = (-method.bound(net, given(x.repeat(draws, 1), [False, True]), Noise(1))).exp()
    p = weight.reshape(draws, 2)
    assert abs(p.mean(0).sum() - 1) < 5 * p.sum(-1).std() / draws**0.5
    drawn = method.sample(
        net, given(x[:1].repeat(draws, 1), [False, True]), method.default_sampler(1), Noise(2)
    )
    assert (drawn[:, 0] == 1).all()
    error = (p.std(0) / draws**0.5)[1] + 0.5 / draws**0.5
    assert abs((drawn[:, 1] == 1).double().mean() - p.mean(0)[1]) < 4 * error


class Constant(torch.nn.Module):
    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def forward(self, x, t, condition):
        return self.raw.expand(*x.shape[:2], -1)


def test_gumbel_variables_make_the_bound_exact():
    """With base and lift Gumbel at the same locations phi, every single draw gives -log softmax(phi)."""
    method = ARGMAX[1]
    net = small_network(method)
    phi = torch.tensor([0.3, -1.0, 2.0])
    location = torch.cat([phi, torch.zeros(3)])
    net.layers[0].net = Constant(location)
    torch.nn.init.zeros_(net.layers[-1].weight)
    net.encoder = Constant(phi)
    x = every(VOCAB, LENGTH)
    torch.testing.assert_close(
        method.bound(net, canvas(x), Noise(0)), -phi.log_softmax(-1)[x].sum(-1), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("base", [StandardNormal(), StandardGumbel()], ids=lambda base: base.kind)
def test_a_base_s_density_is_the_derivative_of_its_cdf(base):
    uniform = torch.linspace(1e-9, 1 - 1e-9, 101, requires_grad=True)
    z = base.quantile(uniform)
    (slope,) = torch.autograd.grad(z.sum(), uniform)
    torch.testing.assert_close(base.log_prob(z), -slope.log(), rtol=1e-7, atol=1e-7)
    far = torch.tensor([-1e4, -100.0, -10.0, 100.0], dtype=torch.float32, requires_grad=True)
    base.log_prob(far).sum().backward()
    assert far.grad.isfinite().all()


# Learning ------------------------------------------------------------------------------------------


@each(
    [
        DiscreteFlow(layers=(Bipartite(), Bipartite(stride=2))),
        ArgmaxFlow(layers=(PositionCoupling(), PositionCoupling(stride=2))),
    ]
)
def test_it_learns_more_than_frequencies(method):
    """A token and its successor, in a cycle of five, three times in four: the unigram entropy is log 5."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    vocab, length, steps = 5, 4, 50
    net = method.network(Transformer(layers=3, width=16, heads=2), vocab)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        loss = method.loss(net, cycle(step, 32, vocab, length), Noise(0)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        nats = method.bound(net.eval(), cycle(steps, 500, vocab, length), Noise(1))
    assert nats.mean() / length < math.log(vocab) - 0.1


def cycle(step, rows, vocab, length):
    u = Noise(9, step, torch.arange(rows)).uniform(Stream.DATA, length + 1)
    x = (u[:, 1:] * 4 >= 1).long().cumsum(-1) + (u[:, :1] * vocab).long()
    return canvas(x % vocab, first_row=10_000 * step)


def assert_follows(drawn, p, vocab=VOCAB):
    """A chi-square test of sequences against probabilities in lexicographic order."""
    index = (drawn * vocab ** torch.arange(drawn.shape[1]).flip(0)).sum(-1)
    counts = index.bincount(minlength=len(p))
    expected = p.detach() / p.sum().detach() * len(drawn)
    small = expected < 5
    counts = torch.cat([counts[~small], counts[small].sum()[None]])
    expected = torch.cat([expected[~small], expected[small].sum()[None]])
    keep = expected > 0
    assert stats.chisquare(counts[keep].numpy(), expected[keep].numpy()).pvalue > 1e-4


def test_a_flow_is_scored_exactly_where_its_base_is():
    """One evaluation a sequence then, whatever the times."""
    assert DiscreteFlow().exact
    assert DiscreteFlow(base=Successive()).exact
    assert not DiscreteFlow(base=Mdlm()).exact
    assert Likelihood(strata=8, draws=2).evaluations(DiscreteFlow()) == 1
