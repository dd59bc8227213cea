"""Laws of the classifier of noisy sequences: its loss is bounded below by the conditional entropy of the
label, which Bayes' rule and a free table reach, and what it has learned leads a diffusion to a class.
"""

import math
from dataclasses import replace

import pytest
import torch
from test_training import Stop, assert_same, train
from torch import nn
from training_problem import LENGTH, RECIPE, SUBJECT, VOCAB, Labelled, weights

from discdiff import oracle
from discdiff.methods import Block, Classifier, DiscreteFlow, Discriminative, Mdlm, Method, Scored, Udlm
from discdiff.networks import Transformer
from discdiff.networks.classifier import ClassifierNetwork
from discdiff.noise import Noise, Stream, categorical
from discdiff.oracle import Law, exact_law, gauss_legendre, total_variation
from discdiff.processes import Mask, Uniform
from discdiff.samplers import Blocks, ClassifierBased, Guided, Sampler
from discdiff.samplers.compatible import check
from discdiff.samplers.guidance import log_ratios
from discdiff.schedules import Cosine
from discdiff.training import Loss, Subject, World, check_classifier
from discdiff.training.validate import SEED_OFFSET, validate
from discdiff.types import Canvas, Condition, DiscdiffError

STATES, POSITIONS = 3, 2
LAW = oracle.Labelled([Law.random(STATES, POSITIONS, seed=s, contrast=1.5) for s in (1, 2)], [0.3, 0.7])
METHODS = [Classifier(), Classifier(process=Mask(schedule=Cosine())), Classifier(process=Uniform())]
BACKBONE = Transformer(layers=2, width=16, heads=2, labels=3)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: repr(method.process)[:30])


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(method, backbone=BACKBONE, vocab=VOCAB):
    torch.manual_seed(0)
    net = method.network(backbone, vocab)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return net.eval()


def given(rows=6, labels=None):
    canvas = Labelled().read(0, rows)
    chosen = canvas.condition.labels if labels is None else torch.tensor(labels)
    return replace(canvas, condition=Condition(labels=chosen))


# The law of its loss ----------------------------------------------------------------------------------------


class Table(nn.Module):
    """A free logit for each class and each noisy sequence, whatever the time."""

    def __init__(self, states, start=0.0):
        super().__init__()
        self.vocab, self.states = STATES, states
        generator = torch.Generator().manual_seed(3)
        self.logits = nn.Parameter(start * torch.randn(states**POSITIONS, 2, generator=generator))

    def forward(self, x, t, condition=None):
        tokens = x if not x.is_floating_point() else x.argmax(-1)
        return self.logits[oracle.position(tokens, self.states)]


class Knows(nn.Module):
    """Bayes' rule as a network."""

    def __init__(self, process):
        super().__init__()
        self.vocab, self.bayes = STATES, LAW.classifier(process)

    def forward(self, x, t, condition=None):
        return self.bayes(x, t[:, :1])


def joint(process, t):
    """log p(x_t, label) over all noisy sequences. `-> [K^L, C]`"""
    x = oracle.every(process.states(STATES), POSITIONS)
    likelihood = process.log_likelihood(x, torch.full(x.shape, t), STATES, torch.float64)
    reach = sum(likelihood[:, i, LAW.mixture.sequences[:, i]] for i in range(POSITIONS))
    laws = torch.stack([law.log_p for law in LAW.laws])
    return (reach[:, None] + laws).logsumexp(-1) + LAW.log_share


def entropy(process, t):
    """H(label | x_t) in nats, nothing drawn."""
    log_p = joint(process, t)
    given_x = log_p.log_softmax(-1)
    return -(log_p.exp() * given_x).nansum().item()


def cross_entropy(process, net, t):
    """E[-log p(label | x_t, t)] of a network, nothing drawn."""
    x = oracle.every(process.states(STATES), POSITIONS)
    log_p = net(x, torch.full((len(x), 1), t)).log_softmax(-1)
    weight = joint(process, t).exp()
    return -(weight * log_p)[weight > 0].sum().item()


def over_time(value):
    nodes, mass = gauss_legendre(40)
    return sum(w * value(float(t)) for t, w in zip(nodes, mass, strict=True))


def drawn(rows, first=0):
    """Rows of the law with their labels."""
    noise = Noise(11).on(torch.arange(first, first + rows))
    log_p = torch.stack([law.log_p for law in LAW.laws]) + LAW.log_share[:, None]
    u = noise.uniform(Stream.DATA, 1)[:, 0]
    pair = categorical(log_p.flatten().expand(rows, -1), u)
    labels, index = pair // log_p.shape[1], pair % log_p.shape[1]
    tokens = LAW.mixture.sequences[index]
    return Canvas(tokens, torch.ones_like(tokens, dtype=torch.bool), noise.rows, Condition(labels=labels))


@every_method
def test_no_network_is_below_the_conditional_entropy_and_bayes_rule_is_at_it(double, method):
    process = method.process
    bayes, wrong = Knows(process), Table(process.states(STATES), start=1.0)
    for t in (0.1, 0.5, 0.9):
        least = entropy(process, t)
        assert cross_entropy(process, bayes, t) == pytest.approx(least, abs=1e-12)
        assert cross_entropy(process, wrong, t) > least + 0.01
    base = -(LAW.log_share.exp() * LAW.log_share).sum().item()
    assert entropy(process, 1.0) == pytest.approx(base, abs=1e-9)
    assert entropy(process, 0.1) < 0.9 * base


@every_method
def test_the_loss_that_is_drawn_is_the_cross_entropy(double, method):
    process, rows = method.process, drawn(20_000)
    for net in (Knows(process), Table(process.states(STATES), start=1.0)):
        whole = method.loss(net, rows, Noise(5)).detach()
        exact = over_time(lambda t, net=net: cross_entropy(process, net, t))
        assert abs(whole.mean().item() - exact) < 4 * whole.std().item() / math.sqrt(len(whole))
        at = method.loss_at(net, rows, torch.full((len(whole), 1), 0.3), Noise(6)).detach()
        there = cross_entropy(process, net, 0.3)
        assert abs(at.mean().item() - there) < 4 * at.std().item() / math.sqrt(len(at))


@pytest.fixture(scope="module")
def learned():
    """A table that was trained by the loss; with mask noise, p(label | x_t) doesn't depend on the time."""
    torch.set_default_dtype(torch.float64)
    net = Table(STATES + 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for step in range(150):
        loss = Classifier().loss(net, drawn(4000, first=4000 * step), Noise(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 150)
        optimizer.step()
    torch.set_default_dtype(torch.float32)
    return net


def test_a_free_table_reaches_the_conditional_entropy(double, learned):
    process = Mask()
    least = over_time(lambda t: entropy(process, t))
    found = over_time(lambda t: cross_entropy(process, learned, t))
    start = over_time(lambda t: cross_entropy(process, Table(STATES + 1), t))
    assert start == pytest.approx(math.log(2))
    assert 0 <= found - least < 0.002 < 0.05 < start - least


def test_what_was_learned_leads_to_the_class_as_bayes_rule_does(double, learned):
    canvas = replace(drawn(1), condition=Condition(labels=torch.tensor([0])))
    sampler = Sampler(steps=16, guidance=ClassifierBased())
    laws = [
        exact_law(sampler, Mdlm(), Guided(LAW.mixture.network(Mdlm()), classifier), POSITIONS, canvas)
        for classifier in (learned, LAW.classifier(Mask()))
    ]
    bare = exact_law(Sampler(steps=16), Mdlm(), LAW.mixture.network(Mdlm()), POSITIONS)
    assert total_variation(*laws) < 0.02 < 0.1 < total_variation(bare, laws[1])


# Its network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_method
def test_a_one_hot_is_read_as_the_token_to_the_last_bit(method, dtype):
    net = network(method, Transformer(layers=2, width=48, heads=2, labels=3), vocab=997).to(dtype)
    states = method.process.states(997)
    x = torch.randint(states, (5, LENGTH), generator=torch.Generator().manual_seed(1))
    one_hot = nn.functional.one_hot(x, states).to(dtype)
    for t in (torch.rand(5, 1).double(), torch.rand(5, LENGTH).double()):
        assert torch.equal(net(x, t), net(one_hot, t))
    assert net(x, t).shape == (5, 3)


@every_method
def test_the_slope_in_embeddings_is_that_in_one_hot_tokens(double, method):
    """So the first-order expansion needs no one-hot of the vocabulary."""
    net, states = network(method).double(), method.process.states(VOCAB)
    x = torch.randint(states, (5, LENGTH), generator=torch.Generator().manual_seed(1))
    canvas = Canvas(x, torch.ones_like(x).bool(), torch.arange(5), Condition(labels=torch.arange(5) % 4 - 1))
    t, where = torch.rand(5, 1), x.bool().nonzero(as_tuple=True)
    first = ClassifierBased(changes="first_order", strength=1.5)
    plain = nn.Module()
    plain.forward = net.forward
    given = (canvas, x, t, where, states)
    expected = log_ratios(first, plain, *given)
    torch.testing.assert_close(log_ratios(first, net, *given), expected, rtol=1e-10, atol=1e-12)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(log_ratios(first, net, *given, microbatch=2), expected)


@every_method
def test_a_row_s_loss_does_not_depend_on_its_company(double, method):
    net, canvas = network(method).double(), given()
    whole = method.loss(net, canvas, Noise(0))
    parts = [method.loss(net, canvas.narrow(i, i + 1), Noise(0)) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=1e-12)
    assert len(set(whole.tolist())) > 2


@every_method
def test_rows_without_a_label_count_for_nothing_and_labels_are_not_seen(method):
    net = network(method)
    loss = [method.loss(net, given(3, labels), Noise(0)) for labels in ([0, -1, 2], [2, 1, 2])]
    assert loss[0][1] == 0
    assert loss[0][0] != loss[1][0]  # another label, the same logits
    assert torch.equal(loss[0][2], loss[1][2])
    assert method.units(given(3, [0, -1, 2])).tolist() == [True, False, True]


@every_method
def test_documents_stay_apart(method):
    """What a document's neighbor says changes no feature of it, so the mean moves by the neighbor's alone."""
    net, t = network(method), torch.full((1, 1), 0.4).double()
    x = torch.randint(VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    other = torch.cat([x[:, :4], (x[:, 4:] + 1) % VOCAB], dim=1)
    apart = Condition(documents=(torch.arange(LENGTH) >= 4).long()[None])
    features = [net.trunk(each, t, apart)[:, :4] for each in (x, other)]
    assert torch.equal(*features)
    assert not torch.equal(net(x, t, apart), net(x, t))


def test_context_is_shown_as_a_sampler_shows_it():
    """As data: at time 0 unless noise masks, and never noised."""
    canvas = given()
    free = torch.arange(LENGTH) >= 3
    canvas = replace(canvas, free=free.expand(6, LENGTH))
    for method in METHODS:
        seen = {}
        net = network(method)
        net.trunk.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.update(x=inputs[0], t=inputs[1])
        )
        method.loss(net, canvas, Noise(4))
        assert torch.equal(seen["x"][:, :3], canvas.tokens[:, :3])
        assert not torch.equal(seen["x"], canvas.tokens)
        drawn_at = {}
        inner = Mdlm(process=method.process) if isinstance(method.process, Mask) else Udlm()
        guided = Guided(network(inner, BACKBONE), network(method))
        guided.classifier.trunk.register_forward_pre_hook(
            lambda _, inputs, at=drawn_at: at.update(t=inputs[1])
        )
        inner.sample(guided, given(6, [0] * 6).with_tokens(canvas.tokens), guiding(), Noise(1))
        sampled = replace(canvas, condition=Condition(labels=torch.zeros(6).long()))
        inner.sample(guided, sampled, guiding(), Noise(1))
        assert seen["t"].shape[1] == drawn_at["t"].shape[1]
        if seen["t"].shape[1] > 1:
            assert not seen["t"][:, :3].any()
            assert not drawn_at["t"][:, :3].any()


def guiding(**parts):
    return Sampler(steps=4, guidance=ClassifierBased(), **parts)


@pytest.mark.parametrize("changes", ["all", "first_order"])
@pytest.mark.parametrize("method", [Mdlm(), Udlm()], ids=lambda method: method.kind)
def test_fixed_calls_of_the_classifier_round_a_row_alike_in_any_company(method, changes):
    torch.manual_seed(0)
    guided = Guided(network(method, BACKBONE), network(Classifier(process=method.process)))
    sampler = guiding(microbatch=4).model_copy(
        update={"guidance": ClassifierBased(strength=3, changes=changes)}
    )
    canvas = given(9, [0, 1, 2] * 3)
    canvas = replace(canvas, free=torch.ones_like(canvas.free))
    sizes = set()
    guided.classifier.trunk.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    whole = method.sample(guided, canvas, sampler, Noise(1))
    parts = [method.sample(guided, canvas.narrow(i, i + 1), sampler, Noise(1)) for i in range(9)]
    assert torch.equal(whole, torch.cat(parts))
    assert sizes == {4}
    bare = method.sample(guided, canvas, Sampler(steps=4, microbatch=4), Noise(1))
    assert not torch.equal(whole, bare)


# Training ---------------------------------------------------------------------------------------------------

SUBJECT_3 = Subject(
    method=Classifier(), backbone=BACKBONE, vocab=VOCAB, tokenizer=SUBJECT.tokenizer, length=LENGTH
)


def test_it_is_a_method_without_a_bound():
    method = Classifier(process=Uniform())
    assert Classifier.model_validate_json(method.model_dump_json()) == method
    assert isinstance(method, Method)
    assert isinstance(method, Discriminative)
    assert not isinstance(method, Scored)
    assert not isinstance(Mdlm(), Discriminative)


def test_a_step_s_loss_is_the_mean_over_labelled_rows_and_no_label_is_dropped():
    recipe = RECIPE.model_copy(update={"label_dropout": 1.0})
    _, logs, _ = train(net=SUBJECT_3.build(3), rows=Labelled(), subject=SUBJECT_3, recipe=recipe)
    canvas = Labelled().read(0, RECIPE.batch)
    labels = canvas.condition.labels
    assert 0 < (labels >= 0).sum() < len(labels)
    nats = Classifier().loss(SUBJECT_3.build(3), canvas, Noise(RECIPE.seed))
    assert logs[0][1]["loss"] == pytest.approx(nats.sum().item() / (labels >= 0).sum().item(), rel=1e-6)


def test_validation_reports_cross_entropy_and_accuracy_by_quarters_of_time():
    net, rows, recipe = network(Classifier()), Labelled(2), RECIPE.model_copy(update={"validate_rows": 48})
    found = validate(Loss(Classifier(), net), rows, recipe, World(0, 1, torch.device("cpu")))
    canvas = rows.read(0, 48)
    noise = Noise(RECIPE.seed + SEED_OFFSET).on(canvas.rows)
    known = canvas.condition.labels >= 0
    nats, t = Classifier().loss(net, canvas, noise)[known].detach(), noise.time()[known, 0]
    assert found["cross_entropy"] == pytest.approx(nats.mean().item(), rel=1e-6)
    early = nats[t < 0.25]
    assert found["cross_entropy_t0.00-0.25"] == pytest.approx(early.mean().item(), rel=1e-6)
    assert found["cross_entropy_t0.00-0.25_se"] == pytest.approx(
        early.std().item() / math.sqrt(len(early)), rel=0.2
    )
    quarters = [f"{q / 4:.2f}-{(q + 1) / 4:.2f}" for q in range(4)]
    counts = [((t >= q / 4) & (t < (q + 1) / 4)).sum().item() for q in range(4)]
    right = sum(found[f"accuracy_t{q}"] * n for q, n in zip(quarters, counts, strict=True))
    assert sum(counts) == len(nats)
    assert found["accuracy"] == pytest.approx(right / len(nats), rel=1e-9)
    assert 0 < found["accuracy"] < 1
    few = recipe.model_copy(update={"validate_rows": 2})
    assert len(validate(Loss(Classifier(), net), rows, few, World(0, 1, torch.device("cpu")))) < len(found)


def test_its_trunk_alone_computes_in_bfloat16_where_that_is_asked_for():
    net, seen = SUBJECT_3.build(3), {}
    net.trunk.blocks[0].project.register_forward_hook(lambda _, __, out: seen.update(trunk=out.dtype))
    net.head.register_forward_hook(lambda _, __, out: seen.update(head=out.dtype))
    recipe = RECIPE.model_copy(update={"precision": "bfloat16"})
    _, logs, _ = train(net=net, rows=Labelled(), subject=SUBJECT_3, recipe=recipe)
    assert seen == {"trunk": torch.bfloat16, "head": torch.float32}
    assert math.isfinite(logs[-1][1]["loss"])


@pytest.mark.parametrize("stop", [5, 8])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, stop):
    given = {"rows": Labelled(), "validation": Labelled(2), "subject": SUBJECT_3}
    whole, logs, _ = train(tmp_path / "a", net=SUBJECT_3.build(3), **given)
    with pytest.raises(Stop):
        train(tmp_path / "b", net=SUBJECT_3.build(3), stop=stop, **given)
    resumed, later, _ = train(tmp_path / "b", net=SUBJECT_3.build(99), **given)
    assert_same(weights(whole), weights(resumed))
    assert later == [entry for entry in logs if entry[0] >= later[0][0]]


# What can't be ----------------------------------------------------------------------------------------------


def test_what_a_classifier_can_t_do_it_says():
    method = Classifier()
    for call in (
        lambda: method.default_sampler(3),
        lambda: method.sample(network(method), given(), Sampler(), Noise(0)),
    ):
        with pytest.raises(DiscdiffError, match="generates nothing by itself: draw from a diffusion"):
            call()
    with pytest.raises(DiscdiffError, match="the backbone knows 1: set the backbone's labels"):
        method.network(Transformer(labels=1), 5)
    with pytest.raises(DiscdiffError, match="these rows have none: train on stores that are classes"):
        method.loss(network(method), replace(given(), condition=Condition()), Noise(0))


def test_samplers_that_have_no_whole_text_to_show_refuse_it():
    flow, block = DiscreteFlow(base=Mdlm()), Block(inner=Mdlm(), size=4)
    own = flow.default_sampler(3)
    for method, sampler in (
        (block, Blocks(size=4, inside=guiding())),
        (flow, own.model_copy(update={"base": guiding()})),
    ):
        with pytest.raises(DiscdiffError, match=f"the sampler {sampler.kind} shows none before it is done"):
            check(method, sampler)
    check(flow, own)


def subject(method, **changes):
    return SUBJECT_3.model_copy(update={"method": method, **changes})


BLIND = BACKBONE.model_copy(update={"time": False})


@pytest.mark.parametrize(
    ("model", "classifier"),
    [
        (subject(Mdlm()), subject(Classifier())),
        (subject(Mdlm(), backbone=SUBJECT.backbone), subject(Classifier())),
        (subject(Udlm()), subject(Classifier(process=Uniform()))),
        (subject(Mdlm()), subject(Classifier(process=Mask(schedule=Cosine())), backbone=BLIND)),
    ],
)
def test_a_classifier_that_fits_is_taken(model, classifier):
    check_classifier(model, classifier)


@pytest.mark.parametrize(
    ("model", "classifier", "message"),
    [
        (
            Mdlm(),
            subject(Udlm()),
            "the checkpoint of the classifier is of udlm: give one of method classifier",
        ),
        (
            Mdlm(),
            subject(Classifier(), tokenizer="other"),
            r"another tokenizer \(other, not 0123456789abcdef\)",
        ),
        (Mdlm(), subject(Classifier(), length=9), r"another length of rows \(9, not 8\): make them agree"),
        (Udlm(), subject(Classifier()), "was trained on mask noise, .* and udlm undoes uniform noise"),
        (
            Mdlm(),
            subject(Classifier(process=Mask(schedule=Cosine()))),
            r"Cosine.* and mdlm undoes mask noise, Linear.* or with backbone\.time=false",
        ),
        (
            Udlm(),
            subject(Classifier(process=Uniform(schedule=Cosine())), backbone=BLIND),
            "train one on the same noise$",
        ),
    ],
)
def test_a_classifier_that_doesn_t_fit_is_refused(model, classifier, message):
    with pytest.raises(DiscdiffError, match=message):
        check_classifier(subject(model), classifier)


def test_the_network_is_the_one_that_is_documented():
    net = network(Classifier())
    assert isinstance(net, ClassifierNetwork)
    x, t = given().tokens, torch.full((6, 1), 0.5).double()
    torch.testing.assert_close(net(x, t), net.head(net.trunk(x, t, Condition())).mean(1))
