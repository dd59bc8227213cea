"""Draws: exact at large vocabularies, independent of the batch, counted, kept, and in long sequences."""

import math
from collections import Counter

import pytest
import torch
from scipy import stats
from torch import nn

from discdiff.methods import Autoregressive, Block, GenMd4, Gidd, Mdlm, Udlm
from discdiff.networks import Transformer
from discdiff.noise import Noise, Stream
from discdiff.oracle import Law
from discdiff.samplers import (
    Blocks,
    ClassifierFree,
    Confidence,
    EntropyBudget,
    FirstHitting,
    ForwardBackward,
    Gibbs,
    Greedy,
    LeftToRight,
    Psi,
    Random,
    Remask,
    Rescale,
    Sampler,
    TopK,
    TopP,
    Unchanged,
    Windows,
)
from discdiff.samplers.bridge import bridge, mixed
from discdiff.samplers.compatible import check
from discdiff.samplers.counting import counted
from discdiff.samplers.counting import draw as draw_counted
from discdiff.samplers.matrix import matrix
from discdiff.training.labels import drop_labels
from discdiff.types import Canvas, Condition, DiscdiffError, canvas


def blank(rows, length, first=0):
    return canvas(torch.zeros(rows, length, dtype=torch.int64), first_row=first)


def take(given, rows):
    """Some rows of a canvas, in the order given."""
    return Canvas(given.tokens[rows], given.free[rows], given.rows[rows])


# Exactness at V = 50,257 and T = 1,024 ---------------------------------------------------------------

VOCAB, STEPS = 50_257, 1024


class Fixed(nn.Module):
    """A network that always states one law."""

    def __init__(self, logits):
        super().__init__()
        self.vocab = len(logits)
        self.trunk = Constant()
        self.head = Repeat(logits)

    def forward(self, x, t, condition):
        return self.head(self.trunk(x, t, condition))


class Constant(nn.Module):
    time = None

    def forward(self, x, t, condition):
        return torch.zeros(*x.shape, 1)


class Repeat(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, h):
        return self.logits.expand(*h.shape[:-1], -1)


def zipf(dtype):
    return -torch.arange(1, VOCAB + 1, dtype=torch.float64).log().to(dtype)


OCTAVES = torch.arange(1, VOCAB + 1).log2().floor().long()


def octave_law():
    return torch.zeros(16).double().index_add(0, OCTAVES, zipf(torch.float64).softmax(-1)).numpy()


@pytest.fixture(scope="module")
def sampled():
    """When 64 x 32 tokens were unmasked and to what, in float32 and in float64."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        seen = []
        sampler = Sampler(steps=STEPS)
        noise = Noise(3).on(torch.arange(64))
        last = [torch.full((64, 32), VOCAB)]

        def watch(t, x, seen=seen, last=last):
            seen.append(int(((last[0] == VOCAB) & (x != VOCAB)).sum()))
            last[0] = x

        tokens = sampler.run(Mdlm(), Fixed(zipf(dtype)), blank(64, 32), noise, watch)
        found[dtype] = (torch.tensor(seen[1:]), tokens)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_unmask_rate_and_tokens_are_exact_at_a_large_vocabulary(sampled, dtype):
    """Each step unmasks as many, so 16 groups of 64 steps are alike; tokens follow their law."""
    unmasked, tokens = sampled[dtype]
    assert unmasked.sum() == 64 * 32
    assert stats.chisquare(unmasked.reshape(16, -1).sum(-1).numpy()).pvalue > 1e-3
    counts = torch.bincount(OCTAVES[tokens.flatten()], minlength=16).numpy()
    assert stats.chisquare(counts, octave_law() * 64 * 32).pvalue > 1e-3


def test_float32_and_float64_sample_alike(sampled):
    (steps32, tokens32), (steps64, tokens64) = sampled[torch.float32], sampled[torch.float64]
    assert torch.equal(steps32, steps64)
    assert (tokens32 == tokens64).double().mean() > 0.999
    law = zipf(torch.float64).log_softmax(-1)
    surprise = [-law[tokens].mean().item() for tokens in (tokens32, tokens64)]
    assert abs(surprise[0] - surprise[1]) < 0.01


def gumbel_trajectories(positions, seed=0):
    """The joint Gumbel way with 24-bit uniforms, as float32 has: at each step the highest of log p + noise
    over all tokens and the mask. The highest of n uniforms is drawn as what it is, floor(2^24 u^(1/n)) /
    2^24, so octaves stand for their tokens. -> the step and octave at which each position is unmasked
    """
    generator = torch.Generator().manual_seed(seed)
    size = torch.bincount(OCTAVES).double()
    token = zipf(torch.float64).log_softmax(-1)
    level = torch.zeros(16).double().index_add(0, OCTAVES, token.exp()).log() - size.log()
    left, when, octave = torch.arange(positions), torch.zeros(positions).long(), torch.zeros(positions).long()
    for step in range(STEPS):
        unmask = 1 / (STEPS - step)
        u = torch.rand(len(left), 17, dtype=torch.float64, generator=generator)
        highest = (u ** (1 / torch.cat([size, torch.ones(1)])) * 2**24).floor() / 2**24
        gumbel = -(-highest.clamp_min(2.0**-24).log()).log()
        keep = math.log1p(-unmask) if unmask < 1 else -math.inf
        law = torch.cat([level + math.log(unmask), torch.tensor([keep])])
        drawn = (law + gumbel).argmax(-1)
        hit = drawn < 16
        when[left[hit]], octave[left[hit]], left = step, drawn[hit], left[~hit]
    return when, octave


def test_the_joint_gumbel_way_would_fail_these_laws():
    when, octave = gumbel_trajectories(2048)
    unmasked = torch.bincount(when // 64, minlength=16).numpy()
    assert stats.chisquare(unmasked).pvalue < 1e-9
    counts = torch.bincount(octave, minlength=16).numpy()
    assert stats.chisquare(counts, octave_law() * 2048).pvalue < 1e-9


# Independence of the batch ---------------------------------------------------------------------------

LAW = Law.random(3, 4, seed=3)
MASKED = [
    Sampler(steps=6),
    Sampler(reverse=FirstHitting()),
    Sampler(steps=3, order=Random()),
    Sampler(steps=3, order=Confidence()),
    Sampler(order=EntropyBudget(nats=0.8)),
    Sampler(steps=5, corrector=Remask(strength=Rescale(eta=0.5))),
    Sampler(steps=4, corrector=Gibbs(sweeps=2)),
    Sampler(steps=4, corrector=ForwardBackward()),
    Sampler(steps=4, filters=(TopP(p=0.8),)),
    Sampler(order=EntropyBudget(nats=0.8), windows=Windows(size=4, stride=4)),
]
CASES = [(Mdlm(), s) for s in MASKED] + [
    (m, s) for m in (Udlm(), Gidd()) for s in (Sampler(steps=6), Sampler(steps=4, corrector=Psi(share=0.4)))
]


@pytest.mark.parametrize(("method", "sampler"), CASES, ids=lambda v: repr(v)[:120])
def test_a_row_s_sample_does_not_depend_on_its_batch(method, sampler):
    """Bit for bit, with a network that has no rounding of its own."""
    torch.set_default_dtype(torch.float64)
    try:
        net, given = LAW.network(method), blank(12, 4, first=2**33)
        free = torch.rand(12, 4, generator=torch.Generator().manual_seed(0)) < 0.8
        given = Canvas(given.tokens, free, given.rows)
        together = method.sample(net, given, sampler, Noise(1))
        order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
        assert torch.equal(method.sample(net, take(given, order), sampler, Noise(1)), together[order])
        for rows in order.split([1, 4, 7]):
            assert torch.equal(method.sample(net, take(given, rows), sampler, Noise(1)), together[rows])
        assert len(method.sample(net, blank(12, 4), sampler, Noise(1)).unique(dim=0)) > 1
    finally:
        torch.set_default_dtype(torch.float32)


def network(method, vocab=11, **shape):
    torch.manual_seed(0)
    net = method.network(Transformer(layers=2, width=32, heads=2, **shape), vocab)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return net.eval()


@pytest.mark.parametrize("method", [Mdlm(), Udlm()], ids=lambda m: m.kind)
def test_a_fixed_microbatch_takes_the_batch_out_of_the_network_s_rounding(method):
    net, given = network(method), blank(9, 12)
    sampler, shapes = Sampler(steps=6, microbatch=4), Counter()
    handle = net.trunk.register_forward_hook(lambda module, inputs, output: shapes.update([len(inputs[0])]))
    together = method.sample(net, given, sampler, Noise(2))
    handle.remove()
    assert set(shapes) == {4}
    for rows in torch.randperm(9, generator=torch.Generator().manual_seed(1)).split([1, 3, 5]):
        assert torch.equal(method.sample(net, take(given, rows), sampler, Noise(2)), together[rows])


def test_predictions_are_read_in_pieces_each_in_its_place():
    """At a large vocabulary a reader is given some positions at a time, with their tokens and times."""
    given = blank(9, 15)
    x = torch.randint(VOCAB, (9, 15), generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)[:, None]
    predictor = Sampler().predictor(Mdlm(), Fixed(zipf(torch.float32)), given)
    predictor.look(x, times)
    where = (x % 3 > 0).nonzero(as_tuple=True)
    sizes = []

    def read(dynamics, raw, x_t, t, part):
        sizes.append(len(raw))
        assert len(raw) == len(x_t) == len(t) == len(where[0][part])
        return torch.stack([x_t.double(), t, where[0][part].double(), raw[:, 7].double()], dim=-1)

    found = predictor.each(where, read)
    assert len(sizes) > 3
    expected = [
        x[where].double(),
        times[where[0], 0],
        where[0].double(),
        torch.full((len(found),), -math.log(8)).double(),
    ]
    for column, value in zip(found.unbind(-1), expected, strict=True):
        torch.testing.assert_close(column, value)
    nothing = (where[0][:0], where[1][:0])
    assert predictor.each(nothing, lambda dynamics, raw, x_t, t, part: raw.sum(-1)).shape == (0,)


# Evaluations and what is kept ------------------------------------------------------------------------


def test_a_step_that_unmasks_nothing_asks_nothing():
    """Eight tokens in 64 steps: eight evaluations a row at most."""
    net = network(Mdlm())
    sampler = Sampler(steps=64)
    draw = sampler.draw(Mdlm(), net, blank(5, 8), Noise(0).on(torch.arange(5)))
    assert draw.evaluations.max() <= 8 < Sampler(steps=64).evaluations(8)
    assert draw.calls < 64
    each = [
        Sampler(steps=64).draw(Mdlm(), net, blank(1, 8, r), Noise(0).on(torch.tensor([r]))) for r in range(5)
    ]
    assert [int(one.evaluations) for one in each] == draw.evaluations.tolist()


def test_the_cache_of_unchanged_inputs_changes_the_count_alone():
    method, noise = Udlm(), Noise(4).on(torch.arange(6))
    net = network(method, time=False).double()
    plain = Sampler(steps=40).draw(method, net, blank(6, 5), noise)
    kept = Sampler(steps=40, cache=Unchanged()).draw(method, net, blank(6, 5), noise)
    assert torch.equal(plain.tokens, kept.tokens)
    assert plain.evaluations.tolist() == [40] * 6
    assert kept.evaluations.max() < 40
    with pytest.raises(DiscdiffError, match="time=False"):
        Sampler(cache=Unchanged()).run(method, network(method), blank(6, 5), noise)


def test_evaluations_are_counted_as_they_are_made():
    labels = Condition(labels=torch.tensor([0, 1, 0]))
    given = Canvas(*(getattr(blank(3, 6), name) for name in ("tokens", "free", "rows")), labels)
    net, noise = network(Udlm(), labels=2), Noise(0).on(given.rows)
    for sampler in (
        Sampler(steps=5),
        Sampler(steps=5, guidance=ClassifierFree(strength=2.0)),
        Sampler(steps=5, corrector=Gibbs(sweeps=2)),
        Sampler(steps=5, windows=Windows(size=4, stride=2)),
    ):
        calls = []
        handle = net.trunk.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        draw = sampler.draw(Udlm(), net, given, noise)
        handle.remove()
        assert draw.evaluations.tolist() == [len(calls)] * 3 == [sampler.evaluations(6)] * 3
        assert draw.calls == len(calls)


@pytest.mark.parametrize(
    ("method", "sampler"),
    [
        (Mdlm(), Sampler(steps=20)),
        (Mdlm(), Sampler(steps=20, microbatch=2)),
        (Mdlm(), Sampler(order=EntropyBudget(nats=4.0))),
        (Mdlm(), Sampler(steps=6, windows=Windows(size=4, stride=2))),
        (Mdlm(), Sampler(steps=6, corrector=Gibbs())),
        (Udlm(), Sampler(steps=20, cache=Unchanged())),
        (Udlm(), Sampler(steps=5)),
    ],
    ids=lambda v: repr(v)[:100],
)
def test_the_trunk_sees_the_evaluations_that_the_sampler_counts(method, sampler):
    """Row by row, also where rows differ: what `counted` hears is what `Draw.evaluations` says."""
    net, given = network(method, time=False), blank(5, 7)
    tokens, heard = draw_counted(method, net, given, sampler, Noise(3))
    said = sampler.draw(method, net, given, Noise(3).on(given.rows))
    assert torch.equal(tokens, said.tokens)
    assert torch.equal(heard, said.evaluations)


def test_rows_that_differ_are_counted_apart():
    free = torch.ones(4, 8, dtype=torch.bool)
    free[1, 2:], free[2] = False, False
    given = Canvas(torch.zeros(4, 8).long(), free, torch.arange(4))
    net = network(Mdlm())
    assert draw_counted(Mdlm(), net, given, Sampler(reverse=FirstHitting()), Noise(0))[1].tolist() == [
        8,
        2,
        0,
        8,
    ]
    block = Block(inner=Mdlm(), size=4)
    inside = Blocks(size=4, inside=Sampler(reverse=FirstHitting()))
    calls = draw_counted(block, network(block), blank(4, 8), inside, Noise(0))[1]
    assert calls.tolist() == [9] * 4  # 4 a block, and one to keep the first
    with counted(net, 3) as count:
        net(torch.zeros(3, 8).long(), torch.full((3, 1), 0.5).double(), Condition())
    assert count().tolist() == [1, 1, 1]


# Long sequences --------------------------------------------------------------------------------------


def test_windows_continue_what_stands_before_them():
    """The second window is what sampling it alone, given the end of the first, would give."""
    net, noise = network(Mdlm()), Noise(6).on(torch.arange(4))
    sampler = Sampler(steps=6, windows=Windows(size=8, stride=5))
    long = sampler.run(Mdlm(), net, blank(4, 13), noise)
    plain = sampler.model_copy(update={"windows": None})
    first = plain.run(Mdlm(), net, blank(4, 8), noise)
    assert torch.equal(long[:, :8], first)
    free = torch.tensor([False] * 3 + [True] * 5).expand(4, 8)
    prompt = Canvas(torch.cat([first[:, 5:], torch.zeros(4, 5).long()], 1), free, torch.arange(4))
    assert torch.equal(long[:, 5:], plain.run(Mdlm(), net, prompt, noise.at(2**20)))
    widths = []
    handle = net.trunk.register_forward_hook(lambda module, inputs, output: widths.append(inputs[0].shape[1]))
    sampler.run(Mdlm(), net, blank(4, 30), noise)
    handle.remove()
    assert max(widths) == 8


INSIDE = {
    "step": Sampler(steps=2),
    "hit": Sampler(reverse=FirstHitting()),
    "remask": Sampler(steps=4, corrector=Remask()),
}


@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
def test_blocks_keep_keys_and_values_exactly(inside):
    """With the cache the samples are those of evaluating all that stands before each block again."""
    method = Block(inner=Mdlm(), size=4)
    net, noise = network(method).double(), Noise(8).on(torch.arange(3))
    x = torch.zeros(3, 12, dtype=torch.int64)
    cached = method.sample(net, canvas(x), Blocks(size=4, inside=inside), noise)
    for index, start in enumerate(range(0, 12, 4)):
        again = InFront(net, x[:, :start])
        block = inside.run(method.diffusion, again, blank(3, 4), noise.at(index * 2**20))
        x[:, start : start + 4] = block
    assert torch.equal(cached, x)


class InFront(nn.Module):
    """A network over a block, given what stands before it, evaluated whole each time."""

    def __init__(self, net, before):
        super().__init__()
        self.vocab, self.head, self.whole_batch = net.vocab, net.head, True
        self.trunk = Joined(net.trunk, before)


class Joined(nn.Module):
    def __init__(self, trunk, before):
        super().__init__()
        self.inner, self.before = trunk, before

    def forward(self, x, t, condition):
        times = torch.cat([torch.zeros(self.before.shape), t.expand(x.shape)], 1).double()
        return self.inner(torch.cat([self.before, x], 1), times, condition)[:, self.before.shape[1] :]


def test_blocks_that_are_given_are_read_at_once():
    """One evaluation keeps them all, and changes nothing; a row with fewer of them sets their number."""
    method, sampler = Block(inner=Mdlm(), size=4), Blocks(size=4, inside=Sampler(steps=4))
    net = network(method).double()
    whole = method.sample(net, blank(3, 19), sampler, Noise(8))
    for front, kept in ((torch.tensor([8, 12, 8]), 8), (torch.tensor([19, 19, 19]), 16)):
        given = Canvas(whole, torch.arange(19) >= front[:, None], torch.arange(3))
        calls = []
        handle = net.trunk.register_forward_hook(lambda _, x, __, calls=calls: calls.append(x[0].shape[1]))
        assert torch.equal(method.sample(net, given, sampler, Noise(8)), whole)
        handle.remove()
        assert calls[0] == kept
        assert max(calls[1:], default=0) <= 4


# From left to right ----------------------------------------------------------------------------------


def test_a_prefix_is_read_at_once_and_changes_nothing():
    net = network(Autoregressive()).double()
    given = blank(3, 9)
    whole = Autoregressive().sample(net, given, LeftToRight(), Noise(1))
    free = torch.tensor([False] * 5 + [True] * 4).expand(3, 9)
    calls = []
    handle = net.trunk.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape[1]))
    again = Autoregressive().sample(net, Canvas(whole, free, given.rows), LeftToRight(), Noise(1))
    handle.remove()
    assert torch.equal(again, whole)
    assert calls == [6, 1, 1, 1]


def test_filters_and_allowed_tokens_hold_from_left_to_right():
    net = network(Autoregressive())
    greedy = Autoregressive().sample(net, blank(4, 6), LeftToRight(filters=(Greedy(),)), Noise(1))
    assert len(greedy.unique(dim=0)) == 1
    first = Autoregressive().sample(net, blank(400, 1), LeftToRight(filters=(TopK(k=3),)), Noise(1))
    assert len(first.unique()) == 3
    allowed = torch.zeros(4, 6, 11, dtype=torch.bool)
    allowed[..., [2, 7]] = True
    given = Canvas(*(getattr(blank(4, 6), name) for name in ("tokens", "free", "rows")), allowed=allowed)
    assert set(Autoregressive().sample(net, given, LeftToRight(), Noise(1)).unique().tolist()) <= {2, 7}


# What fits what --------------------------------------------------------------------------------------


def test_a_sampler_of_another_kind_is_refused():
    with pytest.raises(DiscdiffError, match="give 'left_to_right'"):
        check(Autoregressive(), Sampler())
    with pytest.raises(DiscdiffError, match="give 'reverse'"):
        check(Mdlm(), LeftToRight())
    with pytest.raises(DiscdiffError, match="mask noise"):
        check(Block(inner=Udlm(), size=4), Blocks(size=4, inside=Sampler(order=Random())))
    with pytest.raises(DiscdiffError, match="make them agree"):
        check(Block(inner=Udlm(), size=4), Blocks(size=8))


def test_the_matrix_says_what_sampling_does():
    cells = matrix([Autoregressive(), Mdlm(), Udlm(), GenMd4()])

    def refused(method):
        return {cell.part for cell in cells if cell.method == method and cell.refusal}

    def taken(method):
        return {cell.part for cell in cells if cell.method == method and not cell.refusal}

    orders = {"random", "confidence", "margin", "entropy", "entropy_budget"}
    filters = {cell.part for cell in cells if cell.field == "filters"}
    anywhere = {"prefix", "suffix", "infill"}
    vectors = {"ddpm", "ddim", "probability_flow", "clamping"}
    assert refused("mdlm (mask)") == {"unchanged", "greedy_tail", *vectors}
    assert refused("udlm (uniform)") == {"first_hitting", "remask", *orders, *vectors}
    assert taken("autoregressive") == {*filters, "microbatch", "prefix", "allowed tokens"}
    steps = {"even", "cosine", "through", "listed", "ancestral", "euler", "windows", "microbatch"}
    assert taken("genmd4 (mask)") == steps | anywhere
    assert all(cell.refusal is None or len(cell.refusal.split()) > 4 for cell in cells)


# Labels ----------------------------------------------------------------------------------------------


def test_labels_are_dropped_by_row_whatever_the_batch():
    rows = torch.arange(5000)
    given = Canvas(torch.zeros(5000, 1).long(), torch.ones(5000, 1).bool(), rows, Condition(labels=rows % 7))
    dropped = drop_labels(given, Noise(3), 0.2).condition.labels
    assert abs((dropped == -1).double().mean() - 0.2) < 4 * 0.4 / math.sqrt(5000)
    assert torch.equal(dropped[dropped >= 0], (rows % 7)[dropped >= 0])
    part = drop_labels(given.narrow(100, 200), Noise(3), 0.2).condition.labels
    assert torch.equal(part, dropped[100:200])
    assert drop_labels(given, Noise(3), 0.0) is given
    u = Noise(3).on(rows).uniform(Stream.DROP_LABEL, 1)[:, 0]
    assert torch.equal(dropped == -1, u < 0.2)


# Heads that are not asked ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Udlm(), Gidd()], ids=lambda m: m.kind)
@pytest.mark.parametrize(("s", "t"), [(0.97, 1.0), (0.5, 0.52), (0.2, 0.6), (0.0, 0.02)])
def test_positions_that_stay_whatever_the_network_says_are_those_that_would(method, s, t):
    """Token by token the draws of asking the head everywhere, and in small steps it is asked of few."""
    net, given = network(method), blank(40, 25)
    noise = Noise(4).on(given.rows)
    time = torch.full((40, 1), t, dtype=torch.float64)
    x_t = method.corrupt(canvas(torch.randint(11, (40, 25))), time, 11, noise)
    predictor = Sampler().predictor(method, net, given)
    predictor.look(x_t, time)
    where = torch.ones(40, 25).nonzero(as_tuple=True)
    u, value = (noise.uniform(stream, 25)[where] for stream in (Stream.STEP, Stream.STEP_VALUE))
    asked = []
    handle = net.head.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    drawn = bridge(predictor, where, s, u, value)
    handle.remove()
    assert torch.equal(drawn, mixed(predictor, where, s, u, value))
    assert sum(asked) < 100 if (s, t) == (0.5, 0.52) else sum(asked) >= (drawn != x_t[where]).sum()
    assert bool((drawn != x_t[where]).any())
