"""Laws of guidance: on laws with known classes, the guided sampler draws from the class."""

import pytest
import torch
from scipy import stats
from torch import nn

from discdiff import oracle
from discdiff.methods import Gidd, Mdlm, Sedd, Udlm
from discdiff.noise import Noise
from discdiff.oracle import Labelled, Law, exact_law, on_tokens, total_variation
from discdiff.processes import Mask, Uniform
from discdiff.samplers import (
    ClassifierBased,
    ClassifierFree,
    Confidence,
    Euler,
    FirstHitting,
    Guided,
    Sampler,
)
from discdiff.types import Canvas, Condition, DiscdiffError

VOCAB = 3
CLASSES = Labelled([Law.random(VOCAB, 2, seed=s, contrast=1.5) for s in (1, 2)], [0.3, 0.7])


def product_law(weights):
    return Law(torch.tensor(weights, dtype=torch.float64)[oracle.every(VOCAB, 2)].sum(-1), VOCAB, 2)


APART = Labelled([product_law([0.0, 1.0, 2.0]), product_law([1.0, 1.0, -1.0])], [0.5, 0.5])


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def towards(label, rows=1):
    return Canvas(
        torch.zeros(rows, 2, dtype=torch.int64),
        torch.ones(rows, 2, dtype=torch.bool),
        torch.arange(rows),
        Condition(labels=torch.full((rows,), label)),
    )


def guided(method, guidance, steps, label=1, classes=CLASSES, **parts):
    sampler = Sampler(steps=steps, guidance=guidance, **parts)
    net = Guided(classes.network(method), classes.classifier(method.process))
    p = exact_law(sampler, method, net, 2, towards(label))
    return on_tokens(p, classes.mixture, method.process.states(VOCAB))


METHODS = [Mdlm(), Udlm(), Sedd(), Sedd(process=Uniform())]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: repr(m)[:20])
@pytest.mark.parametrize(("label", "strength"), [(0, 1.0), (1, 1.0), (0, 0.0), (-1, 1.7)])
def test_strength_one_is_the_class_and_zero_or_no_label_is_none(method, label, strength):
    law = CLASSES.mixture if strength == 0 or label == -1 else CLASSES.laws[label]
    bare = exact_law(Sampler(steps=8), method, law.network(method), 2)
    p = guided(method, ClassifierFree(strength=strength), 8, label)
    torch.testing.assert_close(p, on_tokens(bare, law, method.process.states(VOCAB)))


@pytest.mark.parametrize("method", [*METHODS, Gidd()], ids=lambda m: repr(m)[:20])
@pytest.mark.parametrize("strength", [0.5, 2.0, 3.0])
def test_positions_that_are_independent_follow_the_tilted_law_in_any_number_of_steps(method, strength):
    """w(x | label)^strength w(x)^(1 - strength), where the mixture too has independent positions."""
    apart = Labelled([APART.laws[0], APART.laws[0]], [0.5, 0.5])
    apart.mixture = APART.laws[1]
    tilted = (strength * apart.laws[0].log_p + (1 - strength) * apart.mixture.log_p).softmax(-1)
    p = guided(method, ClassifierFree(strength=strength), 3, 0, apart)
    torch.testing.assert_close(p, tilted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("reverse", [{}, {"reverse": Euler()}], ids=["ancestral", "euler"])
@pytest.mark.parametrize("method", [Mdlm(), Udlm()], ids=lambda m: m.kind)
def test_the_true_classifier_leads_to_its_class_at_the_rate_of_the_steps(method, reverse, label):
    target = CLASSES.laws[label].log_p.exp()
    errors = [
        total_variation(guided(method, ClassifierBased(), n, label, **reverse), target) for n in (8, 16, 32)
    ]
    assert total_variation(CLASSES.mixture.log_p.exp(), target) > 0.1
    assert errors[2] < 0.06
    assert errors[0] / errors[1] > 1.5
    assert errors[1] / errors[2] > 1.6


@pytest.mark.parametrize("label", [0, 1])
def test_one_token_a_step_makes_the_true_classifier_exact(label):
    for parts in ({"reverse": FirstHitting()}, {"order": Confidence()}):
        p = guided(Mdlm(), ClassifierBased(), 2, label, **parts)
        torch.testing.assert_close(p, CLASSES.laws[label].log_p.exp())


class Linear(nn.Module):
    """log p(label 0 | x) is linear in the one-hot tokens, so its first-order expansion is itself."""

    def forward(self, x, t):
        tokens = x if x.is_floating_point() else nn.functional.one_hot(x, VOCAB + 1).double()
        log_p = tokens[..., :VOCAB] @ torch.tensor([-0.1, -0.7, -1.5])
        first = log_p.sum(-1) - 0.2
        return torch.stack([first, torch.log(-torch.expm1(first))], dim=-1)


def test_the_first_order_expansion_is_exact_where_the_classifier_is_linear():
    laws = []
    for changes in ("all", "first_order"):
        sampler = Sampler(steps=4, guidance=ClassifierBased(strength=1.5, changes=changes))
        net = Guided(CLASSES.mixture.network(Mdlm()), Linear())
        laws.append(exact_law(sampler, Mdlm(), net, 2, towards(0)))
    torch.testing.assert_close(laws[0], laws[1])


@pytest.mark.parametrize("method", [Mdlm(), Udlm()], ids=lambda m: m.kind)
def test_the_first_order_expansion_of_the_true_classifier_leads_towards_its_class(method):
    target = CLASSES.laws[0].log_p.exp()
    bare = total_variation(guided(method, None, 32), target)
    once = total_variation(guided(method, ClassifierBased(changes="first_order"), 32, 0), target)
    assert once < 0.7 * bare


@pytest.mark.parametrize(
    "guidance", [ClassifierFree(strength=2.0), ClassifierBased(strength=0.7)], ids=lambda g: g.kind
)
@pytest.mark.parametrize("method", [Mdlm(), Udlm()], ids=lambda m: m.kind)
def test_samples_follow_the_law_of_their_guidance(method, guidance):
    net = Guided(CLASSES.network(method), CLASSES.classifier(method.process))
    sampler = Sampler(steps=3, guidance=guidance)
    draw = sampler.draw(method, net, towards(1, 4000), Noise(5).on(torch.arange(4000)))
    p = guided(method, guidance, 3)
    counts = torch.bincount(oracle.position(draw.tokens, VOCAB), minlength=len(p)).double()
    assert stats.chisquare(counts.numpy(), (p / p.sum() * 4000).numpy()).pvalue > 1e-3
    assert sampler.evaluations(2) == 3 * (2 if guidance.kind == "classifier_free" else 1)
    assert draw.evaluations.max() <= sampler.evaluations(2)


def test_guidance_without_labels_or_classifier_is_refused():
    unlabelled = Canvas(*(getattr(towards(0), name) for name in ("tokens", "free", "rows")))
    with pytest.raises(DiscdiffError, match="set labels"):
        Mdlm().sample(CLASSES.network(Mdlm()), unlabelled, Sampler(guidance=ClassifierFree()), Noise(0))
    with pytest.raises(DiscdiffError, match="Guided"):
        Mdlm().sample(CLASSES.network(Mdlm()), towards(0), Sampler(guidance=ClassifierBased()), Noise(0))


def test_the_classifier_of_the_oracle_is_bayes_rule():
    x = oracle.every(VOCAB + 1, 2)
    log_p = CLASSES.classifier(Mask())(x, torch.full((len(x), 1), 0.5))
    match = ((x == VOCAB)[:, None] | (x[:, None] == CLASSES.mixture.sequences)).all(-1).double()
    whole = match @ CLASSES.mixture.log_p.exp()
    for label, law in enumerate(CLASSES.laws):
        joint = match @ law.log_p.exp() * CLASSES.log_share[label].exp()
        torch.testing.assert_close(log_p[:, label].exp(), joint / whole)
