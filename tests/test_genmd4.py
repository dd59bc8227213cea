"""GenMD4: with learned exponents the bound is still tight, and its gradient reaches them through what was
masked.
"""

import math

import pytest
import torch
from scipy import stats

from discdiff import oracle
from discdiff.methods import GenMd4, Mdlm
from discdiff.methods.genmd4 import ExponentHead, exponents_of
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.oracle import Law, exact_law, gauss_legendre, on_tokens, total_variation
from discdiff.types import Condition, canvas

VOCAB, LENGTH = 3, 2
LAW = Law.random(VOCAB, LENGTH, seed=1)
NLL = -LAW.log_prob(LAW.sequences)
EXPONENTS = torch.tensor([0.7, 1.0, 2.5], dtype=torch.float64)
STATES = oracle.every(VOCAB + 1, LENGTH)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def log_likelihood(x, t):
    """log q_t(x_t | x_0 = v) for each v, token v masked by t with probability t^p_v. `[S, L] -> [S, L, V]`"""
    log_masked = EXPONENTS * t.log()[..., None]
    kept = torch.where(x[..., None] == torch.arange(VOCAB), torch.log(-torch.expm1(log_masked)), -torch.inf)
    return torch.where((x == VOCAB)[..., None], log_masked, kept)


def exact_raw(x, t):
    """log p(x_0 | x_t) by enumeration, and the exponents behind it."""
    likelihood = log_likelihood(x, t.expand(x.shape))
    joint = LAW.log_p + sum(likelihood[:, i, LAW.sequences[:, i]] for i in range(LENGTH))
    rows = [
        torch.stack([joint[:, LAW.sequences[:, i] == v].logsumexp(-1) for v in range(VOCAB)], dim=-1)
        for i in range(LENGTH)
    ]
    log_mu = torch.stack(rows, dim=1).log_softmax(-1)
    return torch.cat([log_mu, EXPONENTS.expand_as(log_mu)], dim=-1)


NET = oracle.OracleNetwork(oracle.Reverse(exact_raw), VOCAB)


def enumerated_bound(method, net, x0, nodes=60):
    """The bound of one sequence, summed over masks and integrated over t."""
    total = torch.zeros(())
    for angle, mass in zip(*gauss_legendre(nodes), strict=True):
        inner = math.sin(math.pi * angle / 2) ** 2
        t = torch.full((len(STATES), 1), math.sin(math.pi * inner / 2) ** 2)
        slope = (math.pi / 2) ** 2 * math.sin(math.pi * inner) * math.sin(math.pi * angle)
        target = x0.expand_as(STATES)
        at = t.expand_as(STATES)
        log_q = log_likelihood(STATES, at).gather(-1, target[..., None])[..., 0].sum(-1)
        nats = method.density(net.trunk(STATES, t, Condition()), target, STATES, at).sum(-1)
        total = total + mass * slope * (log_q.exp() * nats.nan_to_num()).sum()
    return total


def test_the_bound_is_the_nll_for_the_exact_network_whatever_the_exponents():
    bound = torch.stack([enumerated_bound(GenMd4(), NET, row) for row in LAW.sequences])
    torch.testing.assert_close(bound, NLL, rtol=0, atol=1e-8)


def test_the_sampler_s_error_falls_like_one_over_its_steps():
    method = GenMd4()
    errors = []
    for steps in (8, 16, 32):
        p = exact_law(method.default_sampler(steps), method, NET, LENGTH)
        assert p.sum().item() == pytest.approx(1)
        errors.append(total_variation(on_tokens(p, LAW, VOCAB + 1), LAW.log_p.exp()))
    assert errors[2] < 0.02
    assert errors[0] / errors[1] > 1.7
    assert errors[1] / errors[2] > 1.7


def test_drawn_samples_follow_the_sampler_s_law():
    rows, method = 6000, GenMd4()
    blank = canvas(torch.zeros(rows, LENGTH, dtype=torch.int64))
    drawn = method.sample(NET, blank, method.default_sampler(6), Noise(21))
    law = on_tokens(exact_law(method.default_sampler(6), method, NET, LENGTH), LAW, VOCAB + 1)
    counts = torch.bincount(oracle.position(drawn, VOCAB), minlength=len(law))
    assert stats.chisquare(counts.numpy(), (law / law.sum() * rows).numpy()).pvalue > 1e-4


def test_with_equal_exponents_the_density_is_that_of_mdlm():
    raw = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    x0, t, masked = torch.arange(50) % 5, torch.linspace(0.01, 0.99, 50), torch.full((50,), 5)
    extended = torch.cat([raw, torch.ones(50, 5)], dim=-1)
    torch.testing.assert_close(
        GenMd4().density(extended, x0, masked, t), Mdlm().density(raw, x0, masked, t), rtol=1e-9, atol=1e-9
    )


def test_the_gradient_reaches_the_exponents_through_what_was_masked():
    """The surrogate's mean gradient is the derivative of the enumerated bound, for a network that is
    wrong.
    """
    method, x0 = GenMd4(), torch.tensor([0, 2])
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3))

    class Constant(torch.nn.Module):
        def forward(self, x, t, condition):
            return logits.expand(*x.shape, VOCAB)

    net = oracle.OracleNetwork(Constant(), VOCAB)
    net.head = ExponentHead(torch.nn.Identity(), VOCAB, 1.0)
    with torch.no_grad():
        net.head.free.copy_(torch.log(torch.expm1(EXPONENTS)))

    def bound(free):
        p = torch.nn.functional.softplus(free)
        total = torch.zeros(())
        for angle, mass in zip(*gauss_legendre(60), strict=True):
            inner = math.sin(math.pi * angle / 2) ** 2
            t = torch.tensor(math.sin(math.pi * inner / 2) ** 2)
            slope = (math.pi / 2) ** 2 * math.sin(math.pi * inner) * math.sin(math.pi * angle)
            raw = torch.cat([logits, p]).expand(LENGTH, -1)
            nats = method.density(raw, x0, torch.full((LENGTH,), VOCAB), t.expand(LENGTH))
            total = total + mass * slope * (t ** p[x0] * nats).sum()
        return total

    free = net.head.free.detach().clone().requires_grad_()
    exact = torch.autograd.grad(bound(free), free)[0]
    losses, estimates = [], []
    for part in range(30):
        loss = method.loss(net, canvas(x0.expand(1000, LENGTH), first_row=1000 * part), Noise(5))
        losses.append(loss.mean().item())
        estimates.append(torch.autograd.grad(loss.mean(), net.head.free)[0])
    assert_mean(torch.tensor(losses), bound(free).detach())
    assert_mean(torch.stack(estimates), exact)
    assert exact.abs().max() > 0.1


def assert_mean(draws, expected):
    error = (draws.mean(0) - expected).abs()
    assert bool((error < 4.5 * draws.std(0) / len(draws) ** 0.5).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("t", [2.0**-53, 1e-9, 0.5, 1 - 1e-9, 1 - 2.0**-53])
def test_values_and_gradients_are_finite_at_both_ends_of_time(t, dtype):
    torch.set_default_dtype(torch.float32)
    features = torch.randn(20, 8).to(dtype).requires_grad_()
    head = ExponentHead(torch.nn.Linear(8, 5, bias=False).to(dtype), 5, 1.0)
    x0, masked = torch.arange(20) % 5, torch.full((20,), 5)
    raw = head(features).float()
    value = GenMd4().density(raw, x0, masked, torch.full((20,), t, dtype=torch.float64))
    assert bool(value.isfinite().all())
    for gradient in torch.autograd.grad(value.sum(), (features, *head.parameters())):
        assert bool(gradient.isfinite().all())


def test_exponents_are_of_this_family_only():
    with pytest.raises(TypeError, match="ExponentHead"):
        exponents_of(Mdlm().network(Transformer(layers=1, width=16, heads=2), 5))
