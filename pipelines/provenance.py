"""Where a number came from: specifications, versions, data and hardware, read back from the records of
artifacts.
"""

import json
import os
import platform
from collections.abc import Iterator
from statistics import median

import torch

from discdiff.data.store import Store
from discdiff.evaluation.page import Fact
from discdiff.evaluation.series import Mark, Series
from pipelines.artifacts import Artifact, Checkpoint, Samples
from pipelines.place import Place
from pipelines.record import Record
from pipelines.work import METRICS

CURVES = {"loss": "loss", "bound": "bound", "validation_loss": "bound"}
"""Logged metrics that a report draws, and the chart each is drawn in."""


def facts(store: Store) -> tuple[Fact, ...]:
    """What was measured on what."""
    totals = store.totals
    size = f"{totals.tokens:,} tokens, {totals.documents:,} documents, {totals.characters:,} characters"
    return (
        Fact(group="Data", name=f"{store.split} split", value=size),
        Fact(group="Data", name="store", value=store.manifest.fingerprint[:16]),
        Fact(
            group="Data", name="tokenizer", value=f"{store.manifest.tokenizer[:16]}, {store.vocab:,} tokens"
        ),
        Fact(group="Hardware", name="evaluation", value=hardware()),
    )


def hardware() -> str:
    """The machine that this runs on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU"


def records(artifacts: tuple[Artifact, ...]) -> list[Record]:
    """The records of artifacts that have one."""
    found = [Record.read(Place.at(each.uri)) for each in artifacts]
    return [record for record in found if record is not None]


def specs(*artifacts: Artifact) -> dict[str, str]:
    """Every specification as JSON, by the key of its artifact."""
    return {each.key: json.dumps(each.spec, indent=1, ensure_ascii=False) for each in records(artifacts)}


def versions(*artifacts: Artifact) -> tuple[Fact, ...]:
    """What the artifacts were made with: one line a package, all of its versions."""
    seen: dict[str, set[str]] = {}
    for record in records(artifacts):
        for package, version in record.versions.items():
            seen.setdefault(package, set()).add(version)
    return tuple(
        Fact(group="Versions", name=name, value=", ".join(sorted(found))) for name, found in seen.items()
    )


def sampler_of(samples: Samples) -> str:
    """The sampler in words, from the specification that drew the samples."""
    record = Record.read(Place.at(samples.uri))
    sampler = _sampler(record.spec) if record else None
    if not isinstance(sampler, dict):
        return ""
    words = [str(sampler.get("kind", ""))]
    words += [f"{name} {value}" for name, value in sampler.items() if isinstance(value, int | float | str)]
    return ", ".join(word for word in words if not word.startswith("kind "))


def _sampler(spec: dict[str, object]) -> object:
    inner = spec.get("spec", spec)
    return inner.get("sampler") if isinstance(inner, dict) else None


def training_curves(checkpoint: Checkpoint) -> tuple[Series, ...]:
    """Loss and validation bound over training, as they were logged; the last line of a step counts."""
    points: dict[str, dict[int, Mark]] = {}
    for step, metrics in _logged(checkpoint):
        for name, chart in CURVES.items():
            if name in metrics:
                mark = Mark(x=step, y=metrics[name], se=metrics.get(f"{name}_se"))
                points.setdefault(chart, {})[step] = mark
    return tuple(
        Series(name=name, marks=tuple(mark for _, mark in sorted(found.items())))
        for name, found in points.items()
    )


def training_cost(checkpoint: Checkpoint) -> dict[str, float]:
    """The median seconds of a step and the peak of memory in GiB, as training logged them."""
    logged = [metrics for _, metrics in _logged(checkpoint)]
    paces = [metrics["seconds_per_step"] for metrics in logged if "seconds_per_step" in metrics]
    peaks = [metrics["peak_memory"] for metrics in logged if "peak_memory" in metrics]
    found = {} if not paces else {"seconds_per_step": median(paces)}
    return found if not peaks else found | {"peak_memory": max(peaks)}


def _logged(checkpoint: Checkpoint) -> Iterator[tuple[int, dict[str, float]]]:
    raw = Place.at(checkpoint.uri).read(METRICS) or b""
    for line in raw.decode().splitlines():
        entry = json.loads(line)
        if entry["step"] is not None:
            yield entry["step"], entry["metrics"]
