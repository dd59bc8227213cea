"""Training on weighted mixtures of stores: the shares reach the batches, and a killed run leaves no trace."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from checkpoint_problem import record
from pydantic import ValidationError
from test_classes import made
from training_problem import weights

from discdiff.data.characters import Symbols
from discdiff.data.files import Files
from discdiff.data.laws import Law, MarkovChain
from discdiff.data.loader import Loader
from discdiff.data.mixture import PERIOD, Mixture
from discdiff.data.packing import Wrap
from discdiff.data.specification import Tokenize
from discdiff.methods import Mdlm
from discdiff.networks import Transformer
from discdiff.processes import Mask
from discdiff.schedules import Cosine
from discdiff.training import Loss, Recipe, Single, load
from discdiff.training.checkpoint import latest_step
from discdiff.types import DiscdiffError
from pipelines import presets
from pipelines.artifacts import Tokens
from pipelines.experiment import Beside, Experiment, Lineage, Search
from pipelines.plan import Plan
from pipelines.runner import _inputs
from pipelines.specs import specification
from pipelines.tokenize import tokenize
from pipelines.train import Mixed, Train, fit_here, prepare, reading, train
from pipelines.tune import Tune

LENGTH = 4
SHARES = (1.0, 0.5, 0.25)
TEXTS = ("ab", "cd", "ef")
"""Letters that tell which store a row is of."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Tokens]:
    found = [made(tmp_path_factory.mktemp(letters), letters, alphabet="abcdef") for letters in TEXTS]
    for each in found:
        record("tokenize", each)
    return found


def spec_of(stores: list[Tokens], **changes) -> Train:
    recipe = Recipe(
        steps=16, batch=4096, validate_every=16, validate_rows=2048, checkpoint_every=4, log_every=16
    )
    fields = {
        "tokens": stores[0],
        "mixed": tuple(
            Mixed(tokens=store, weight=share) for store, share in zip(stores[1:], SHARES[1:], strict=True)
        ),
        "method": Mdlm(),
        "backbone": Transformer(layers=1, width=8, heads=1),
        "packing": Wrap(length=LENGTH),
        "recipe": recipe,
    }
    return Train(**(fields | changes))


def owners(tokens: torch.Tensor) -> Counter[int]:
    """How many rows are of each store; separators stand behind the letters and belong to any."""
    letters = [[token for token in row if token < 6] for row in tokens.tolist()]
    assert all(len({token // 2 for token in row}) == 1 for row in letters)
    return Counter(row[0] // 2 for row in letters)


def run(spec: Train, uri: Path) -> dict[str, torch.Tensor]:
    prepare(spec, 1, str(uri))
    fit_here(spec, str(uri), lambda step, metrics: None, parallel=Single(), device="cpu")
    return weights(load(str(uri)).network)


def test_exact_shares_reach_the_batches_of_training_and_of_validation(stores, tmp_path, monkeypatch) -> None:
    """A period of rows is 16 batches here: of each store the loss sees its share, to the row."""
    seen: Counter[int] = Counter()
    held: Counter[int] = Counter()
    forward, measures = Loss.forward, Loss.measures

    def watched(self, canvas, noise):
        seen.update(owners(canvas.tokens))
        return forward(self, canvas, noise)

    def measured(self, canvas, noise):
        held.update(owners(canvas.tokens))
        return measures(self, canvas, noise)

    monkeypatch.setattr(Loss, "forward", watched)
    monkeypatch.setattr(Loss, "measures", measured)
    spec = spec_of(stores)
    run(spec, tmp_path)
    with reading(spec, "train") as mixture:
        assert isinstance(mixture, Mixture)
        assert seen == dict(enumerate(mixture.shares.tolist()))
    assert sum(seen.values()) == PERIOD
    assert all(abs(seen[i] - PERIOD * SHARES[i] / sum(SHARES)) < 1 for i in range(3))
    count = sum(held.values())
    assert count > 500
    assert all(abs(held[i] / count - SHARES[i] / sum(SHARES)) < 0.05 for i in range(3))


def test_a_killed_run_on_a_mixture_goes_on_bit_for_bit(stores, tmp_path) -> None:
    """SIGKILL after the first checkpoint; in another process it ends with the weights of a run left alone."""
    recipe = Recipe(steps=150, batch=64, learning_rate=1e-2, validate_every=50, checkpoint_every=30)
    spec = spec_of(stores, recipe=recipe)
    whole = run(spec, tmp_path / "whole")
    program = (
        "import sys; from discdiff.training import Single; from pipelines.train import Train, fit_here; "
        "fit_here(Train.model_validate_json(sys.argv[1]), sys.argv[2], lambda step, metrics: None, "
        "parallel=Single(), device='cpu')"
    )
    place = str(tmp_path / "killed")
    arguments = [sys.executable, "-c", program, spec.model_dump_json(), place]
    process = subprocess.Popen(arguments, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 100
    while latest_step(place) == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    errors = process.communicate()[1].decode()
    assert 0 < latest_step(place) < recipe.steps, errors
    again = run(spec, tmp_path / "killed")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_key_covers_stores_weights_and_order(stores) -> None:
    spec = spec_of(stores)
    first, second = spec.mixed
    others = [
        (),
        (first,),
        (second, first),
        (first.model_copy(update={"weight": 0.6}), second),
        (first.model_copy(update={"tokens": stores[0]}), second),
    ]
    keys = {train.key(each) for each in [spec, *(spec_of(stores, mixed=mixed) for mixed in others)]}
    assert len(keys) == 6
    assert train.key(spec) == train.key(Train.model_validate_json(spec.model_dump_json()))


def test_a_mixture_of_a_store_with_itself_reads_that_store_alone(stores) -> None:
    """Its rows are those of the store, whatever the weights."""
    spec = spec_of(stores, mixed=(Mixed(tokens=stores[0], weight=3.0),))
    with reading(spec, "train") as mixture:
        assert isinstance(mixture, Mixture)
        assert mixture.shares.tolist() == [PERIOD // 4, PERIOD // 4 * 3]
        assert set(owners(Loader(mixture, spec.packing).read(0, 500).tokens)) == {0}
        assert (mixture.vocab, mixture.tokenizer.fingerprint) == (
            stores[0].vocab,
            mixture.manifest.tokenizer,
        )


def test_a_mixture_is_named_on_the_command_line(stores, tmp_path) -> None:
    first, second, _ = stores
    (tmp_path / "mixed.toml").write_text(f'[[mixed]]\ntokens = "{second.uri}"\nweight = 0.5\n')
    plain = ["method.kind=mdlm", f"tokens={first.uri}"]
    inline = specification(Train, [*plain, f'mixed=[{{tokens="{second.uri}", weight=0.5}}]'])
    file = specification(Train, [str(tmp_path / "mixed.toml"), *plain])
    assert inline == file
    assert file.mixed == (Mixed(tokens=second, weight=0.5),)
    heavier = specification(Train, [str(tmp_path / "mixed.toml"), *plain, "mixed.0.weight=2"])
    assert heavier.mixed == (Mixed(tokens=second, weight=2.0),)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(stores, weight) -> None:
    with pytest.raises(ValidationError, match=r"greater than 0|finite number"):
        Mixed(tokens=stores[0], weight=weight)


def test_mixtures_that_can_t_be_are_refused_before_any_worker_starts(
    stores, tmp_path, tmp_path_factory
) -> None:
    other = made(tmp_path_factory.mktemp("other"), "ab", alphabet="ab")
    tiny = made(tmp_path_factory.mktemp("tiny"), "ab", alphabet="abcdef", lines=10)
    for changes, message in [
        ({"mixed": (Mixed(tokens=other, weight=1),)}, "different tokenizers"),
        ({"mixed": (Mixed(tokens=stores[1], weight=1e-6),)}, "differ too much; none may be below 1 in 65536"),
        (
            {"mixed": (Mixed(tokens=tiny, weight=1),), "packing": Wrap(length=310)},
            f"length 310 is longer than the split's .* of {tiny.uri}",
        ),
    ]:
        with pytest.raises(DiscdiffError, match=message):
            prepare(spec_of(stores, **changes), 1, str(tmp_path))
    with pytest.raises(ValidationError, match="classes and mixed: give one of them"):
        spec_of(stores, classes=(stores[2],))
    assert not list(tmp_path.iterdir())


def test_tracking_names_every_store_that_a_run_reads(stores) -> None:
    tags = _inputs(spec_of(stores))
    assert {name: value for name, value in tags.items() if name.endswith(".uri")} == {
        "input.tokens.uri": stores[0].uri,
        "input.mixed.0.tokens.uri": stores[1].uri,
        "input.mixed.1.tokens.uri": stores[2].uri,
    }
    assert {tags[f"input.mixed.{i}.tokens.key"] for i in (0, 1)} == {each.key for each in stores[1:]}


def test_an_experiment_searches_and_trains_on_the_mixture(tmp_path) -> None:
    law, tokenizer = MarkovChain.random(4, seed=1), Symbols(size=4)
    first, second, third = (
        Tokenize(corpus=Law(law=law, length=16, train=20, validation=4, test=4, seed=i), tokenizer=tokenizer)
        for i in range(3)
    )
    search = Search(candidates=(Mdlm(), Mdlm(process=Mask(schedule=Cosine()))))
    spec = Experiment(
        name="mixed",
        corpus=first,
        mixed=(Beside(corpus=second, weight=0.5), Beside(corpus=third, weight=2.0)),
        methods=(Mdlm(),),
        search=search,
        packing=Wrap(length=16),
    )
    lineage = Lineage(spec, Plan(str(tmp_path)))
    expected = [(tokenize.key(second), 0.5), (tokenize.key(third), 2.0)]
    trained = lineage._train(Mdlm(), lineage._ground)
    searched = Tune(**(vars(lineage._ground) | dict(search)))
    assert trained.tokens.key == searched.tokens.key == tokenize.key(first)
    for each in (trained, searched, searched.trial(1)):
        assert [(one.tokens.key, one.weight) for one in each.mixed] == expected
    with pytest.raises(ValidationError, match=r"mixed\.1 has a tokenizer of its own"):
        Experiment(**(dict(spec) | {"mixed": (spec.mixed[0], Beside(corpus=Tokenize(), weight=1.0))}))


def test_an_experiment_s_mixture_is_named_on_the_command_line() -> None:
    other = "mixed=[{corpus={corpus={kind='files',url='/data/text'}},weight=0.5}]"
    (beside,) = specification(Experiment, [other], presets.smoke()).mixed
    assert beside == Beside(corpus=Tokenize(corpus=Files(url="/data/text")), weight=0.5)
