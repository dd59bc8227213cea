"""The search on real Ray Tune and MLflow: ranked, tracked, and the same after its driver was killed."""

import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from discdiff.data.files import Files
from discdiff.data.packing import Wrap
from discdiff.data.specification import Tokenize
from discdiff.methods import Autoregressive, Block, D3pm, GenMd4, Gidd, Mdlm
from discdiff.networks import Transformer
from discdiff.processes import Hybrid, Uniform
from discdiff.schedules import Cosine, Linear
from discdiff.training import Recipe, Single, load
from discdiff.types import DiscdiffError
from pipelines.artifacts import Tokens, Trials
from pipelines.placement import Placement
from pipelines.runner import Runner
from pipelines.tokenize import tokenize
from pipelines.tracking import Mlflow
from pipelines.train import Train, fit_here, prepare, train
from pipelines.tune import TABLE, Table, Tune, in_steps, tune

# Ray sets deprecated options of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")

GOOD = D3pm(process=Uniform(schedule=Linear()))
BAD = D3pm(process=Uniform(schedule=Linear(eps=0.3)))
OTHERS = (D3pm(process=Hybrid(schedule=Linear())), D3pm(process=Hybrid(schedule=Cosine())))
LOOK = 20
RECIPE = Recipe(
    steps=3 * LOOK,
    batch=16,
    learning_rate=1e-2,
    validate_every=LOOK,
    validate_rows=64,
    checkpoint_every=LOOK,
)


@pytest.fixture(scope="module", autouse=True)
def cluster(ray_cluster):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_cluster.environment.items():
            patch.setenv(name, value)
        yield ray_cluster


@pytest.fixture(scope="module")
def tokens(cluster, tmp_path_factory) -> Tokens:
    """A store of lines in which most letters are followed by the next of the alphabet."""
    folder = tmp_path_factory.mktemp("store")
    choose = random.Random(1)
    steps = [[choose.choice((1, 1, 1, 1, 2)) for _ in range(30)] for _ in range(300)]
    lines = ["".join("abcde"[sum(line[:i]) % 5] for i in range(30)) for line in steps]
    (folder / "text.txt").write_text("\n".join(lines))
    spec = Tokenize(corpus=Files(url=str(folder / "text.txt"), separator="\n"))
    with Runner(str(folder / "root")) as run:
        return run(tokenize, spec)


def search(tokens: Tokens, **fields) -> Tune:
    standard = {
        "candidates": (GOOD, BAD, *OTHERS),
        "backbone": Transformer(layers=1, width=16, heads=2),
        "recipe": RECIPE,
        "packing": Wrap(length=16),
        "timesteps": 16,
    }
    return Tune(tokens=tokens, **{**standard, **fields})


@pytest.fixture(scope="module")
def searched(tokens, tmp_path_factory):
    """A search with one worker, so that trials come in their order, and where it was tracked."""
    root = tmp_path_factory.mktemp("searched")
    tracking = Mlflow(root / "tracking", print, uri=f"sqlite:///{root}/mlflow.db")
    with Runner(str(root / "root"), placement=Placement(workers=1), tracking=tracking) as run:
        return run(tune, search(tokens)), tracking.uri


def table(found: Trials) -> Table:
    return Table.model_validate_json(Path(found.file(TABLE)).read_text())


def test_trials_are_ranked_and_the_hopeless_stopped(searched):
    found, _ = searched
    ranked = table(found).trials
    assert found.trials == len(ranked) == 4
    assert found.best == ranked[0].method.model_dump(mode="json")
    assert len({trial.key for trial in ranked}) == 4
    by_method = {trial.method: trial for trial in ranked}
    assert by_method[GOOD].status == "finished"
    assert [report["step"] for report in by_method[GOOD].reports] == [20, 40, 60]
    assert by_method[BAD].status == "stopped"
    assert [report["step"] for report in by_method[BAD].reports] == [20]
    assert by_method[BAD].reports[0]["bound"] > by_method[GOOD].reports[0]["bound"]
    assert ranked == tuple(sorted(ranked, key=lambda trial: trial.rank))
    assert {path.name for path in Path(found.uri).iterdir()} == {"artifact.json", TABLE, "metrics.jsonl"}


def test_each_trial_is_a_nested_run(searched):
    from mlflow.tracking import MlflowClient

    found, uri = searched
    client = MlflowClient(uri)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    parents = [run for run in runs if run.data.tags.get("key") == found.key]
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(trials) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    schedules = [run.data.params["process.schedule.kind"] for run in trials]
    assert sorted(schedules) == ["cosine", "linear", "linear", "linear"]
    best = next(run for run in trials if run.data.params == {**run.data.params, **_flat(found.best)})
    assert best.data.metrics["bound"] == pytest.approx(table(found).trials[0].reports[-1]["bound"])


def _flat(method: dict) -> dict[str, str]:
    process = method["process"]
    return {"process.kind": process["kind"], "process.schedule.kind": process["schedule"]["kind"]}


def test_training_accepts_the_best(searched, tokens, tmp_path):
    found, _ = searched
    shared = {"backbone": Transformer(layers=1, width=16, heads=2), "packing": Wrap(length=16)}
    recipe = RECIPE.model_copy(update={"steps": 2})
    spec = Train(tokens=tokens, trials=found, recipe=recipe, **shared)
    assert train.key(spec) != train.key(Train(tokens=tokens, method=spec.chosen, recipe=recipe, **shared))
    prepare(spec, 1, str(tmp_path))
    fit_here(spec, str(tmp_path), lambda step, metrics: None, parallel=Single(), device="cpu")
    assert load(str(tmp_path)).method == table(found).trials[0].method
    assert Train.model_validate_json(spec.model_dump_json()) == spec


def test_a_killed_search_goes_on_and_ends_the_same(searched, tokens, tmp_path):
    """SIGKILL the driver once the third of four trials has reported; run again: the very same table."""
    spec = search(tokens)
    place = tmp_path / tune.key(spec)
    program = (
        "import sys; from pipelines.placement import Placement; from pipelines.runner import Runner; "
        "from pipelines.tune import Tune, tune; spec = Tune.model_validate_json(sys.argv[2]); "
        "Runner(sys.argv[1], placement=Placement(workers=1))(tune, spec)"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path), spec.model_dump_json()]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1])
    begun = place / "trials" / "00002" / "reports.json"
    deadline = time.monotonic() + 200
    while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    errors = process.communicate()[1].decode()
    assert begun.exists(), errors
    assert not (place / "artifact.json").exists(), errors
    with Runner(str(tmp_path), placement=Placement(workers=1)) as run:
        found = run(tune, spec)
    assert table(found) == table(searched[0])


def test_a_candidate_that_is_given_twice_is_refused(tokens, tmp_path):
    nowhere = Placement(workers=1, address="127.0.0.1:1")
    with (
        Runner(str(tmp_path), placement=nowhere) as run,
        pytest.raises(DiscdiffError, match=r"candidate 0 .* is given 2 times"),
    ):
        run(tune, search(tokens, candidates=(GOOD, BAD, GOOD)))


def test_candidates_are_ranked_by_the_bound_in_steps():
    for method in (Mdlm(), Gidd(), D3pm()):
        measured = in_steps(method, 16)
        assert isinstance(measured, D3pm)
        assert (measured.process, measured.parameterization) == (method.process, method.parameterization)
        assert measured.clock.count == 16
    for itself in (Autoregressive(), GenMd4(), Block(inner=Mdlm(), clip=(0.3, 0.8))):
        assert in_steps(itself, 16) == itself


def test_a_method_without_bound_is_refused():
    silent = SimpleNamespace(kind="latent", unscored="its encoder is deterministic")
    with pytest.raises(DiscdiffError, match="latent can't be ranked: its encoder is deterministic"):
        in_steps(silent, 16)


@pytest.mark.parametrize("fields", [{"candidates": ()}, {"timesteps": 1}, {"reduction": 1}])
def test_a_wrong_search_is_refused(tokens, fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        search(tokens, **fields)


@pytest.mark.parametrize(
    "fields", [{}, {"method": GOOD, "trials": Trials(key="k", uri="u", best={}, trials=1)}]
)
def test_training_needs_one_method(tokens, fields):
    with pytest.raises(ValueError, match="give one of them"):
        Train(tokens=tokens, **fields)
