"""Laws of correctors: they leave the law of x_s as it is, exactly where theory says so, else nearly."""

import pytest
import torch
from scipy import stats

from discdiff import oracle
from discdiff.methods import FlowMatching, Gidd, Mdlm, Sedd, Udlm
from discdiff.noise import Noise
from discdiff.oracle import Law, exact_law, exact_step, exact_sweep, on_tokens, total_variation
from discdiff.processes import Mask
from discdiff.samplers import (
    Cap,
    FlowCorrector,
    FlowEuler,
    ForwardBackward,
    Gibbs,
    Held,
    Psi,
    Remask,
    Rescale,
    Sampler,
)
from discdiff.schedules import Cosine
from discdiff.types import canvas

VOCAB = 3
PAIR, ONE = Law.random(VOCAB, 2, seed=1, contrast=1.5), Law.random(VOCAB, 1, seed=2)
MASKED = Mdlm(process=Mask(schedule=Cosine()))


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def marginal(law, method, t):
    """The true law of x_t. `-> [K^L]`"""
    states = oracle.every(method.process.states(VOCAB), law.length)
    likelihood = method.process.log_likelihood(states, torch.full(states.shape, t), VOCAB, torch.float64)
    each = torch.stack([likelihood[:, i, law.sequences[:, i]] for i in range(law.length)]).sum(0)
    return (each + law.log_p).logsumexp(-1).exp()


def stepper(law, method, sampler):
    states = oracle.every(method.process.states(VOCAB), law.length)
    return sampler.step(sampler.predictor(method, law.network(method), canvas(states)))


WITHIN = [
    (MASKED, Sampler(corrector=Remask(strength=Cap(eta=0.3)))),
    (MASKED, Sampler(corrector=Remask(strength=Rescale(eta=0.5)))),
    (MASKED, Sampler(reverse=FlowEuler(), corrector=FlowCorrector(strength=0.7))),
    *[(m, Sampler(corrector=Psi(share=0.3))) for m in (MASKED, Udlm(), Gidd(), Sedd())],
    *[
        (m, Sampler(reverse=FlowEuler(), corrector=FlowCorrector(strength=0.7)))
        for m in (Udlm(), FlowMatching())
    ],
]


@pytest.mark.parametrize(("method", "sampler"), WITHIN, ids=lambda v: repr(v)[:200])
@pytest.mark.parametrize(("s", "t"), [(0.5, 0.7), (0.0, 0.2), (0.8, 1.0)])
def test_a_widened_step_keeps_the_marginals_of_one_position_exactly(method, sampler, s, t):
    p = exact_step(stepper(ONE, method, sampler), marginal(ONE, method, t), s, t)
    torch.testing.assert_close(p, marginal(ONE, method, s), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("method", "sampler"), WITHIN, ids=lambda v: repr(v)[:200])
def test_a_widened_step_moves_more_than_the_step_does(method, sampler):
    """Else the laws here would hold of a corrector that does nothing."""
    bare = sampler.model_copy(update={"corrector": None})
    start = torch.zeros(method.process.states(VOCAB))
    start[1] = 1
    with_it, without = (exact_step(stepper(ONE, method, s), start, 0.5, 0.7) for s in (sampler, bare))
    assert total_variation(with_it, without) > 0.01


def weaker(corrector, by):
    if isinstance(corrector, Remask):
        return corrector.model_copy(update={"strength": Cap(eta=0.2 * by)})
    if isinstance(corrector, Psi):
        return corrector.model_copy(update={"share": 0.2 * by})
    return corrector.model_copy(update={"length": 0.4 * by})


HELD = [
    (MASKED, Remask()),
    (MASKED, Psi()),
    (Udlm(), Psi()),
    (Gidd(), Psi()),
    (MASKED, ForwardBackward()),
    (Udlm(), ForwardBackward()),
    (Gidd(), ForwardBackward()),
]


@pytest.mark.parametrize(("method", "corrector"), HELD, ids=lambda v: repr(v)[:60])
def test_a_corrector_s_error_at_a_held_time_is_of_second_order(method, corrector):
    """On the true law of x_s, dependent positions: half as strong, a quarter as wrong, not half."""
    errors = []
    for by in (1, 0.5, 0.25):
        weak = weaker(corrector, by)
        step = stepper(PAIR, method, Sampler(corrector=weak))
        p = marginal(PAIR, method, 0.5)
        if isinstance(weak, ForwardBackward):
            after = exact_sweep(weak, step, p, 0.5, 0.6)
        else:
            after = exact_step(step, p, 0.5, 0.5)
        errors.append(total_variation(after, p))
    assert 3 < errors[0] / errors[1] < 5.5
    assert 3.4 < errors[1] / errors[2] < 4.7


def test_flow_matching_s_corrector_adds_an_error_of_second_order():
    for method in (MASKED, Udlm()):
        errors = []
        for width in (0.1, 0.05, 0.025):
            sampler = Sampler(reverse=FlowEuler(), corrector=FlowCorrector(strength=1.0))
            p = exact_step(stepper(PAIR, method, sampler), marginal(PAIR, method, 0.5), 0.5 - width, 0.5)
            errors.append(total_variation(p, marginal(PAIR, method, 0.5 - width)))
        assert errors[0] / errors[1] > 3
        assert errors[1] / errors[2] > 3.4


@pytest.mark.parametrize("method", [MASKED, Udlm(), Gidd(), Sedd(), FlowMatching()], ids=lambda m: m.kind)
@pytest.mark.parametrize("s", [0.0, 0.4, 0.9])
def test_gibbs_leaves_any_law_as_it_is(method, s):
    step = stepper(PAIR, method, Sampler(corrector=Gibbs()))
    p = marginal(PAIR, method, s)
    torch.testing.assert_close(exact_sweep(Gibbs(), step, p, s, s + 0.1), p, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", [MASKED, Udlm(), Gidd()], ids=lambda m: m.kind)
def test_gibbs_leads_back_to_the_law(method):
    """Started elsewhere it converges to the law that it leaves as it is."""
    step = stepper(PAIR, method, Sampler(corrector=Gibbs()))
    p, target = torch.ones(len(step.predictor.canvas.tokens)), marginal(PAIR, method, 0.5)
    p = p / p.sum()
    before = total_variation(p, target)
    for _ in range(12):
        p = exact_sweep(Gibbs(), step, p, 0.5, 0.6)
    assert total_variation(p, target) < 0.05 * before


SAMPLERS = [
    (MASKED, Sampler(), lambda n: Remask(strength=Cap(eta=1.0 / n))),
    (MASKED, Sampler(), lambda n: Psi(share=1.0 / n)),
    (Udlm(), Sampler(), lambda n: Psi(share=1.0 / n)),
    (Udlm(), Sampler(reverse=FlowEuler()), lambda n: FlowCorrector(strength=0.5)),
    (MASKED, Sampler(), lambda n: ForwardBackward(stop=0.05)),
    (Udlm(), Sampler(), lambda n: ForwardBackward(stop=0.05)),
]


@pytest.mark.parametrize(
    ("method", "sampler", "corrector"), SAMPLERS, ids=[f"{m.kind}-{c(1).kind}" for m, _, c in SAMPLERS]
)
def test_a_corrected_sampler_tends_to_the_data_as_its_steps_do(method, sampler, corrector):
    """With as much correction in all, the error still falls like one over the steps."""
    errors = []
    for steps in (16, 32, 64):
        at_work = sampler.model_copy(update={"steps": steps, "corrector": corrector(steps)})
        p = exact_law(at_work, method, PAIR.network(method), 2)
        clean = on_tokens(p, PAIR, method.process.states(VOCAB))
        errors.append(total_variation(clean, PAIR.log_p.exp()))
    assert errors[2] < 0.03
    assert errors[0] / errors[1] > 1.6
    assert errors[1] / errors[2] > 1.7


@pytest.mark.parametrize(("method", "few"), [(MASKED, 4), (Udlm(), 4)], ids=lambda v: repr(v)[:10])
def test_correction_mends_what_few_steps_spoil(method, few):
    def error(corrector):
        p = exact_law(Sampler(steps=few, corrector=corrector), method, PAIR.network(method), 2)
        return total_variation(on_tokens(p, PAIR, method.process.states(VOCAB)), PAIR.log_p.exp())

    assert error(Gibbs(sweeps=4)) < 0.5 * error(None)


LOOP = Held(time=0.4, before=0.3, during=0.4)
DRAWN = [
    (MASKED, Sampler(steps=3, corrector=Remask(strength=Rescale(eta=0.4)))),
    (
        MASKED,
        Sampler(
            steps=8, grid=Held(time=0.4, before=0.3, during=0.4), corrector=Remask(start=0.4, stop=0.4 - 1e-9)
        ),
    ),
    (MASKED, Sampler(steps=3, reverse=FlowEuler(), corrector=FlowCorrector())),
    (MASKED, Sampler(steps=3, corrector=ForwardBackward(sweeps=2))),
    (MASKED, Sampler(steps=3, corrector=Gibbs(positions=2))),
    (Udlm(), Sampler(steps=3, corrector=Psi(share=0.4))),
    (Udlm(), Sampler(steps=3, corrector=ForwardBackward())),
    (Udlm(), Sampler(steps=3, corrector=Gibbs())),
    (Gidd(), Sampler(steps=3, corrector=ForwardBackward())),
    (Gidd(), Sampler(steps=3, corrector=Gibbs())),
]


@pytest.mark.parametrize(("method", "sampler"), DRAWN, ids=lambda v: repr(v)[:200])
def test_samples_follow_the_law_of_their_corrector(method, sampler):
    rows = torch.arange(5000)
    net = PAIR.network(method)
    drawn = sampler.run(method, net, canvas(torch.zeros(5000, 2, dtype=torch.int64)), Noise(9).on(rows))
    p = on_tokens(exact_law(sampler, method, net, 2), PAIR, method.process.states(VOCAB))
    assert p.sum() == pytest.approx(1)
    counts = torch.bincount(oracle.position(drawn, VOCAB), minlength=len(p)).double()
    assert stats.chisquare(counts.numpy(), (p / p.sum() * 5000).numpy()).pvalue > 1e-3
