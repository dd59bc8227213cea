"""Train: a method on a token store, by a Ray Train worker group around `discdiff.training.fit`.

All that a run is lies in its artifact's folder: checkpoints that the workers write there themselves, metrics,
and the tokenizer. A worker that dies makes Ray start the group again, and the group goes on from the newest
complete checkpoint; so does a new run of the same specification after the driver died. The number of workers
is the runner's business and changes nothing but rounding.
"""

import json
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from pydantic import Field, TypeAdapter, model_validator

from discdiff.data.folder import Folder
from discdiff.data.loader import Loader
from discdiff.data.mixture import Classes, Mixture
from discdiff.data.packing import AnyPacking, Wrap
from discdiff.data.store import Store
from discdiff.methods import AnyMethod, Discriminative, Method
from discdiff.networks import AnyBackbone, Transformer
from discdiff.training import (
    AnyParallel,
    Checkpoints,
    DataParallel,
    Diverged,
    Recipe,
    Single,
    Subject,
    check_start,
    fit,
    load,
    start_from,
)
from discdiff.training.checkpoint import latest_step, open_commit
from discdiff.training.fit import Log
from discdiff.types import DiscdiffError, Value
from pipelines.artifacts import Checkpoint, Tokens, Trials
from pipelines.place import Place
from pipelines.placement import Placement
from pipelines.remote import Remote
from pipelines.stage import stage
from pipelines.work import Work

RESTARTS = 8
"""How often a worker may die before the stage fails."""
COLLECTIVE_TIMEOUT = 600
TOKENIZER = "tokenizer.json"
DIVERGED = "diverged.json"
RAY = "ray"
USE = (
    "research on generative models of text: to be sampled and scored on text of the kind it was trained on, "
    "not to answer people"
)
"""What a checkpoint is meant for."""


class Mixed(Value, frozen=True):
    """Another store to train on: `weight` rows of it for each row of the first."""

    tokens: Tokens
    weight: float = Field(gt=0, allow_inf_nan=False)


class Train(Value, frozen=True):
    """What is trained, on what and how. `parallel` alone does not count in the key: it changes rounding only.

    By default several workers hold replicas and one worker trains alone.
    """

    tokens: Tokens
    method: AnyMethod | None = None
    trials: Trials | None = None
    """A search, of which the best method is trained; instead of `method`."""
    start: Checkpoint | None = None
    """A finished run that this one starts from: its weights, or what the method takes from them."""
    backbone: AnyBackbone = Transformer()
    recipe: Recipe = Recipe()
    packing: AnyPacking = Wrap(length=128)
    parallel: AnyParallel | None = None
    classes: tuple[Tokens, ...] = ()
    """More stores, of the same tokenizer: rows of `tokens` are of class 0 then, and of these of 1, 2, ..."""
    mixed: tuple[Mixed, ...] = ()
    """More stores, of the same tokenizer, that rows are read from in proportion to weights; that of `tokens`
    is 1. Validation reads their validation splits in the same proportion.
    """

    @model_validator(mode="after")
    def _one_method(self) -> "Train":
        if (self.method is None) == (self.trials is None):
            raise DiscdiffError("method and trials: give one of them, a method or a search for one")
        return self

    @model_validator(mode="after")
    def _one_use_of_stores(self) -> "Train":
        if self.classes and self.mixed:
            raise DiscdiffError(
                "classes and mixed: give one of them, since classes are read each as often as it has text "
                "and a mixture has no labels"
            )
        return self

    @property
    def label(self) -> str:
        return self.method.kind if self.method is not None else "the best of trials"

    @property
    def chosen(self) -> AnyMethod:
        """The method that is trained."""
        if self.trials is not None:
            return TypeAdapter[AnyMethod](AnyMethod).validate_python(self.trials.best)
        return cast(AnyMethod, self.method)

    @property
    def stores(self) -> tuple[Tokens, ...]:
        """All text that is trained on."""
        return (self.tokens, *self.classes, *(each.tokens for each in self.mixed))

    @property
    def learns_labels(self) -> bool:
        """Whether labels of rows are what is learned, not their text."""
        return isinstance(cast(Method, self.chosen), Discriminative)

    def identity(self) -> dict[str, Any]:
        """All fields but `parallel`."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "parallel"}

    def subject(self, store: Store | Mixture) -> Subject:
        """What checkpoints of this run say of themselves."""
        return Subject(
            method=self.chosen,
            backbone=self.backbone,
            vocab=store.vocab,
            tokenizer=store.manifest.tokenizer,
            length=self.packing.length,
        )


@stage(version=1, resumable=True)
def train(spec: Train, work: Work) -> Checkpoint:
    """Train to the last step, from the newest checkpoint that is there."""
    prepare(spec, work.placement.workers, work.uri)
    if latest_step(work.uri) < spec.recipe.steps:
        work.ray()
        _run(spec, work)
    raise_if_diverged(work.uri)
    made = Checkpoint(
        key=work.key,
        uri=work.uri,
        method=spec.chosen.kind,
        step=spec.recipe.steps,
        length=spec.packing.length,
        parameters=open_commit(work.uri)[1].parameters,
    )
    work.tracker.register(registered(made), made.key, {"stage": "trained", "use": USE} | _card(spec, made))
    return made


def registered(checkpoint: Checkpoint) -> str:
    """The name under which a family's checkpoints are versions of one registered model."""
    return f"discdiff-{checkpoint.method}"


def _card(spec: Train, made: Checkpoint) -> dict[str, str]:
    """What a registered version says of its weights."""
    facts = {
        "uri": made.uri,
        "open": f"discdiff.training.load({made.uri!r})",
        "method": made.method,
        "step": made.step,
        "parameters": made.parameters,
        "length": made.length,
        "tokens": ", ".join(store.key for store in spec.stores),
    }
    return {name: str(value) for name, value in facts.items()}


def prepare(spec: Train, workers: int, uri: str) -> None:
    """Find mistakes before any worker is started, and put the tokenizer beside the weights.

    Raises DiscdiffError for a batch that can't be shared out, rows that the store can't give, or a checkpoint
    that training can't start from.
    """
    spec.recipe.share(workers)
    _check_classes(spec)
    start = None if spec.start is None else open_commit(spec.start.uri)[1].subject
    for split in ("validation", "train"):
        with reading(spec, split) as source:
            for store in source.stores if isinstance(source, Mixture) else (source,):
                spec.packing.count(store)
            check_start(spec.subject(source), start)
            Place(uri).write(TOKENIZER, source.tokenizer.to_json().encode())
    Place(uri).remove(DIVERGED)


def _check_classes(spec: Train) -> None:
    """Raises DiscdiffError for classes that the network would not know, or a classifier without any."""
    known, given = spec.backbone.labels, 1 + len(spec.classes)
    if spec.learns_labels and not spec.classes:
        raise DiscdiffError(
            f"{spec.chosen.kind} tells classes apart and text of one was given: "
            "give the stores of the others as classes"
        )
    if spec.classes and known != given:
        raise DiscdiffError(
            f"text of {given} classes was given and the backbone knows {known}: set backbone.labels={given}"
        )


@contextmanager
def reading(spec: Train, split: str) -> Generator[Store | Mixture]:
    """A split of the text that is trained on: a store, a mixture of several, or several that are classes."""
    with ExitStack() as stack:
        stores = [stack.enter_context(Store.open(tokens.uri, split)) for tokens in spec.stores]
        if spec.mixed:
            yield Mixture(stores, [1.0, *(each.weight for each in spec.mixed)])
        else:
            yield Classes(stores) if spec.classes else stores[0]


def raise_if_diverged(uri: str) -> None:
    """Raise what a worker group left word of before it stopped."""
    word = Place(uri).read(DIVERGED)
    if word is not None:
        raise Diverged(json.loads(word))


def trainer(loop: Any, uri: str, name: str, placement: Placement, callbacks: list[Any]) -> Any:
    """The Ray Train worker group that runs `loop` until it is done, however often a worker dies."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    each = resources(placement)
    return TorchTrainer(
        loop,
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=each["GPU"] > 0,
            resources_per_worker=each,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=f"{uri}/{RAY}",
            failure_config=FailureConfig(max_failures=RESTARTS),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=callbacks,
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT),
    )


def resources(placement: Placement) -> dict[str, float]:
    """CPUs and GPUs of one worker: where none is asked for, a GPU each if the cluster has so many."""
    import ray

    enough = ray.cluster_resources().get("GPU", 0) >= placement.workers
    return {"CPU": placement.cpus, "GPU": placement.gpus or float(enough)}


def _run(spec: Train, work: Work) -> None:
    remote = work.remote()
    loop = Loop(spec, work.uri, remote)
    try:
        trainer(loop, work.uri, work.key, work.placement, [_restarts(remote)]).fit()
    finally:
        Place(work.uri).remove(RAY)


def _restarts(remote: Remote) -> Any:
    """Logs, from Ray's controller, how many workers have failed so far."""
    from ray.train import UserCallback

    class Restarts(UserCallback):
        failed = 0

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            self.failed += len(worker_exceptions)
            remote.log({"worker_failures": self.failed})
            remote.flush()

    return Restarts()


@dataclass(frozen=True)
class Loop:
    """What each worker runs."""

    spec: Train
    uri: str
    remote: Remote

    def __call__(self) -> None:
        import ray.train
        import ray.train.torch

        workers = ray.train.get_context().get_world_size()
        parallel = self.spec.parallel or (DataParallel() if workers > 1 else Single())
        try:
            fit_here(self.spec, self.uri, self.log, parallel=parallel, device=ray.train.torch.get_device())
        except Diverged as error:
            # All workers raise it at the same step: they end here, and no restart could help.
            Folder.at(self.uri).put(DIVERGED, json.dumps(str(error)).encode())
        self.remote.flush()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        import ray.train

        if ray.train.get_context().get_world_rank() == 0:
            self.remote.log(metrics, step)
            of = "row" if self.spec.learns_labels else "token"
            self.remote.progress(step, self.spec.recipe.steps, note(metrics, of))


def fit_here(
    spec: Train,
    uri: str,
    log: Log,
    *,
    parallel: AnyParallel,
    device: torch.device | str,
    measure: Method | None = None,
) -> None:
    """Train in this process, alone or with the group that it belongs to."""
    recipe = spec.recipe
    with reading(spec, "train") as store, reading(spec, "validation") as held:
        subject = spec.subject(store)
        network = subject.build(recipe.seed)
        if spec.start is not None:
            start_from(cast(Method, spec.chosen), network, load(spec.start.uri).network)
        fit(
            cast(Method, spec.chosen),
            network,
            Loader(store, spec.packing, seed=recipe.seed),
            recipe,
            validation=Loader(held, spec.packing, seed=recipe.seed, shuffle=False),
            measure=measure,
            parallel=parallel,
            device=device,
            checkpoints=Checkpoints(uri, subject, recipe),
            log=log,
        )


def note(metrics: dict[str, float], of: str) -> str:
    """The headline of a log entry, for a progress bar: nats of a token, or of a row."""
    name = "loss" if "loss" in metrics else next(iter(metrics), None)
    return "" if name is None else f"{name} {metrics[name]:.3f} nats/{of}"
