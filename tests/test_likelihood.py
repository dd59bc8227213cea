"""Likelihood scores: estimators are unbiased, errors are those of repetition, units add up."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from discdiff.evaluation.estimate import Estimate, mean, ratio
from discdiff.evaluation.importance import ImportanceWeighted
from discdiff.evaluation.likelihood import (
    EveryStep,
    Ledger,
    Likelihood,
    Protocol,
    Text,
    compare,
    merge,
    unigram,
)
from discdiff.methods import Autoregressive, D3pm, Diffusion, Mdlm, Udlm
from discdiff.noise import Noise, Stream
from discdiff.objectives import Steps
from discdiff.oracle import Law, exact_bound, exact_law, exact_steps, on_tokens, position
from discdiff.processes import Uniform
from discdiff.samplers import Sampler
from discdiff.schedules import Geometric
from discdiff.types import Canvas, DiscdiffError, canvas

LAW = Law.random(vocab=2, length=3, seed=1)
OTHER = Law.random(vocab=2, length=3, seed=2)
COUNT = len(LAW.sequences)
PROTOCOL = Protocol(
    estimator="", times="", precision="", tokenizer="", packing="", counted="", data="", standard_error=""
)
TEXT = Text(tokens=100, characters=250, bytes=260)


def every() -> Canvas:
    return canvas(LAW.sequences)


def batches(whole: Canvas, size: int) -> Iterator[Canvas]:
    for start in range(0, whole.shape[0], size):
        yield whole.narrow(start, min(start + size, whole.shape[0]))


@pytest.mark.parametrize("method", [Mdlm(), Udlm()], ids=lambda m: m.kind)
def test_strata_and_draws_give_an_unbiased_estimate_of_the_bound(method):
    # The network of another law: a bound that is not tight, so that times and corruption matter.
    net = OTHER.network(method)
    exact = exact_bound(method, net, LAW.sequences).mean().item()
    found = [
        Likelihood(strata=2, draws=1, seed=seed).measure(method, net, [every()]).sequence_nats.mean()
        for seed in range(24)
    ]
    assert abs(np.mean(found) - exact) < 4 * np.std(found) / math.sqrt(len(found)) + 1e-9


class Timed:
    """A bound that is a known function of time and of one more draw: its integral is 2 + row."""

    def bound(self, net: nn.Module, canvas: Canvas, noise: Noise) -> Tensor:
        chance = noise.uniform(Stream.CORRUPT, 1)[:, 0]
        return 3 * noise.time()[:, 0] ** 2 + 2 * chance + canvas.rows


def test_the_error_over_time_is_the_spread_of_repetitions():
    texts = canvas(torch.zeros(20, 4, dtype=torch.int64))
    scores = [
        Likelihood(strata=4, draws=2, seed=seed)
        .measure(Timed(), nn.Identity(), [texts])
        .score(TEXT, PROTOCOL)
        for seed in range(120)
    ]
    values = [score.nats_per_token.value for score in scores]
    spread = np.std(values, ddof=1)
    told = math.sqrt(np.mean([score.se_time**2 for score in scores]))
    # 119 and 480 degrees of freedom: the ratio strays by 8 %.
    assert 0.72 < told / spread < 1.38
    assert np.mean(values) == pytest.approx((2 + 9.5) / 4, abs=4 * spread / 11)


def test_every_sequence_gets_a_time_in_every_stratum():
    class Time:
        def bound(self, net: nn.Module, canvas: Canvas, noise: Noise) -> Tensor:
            return noise.time()[:, 0]

    ledger = Likelihood(strata=7, draws=3).measure(Time(), nn.Identity(), [every()])
    assert (np.floor(ledger.nats * 7) == np.arange(7)[:, None]).all()
    assert len(np.unique(ledger.nats)) == ledger.nats.size


def test_an_exact_network_scores_the_entropy_of_the_law():
    method = Autoregressive()
    weights = LAW.log_p.exp().numpy()
    ledger = Likelihood().measure(method, LAW.causal_network(), [every()])
    assert ledger.nats.shape == (COUNT, 1, 1)
    assert float((ledger.sequence_nats * weights).sum()) == pytest.approx(LAW.entropy, abs=1e-12)
    score = ledger.score(TEXT, PROTOCOL)
    assert score.se_time == 0
    assert score.curve == ()


@pytest.mark.parametrize("method", [Mdlm(), Udlm(), Autoregressive()], ids=lambda m: m.kind)
def test_batch_size_order_and_split_of_work_change_nothing(method):
    net = OTHER.causal_network() if method.kind == "autoregressive" else OTHER.network(method)
    estimator, whole = Likelihood(strata=3, draws=2), every()
    one = estimator.measure(method, net, [whole])
    parts = list(batches(whole, 2))
    for other in (
        estimator.measure(method, net, parts),
        estimator.measure(method, net, parts[::-1]),
        merge([estimator.measure(method, net, parts[i::3]) for i in (2, 0, 1)]),
    ):
        assert np.array_equal(one.rows, other.rows)
        assert np.allclose(one.nats, other.nats, rtol=0, atol=1e-12)
        assert other.score(TEXT, PROTOCOL).nats == pytest.approx(one.score(TEXT, PROTOCOL).nats, abs=1e-12)


def test_the_curve_over_time_averages_to_the_score():
    net = OTHER.network(Mdlm())
    score = Likelihood(strata=5, draws=2).measure(Mdlm(), net, [every()]).score(TEXT, PROTOCOL)
    assert len(score.curve) == 5
    assert np.mean([e.value for e in score.curve]) == pytest.approx(score.nats_per_token.value, rel=1e-12)


@pytest.mark.parametrize("count", [1, 3])
def test_every_step_is_the_whole_sum_and_only_corruption_is_drawn(count):
    method = D3pm(clock=Steps(count=count))
    net = OTHER.network(method)
    exact = exact_steps(method, net, LAW.sequences, count).mean().item()
    ledger = EveryStep().measure(method, net, [canvas(LAW.sequences.repeat(60, 1))])
    assert ledger.nats.shape == (60 * COUNT, count, 1)
    found = ledger.sequence_nats.reshape(60, COUNT).mean(1)
    assert abs(np.mean(found) - exact) < 4 * np.std(found) / math.sqrt(len(found)) + 1e-9


def weights(method: Diffusion, net: nn.Module, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean weight of every sequence over independent copies, and its error. `-> [S], [S]`"""
    texts = canvas(LAW.sequences.repeat(copies, 1))
    found = ImportanceWeighted(paths=2, steps=3).measure(method, net, [texts])
    each = np.exp(-found.sequence_nats).reshape(copies, COUNT)
    return each.mean(0), each.std(0) / math.sqrt(copies)


@pytest.mark.parametrize("method", [Mdlm(), Udlm()], ids=lambda m: m.kind)
def test_weights_average_to_the_law_of_the_sampler(method):
    net = OTHER.network(method)
    exact = exact_law(Sampler(steps=3), method, net, 3)
    p = on_tokens(exact, OTHER, method.process.states(2)).numpy()
    found, error = weights(method, net, 400)
    assert (abs(found - p) < 4.5 * error).all()


def test_weights_of_a_cut_off_schedule_average_to_what_is_drawn():
    method, rows = Udlm(process=Uniform(schedule=Geometric(low=0.05, high=3.0))), 8000
    net, blank = OTHER.network(method), canvas(torch.zeros(rows, 3, dtype=torch.int64))
    drawn = Sampler(steps=3).run(method, net, blank, Noise(5).on(blank.rows))
    seen = np.bincount(position(drawn, 2), minlength=COUNT) / rows
    found, error = weights(method, net, 400)
    assert (abs(found - seen) < 4.5 * np.hypot(error, np.sqrt(found * (1 - found) / rows))).all()


def test_one_path_is_the_bound_of_steps_and_more_are_tighter():
    method = D3pm(clock=Steps(count=3))
    net = Law.random(vocab=2, length=3, seed=2, contrast=3.0).network(method)
    exact = exact_steps(method, net, LAW.sequences, 3).mean().item()
    texts = canvas(LAW.sequences.repeat(60, 1))
    one, many = (
        ImportanceWeighted(paths=paths, steps=3).measure(method, net, [texts]).sequence_nats
        for paths in (1, 12)
    )
    error = np.std(one.reshape(60, COUNT).mean(1)) / math.sqrt(60)
    assert abs(one.mean() - exact) < 4 * error
    assert many.mean() < exact - 0.08  # the likelihood itself is 0.16 below the bound


def test_what_has_no_paths_is_not_weighed():
    with pytest.raises(DiscdiffError, match="autoregressive has no noising paths to weigh"):
        ImportanceWeighted().measure(Autoregressive(), LAW.causal_network(), [every()])


def test_every_step_asks_for_steps():
    with pytest.raises(DiscdiffError, match="mdlm has no steps to sum over"):
        EveryStep().measure(Mdlm(), OTHER.network(Mdlm()), [every()])


def test_a_paired_comparison_is_exact_for_equals_and_sharper_than_the_scores():
    method, estimator = Mdlm(), Likelihood(strata=4, draws=2)
    rows = torch.randint(0, COUNT, (400,), generator=torch.Generator().manual_seed(0))
    texts = canvas(LAW.sequences[rows])
    near = Law(0.8 * OTHER.log_p + 0.2 * LAW.log_p, 2, 3)
    first = estimator.measure(method, OTHER.network(method), [texts])
    second = estimator.measure(method, near.network(method), [texts])
    assert compare(first, first) == Estimate(value=0.0, se=0.0)
    difference = compare(first, second)
    scores = [each.score(TEXT, PROTOCOL).nats_per_token for each in (first, second)]
    assert difference.value == pytest.approx(scores[1].value - scores[0].value, abs=1e-12)
    assert difference.value < -2 * difference.se  # a fifth of the way to the truth
    assert difference.se < 0.5 * math.hypot(scores[0].se, scores[1].se)


def test_ledgers_of_other_sequences_are_not_compared():
    net = LAW.causal_network()
    whole = Likelihood().measure(Autoregressive(), net, [every()])
    part = Likelihood().measure(Autoregressive(), net, [every().narrow(0, 3)])
    with pytest.raises(DiscdiffError, match="8 and 3 sequences"):
        compare(whole, part)


def test_a_ratio_of_sums_is_not_a_mean_of_ratios():
    found = ratio(np.array([1.0, 30.0]), np.array([1.0, 10.0]))
    assert found.value == 31 / 11
    # The delta method by hand: residuals 1 - 31/11 and 30 - 310/11, twice their squares' sum over 11.
    residual = 1 - 31 / 11
    assert found.se == pytest.approx(math.sqrt(2 * 2 * residual**2) / 11)
    assert mean(np.array([1.0, 2.0, 4.0])).se == pytest.approx(np.std([1, 2, 4], ddof=1) / math.sqrt(3))


def test_the_error_over_sequences_is_the_spread_of_other_samples():
    generator = np.random.default_rng(0)
    found = []
    for _ in range(400):
        tokens = generator.integers(5, 50, 80)
        found.append(ratio(tokens * 2.0 + generator.normal(0, 1, 80) * tokens, tokens))
    spread = np.std([each.value for each in found])
    assert np.mean([each.se for each in found]) == pytest.approx(spread, rel=0.1)


def test_units_follow_from_sums():
    ledger = Ledger(np.arange(2), np.array([[[10.0]], [[20.0]]]), np.array([4, 6]))
    score = ledger.score(TEXT, PROTOCOL)
    assert score.nats_per_token.value == 3.0
    assert score.perplexity.value == pytest.approx(math.exp(3))
    assert score.perplexity.se == pytest.approx(math.exp(3) * score.se)
    assert score.bits_per_character.value == pytest.approx(3.0 * 100 / 250 / math.log(2))
    assert score.bits_per_byte.value == pytest.approx(3.0 * 100 / 260 / math.log(2))


def test_padding_and_context_are_not_counted():
    free = torch.ones(COUNT, 3, dtype=torch.bool)
    free[:, 0] = False
    whole = every()
    ledger = Likelihood().measure(
        Autoregressive(), LAW.causal_network(), [Canvas(whole.tokens, free, whole.rows)]
    )
    assert ledger.tokens.tolist() == [2] * COUNT
    first = torch.stack([LAW.log_next(whole.tokens[:, :0])[i, v] for i, v in enumerate(whole.tokens[:, 0])])
    expected = -(LAW.log_prob(whole.tokens) - first)
    assert np.allclose(ledger.sequence_nats, expected.numpy(), atol=1e-12)


def test_the_unigram_baseline_is_add_one():
    tokens = torch.tensor([[0, 1, 1], [2, 1, 0]])
    free = torch.tensor([[True, True, True], [True, False, False]])
    ledger = unigram(np.array([6, 3, 0]), [Canvas(tokens, free, torch.arange(2))])
    p = np.array([7, 4, 1]) / 12
    assert np.allclose(ledger.sequence_nats, [-np.log(p[0] * p[1] * p[1]), -np.log(p[2])])
    assert ledger.tokens.tolist() == [3, 1]


class Broken(nn.Module):
    vocab = 2

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.trunk: nn.Module = Constant(value)
        self.head: nn.Module = nn.Identity()

    def forward(self, x: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.trunk(x, t, condition)


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, t: Tensor, condition: object) -> Tensor:
        return torch.full((*x.shape, 2), self.value)


def test_weights_that_are_not_numbers_are_refused():
    with pytest.raises(
        DiscdiffError, match=r"the bound of sequence \d+ is nan .* evaluate an earlier checkpoint"
    ):
        Likelihood().measure(Mdlm(), Broken(math.nan), [every()])


def test_a_sequence_is_scored_once_and_some_are():
    ledger = Likelihood().measure(Autoregressive(), LAW.causal_network(), [every()])
    with pytest.raises(DiscdiffError, match="sequence 0 was scored twice"):
        merge([ledger, ledger])
    with pytest.raises(DiscdiffError, match="evaluation set is empty"):
        Likelihood().measure(Autoregressive(), LAW.causal_network(), [])


class Unscored:
    kind = "latent"
    unscored = "latent diffusion has no likelihood bound: its encoder is deterministic"


def test_a_method_without_a_bound_says_why():
    with pytest.raises(DiscdiffError, match="encoder is deterministic; report judge perplexity"):
        Likelihood().measure(Unscored(), nn.Identity(), [every()])


def test_dropout_is_off_while_scoring():
    net = LAW.causal_network().train()
    Likelihood().measure(Autoregressive(), net, [every()])
    assert not net.training


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(value=1.23456, se=0.0123), "1.235 ± 0.012"),
        (Estimate(value=24.5, se=1.3), "24.5 ± 1.3"),
        (Estimate(value=1.5, se=0.0), "1.5000"),
        (Estimate(value=1.5), "1.5"),
        (Estimate(value=2e149, se=3e151), "2e+149"),
    ],
)
def test_an_estimate_is_written_with_two_digits_of_its_error(estimate, text):
    assert str(estimate) == text
