"""Classes from text to samples: stores that are classes, one network that learns each of them and all of
them, and guidance towards one.
"""

import random
from pathlib import Path

import numpy as np
import pytest

from discdiff.data.build import build
from discdiff.data.characters import Characters
from discdiff.data.files import Files
from discdiff.data.packing import Wrap
from discdiff.data.specification import Tokenize
from discdiff.methods import Autoregressive, Classifier, Mdlm, Udlm
from discdiff.networks import Transformer
from discdiff.samplers import ClassifierBased, ClassifierFree, LeftToRight, Sampler
from discdiff.training import Recipe, Single
from discdiff.training.checkpoint import open_commit
from discdiff.types import DiscdiffError
from pipelines.artifacts import Checkpoint, Tokens
from pipelines.generate import Generate, Generator
from pipelines.train import Mixed, Train, fit_here, prepare

LENGTH = 8
TEXTS = ("abc", "cde")
"""The letters of each class; one of them is of both."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokens, ...]:
    return tuple(made(tmp_path_factory.mktemp(letters), letters) for letters in TEXTS)


def made(folder: Path, letters: str, alphabet: str = "abcde", lines: int = 300) -> Tokens:
    choose, weights = random.Random(letters), [1, 2, 1][: len(letters)]
    text = ["".join(choose.choices(letters, weights=weights, k=30)) for _ in range(lines)]
    (folder / "text.txt").write_text("\n".join(text))
    corpus = Files(url=str(folder / "text.txt"), separator="\n")
    spec = Tokenize(corpus=corpus, tokenizer=Characters(alphabet=alphabet))
    manifest = build(spec, str(folder / "store"))
    return Tokens(
        key=f"tokenize-{letters}",
        uri=str(folder / "store"),
        fingerprint=manifest.fingerprint,
        vocab=manifest.vocab,
        documents=lines,
        tokens=30 * lines,
    )


def spec_of(stores, method, labels=2, **changes):
    recipe = Recipe(
        steps=250,
        batch=32,
        learning_rate=1e-2,
        warmup=10,
        ema=0.95,
        label_dropout=0.4,
        validate_every=250,
        checkpoint_every=250,
    )
    fields = {"tokens": stores[0], "classes": stores[1:], "recipe": recipe, "packing": Wrap(length=LENGTH)}
    backbone = Transformer(layers=1, width=32, heads=2, labels=labels)
    return Train(method=method, backbone=backbone, **(fields | changes))


def letters_of(generator, rows):
    """How often each row's letters are of class 0 alone, and of class 1 alone."""
    table, _ = generator._batch(0, rows)
    ids = np.array(table["ids"].to_pylist())
    own = [generator.tokenizer.encode_batch([letters]).ids for letters in ("ab", "de")]
    return np.stack([np.isin(ids, each).mean(-1) for each in own], axis=-1)


@pytest.mark.parametrize(
    "method",
    [Mdlm(), Udlm(), Autoregressive()],
    ids=lambda method: method.kind,
)
def test_a_network_trained_on_classes_draws_the_class_that_it_is_asked_for(stores, tmp_path, method):
    spec = spec_of(stores, method)
    prepare(spec, 1, str(tmp_path))
    fit_here(spec, str(tmp_path), lambda step, metrics: None, parallel=Single(), device="cpu")
    checkpoint = Checkpoint(
        key="train-x", uri=str(tmp_path), label="x", method=method.kind, step=250, length=LENGTH, parameters=1
    )
    assert open_commit(checkpoint.uri)[1].subject.backbone.labels == 2

    def drawn(labels, length=LENGTH, **sampler):
        chosen = LeftToRight() if method.kind == "autoregressive" else Sampler(steps=16, **sampler)
        given = Generate(checkpoint=checkpoint, sampler=chosen, labels=labels, count=200, length=length)
        return letters_of(Generator(given, str(tmp_path / "out")), 200)

    each = drawn((0, 1))
    assert each[::2, 1].mean() < 0.05 < 0.5 < each[::2, 0].mean()
    assert each[1::2, 0].mean() < 0.05 < 0.5 < each[1::2, 1].mean()
    either = drawn(())
    assert either.mean(0).min() > 0.2  # labels were dropped: it knows both
    assert (np.minimum(either[:, 0], either[:, 1]) < 0.3).mean() > 0.8  # and a row is of one of them
    if method.kind != "autoregressive":
        # The letter of both: 1/4 of the class, and (1/4)^3 / (1/4)^2 to 3 of the others under guidance.
        shares = [
            1 - drawn((0,), length=1, guidance=ClassifierFree(strength=strength)).sum(-1).mean()
            for strength in (1.0, 3.0)
        ]
        assert abs(shares[0] - 1 / 4) < 0.1
        assert shares[1] < min(0.2, shares[0])


def test_classes_that_can_t_be_are_refused_before_any_worker_starts(stores, tmp_path, tmp_path_factory):
    with pytest.raises(DiscdiffError, match=r"backbone knows 0: set backbone\.labels=2"):
        prepare(spec_of(stores, Mdlm(), labels=0), 1, str(tmp_path))
    other = made(tmp_path_factory.mktemp("other"), "abc", alphabet="abc")
    with pytest.raises(DiscdiffError, match="different tokenizers"):
        prepare(spec_of(stores, Mdlm(), classes=(other,)), 1, str(tmp_path))
    with pytest.raises(DiscdiffError, match="length 100000 is longer"):
        prepare(spec_of(stores, Mdlm(), packing=Wrap(length=100_000)), 1, str(tmp_path))


def trained(spec: Train, uri: Path) -> Checkpoint:
    prepare(spec, 1, str(uri))
    fit_here(spec, str(uri), lambda step, metrics: None, parallel=Single(), device="cpu")
    kind = spec.chosen.kind
    return Checkpoint(
        key=f"train-{kind}", uri=str(uri), label=kind, method=kind, step=250, length=LENGTH, parameters=1
    )


@pytest.mark.parametrize("method", [Mdlm(), Udlm()], ids=lambda method: method.kind)
def test_a_classifier_leads_a_network_that_knows_no_classes(stores, tmp_path, method):
    """The network was trained on a mixture of both texts, without labels."""
    mixed = (Mixed(tokens=stores[1], weight=1.0),)
    model = trained(spec_of(stores, method, labels=0, classes=(), mixed=mixed), tmp_path / "model")
    spec = spec_of(stores, Classifier(process=method.process))
    gently = spec.recipe.model_copy(update={"learning_rate": 1e-3})
    guide = trained(spec.model_copy(update={"recipe": gently}), tmp_path / "classifier")

    def drawn(**given):
        fields = {"checkpoint": model, "sampler": Sampler(steps=16), "count": 100, "length": LENGTH} | given
        return letters_of(Generator(Generate(**fields), str(tmp_path / "out")), 100)

    for guidance, other, own in (
        (ClassifierBased(strength=1.5), 0.05, 0.6),
        (ClassifierBased(strength=5.0, changes="first_order"), 0.25, 0.45),
    ):
        each = drawn(sampler=Sampler(steps=16, guidance=guidance), classifier=guide, labels=(0, 1))
        assert each[::2, 1].mean() < other < own < each[::2, 0].mean()
        assert each[1::2, 0].mean() < other < own < each[1::2, 1].mean()
    assert drawn().mean(0).min() > 0.25


def test_a_classifier_of_one_class_is_refused_before_any_worker_starts(stores, tmp_path):
    with pytest.raises(
        DiscdiffError, match="text of one was given: give the stores of the others as classes"
    ):
        prepare(spec_of(stores, Classifier(), classes=()), 1, str(tmp_path))
