"""Trials of a search, seen from the driver: one nested tracked run each, and the stage's progress bar."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from ray.tune import Callback

from pipelines.key import Json
from pipelines.tracking import Tracker
from pipelines.work import Work


class Watch(Callback):
    """Logs what trials report; a context, in which the trials' runs are open."""

    def __init__(self, work: Work, trials: Sequence[tuple[str, dict[str, Json]]], steps: int) -> None:
        self._work = work
        self._trials = trials
        self._steps = steps
        self._reached = [0.0] * len(trials)
        self._best = float("inf")
        self._runs: dict[int, Tracker] = {}
        self._open = ExitStack()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks to restore a search; ours is run again instead."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        index, step = int(trial.config["trial"]), result["step"]
        metrics = {name: result[name] for name in ("bound", "bound_se", "loss") if name in result}
        self._run(index).log(metrics, int(step))
        self._reached[index] = max(self._reached[index], step)
        self._best = min(self._best, result["bound"])
        done, total = sum(self._reached), self._steps * len(self._trials)
        self._work.progress(done, total, f"best bound {self._best:.3f} nats/token")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._reached[int(trial.config["trial"])] = self._steps

    def _run(self, index: int) -> Tracker:
        if index not in self._runs:
            name, parameters = self._trials[index]
            child = self._work.tracker.child(f"trial {index} {name}", parameters)
            self._runs[index] = self._open.enter_context(child)
        return self._runs[index]
