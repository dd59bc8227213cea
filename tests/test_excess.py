"""Scores on data of a known law: what a perfect model needs, and what a model needs above that."""

import math
from pathlib import Path

import pytest
import torch
from test_evaluate_stage import ESTIMATOR, found, trained

from discdiff.data.laws import Law, MarkovChain
from discdiff.data.packing import Wrap
from discdiff.data.specification import Tokenize
from discdiff.data.tokenizers import Symbols
from discdiff.evaluation.laws import perfect
from discdiff.evaluation.likelihood import compare
from discdiff.evaluation.page import Page
from discdiff.methods import Autoregressive, Mdlm
from discdiff.noise import Noise
from discdiff.types import canvas
from pipelines.evaluate import Evaluate, evaluate
from pipelines.known import law_of
from pipelines.report import ReportSpec, report
from pipelines.runner import Runner
from pipelines.tokenize import tokenize

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")

LENGTH = 24
CHAIN = MarkovChain.random(4, seed=2, contrast=1.0)
CORPUS = Law(law=CHAIN, length=LENGTH, train=200, validation=40, test=150)


def rows(count, seed=3):
    return canvas(CHAIN.sample(Noise(seed, rows=torch.arange(count)), LENGTH))


def test_a_perfect_model_needs_the_entropy():
    ledger = perfect(CHAIN, [rows(4000)])
    mean, spread = ledger.sequence_nats.mean(), ledger.sequence_nats.std()
    assert abs(mean - CHAIN.entropy(LENGTH)) < 4 * spread / math.sqrt(4000)
    assert compare(ledger, ledger).value == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("excess")
    with pytest.MonkeyPatch.context() as patch, Runner(str(folder / "runs")) as run:
        for name, value in ray_cluster.environment.items():
            patch.setenv(name, value)
        tokens = run(tokenize, Tokenize(corpus=CORPUS, tokenizer=Symbols(size=CHAIN.vocab)))
        models = [trained(folder / each.kind, each, tokens) for each in (Autoregressive(), Mdlm())]
        scores = [
            run(evaluate, Evaluate(checkpoint=each, tokens=tokens, estimator=ESTIMATOR)) for each in models
        ]
        yield run, tokens, scores


def test_the_law_of_a_store_is_known_by_its_specification(made):
    _, tokens, _ = made
    assert law_of(tokens, Wrap(length=LENGTH)) == CHAIN
    assert law_of(tokens, Wrap(length=LENGTH // 2)) is None, "rows are then halves of documents"


def test_excess_is_what_the_score_has_above_a_perfect_one_on_the_same_sequences(made):
    """Positive for models that were hardly trained; and its error is the smaller."""
    for scores in made[2]:
        model = found(scores).model
        assert model.excess.value > 2 * model.excess.se
        assert model.entropy == pytest.approx(CHAIN.entropy(LENGTH) / LENGTH)
        above = model.score.nats_per_token.value - model.entropy
        assert abs(above - model.excess.value) < 5 * model.score.nats_per_token.se
        assert scores.metrics["excess"] == model.excess.value


def test_the_report_ranks_by_excess_and_warns_of_the_impossible(made, monkeypatch):
    run, _, scores = made
    page = Page.model_validate_json(_file(run(report, ReportSpec(scores=tuple(scores))), "report.json"))
    assert not page.warnings
    controlled = run(report, ReportSpec(scores=tuple(scores), controls=tuple(scores)))
    assert len(Page.model_validate_json(_file(controlled, "report.json")).controls) == 2
    assert "On a known law" in _file(controlled, "report.html").decode()
    read = found

    def cheated(each):
        model = read(each).model
        wrong = model.excess.model_copy(update={"value": -4 * model.excess.se})
        return read(each).model_copy(update={"model": model.model_copy(update={"excess": wrong})})

    monkeypatch.setattr("pipelines.report._evaluation", cheated)
    wrong = run(report, ReportSpec(scores=tuple(scores), title="cheated"))
    warnings = Page.model_validate_json(_file(wrong, "report.json")).warnings
    assert len(warnings) == 2
    assert all("its bound is wrong" in each for each in warnings)


def test_what_a_step_took_is_reported(made):
    model = found(made[2][0]).model
    assert 0 < model.seconds_per_step < 10
    assert 0.01 < model.peak_memory < 64


def _file(artifact, name):
    return (Path(artifact.uri) / name).read_bytes()
