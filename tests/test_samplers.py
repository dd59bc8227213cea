"""Laws of samplers on enumerable laws: grids, steps, orders, first hitting, filters and prompts."""

import itertools
import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from discdiff import oracle
from discdiff.methods import Autoregressive, FlowMatching, GenMd4, Gidd, Mdlm, Sedd, Udlm
from discdiff.noise import Noise
from discdiff.oracle import Law, exact_law, on_tokens, total_variation
from discdiff.processes import Mask
from discdiff.samplers import (
    Ancestral,
    AnySampler,
    Confidence,
    Entropy,
    EntropyBudget,
    Euler,
    Even,
    FirstHitting,
    FlowCorrector,
    FlowEuler,
    ForwardBackward,
    Gibbs,
    Greedy,
    Held,
    Listed,
    Margin,
    MinP,
    Psi,
    Quarter,
    Random,
    Recorder,
    Remask,
    Sampler,
    Temperature,
    Through,
    TopK,
    TopP,
    Trace,
    Unchanged,
    Windows,
)
from discdiff.samplers import filters as filtering
from discdiff.schedules import Cosine, Geometric, Linear, SquaredCosine
from discdiff.types import Canvas, DiscdiffError, canvas

VOCAB, LENGTH = 3, 3
LAW = Law.random(VOCAB, LENGTH, seed=1)
DATA = LAW.log_p.exp()
GRIDS = [
    Even(),
    Quarter(),
    Through(schedule=Cosine()),
    Through(schedule=Geometric()),
    Through(schedule=SquaredCosine()),
    Listed(listed=(1.0, 0.9, 0.6, 0.5, 0.4, 0.2, 0.1, 0.05, 0.0)),
]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def clean(sampler, method, given=None, law=LAW):
    p = exact_law(sampler, method, law.network(method), law.length, given)
    assert math.isclose(p.sum().item(), 1, rel_tol=1e-9)
    return on_tokens(p, law, method.process.states(law.vocab))


def error(sampler, method, given=None):
    return total_variation(clean(sampler, method, given), DATA)


def blank(rows, length=LENGTH, first=0):
    return canvas(torch.zeros(rows, length, dtype=torch.int64), first_row=first)


def follows(drawn, expected):
    """p-value of samples against a law."""
    counts = torch.bincount(oracle.position(drawn, VOCAB), minlength=len(expected)).double()
    return stats.chisquare(counts.numpy(), (expected / expected.sum() * len(drawn)).numpy()).pvalue


# Grids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_a_grid_falls_from_one_to_zero_without_standing_still(grid):
    times = grid.times(8)
    assert len(times) == 9
    assert times[0] == 1
    assert times[-1] == 0
    assert all(t > s for t, s in itertools.pairwise(times))


def test_held_stands_still_where_it_says_and_nowhere_else():
    times = Held(time=0.2, before=0.4, during=0.4).times(10)
    assert times[0] == 1
    assert times[-1] == 0
    assert [t == s for t, s in itertools.pairwise(times)] == [False] * 4 + [True] * 4 + [False] * 2
    assert times[4] == 0.2


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("method", [Mdlm(), Udlm()], ids=lambda m: m.kind)
def test_neither_end_of_a_grid_is_a_no_op(grid, method):
    """It starts from pure noise, and in the last step something is still left to do."""
    sampler, net = Sampler(steps=8, grid=grid), LAW.network(method)
    step = sampler.step(sampler.predictor(method, net, _all_states(method)))
    p = oracle._start(method.process, VOCAB, blank(1), step.predictor.canvas.tokens)
    assert total_variation(p, _marginal(method, 1.0)) < 1e-12
    for t, s in itertools.pairwise(sampler.times()):
        before, p = p, oracle.exact_step(step, p, s, t)
    assert total_variation(before, p) > 1e-3
    if isinstance(method.process, Mask):
        assert on_tokens(p, LAW, VOCAB + 1).sum() == pytest.approx(1)


def _all_states(method):
    return canvas(oracle.every(method.process.states(VOCAB), LENGTH))


def _marginal(method, t):
    """The true law of x_t."""
    states = oracle.every(method.process.states(VOCAB), LENGTH)
    likelihood = method.process.log_likelihood(states, torch.full(states.shape, t), VOCAB, torch.float64)
    each = torch.stack([likelihood[:, i, LAW.sequences[:, i]] for i in range(LENGTH)]).sum(0)
    return (each + LAW.log_p).logsumexp(-1).exp()


# Steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [Mdlm(process=Mask(schedule=Cosine())), Udlm(), FlowMatching(process=Mask()), FlowMatching()],
    ids=lambda m: repr(m)[:40],
)
def test_the_flow_step_s_error_falls_like_one_over_its_steps(method):
    errors = [error(Sampler(steps=n, reverse=FlowEuler()), method) for n in (8, 16, 32)]
    assert errors[2] < 0.05
    assert errors[0] / errors[1] > 1.6
    assert errors[1] / errors[2] > 1.7


@pytest.mark.parametrize("reverse", [Ancestral(), Euler(), FlowEuler()], ids=lambda r: r.kind)
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Linear(eps=0.05)], ids=repr)
def test_two_questions_are_the_step_of_the_algebra(reverse, schedule):
    """For mask noise "unmask?" and "to what?" have the law that the generic step has."""
    method = Mdlm(process=Mask(schedule=schedule))
    x = oracle.every(VOCAB + 1, LENGTH)
    where = (x == VOCAB).nonzero(as_tuple=True)
    for s, t in ((0.4, 0.7), (0.0, 0.3), (0.9, 1.0)):
        sampler = Sampler(reverse=reverse)
        predictor = sampler.predictor(method, LAW.network(method), canvas(x))
        predictor.look(x, torch.full((len(x), 1), t))
        asked = sampler.step(predictor).log_law(where, s, t)
        raw = LAW.network(method)(x, torch.full((len(x), 1), t), canvas(x).condition)[where]
        at = torch.full((len(raw),), t)
        generic = reverse.log_law(method, raw, x[where], torch.full_like(at, s), at)
        torch.testing.assert_close(asked.exp(), generic.exp(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [Mdlm(), Sedd(process=Mask()), Udlm(), Gidd()], ids=lambda m: repr(m)[:30])
@pytest.mark.parametrize("grid", GRIDS[1:3], ids=repr)
def test_samples_follow_the_law_on_other_grids(method, grid):
    sampler = Sampler(steps=5, grid=grid)
    drawn = method.sample(LAW.network(method), blank(4000), sampler, Noise(4))
    assert follows(drawn, clean(sampler, method)) > 1e-3


# First hitting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=lambda s: s.kind)
def test_first_hitting_is_exact_in_as_many_evaluations_as_tokens(schedule):
    method = Mdlm(process=Mask(schedule=schedule))
    sampler = Sampler(reverse=FirstHitting())
    assert error(sampler, method) < 1e-12
    draw = sampler.draw(method, LAW.network(method), blank(6000), Noise(5).on(torch.arange(6000)))
    assert follows(draw.tokens, DATA) > 1e-3
    assert draw.calls == LENGTH == sampler.evaluations(LENGTH)
    assert draw.evaluations.tolist() == [LENGTH] * 6000


def test_first_hitting_times_are_those_of_the_schedule():
    """With n masked tokens, P(first hit before t) = (1 - alpha_t)^n reversed: the latest of n unmaskings."""
    method, seen = Mdlm(process=Mask(schedule=Cosine())), []
    sampler = Sampler(reverse=FirstHitting())
    sampler.run(
        method, LAW.network(method), blank(2000), Noise(6).on(torch.arange(2000)), lambda t, x: seen.append(t)
    )
    first, last = seen[1][:, 0], seen[-1][:, 0]
    beta = Cosine().beta
    assert stats.kstest(beta(first).numpy(), lambda u: u**LENGTH).pvalue > 1e-3
    assert stats.kstest(beta(last).numpy(), lambda u: 1 - (1 - u) ** LENGTH).pvalue > 1e-3


@pytest.mark.parametrize("schedule", [Linear(eps=0.1), Geometric(low=0.1, high=3.0)], ids=repr)
def test_first_hitting_fills_everything_where_a_schedule_is_cut_off(schedule):
    method = Mdlm(process=Mask(schedule=schedule))
    drawn = Sampler(reverse=FirstHitting()).run(
        method, LAW.network(method), blank(500), Noise(6).on(torch.arange(500))
    )
    assert drawn.max() < VOCAB


# Orders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", [Random(), Confidence(), Margin(), Entropy(), EntropyBudget(nats=0)], ids=lambda o: o.kind
)
def test_one_token_a_step_is_exact_in_any_order(order):
    assert error(Sampler(steps=LENGTH, order=order), Mdlm()) < 1e-12


@pytest.mark.parametrize(
    "order", [Random(), Confidence(), Entropy(), EntropyBudget(nats=0.9)], ids=lambda o: o.kind
)
def test_samples_follow_the_law_of_their_order(order):
    sampler = Sampler(steps=2, order=order)
    drawn = sampler.run(Mdlm(), LAW.network(Mdlm()), blank(5000), Noise(7).on(torch.arange(5000)))
    assert follows(drawn, clean(sampler, Mdlm())) > 1e-3


def test_several_tokens_a_step_cost_what_they_ignore_and_a_budget_bounds_it():
    """All at once is the product of marginals; more budget means fewer evaluations and more error."""
    everything = clean(Sampler(steps=1, order=Entropy()), Mdlm())
    marginals = [
        torch.stack([DATA[LAW.sequences[:, i] == v].sum() for v in range(VOCAB)]) for i in range(LENGTH)
    ]
    product = torch.stack([marginals[i][LAW.sequences[:, i]] for i in range(LENGTH)]).prod(0)
    torch.testing.assert_close(everything, product)
    small, large = (error(Sampler(order=EntropyBudget(nats=n)), Mdlm()) for n in (0.0, 10.0))
    assert small < 1e-12
    assert large == pytest.approx(total_variation(product, DATA))
    net = LAW.network(Mdlm())
    calls = [
        Sampler(order=EntropyBudget(nats=n)).draw(Mdlm(), net, blank(50), Noise(0).on(torch.arange(50))).calls
        for n in (0.0, 10.0)
    ]
    assert calls == [LENGTH, 1]


def test_an_order_chooses_what_it_says():
    law = torch.tensor([[[0.5, 0.5, 0.0], [0.6, 0.2, 0.2], [0.5, 0.3, 0.2]]]).log()
    scores = {
        kind: order.score(law)[0].argsort(descending=True).tolist()
        for kind, order in {"confidence": Confidence(), "margin": Margin(), "entropy": Entropy()}.items()
    }
    assert scores["confidence"][0] == 1
    assert scores["margin"] == [1, 2, 0]
    assert scores["entropy"] == [0, 1, 2]


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_scores_are_those_of_the_definitions(spread):
    """In float32, of laws up to a constant, with and without tokens that are ruled out."""
    logits = 5 + spread * torch.randn(6, 700, generator=torch.Generator().manual_seed(0))
    logits[3:, ::5] = -torch.inf
    p = logits.double().softmax(-1)
    first, second = p.topk(2, dim=-1).values.unbind(-1)
    expected = {
        Confidence(): first.log(),
        Margin(): first - second,
        Entropy(): -torch.special.entr(p).sum(-1),
    }
    for order, score in expected.items():
        torch.testing.assert_close(order.score(logits).double(), score, rtol=1e-5, atol=1e-5)


# Filters --------------------------------------------------------------------------------------------


def test_filters_do_what_they_say():
    p = torch.tensor([0.4, 0.3, 0.2, 0.1])
    log_p = p.log()

    def kept(*filters):
        return filtering.apply(filters, log_p).exp()

    torch.testing.assert_close(kept(Temperature(value=0.5)), p**2 / (p**2).sum())
    torch.testing.assert_close(kept(TopK(k=2)), torch.tensor([4, 3, 0, 0]) / 7)
    torch.testing.assert_close(kept(TopP(p=0.5)), torch.tensor([4, 3, 0, 0]) / 7)
    torch.testing.assert_close(kept(TopP(p=0.39)), torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(kept(TopP(p=1.0)), p)
    torch.testing.assert_close(kept(MinP(share=0.5)), torch.tensor([4, 3, 2, 0]) / 9)
    torch.testing.assert_close(kept(Greedy()), torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(kept(TopK(k=9)), p)


def test_filters_act_in_their_order():
    log_p = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    flat_first = filtering.apply((Temperature(value=100.0), TopP(p=0.6)), log_p)
    cut_first = filtering.apply((TopP(p=0.6), Temperature(value=100.0)), log_p)
    assert (flat_first > -torch.inf).sum() == 3
    assert (cut_first > -torch.inf).sum() == 2


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_crossing_token_and_none_after(p):
    law = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(-1)
    kept = TopP(p=p).apply(law) > -torch.inf
    mass = (law.exp() * kept).sum(-1)
    least = law.exp().masked_fill(~kept, 2).amin(-1)
    assert bool((mass >= p).all())
    assert bool((mass - least < p).all())


@pytest.mark.parametrize(
    "method", [Mdlm(), Sedd(process=Mask()), Udlm(), FlowMatching()], ids=lambda m: repr(m)[:30]
)
def test_temperature_acts_on_the_law_of_the_clean_token(method):
    """Positions independent: the sampler then has the tempered law, whatever the steps in between."""
    independent = Law(
        torch.stack([torch.tensor([0.0, 1.0, 2.5])[LAW.sequences[:, i]] for i in range(LENGTH)]).sum(0),
        VOCAB,
        LENGTH,
    )
    tempered = (independent.log_p * 2).softmax(-1)
    cold = Sampler(steps=4, filters=(Temperature(value=0.5),))
    torch.testing.assert_close(clean(cold, method, law=independent), tempered, rtol=1e-6, atol=1e-9)


def test_greedy_in_an_order_of_the_law_is_deterministic():
    sampler = Sampler(steps=2, order=Confidence(), filters=(Greedy(),))
    drawn = sampler.run(Mdlm(), LAW.network(Mdlm()), blank(50), Noise(3).on(torch.arange(50)))
    assert len(drawn.unique(dim=0)) == 1
    p = clean(sampler, Mdlm())
    assert torch.equal(LAW.sequences[p.argmax()], drawn[0])


# Prompts --------------------------------------------------------------------------------------------


def prompted(free, tokens, allowed=None):
    return Canvas(
        torch.tensor([tokens]), torch.tensor([free]), torch.zeros(1, dtype=torch.int64), allowed=allowed
    )


def conditional(given):
    match = ((LAW.sequences == given.tokens) | given.free).all(-1)
    return torch.where(match, DATA, 0) / DATA[match].sum()


PROMPTS = {"prefix": [False, True, True], "suffix": [True, True, False], "infill": [True, False, True]}


@pytest.mark.parametrize("free", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("method", [Mdlm(), Udlm(), Gidd(), FlowMatching()], ids=lambda m: m.kind)
def test_samples_given_context_tend_to_the_conditional_law(method, free):
    given = prompted(free, [2, 1, 0])
    errors = [total_variation(clean(Sampler(steps=n), method, given), conditional(given)) for n in (8, 32)]
    assert errors[1] < 0.03
    assert errors[0] / errors[1] > 2.5


@pytest.mark.parametrize("free", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize(
    "sampler", [Sampler(reverse=FirstHitting()), Sampler(steps=2, order=Margin())], ids=["hit", "order"]
)
def test_context_is_exact_for_one_token_at_a_time(sampler, free):
    given = prompted(free, [2, 1, 0])
    assert total_variation(clean(sampler, Mdlm(), given), conditional(given)) < 1e-12


SAMPLERS = [
    Sampler(steps=3),
    Sampler(steps=3, reverse=Euler()),
    Sampler(steps=3, corrector=Psi(share=0.3)),
    Sampler(steps=3, corrector=ForwardBackward()),
    Sampler(steps=3, corrector=Gibbs()),
]
MASKING = [
    *SAMPLERS,
    Sampler(reverse=FirstHitting()),
    Sampler(steps=2, order=Confidence()),
    Sampler(steps=3, corrector=Remask()),
    Sampler(steps=3, reverse=FlowEuler(), corrector=FlowCorrector()),
]
CASES = [(m, s) for m in (Udlm(), Gidd()) for s in SAMPLERS] + [(Mdlm(), s) for s in MASKING]


@pytest.mark.parametrize(("method", "sampler"), CASES, ids=lambda v: repr(v)[:90])
def test_only_allowed_tokens_are_written_and_context_is_kept(method, sampler):
    allowed = torch.tensor([[[1, 1, 0], [0, 0, 1], [0, 1, 1]]]).bool()
    given = prompted([True, True, False], [0, 0, 1], allowed)
    p = clean(sampler, method, given)
    right = torch.stack([allowed[0, i, LAW.sequences[:, i]] for i in range(2)]).all(0) & (
        LAW.sequences[:, 2] == 1
    )
    assert p[right].sum() == pytest.approx(1, abs=1e-12)
    rows = Canvas(
        *(x.expand(40, *x.shape[1:]) for x in (given.tokens, given.free)),
        torch.arange(40),
        allowed=allowed.expand(40, -1, -1),
    )
    drawn = method.sample(LAW.network(method), rows, sampler, Noise(1))
    assert bool(right[oracle.position(drawn, VOCAB)].all())


def test_a_position_without_allowed_tokens_is_refused():
    given = prompted([True] * 3, [0, 0, 0], torch.zeros(1, 3, 3, dtype=torch.bool))
    with pytest.raises(DiscdiffError, match="allowed no token"):
        Mdlm().sample(LAW.network(Mdlm()), given, Sampler(), Noise(0))


# Composition ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"reverse": FirstHitting(), "order": Random()}, "leave the order out"),
        ({"reverse": FirstHitting(), "grid": Quarter()}, "leave the grid out"),
        ({"reverse": FirstHitting(), "corrector": Gibbs()}, "leave the corrector out"),
        ({"reverse": FirstHitting(), "cache": Unchanged()}, "leave the cache out"),
        ({"reverse": Euler(), "order": Random()}, "set reverse to ancestral"),
        ({"reverse": Euler(), "corrector": Remask()}, "set reverse to ancestral"),
        ({"corrector": FlowCorrector()}, "set reverse to flow"),
        ({"order": Random(), "corrector": Remask()}, "leave the corrector out"),
        ({"grid": Held()}, "set one as corrector"),
        ({"grid": Listed(listed=(1.0, 0.5, 0.0)), "steps": 3}, "make them agree"),
    ],
    ids=lambda v: str(v)[:60],
)
def test_parts_that_contradict_each_other_are_refused_when_composed(parts, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Sampler(**parts)


@pytest.mark.parametrize(
    ("method", "sampler", "sentence"),
    [
        (Udlm(), Sampler(reverse=FirstHitting()), "mask noise; udlm has uniform noise"),
        (Gidd(), Sampler(reverse=FlowEuler()), "needs mask or uniform noise"),
        (Udlm(), Sampler(order=Margin()), "an order needs mask noise"),
        (Udlm(), Sampler(corrector=Remask()), "use psi"),
        (Mdlm(), Sampler(cache=Unchanged()), "leave the cache out"),
        (GenMd4(), Sampler(filters=(Greedy(),)), "treats tokens differently"),
        (Autoregressive(), Sampler(), "autoregressive has no discrete noise"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_parts_that_a_method_can_t_take_are_refused_before_any_work(method, sampler, sentence):
    with pytest.raises(DiscdiffError, match=sentence):
        sampler.check(method)


@pytest.mark.parametrize(
    "sampler",
    [*MASKING, Sampler(windows=Windows(size=4, stride=2), microbatch=3)],
    ids=lambda s: repr(s)[:80],
)
def test_a_sampler_is_its_own_configuration(sampler):
    again = TypeAdapter(AnySampler).validate_json(sampler.model_dump_json())
    assert again == sampler
    assert hash(again) == hash(sampler)


# Trace ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampler",
    [Sampler(steps=4), Sampler(reverse=FirstHitting()), Sampler(steps=2, order=Random())],
    ids=["step", "hit", "order"],
)
def test_a_trace_replays_the_trajectory(sampler):
    recorder = Recorder(rows=3)
    noise = Noise(2).on(torch.arange(5))
    drawn = sampler.run(Mdlm(), LAW.network(Mdlm()), blank(5), noise, recorder)
    traces = recorder.traces
    assert len(traces) == 3
    for trace, row in zip(traces, drawn, strict=False):
        assert Trace.from_json(trace.to_json()) == trace
        assert trace.states()[0] == [VOCAB] * LENGTH
        assert trace.states()[-1] == row.tolist()
        assert trace.times[0] == 1
        assert sorted(trace.times, reverse=True) == trace.times
        assert all(step for step in trace.steps)
    assert sum(len(step) for step in traces[0].steps) == 2 * LENGTH
