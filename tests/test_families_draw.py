"""Every family draws with every sampler that it takes and fills every prompt that it can; what it can't, it
says, before any work.
"""

import re
from dataclasses import replace
from typing import get_args

import pytest
import torch
from test_laws import METHODS_IN_TABLE

from discdiff.methods import AnyMethod, Autoencoder, Classifier, Diffusion
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.samplers import Blocks
from discdiff.samplers.counting import draw
from discdiff.samplers.guidance import ClassifierBased, Guided
from discdiff.samplers.matrix import PARTS, matrix, prompts, sampler_with
from discdiff.samplers.trace import Recorder
from discdiff.types import Condition, DiscdiffError, canvas

VOCAB, LENGTH, ROWS = 5, 64, 2
EACH = {method.kind: method for method in reversed(METHODS_IN_TABLE)}
SILENT = {Autoencoder, Classifier}
FAMILIES = [method for method in EACH.values() if type(method) not in SILENT]
"""All that can be drawn from."""


def network(method, labels=0):
    torch.manual_seed(0)
    layers = 1 if isinstance(method, Diffusion) else 4
    net = method.network(Transformer(layers=layers, width=16, heads=2, time=False, labels=labels), VOCAB)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def led(net, method):
    """The network with a classifier of three classes on the same noise."""
    return Guided(net, network(Classifier(process=method.process), labels=3))


def test_these_are_all_families():
    assert {type(method) for method in FAMILIES} == set(get_args(get_args(AnyMethod)[0])) - SILENT


def filled(kind):
    """The canvas of a kind of prompt, for two rows of five tokens."""
    given = prompts()[kind]
    tokens = torch.arange(LENGTH).expand(ROWS, LENGTH) % VOCAB
    allowed = None
    if given.allowed is not None:
        allowed = torch.tensor([True, False, True, False, False]).expand(ROWS, LENGTH, VOCAB)
    return replace(canvas(tokens), free=given.free.expand(ROWS, LENGTH), allowed=allowed)


@pytest.mark.parametrize("kind", list(prompts()))
@pytest.mark.parametrize("method", FAMILIES, ids=lambda method: method.kind)
def test_a_prompt_is_obeyed_or_refused_with_a_sentence(method, kind):
    given, net, sampler = filled(kind), network(method), method.default_sampler(4)
    (cell,) = [cell for cell in matrix([method]) if (cell.field, cell.part) == ("prompt", kind)]
    if cell.refusal is not None:
        assert len(cell.refusal.split()) > 8
        with pytest.raises(DiscdiffError, match=re.escape(cell.refusal)):
            method.sample(net, given, sampler, Noise(1))
        return
    tokens = method.sample(net, given, sampler, Noise(1))
    assert torch.equal(tokens[~given.free], given.tokens[~given.free])
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < VOCAB
    if given.allowed is not None:
        assert given.allowed.gather(-1, tokens[..., None]).all()


@pytest.mark.parametrize("method", FAMILIES, ids=lambda method: method.kind)
def test_a_draw_is_counted_and_its_trajectory_ends_in_it(method):
    recorder = Recorder(rows=ROWS)
    blank = canvas(torch.zeros(ROWS, LENGTH).long())
    sampler = method.default_sampler(4)
    tokens, evaluations = draw(method, network(method), blank, sampler, Noise(2), recorder)
    assert [trace.states()[-1] for trace in recorder.traces] == tokens.tolist()
    assert all(1 <= count <= sampler.evaluations(LENGTH) for count in evaluations.tolist())
    times = recorder.traces[0].times
    assert times[0] == 1
    assert isinstance(sampler, Blocks) or times == sorted(times, reverse=True)
    assert torch.equal(method.sample(network(method), blank, sampler, Noise(2)), tokens)


@pytest.mark.parametrize("method", FAMILIES, ids=lambda method: method.kind)
def test_every_part_that_the_matrix_grants_draws(method):
    """Each part alone, with what it asks for beside it, on a network with labels."""
    net = network(method, labels=3)
    labels = Condition(labels=torch.tensor([2, 0])) if isinstance(method, Diffusion) else Condition()
    blank = replace(canvas(torch.zeros(ROWS, 4).long()), condition=labels)
    granted = {(cell.field, cell.part) for cell in matrix([method]) if cell.refusal is None}
    for field, parts in PARTS.items():
        for part in parts:
            if (field, getattr(part, "kind", field)) not in granted:
                continue
            asked = led(net, method) if isinstance(part, ClassifierBased) else net
            tokens = method.sample(asked, blank, sampler_with(method, field, part), Noise(3))
            assert 0 <= int(tokens.min()) <= int(tokens.max()) < VOCAB
