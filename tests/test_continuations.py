"""Likelihoods of continuations, and the adapter to lm-evaluation-harness where that is installed."""

import math

import pytest
import torch

from discdiff.data.characters import Characters
from discdiff.evaluation.continuations import Continuations
from discdiff.evaluation.harness import adapter
from discdiff.evaluation.likelihood import Likelihood
from discdiff.methods import Autoregressive, Mdlm, Method
from discdiff.networks import Transformer
from discdiff.types import DiscdiffError

TOKENIZER = Characters(alphabet="abcd ").open()


def model(method: Method, **changes: object) -> Continuations:
    torch.manual_seed(0)
    net = method.network(Transformer(layers=1, width=16, heads=2), TOKENIZER.size).eval()
    estimator = Likelihood(strata=4, draws=2)
    return Continuations(method, net, TOKENIZER, length=16, estimator=estimator)


def test_the_chain_rule_holds_for_exact_likelihoods():
    ours = model(Autoregressive())
    whole, start, rest = ours.log_likelihoods([("", "abc da"), ("", "abc"), ("abc", " da")])
    assert whole.value == pytest.approx(start.value + rest.value, abs=1e-5)
    assert whole.se == 0
    assert ours.bound == "log-likelihood, exact"


def test_a_value_does_not_depend_on_what_is_asked_beside_it():
    ours = model(Mdlm())
    pairs = [("ab", "cd"), ("", "abcd a"), ("dd", "c"), ("a", "bcd")]
    together = ours.log_likelihoods(pairs)
    again = [ours.log_likelihoods(pairs[: i + 1])[i] for i in range(4)]
    assert [e.value for e in together] == pytest.approx([e.value for e in again], abs=1e-5)
    assert all(e.se > 0 for e in together)
    assert "lower bound" in ours.bound


def test_long_texts_are_read_in_pieces_and_long_contexts_cut_in_front():
    ours = model(Autoregressive())
    text = "abcd " * 7
    (total,) = ours.log_likelihood_of([text])
    parts = ours.log_likelihoods([("", text[i : i + 16]) for i in range(0, 35, 16)])
    assert total.value == pytest.approx(sum(part.value for part in parts), abs=1e-4)
    cut, short = ours.log_likelihoods([(text, "ab"), (text[-14:], "ab")])
    assert cut.value == pytest.approx(short.value, abs=1e-6)


@pytest.mark.parametrize("continuation", ["", "a" * 17])
def test_continuations_that_do_not_fit_are_refused(continuation):
    with pytest.raises(DiscdiffError, match=f"a continuation of {len(continuation)} tokens"):
        model(Mdlm()).log_likelihoods([("a", continuation)])


@pytest.mark.parametrize("method", [Autoregressive(), Mdlm()], ids=lambda m: m.kind)
def test_writing_keeps_its_length(method):
    written = model(method).write("ab", 5, seed=1)
    assert len(written.replace("<|endoftext|>", "_")) == 5


def test_the_harness_is_told_the_bound_and_its_error():
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install lm_eval")
    from lm_eval.api.instance import Instance

    ours = model(Mdlm())
    lm = adapter(ours)

    def ask(kind: str, *arguments: object) -> Instance:
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)

    (value, greedy), _ = lm.loglikelihood([ask("loglikelihood", "ab", "cd"), ask("loglikelihood", "", "a")])
    assert value == ours.log_likelihoods([("ab", "cd")])[0].value
    assert greedy is False
    assert math.isfinite(lm.loglikelihood_rolling([ask("loglikelihood_rolling", "abc")])[0])
    info = lm.get_model_info()
    assert "lower bound" in info["likelihood"]
    assert info["likelihood_standard_error_nats"] > 0
    (text,) = lm.generate_until([ask("generate_until", "ab", {"until": [" "], "max_gen_toks": 6})])
    assert " " not in text


@pytest.mark.filterwarnings("ignore")
def test_the_harness_runs_a_task_from_its_documents_to_its_metrics(tmp_path, monkeypatch):
    harness = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data.jsonl").write_text('{"q": "abc ab"}\n{"q": "dd cab a"}\n')
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    found = harness.simple_evaluate(adapter(model(Autoregressive())), tasks=[task], bootstrap_iters=0)
    # An untrained network gives each of the V tokens 1 / V.
    bits = found["results"]["tiny"]["bits_per_byte,none"]
    assert bits == pytest.approx(math.log2(TOKENIZER.size), rel=1e-5)
    assert found["config"]["likelihood"] == "log-likelihood, exact"


def test_without_the_harness_the_adapter_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(DiscdiffError, match=r"pip install 'discdiff\[harness\]'"):
        adapter(model(Autoregressive()))
