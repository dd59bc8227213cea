"""Duo: the argmax of Gaussians is uniform noise, the curriculum's limit is the bound, few steps come closer
after distillation.
"""

import math

import pytest
import torch
from scipy import integrate, special, stats
from training_problem import RECIPE, SUBJECT, VOCAB, Table, weights

from discdiff.methods import D3pm, Duo, DuoDistilled, FlowMatching, Mdlm, Multinomial, Sedd, Udlm
from discdiff.methods.duo import Curriculum
from discdiff.methods.duo_distilled import teacher_of
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.objectives import Steps
from discdiff.oracle import (
    Law,
    OracleNetwork,
    every,
    exact_bound,
    exact_density,
    exact_law,
    gauss_legendre,
    on_tokens,
    total_variation,
)
from discdiff.parameterizations import Posterior, ScaledScore
from discdiff.processes import Mask, Uniform, duality
from discdiff.samplers import GreedyTail, Listed, Psi, Sampler
from discdiff.schedules import Cosine, Linear, Power, SquaredCosine
from discdiff.training import Checkpoints, Recipe, check_start, fit, load, start_from
from discdiff.types import Canvas, DiscdiffError, canvas

LAW = Law.random(3, 2, seed=1)
WRONG = Law.random(3, 2, seed=7)
BACKBONE = Transformer(layers=1, width=16, heads=2)
COLD = Curriculum(temperature=1e-12)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


# The duality ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [3, 27, 50257])
def test_alpha_is_the_probability_that_the_argmax_is_kept(vocab):
    """P(the largest of V - 1 normals < ε + r), integrated over the quantiles of the largest instead."""
    ratio = double(0.05, 0.7, 2.5, 4.0, 5.5)

    def kept(r):
        def inside(u):
            return special.ndtr(r - special.ndtri(u ** (1 / (vocab - 1))))

        return integrate.quad(inside, 0, 1, epsabs=1e-13, limit=400)[0]

    k = double(*(kept(r) for r in ratio.tolist()))
    expected = (vocab * k - 1) / (vocab - 1)
    torch.testing.assert_close(duality.alpha(ratio, vocab), expected, rtol=0, atol=1e-9)


def test_alpha_of_two_tokens_is_an_error_function():
    ratio = torch.linspace(0, 10, 101, dtype=torch.float64)
    torch.testing.assert_close(duality.alpha(ratio, 2), torch.erf(ratio / 2), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("vocab", [2, 3, 27, 50257])
def test_alpha_rises_from_zero_to_one_and_its_derivative_is_its_derivative(vocab):
    ratio = torch.linspace(0, 12, 241, dtype=torch.float64).requires_grad_()
    alpha = duality.alpha(ratio, vocab)
    (slope,) = torch.autograd.grad(alpha.sum(), ratio)
    torch.testing.assert_close(duality.dalpha(ratio.detach(), vocab), slope, rtol=1e-11, atol=1e-14)
    alpha = alpha.detach()
    assert alpha[0] == 0
    assert alpha[-1] == pytest.approx(1, abs=1e-9)
    assert bool((alpha.diff() >= 0).all())
    for level in (0.05, 0.5, 0.95):
        at = duality.alpha(double(duality.ratio_of(level, vocab)), vocab)
        assert at.item() == pytest.approx(level, abs=1e-14)


def test_the_window_is_the_paper_s_for_the_paper_s_vocabulary():
    """log (noise / signal)^2 from -3.5 to -1.75 with the 30,522 tokens of BERT."""
    low, high = (-2 * math.log(duality.ratio_of(level, 30522)) for level in (0.95, 0.05))
    assert (low, high) == pytest.approx((-3.5, -1.75), abs=0.03)


@pytest.mark.parametrize(("vocab", "count"), [(2, 8), (5, 8), (40, 6)])
def test_the_argmax_has_the_law_of_uniform_noise(vocab, count):
    rows, x0, ratio = 20000, vocab // 2, 0.9
    tokens, latent = leading(vocab, count, rows, x0, ratio)
    drawn = tokens.gather(-1, latent.argmax(-1, keepdim=True)).flatten()
    alpha = duality.alpha(double(ratio), vocab).item()
    expected = torch.full((vocab,), (1 - alpha) / vocab, dtype=torch.float64)
    expected[x0] += alpha
    assert chi_square(torch.bincount(drawn, minlength=vocab), expected) > 1e-4


@pytest.mark.parametrize(("vocab", "count"), [(4, 8), (60, 5)])
def test_the_leading_latents_are_the_largest_of_plain_gaussians(vocab, count):
    """Their values, and how the softmax of the largest three weighs x_0: against vectors of V normals."""
    rows, x0, ratio = 20000, 1, 1.5
    tokens, latent = leading(vocab, count, rows, x0, ratio)
    assert all(len(set(row)) == len(row) for row in tokens[:100, 0].tolist())
    plain = torch.randn(rows, vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain[:, x0] += ratio
    plain = plain / math.sqrt(1 + ratio**2)
    latent = latent[:, 0]
    for index in range(3):
        ours = latent.sort(dim=-1, descending=True).values[:, index]
        theirs = plain.sort(dim=-1, descending=True).values[:, index]
        assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 1e-4
    share = latent[:, 0] - latent.topk(3).values.logsumexp(-1)
    theirs = plain[:, x0] - plain.topk(3).values.logsumexp(-1)
    assert stats.ks_2samp(share.numpy(), theirs.numpy()).pvalue > 1e-4


def test_all_tokens_are_mixed_alike():
    """Each of the other tokens is as often second largest as any."""
    tokens, latent = leading(6, 3, 20000, 2, 0.5)
    second = tokens[:, 0].gather(-1, latent[:, 0, 1:].argsort(descending=True)[:, 1:2] + 1)
    counts = torch.bincount(second.flatten(), minlength=6)[[0, 1, 3, 4, 5]]
    assert chi_square(counts, torch.full((5,), 0.2, dtype=torch.float64)) > 1e-4


def test_with_many_tokens_what_is_left_out_weighs_nothing():
    _, latent = leading(50257, 64, 200, 7, 2.5)
    share = (latent / 1e-3).log_softmax(-1)
    assert share.amin(-1).max() < -40
    assert bool(latent.isfinite().all())


def test_corruption_by_the_same_noise_is_the_path_of_the_argmax():
    """The joint law of (x_s, x_t): by Gaussians with ε held fixed, and by `Uniform.corrupt` called twice."""
    vocab, rows, x0 = 4, 30000, 1
    ratios = double(1.6, 0.6)
    alphas = duality.alpha(ratios, vocab)
    plain = torch.randn(rows, vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gaussian = [(plain + r * torch.eye(vocab)[x0]).argmax(-1) for r in ratios]
    noise = Noise(4).on(torch.arange(rows))
    clean = torch.full((rows, 1), x0)
    times = [(1 - alpha).expand(rows, 1) for alpha in alphas]
    corrupted = [Uniform().corrupt(clean, t, vocab, noise)[:, 0] for t in times]
    before, after = ((1 - alphas) / vocab).tolist()
    law = torch.zeros(vocab, vocab, dtype=torch.float64)
    law.fill_diagonal_(before)
    law[x0] = after - before
    law[x0, x0] = 1 - (vocab - 1) * after
    seen = law.flatten() > 0
    for x_s, x_t in (gaussian, corrupted):
        counts = torch.bincount(x_s * vocab + x_t, minlength=vocab**2)
        assert not counts[~seen].any()
        assert chi_square(counts[seen], law.flatten()[seen]) > 1e-4


def leading(vocab, count, rows, x0, ratio):
    noise = Noise(11).on(torch.arange(rows))
    clean = torch.full((rows, 1), x0)
    return duality.leading(clean, double(ratio).expand(rows, 1), vocab, count, noise)


def chi_square(counts, law):
    return stats.chisquare(counts.numpy(), (law / law.sum() * counts.sum()).numpy()).pvalue


# The curriculum ---------------------------------------------------------------------------------------------


class Hardened(torch.nn.Module):
    """The exact trunk, shown the most probable token of each mixture."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk

    def forward(self, x, t, condition):
        return self.trunk(x.argmax(-1), t, condition)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=repr)
def test_the_curriculum_s_limit_is_the_bound_within_its_window(schedule):
    """At temperature zero its mean is the integral of the bound's integrand, for a network that is wrong."""
    method = Duo(process=Uniform(schedule=schedule), curriculum=COLD)
    net = WRONG.network(method)
    high, low = schedule.inverse(double(*COLD.window)).tolist()
    theta, mass = gauss_legendre(40)
    x0 = LAW.sequences[4:5]
    exact = sum(
        m * (high - low) * exact_density(method, net, x0, low + (high - low) * a)
        for a, m in zip(theta, mass, strict=True)
    )
    drawn = method.loss(OracleNetwork(Hardened(net.trunk), 3), canvas(x0.expand(20000, 2)), Noise(3))
    assert abs(drawn.mean() - exact[0]) < 4 * drawn.std() / math.sqrt(len(drawn))
    assert exact > 0.1


def test_mixtures_tend_to_the_noisy_token_and_leave_what_is_given():
    x = batch()
    ratio = double(1.0).expand(6, 1)
    cold, x_t = Duo.mix(COLD, x, ratio, VOCAB, Noise(0).on(x.rows))
    warm, again = Duo.mix(Curriculum(temperature=0.3), x, ratio, VOCAB, Noise(0).on(x.rows))
    assert torch.equal(cold, torch.nn.functional.one_hot(x_t, VOCAB).float())
    assert torch.equal(x_t, again)
    assert torch.equal(warm.argmax(-1), x_t)
    torch.testing.assert_close(warm.sum(-1), torch.ones(x.shape))
    assert bool((warm[x.free].amax(-1) < 0.9).any())
    assert torch.equal(warm[~x.free], torch.nn.functional.one_hot(x.tokens[~x.free], VOCAB).float())
    assert bool((x_t != x.tokens).any())


def test_a_network_reads_a_certain_mixture_as_the_token():
    net = network(Duo())
    x, t = batch(), double(0.5).expand(6, 1)
    certain = torch.nn.functional.one_hot(x.tokens, VOCAB).float()
    torch.testing.assert_close(net(certain, t, x.condition), net(x.tokens, t, x.condition))


def test_bound_and_network_are_those_of_uniform_noise_and_so_is_training_after_the_curriculum():
    net, x = network(Duo()), batch()
    for method in (Duo(), Duo(curriculum=None)):
        assert torch.equal(method.bound(net, x, Noise(1)), Udlm().bound(net, x, Noise(1)))
    assert torch.equal(Duo(curriculum=None).loss(net, x, Noise(1)), Udlm().loss(net, x, Noise(1)))
    assert not torch.equal(Duo().loss(net, x, Noise(1)), Udlm().loss(net, x, Noise(1)))
    torch.testing.assert_close(
        exact_bound(Duo(), LAW.network(Duo()), LAW.sequences, nodes=40),
        -LAW.log_prob(LAW.sequences),
        rtol=0,
        atol=3e-6,
    )


def test_a_window_must_be_one():
    with pytest.raises(ValueError, match="interval of levels"):
        Curriculum(window=(0.9, 0.1))
    with pytest.raises(ValueError, match=r"window is .* and alpha goes from 1 to 0.2"):
        Duo(process=Uniform(schedule=Linear(eps=0.2)))


def batch(rows=6, length=8):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, VOCAB, (rows, length), generator=generator)
    return Canvas(tokens, torch.rand(rows, length, generator=generator) < 0.7, torch.arange(rows))


def network(method, backbone=BACKBONE):
    torch.manual_seed(0)
    net = method.network(backbone, VOCAB)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


# Stages of training -----------------------------------------------------------------------------------------


class Stop(Exception):  # noqa: N818
    pass


def train(method, folder=None, stop=None, precision="float32"):
    """Ten steps: the network at the end, and the losses."""
    recipe = RECIPE.model_copy(update={"precision": precision})
    subject = SUBJECT.model_copy(update={"method": method})
    net = subject.build(seed=3)
    if isinstance(method, DuoDistilled):
        start_from(method, net, network(method.first, SUBJECT.backbone))
    logs = []

    def log(step, metrics):
        logs.append(metrics.get("loss"))
        if step == stop:
            raise Stop

    checkpoints = Checkpoints(str(folder), subject, recipe) if folder else None
    fit(method, net, Table(), recipe, checkpoints=checkpoints, log=log)
    return net, logs


STAGED = [Duo(), Duo(curriculum=Curriculum(share=0.8)), DuoDistilled(teacher=Udlm(), steps=16, rounds=5)]


@pytest.mark.parametrize("stop", [5, 7, 9])
@pytest.mark.parametrize("method", STAGED, ids=lambda method: repr(method)[:20])
def test_a_resumed_run_is_in_the_same_stage(method, stop, tmp_path):
    whole, _ = train(method)
    with pytest.raises(Stop):
        train(method, tmp_path, stop)
    resumed, _ = train(method, tmp_path)
    for name, p in weights(whole).items():
        assert torch.equal(p, weights(resumed)[name]), name
    loaded = weights(load(str(tmp_path)).network)
    assert all(torch.equal(p, loaded[name]) for name, p in weights(whole).items())


def test_the_curriculum_lasts_for_its_share():
    _, curriculum = train(Duo(curriculum=Curriculum(share=1.0)))
    _, half = train(Duo(curriculum=Curriculum(share=0.5)))
    _, none = train(Duo(curriculum=None))
    assert half[:5] == curriculum[:5]
    assert half[5] != curriculum[5]
    assert half[0] != none[0]
    assert [Duo().stage(p).curriculum is None for p in (0.0, 0.49, 0.5, 1.0)] == [False, False, True, True]


def test_each_round_s_teacher_is_the_averaged_student_of_the_round_before():
    """Ten steps in rounds of 4, 3 and 3: the averages after steps 4 and 7 of a run that is stopped there."""
    method = DuoDistilled(teacher=Udlm(), steps=16, rounds=3)
    begun = network(Udlm(), SUBJECT.backbone)
    assert [method.stage(k / 10).steps for k in range(10)] == [16] * 4 + [8] * 3 + [4] * 3
    recipe = RECIPE.model_copy(update={"log_every": 1})
    net = SUBJECT.model_copy(update={"method": method}).build(seed=3)
    start_from(method, net, begun)
    path = [weights(net)]
    fit(method, net, Table(), recipe, log=lambda step, metrics: path.append(weights(net)))

    def averaged(step):
        powers = [RECIPE.ema ** (step - k) for k in range(1, step + 1)]
        return {n: sum(p * path[k + 1][n] for k, p in enumerate(powers)) / sum(powers) for n in path[0]}

    assert all(torch.equal(path[0][f"teacher.{name}"], p) for name, p in weights(begun).items())
    for step, round_end in ((4, 0), (5, 4), (7, 4), (8, 7), (10, 7)):
        source = path[0] if round_end == 0 else averaged(round_end)
        for name in weights(begun):
            torch.testing.assert_close(path[step][f"teacher.{name}"], source[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(path[5]["teacher.head.weight"], path[4]["teacher.head.weight"])


@pytest.mark.parametrize("method", STAGED[1:], ids=lambda method: repr(method)[:20])
def test_trunks_may_compute_in_bfloat16(method):
    _, losses = train(method, precision="bfloat16")
    assert all(0 < loss < math.inf for loss in losses)


# Distillation -----------------------------------------------------------------------------------------------

SEDD = Sedd(process=Uniform())
FLOW = FlowMatching(process=Uniform(schedule=Power(power=2)))
STUDENTS = [
    DuoDistilled(teacher=Duo()),
    DuoDistilled(teacher=Udlm(process=Uniform(schedule=Cosine())), process=Uniform(schedule=Cosine())),
    DuoDistilled(teacher=SEDD, parameterization=ScaledScore()),
    DuoDistilled(teacher=FLOW, process=FLOW.process, parameterization=Posterior()),
    DuoDistilled(teacher=D3pm(), clock=Steps()),
    DuoDistilled(teacher=Multinomial(), process=Uniform(schedule=SquaredCosine()), clock=Steps()),
    DuoDistilled(teacher=DuoDistilled(teacher=Udlm())),
]


@pytest.mark.parametrize("method", STUDENTS, ids=lambda method: method.first.kind)
def test_any_uniform_checkpoint_may_start_it_and_the_student_alone_learns(method):
    assert DuoDistilled.model_validate_json(method.model_dump_json()) == method
    start = network(method.first)
    check_start(*(SUBJECT.model_copy(update={"method": each}) for each in (method, method.first)))
    net, x = method.network(BACKBONE, VOCAB), batch(rows=64)
    start_from(method, net, start)
    assert torch.equal(method.bound(net, x, Noise(1)), method.first.bound(start, x, Noise(1)))
    loss = method.loss(net, x, Noise(1))
    assert bool((loss.detach() > -1e-5).all())
    loss.sum().backward()
    for name, p in net.named_parameters():
        assert (p.grad is None) == name.startswith("teacher."), name
        assert p.grad is None or bool(p.grad.isfinite().all())
    assert bool((net.head.weight.grad != 0).any())


def test_the_loss_is_the_divergence_between_the_ends_of_a_step():
    """Written out; the student's law first, and zero where both say the same."""
    method = DuoDistilled(teacher=Udlm(), steps=4, rounds=1)
    net, x = network(method), batch()
    noise = Noise(5).on(x.rows)
    s = noise.time() * 0.75
    x_s, x_t = (method.corrupt(x, time, VOCAB, noise) for time in (s, s + 0.25))
    taught = net.teacher(x_s, s, x.condition).softmax(-1)
    said = net(x_t, s + 0.25, x.condition).softmax(-1)
    expected = ((said * (said / taught).log()).sum(-1) * x.free).sum(-1)
    torch.testing.assert_close(method.loss(net, x, Noise(5)), expected, rtol=1e-4, atol=1e-5)
    for part in (net, net.teacher):
        torch.nn.init.zeros_(part.head.weight)
    assert torch.equal(method.loss(net, x, Noise(5)), torch.zeros(6))


MODES = Law(-4.0 * torch.minimum(every(2, 5).sum(1), 5 - every(2, 5).sum(1)).double(), 2, 5)
"""Nearly all ones or nearly all zeros: one position tells little, all together one bit."""


class Draws:
    """Rows of a law, endlessly."""

    rows_per_epoch = 2**14

    def __init__(self, law):
        generator = torch.Generator().manual_seed(0)
        index = torch.multinomial(law.log_p.exp(), self.rows_per_epoch, replacement=True, generator=generator)
        self.tokens = law.sequences[index]

    def read(self, start, count):
        rows = torch.arange(start, start + count)
        tokens = self.tokens[rows % self.rows_per_epoch]
        return Canvas(tokens, torch.ones_like(tokens, dtype=torch.bool), rows)

    def stream(self, start, count, stride):
        while True:
            yield self.read(start, count)
            start += stride


def test_distillation_brings_few_steps_closer_to_the_data():
    """Exact distances, in two and four steps, of a student and its teacher. No network that says the true
    law at each position is as close in so few steps, since positions are drawn independently.
    """
    backbone = Transformer(layers=1, width=32, heads=2)
    recipe = Recipe(steps=300, batch=128, learning_rate=3e-3, warmup=10, ema=0.99, log_every=100)
    torch.manual_seed(0)
    teacher = Duo(curriculum=Curriculum(share=0.3))
    net = teacher.network(backbone, 2)
    fit(teacher, net, Draws(MODES), recipe)
    student = DuoDistilled(teacher=teacher, steps=16, rounds=3)
    new = student.network(backbone, 2)
    start_from(student, new, net)
    fit(student, new, Draws(MODES), recipe.model_copy(update={"learning_rate": 1e-3, "ema": 0.9}))

    def distance(method, net, steps):
        p = exact_law(Sampler(steps=steps), method, net.double(), 5)
        return total_variation(on_tokens(p, MODES, 2), MODES.log_p.exp())

    for steps, gain in ((2, 1.8), (4, 1.8)):
        best = min(distance(teacher, net, steps), distance(teacher, MODES.network(teacher), steps))
        assert distance(student, new, steps) < best / gain


def test_the_greedy_tail_takes_the_mode_of_the_last_step_alone():
    """Its law is that of the steps before, each state then moved to its modes; draws follow it."""
    method = Duo()
    net = LAW.network(method)
    states, one = LAW.sequences, torch.ones(9, 1, dtype=torch.float64)
    last = method.log_bridge(net(states, one * 0.25, canvas(states).condition), states, 0 * one, one * 0.25)
    modes = last.argmax(-1)
    before = exact_law(Sampler(steps=3, grid=Listed(listed=(1.0, 0.5, 0.25, 0.0))), method, net, 2)
    sampler = Sampler(steps=3, grid=Listed(listed=(1.0, 0.5, 0.25, 0.0)), reverse=GreedyTail())
    after = exact_law(sampler, method, net, 2)
    assert bool((after[(states[:, None] != modes).any(-1).all(-1)] == 0).all())
    assert len(modes.unique(dim=0)) == int((after > 0).sum())
    assert not torch.allclose(before, after)
    drawn = method.sample(net, canvas(torch.zeros(6000, 2, dtype=torch.int64)), sampler, Noise(9))
    counts = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9)
    assert not counts[after == 0].any()
    assert chi_square(counts[after > 0], after[after > 0]) > 1e-4
    assert Sampler.model_validate_json(sampler.model_dump_json()) == sampler


def test_the_greedy_tail_needs_noise_that_changes_tokens():
    with pytest.raises(DiscdiffError, match="greedy tail needs noise that changes tokens"):
        Sampler(steps=4, reverse=GreedyTail()).check(Mdlm())
    with pytest.raises(ValueError, match="psi widens the ancestral step"):
        Sampler(steps=4, reverse=GreedyTail(), corrector=Psi())


# What is said of mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"teacher": Mdlm()}, "Mdlm can't be distilled .* take a teacher of that noise"),
        ({"teacher": Sedd(process=Mask())}, "Sedd can't be distilled"),
        ({"teacher": Duo(), "process": Uniform(schedule=Cosine())}, "student's process .* so set process to"),
        ({"teacher": SEDD}, "student's parameterization is LeaveOneOut.* so set parameterization"),
        ({"teacher": D3pm()}, "student's clock is Continuous.* so set clock"),
        ({"teacher": Duo(), "steps": 8, "rounds": 5}, "5 rounds from 8 steps"),
    ],
)
def test_what_cannot_be_distilled_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        DuoDistilled(**fields)


def test_another_checkpoint_is_no_start():
    method = DuoDistilled(teacher=Udlm())
    subject = SUBJECT.model_copy(update={"method": method})
    with pytest.raises(DiscdiffError, match="duo_distilled starts from a trained udlm"):
        check_start(subject, None)
    with pytest.raises(DiscdiffError, match=r"starts from Udlm.* and the checkpoint is of Duo"):
        check_start(subject, SUBJECT.model_copy(update={"method": Duo()}))
    other = Udlm().network(Transformer(layers=1, width=32, heads=2), VOCAB)
    with pytest.raises(DiscdiffError, match=r"another shape, in .* same backbone"):
        method.begin(method.network(BACKBONE, VOCAB), other)
    with pytest.raises(TypeError, match="teacher beside it"):
        teacher_of(network(Udlm()))
