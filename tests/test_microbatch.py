"""Batch-invariant draws: with a fixed microbatch the bits of a row's sample, prompt and all, depend on no
other row, though the network rounds.
"""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from test_families_draw import FAMILIES
from torch import nn

from discdiff.methods import Autoregressive, Block, Diffusion, DiscreteFlow, Mdlm, Udlm
from discdiff.networks import Transformer
from discdiff.networks.discrete_bases import Successive
from discdiff.networks.discrete_layers import Rightward
from discdiff.networks.transformer import Head, Trunk
from discdiff.noise import Noise
from discdiff.samplers import (
    Blocks,
    ClassifierBased,
    ClassifierFree,
    Confidence,
    EntropyBudget,
    FirstHitting,
    Gibbs,
    Guided,
    LeftToRight,
    Recorder,
    Remask,
    Sampler,
    TopP,
    Unchanged,
    Windows,
)
from discdiff.samplers.counting import draw
from discdiff.samplers.matrix import sampler_with
from discdiff.types import Canvas, Condition, canvas

VOCAB, LENGTH, ROWS, MICRO = 11, 12, 7, 2
ORDER = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))


class Classifier(nn.Module):
    """Logits of two labels from tokens or their one-hot vectors."""

    def __init__(self, states):
        super().__init__()
        self.embed, self.rest = nn.Linear(states, 24), nn.Linear(24, 2)
        self.states = states

    def forward(self, x, t):
        one_hot = x if x.is_floating_point() else nn.functional.one_hot(x, self.states).float()
        return self.rest(self.embed(one_hot).tanh().mean(1))


def network(method, width=32, **shape):
    torch.manual_seed(0)
    layers = 2 if isinstance(method, Diffusion) else 4
    net = method.network(Transformer(layers=layers, width=width, heads=2, **shape), VOCAB)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return net.eval()


def take(given, rows):
    """Some rows of a canvas, in the order given."""
    return Canvas(given.tokens[rows], given.free[rows], given.rows[rows], given.condition.taken(rows))


def blank(**condition):
    return replace(canvas(torch.zeros(ROWS, LENGTH).long()), condition=Condition(**condition))


def check_rows(method, net, given, sampler):
    """Rows alone, in other batches and in another order, to the bit; and why: all calls are of one shape."""
    seen = defaultdict(set)
    handles = [
        module.register_forward_hook(
            lambda module, inputs, _, name=name: seen[name].add(
                inputs[0][..., 0].numel() if isinstance(module, Head) else len(inputs[0])
            )
        )
        for name, module in net.named_modules()
        if isinstance(module, Trunk | Head | Classifier)
    ]
    together = method.sample(net, given, sampler, Noise(2))
    for rows in ORDER.split([1, 2, 4]):
        assert torch.equal(method.sample(net, take(given, rows), sampler, Noise(2)), together[rows])
    for handle in handles:
        handle.remove()
    assert seen
    assert all(len(rows) == 1 for rows in seen.values()), dict(seen)


@pytest.mark.parametrize("method", FAMILIES, ids=lambda method: method.kind)
def test_every_family_draws_rows_whose_bits_know_no_batch(method):
    check_rows(method, network(method), blank(), sampler_with(method, "microbatch", MICRO))


LABELS = torch.arange(ROWS) % 2
GUIDED = [ClassifierBased(strength=2.0), ClassifierBased(strength=2.0, changes="first_order")]
MASKED = [
    {"reverse": FirstHitting()},
    {"steps": 4, "order": Confidence()},
    {"order": EntropyBudget(nats=3.0)},
    {"steps": 4, "corrector": Gibbs(sweeps=2)},
    {"steps": 4, "corrector": Remask(), "filters": (TopP(p=0.9),)},
    {"steps": 4, "windows": Windows(size=6, stride=4)},
]
BOTH = [{"steps": 3, "guidance": g} for g in (ClassifierFree(strength=2.0), *GUIDED)]
PARTS = [(Mdlm(), parts) for parts in MASKED + BOTH]
PARTS += [(Udlm(), parts) for parts in [*BOTH, {"steps": 20, "cache": Unchanged()}]]


@pytest.mark.parametrize(("method", "parts"), PARTS, ids=lambda v: repr(v)[:60])
def test_so_do_the_parts_of_a_sampler(method, parts):
    given = blank(labels=LABELS) if "guidance" in parts else blank()
    net = network(method, time=False, labels=2 if "guidance" in parts else 0)
    if isinstance(parts.get("guidance"), ClassifierBased):
        net = Guided(net, Classifier(method.process.states(VOCAB)))
    check_rows(method, net, given, Sampler(microbatch=MICRO, **parts))


CACHED = {
    "autoregressive": (Autoregressive(), LeftToRight(microbatch=MICRO)),
    "block": (Block(inner=Mdlm(), size=4), Blocks(size=4, inside=Sampler(steps=4, microbatch=MICRO))),
    "block of uniform noise": (
        Block(inner=Udlm(), size=4),
        Blocks(size=4, inside=Sampler(steps=4, microbatch=MICRO)),
    ),
}
CACHED["flow"] = (
    flow := DiscreteFlow(layers=(Rightward(), Rightward()), base=Successive()),
    sampler_with(flow, "microbatch", MICRO),
)


def prompted():
    """Rows with prefixes of their own lengths, two of them none."""
    given = blank()
    lengths = torch.tensor([0, 3, 5, 3, 0, 3, 8])
    tokens = torch.randint(VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    return replace(given, tokens=tokens, free=torch.arange(LENGTH) >= lengths[:, None])


@pytest.mark.parametrize("case", CACHED)
def test_prompts_of_many_lengths_do_not_mix(case):
    """A prefix is read at once, by rows whose prefix is as long: else its length would be the batch's."""
    method, sampler = CACHED[case]
    given, net = prompted(), network(method)
    together = method.sample(net, given, sampler, Noise(2))
    assert torch.equal(together[~given.free], given.tokens[~given.free])
    for rows in ORDER.split([1, 2, 4]):
        assert torch.equal(method.sample(net, take(given, rows), sampler, Noise(2)), together[rows])


def test_features_too_are_the_same_bits_from_left_to_right():
    """Not tokens alone, which forgive most roundings: all that the head reads of a row."""
    method, sampler = CACHED["autoregressive"]
    net, given = network(method, width=128), prompted()

    def features(rows):
        found = defaultdict(list)

        def keep(module, inputs, output):
            for place, row in enumerate(inputs[2].rows.tolist()):
                if row not in inputs[2].rows[:place]:
                    found[int(rows[row])].append(output[place])

        handle = net.trunk.register_forward_hook(keep)
        method.sample(net, take(given, rows), sampler, Noise(2))
        handle.remove()
        return {row: torch.cat(each) for row, each in found.items()}

    together = features(torch.arange(ROWS))
    for rows in ORDER.split([1, 2, 4]):
        for row, found in features(rows).items():
            assert torch.equal(found, together[row])


@pytest.mark.parametrize("case", CACHED)
def test_groups_are_counted_and_watched_as_a_batch_is(case):
    """Traces and evaluations of each row are those of a draw without groups."""
    method, sampler = CACHED[case]
    plain = (
        sampler.model_copy(update={"inside": sampler.inside.model_copy(update={"microbatch": None})})
        if isinstance(sampler, Blocks)
        else sampler.model_copy(update={"microbatch": None})
    )
    given, net = blank(), network(method).double()
    recorders = [Recorder(rows=ROWS), Recorder(rows=ROWS)]
    tokens, counts = zip(
        *(
            draw(method, net, given, each, Noise(2), recorder)
            for each, recorder in zip((plain, sampler), recorders, strict=True)
        ),
        strict=True,
    )
    assert torch.equal(*tokens)
    ours, theirs = recorders
    assert ours.traces == theirs.traces
    assert [trace.states()[-1] for trace in theirs.traces] == tokens[0].tolist()
    assert counts[1].max() <= sampler.evaluations(LENGTH)
    assert isinstance(sampler, Blocks) or torch.equal(*counts)
