"""A dry run: says what a runner would do, and why."""

import json

from pipelines.artifacts import Record
from pipelines.key import Json, changes, fields
from pipelines.place import Place
from pipelines.runner import Runner
from pipelines.stage import A, S, Stage, label


class Plan(Runner):
    """A dry run: tells of each stage whether it is cached and, if not, which field made it new."""

    def _make(self, stage: Stage[S, A], spec: S, place: Place) -> A:
        key = stage.key(spec)
        self.screen.say("to run", stage.title(spec), f"{key}  {self._reason(stage, spec)}", style="yellow")
        return stage.artifact.model_construct(key=key, uri=place.uri, label=label(spec))

    def _reason(self, stage: Stage[S, A], spec: S) -> str:
        now = fields(spec)
        records = [record for record in self._records(stage) if record.version == stage.version]
        if not records:
            ran = any(self._records(stage))
            return f"the stage is at version {stage.version} now" if ran else "the first of its stage"
        nearest = min(reversed(records), key=lambda record: len(changes(record.spec, now)))
        differing = changes(nearest.spec, now)
        shown = [f"{name}: {_shown(old)} -> {_shown(new)}" for name, (old, new) in differing.items()]
        more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
        return f"{', '.join(shown[:6])}{more} (since {nearest.key})"

    def _records(self, stage: Stage[S, A]) -> list[Record]:
        names = [name for name in self.root.names() if name.rpartition("-")[0] == stage.name]
        records = [record for name in names if (record := Record.read(self.root / name)) is not None]
        return sorted(records, key=lambda record: record.created)


def _shown(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
