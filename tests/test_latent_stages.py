"""An experiment with latent diffusion, on real Ray: its autoencoder is trained first, as a stage run."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from discdiff.data.characters import Symbols
from discdiff.data.laws import Law, MarkovChain
from discdiff.data.packing import Wrap
from discdiff.data.specification import Tokenize
from discdiff.methods import Autoencoder, Latent
from discdiff.networks import Transformer
from discdiff.training import Recipe, load
from pipelines.artifacts import Report
from pipelines.evaluate import Evaluation
from pipelines.experiment import Experiment, Lineage
from pipelines.generate import Default, Drawing
from pipelines.record import RECORD
from pipelines.runner import Runner
from pipelines.train import train

# Ray sets deprecated options of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")

METHOD = Latent(autoencoder=Autoencoder(span=2, size=8))
SPEC = Experiment(
    name="latent",
    corpus=Tokenize(
        corpus=Law(law=MarkovChain.random(4, seed=1), length=16, train=200, validation=40, test=40),
        tokenizer=Symbols(size=4),
    ),
    methods=(METHOD,),
    backbone=Transformer(layers=1, width=16, heads=2),
    recipe=Recipe(steps=6, batch=8, validate_rows=8, log_every=2, learning_rate=1e-2),
    packing=Wrap(length=16),
    drawing=Drawing(sampler=Default(steps=3), count=5, batch=4),
)


@pytest.fixture(scope="module")
def made(ray_cluster, tmp_path_factory):
    """The experiment run once: its lineage and the folder of its artifacts."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_cluster.environment.items():
            patch.setenv(name, value)
        with Runner(str(folder)) as run:
            lineage = Lineage(SPEC, run)
            assert isinstance(lineage.report, Report)
            yield lineage, folder


def test_the_autoencoder_is_trained_first_and_kept(made):
    lineage, folder = made
    (model,) = lineage.models
    spec = lineage._train(METHOD, lineage._ground)
    assert spec.start is not None
    assert spec.start.method == "autoencoder"
    assert {path.name for path in folder.glob("train-*")} == {spec.start.key, model.key}
    assert train.key(spec) == model.key
    first, whole = load(spec.start.uri), load(model.uri)
    assert (first.method, whole.method) == (METHOD.autoencoder, METHOD)
    ours, theirs = whole.network.autoencoder.state_dict(), first.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    named = json.loads((folder / model.key / RECORD).read_text())["spec"]
    assert named["start"] == spec.start.key


def test_its_samples_are_drawn_in_the_steps_that_were_asked(made):
    lineage, _ = made
    (samples,) = lineage.samples
    found = [pq.read_table(path) for path in sorted(Path(samples.uri).glob("samples-*.parquet"))]
    assert sum(len(table) for table in found) == 5
    assert {n for table in found for n in table["nfe"].to_pylist()} == {3}
    assert all(len(ids) == 16 and max(ids) < 4 for table in found for ids in table["ids"].to_pylist())


def test_evaluation_measures_its_samples_and_says_why_there_is_no_score(made):
    lineage, _ = made
    (scores,) = lineage.scores
    found = Evaluation.model_validate_json(Path(scores.uri, "scores.json").read_bytes())
    assert found.model.score is None
    assert found.model.unscored == METHOD.unscored
    assert found.model.quality is not None
    assert found.unigram is not None
    assert "bits_per_character" not in scores.metrics
    assert METHOD.unscored in Path(lineage.report.uri, "report.html").read_text()
