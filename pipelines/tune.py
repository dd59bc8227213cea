"""Tune: versions of a method, trained briefly by Ray Tune and ranked; the best is what training accepts.

A trial is one candidate on one worker. Candidates are ranked by the bound in T steps. Not by that in
continuous time: with mask noise it does not depend on the schedule, and with any noise it hides what few
steps cost. Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934) stops early whoever falls
behind.

Each trial keeps checkpoints and what it reported in a folder of its own. A search that was killed is simply
run again: every trial first reports again what it reported before, then goes on from its newest checkpoint.
"""

import json
import math
from collections import Counter
from typing import Literal, cast

import torch
from pydantic import Field

from discdiff.data.folder import Folder
from discdiff.data.packing import AnyPacking, Wrap
from discdiff.methods import AnyMethod, D3pm, Diffusion, Method
from discdiff.networks import AnyBackbone, Transformer
from discdiff.objectives import Steps
from discdiff.training import Diverged, Recipe, Single
from discdiff.types import DiscdiffError, Value
from pipelines.artifacts import Tokens, Trials
from pipelines.key import canonical, fields, flatten
from pipelines.place import Place
from pipelines.stage import stage
from pipelines.train import RAY, RESTARTS, Mixed, Train, fit_here, prepare, resources, train
from pipelines.work import Work

TRIALS = "trials"
REPORTS = "reports.json"
TABLE = "trials.json"

Report = dict[str, float]


class Tune(Value, frozen=True):
    """A search: `candidates` trained alike by a short recipe, looked at every `validate_every` steps.

    They are ranked by the bound in `timesteps` steps. At each look, a trial stops that is not among the best
    `1 / reduction` of those that came so far before.
    """

    tokens: Tokens
    candidates: tuple[AnyMethod, ...] = Field(min_length=1)
    backbone: AnyBackbone = Transformer()
    recipe: Recipe = Recipe()
    packing: AnyPacking = Wrap(length=128)
    mixed: tuple[Mixed, ...] = ()
    """More stores to train and to look at, as in `Train`."""
    timesteps: int = Field(default=64, ge=2)
    reduction: int = Field(default=2, ge=2)

    @property
    def label(self) -> str:
        return f"{len(self.candidates)} candidates"

    def trial(self, index: int) -> Train:
        """What a trial trains."""
        shared = {name: getattr(self, name) for name in ("tokens", "backbone", "recipe", "packing", "mixed")}
        return Train(method=self.candidates[index], **shared)


class Trial(Value, frozen=True, ser_json_inf_nan="strings"):
    """How a candidate did: what it reported, in order."""

    method: AnyMethod
    key: str
    """The key of training it by this recipe."""
    reports: tuple[Report, ...]
    status: Literal["finished", "stopped", "diverged"]

    @property
    def rank(self) -> tuple[bool, float, float]:
        """The lower the better: those that came further are ahead, then those of lower bound."""
        last = self.reports[-1]
        return (self.status == "diverged", -last["step"], last["bound"])


class Table(Value, frozen=True, ser_json_inf_nan="strings"):
    """The content of `trials.json`, best first."""

    timesteps: int
    trials: tuple[Trial, ...]


@stage(version=1, resumable=True)
def tune(spec: Tune, work: Work) -> Trials:
    """Try the candidates and rank them."""
    _require_distinct(spec)
    for index, candidate in enumerate(spec.candidates):
        in_steps(candidate, spec.timesteps)
        prepare(spec.trial(index), 1, _folder(work.uri, index))
    work.ray()
    _search(spec, work)
    trials = sorted(
        (_outcome(spec, work.uri, index) for index in range(len(spec.candidates))),
        key=lambda trial: trial.rank,
    )
    best = trials[0]
    if best.status == "diverged":
        raise Diverged("every trial diverged: lower the learning rate, lengthen the warmup or clip harder")
    table = Table(timesteps=spec.timesteps, trials=tuple(trials))
    Place(work.uri).write(TABLE, table.model_dump_json(indent=1).encode())
    Place(work.uri).remove(TRIALS)
    work.log({"best_bound": best.reports[-1]["bound"]})
    method = best.method.model_dump(mode="json")
    return Trials(key=work.key, uri=work.uri, best=method, trials=len(trials))


def in_steps(method: AnyMethod, timesteps: int) -> Method:
    """What measures a method for the ranking: for a diffusion, the bound in T steps.

    An exact likelihood stands for itself, as does a bound where tokens are noised each in its own way, which
    D3PM's steps don't know. Raises DiscdiffError for a method without either.
    """
    if isinstance(method, Diffusion) and method.tokens_alike:
        clock = Steps(count=timesteps)
        return D3pm(process=method.process, parameterization=method.parameterization, clock=clock)
    if hasattr(method, "bound"):
        return cast(Method, method)
    why = getattr(method, "unscored", "it has no likelihood bound")
    raise DiscdiffError(f"{method.kind} can't be ranked: {why}; search among methods that have a bound")


def title(method: AnyMethod) -> str:
    """A method's kinds in a few words: `d3pm hybrid cosine leave_one_out steps`."""
    words = [str(value) for name, value in flatten(canonical(method)).items() if name.endswith("kind")]
    return " ".join(words)


def _require_distinct(spec: Tune) -> None:
    keys = Counter(train.key(spec.trial(index)) for index in range(len(spec.candidates)))
    twice = [key for key, count in keys.items() if count > 1]
    if twice:
        index = next(i for i in range(len(spec.candidates)) if train.key(spec.trial(i)) == twice[0])
        raise DiscdiffError(
            f"candidate {index} ({title(spec.candidates[index])}) is given {keys[twice[0]]} times: "
            "a trial that is the same teaches nothing; give each once"
        )


def _search(spec: Tune, work: Work) -> None:
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler

    from pipelines.trials import Watch

    place, recipe, uri = work.placement, spec.recipe, work.uri
    scheduler = ASHAScheduler(
        time_attr="step",
        metric="bound",
        mode="min",
        max_t=recipe.steps + 1,  # a trial ends by itself
        grace_period=min(recipe.validate_every, recipe.steps),
        reduction_factor=spec.reduction,
    )
    trials = [(title(each), flatten(fields(each))) for each in spec.candidates]

    def trial(config: dict[str, int]) -> None:
        run_trial(spec, uri, config["trial"])

    with Watch(work, trials, recipe.steps) as watch:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(trial, resources(place)),
            param_space={"trial": ray_tune.grid_search(list(range(len(trials))))},
            tune_config=ray_tune.TuneConfig(
                scheduler=scheduler, max_concurrent_trials=place.workers, reuse_actors=True
            ),
            run_config=ray_tune.RunConfig(
                name=work.key,
                storage_path=f"{work.uri}/{RAY}",
                failure_config=ray_tune.FailureConfig(max_failures=RESTARTS),
                callbacks=[watch],
                verbose=0,
            ),
        )
        results = tuner.fit()
    Place(work.uri).remove(RAY)
    for error in results.errors:
        raise error


def run_trial(spec: Tune, uri: str, index: int) -> None:
    """What the worker of a trial runs."""
    diary = Diary(_folder(uri, index))
    for report in diary.reports:
        diary.tell(report)
    if diary.done(spec.recipe.steps):
        return
    trial = spec.trial(index)
    try:
        fit_here(
            trial,
            diary.folder.uri,
            diary.log,
            parallel=Single(),
            device="cuda" if torch.cuda.is_available() else "cpu",
            measure=in_steps(trial.chosen, spec.timesteps),
        )
    except Diverged:
        diary.add({"step": float(spec.recipe.steps), "bound": math.inf})


class Diary:
    """What a trial has reported so far, kept in its folder before Tune is told."""

    def __init__(self, uri: str) -> None:
        self.folder = Folder.at(uri)
        self._latest: Report = {}
        kept = Place.at(uri).read(REPORTS)
        self.reports: list[Report] = [] if kept is None else json.loads(kept)

    def done(self, steps: int) -> bool:
        return bool(self.reports) and self.reports[-1]["step"] >= steps

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """What `fit` logs: a bound is a report, the last loss goes with it."""
        self._latest |= {"step": float(step), **metrics}
        if "bound" in metrics and (not self.reports or step > self.reports[-1]["step"]):
            self.add({name: self._latest[name] for name in ("step", "bound", "bound_se", "loss")})

    def add(self, report: Report) -> None:
        self.reports.append(report)
        self.folder.put(REPORTS, json.dumps(self.reports).encode())
        self.tell(report)

    def tell(self, report: Report) -> None:
        """Report to Tune, which may end the trial here."""
        from ray import tune as ray_tune

        ray_tune.report(report)


def _outcome(spec: Tune, uri: str, index: int) -> Trial:
    reports = Diary(_folder(uri, index)).reports
    diverged = math.isinf(reports[-1]["bound"])
    finished = reports[-1]["step"] >= spec.recipe.steps
    return Trial(
        method=spec.candidates[index],
        key=train.key(spec.trial(index)),
        reports=tuple(reports),
        status="diverged" if diverged else "finished" if finished else "stopped",
    )


def _folder(uri: str, index: int) -> str:
    return f"{uri}/{TRIALS}/{index:05d}"
