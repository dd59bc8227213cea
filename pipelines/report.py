"""Report: what several evaluations found, as one HTML page and as the same data."""

import io
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from discdiff.evaluation.likelihood import Ledger, compare
from discdiff.evaluation.page import Cell, Comparison, Fact, Model, Page
from discdiff.evaluation.report import render
from discdiff.types import DiscdiffError, Value
from pipelines.artifacts import Report, Scores
from pipelines.evaluate import LEDGER, SCORES, Evaluation
from pipelines.frontier import CELL
from pipelines.headline import of_excess, of_quality, of_score
from pipelines.place import Place
from pipelines.record import now
from pipelines.stage import stage
from pipelines.work import Work

TABLE = "methods.json"


class ReportSpec(Value, frozen=True):
    """The evaluations that a page compares."""

    scores: tuple[Scores, ...]
    controls: tuple[Scores, ...] = ()
    """Evaluations of the same methods on data of a known law."""
    points: tuple[Scores, ...] = ()
    """Points of the frontier."""
    title: str = "Discrete diffusion, compared"
    summary: str = ""


@stage(version=2)
def report(spec: ReportSpec, work: Work) -> Report:
    """Draw the page; `report.html` needs nothing else, `report.json` is the same as data."""
    if not spec.scores:
        raise DiscdiffError("there is nothing to report: no evaluation was given; give at least one")
    found = _named([_evaluation(each) for each in spec.scores])
    controls = _named([_evaluation(each) for each in spec.controls])
    page = _page(spec, found, controls)
    (work.directory / "report.json").write_text(page.model_dump_json(indent=1))
    (work.directory / "report.html").write_text(render(page), encoding="utf-8")
    for model in page.models:
        if model.score is not None:
            work.log({f"bits_per_character.{model.name}": model.score.bits_per_character.value})
    (work.directory / TABLE).write_text(json.dumps(table(page)))
    for name in ("report.html", "report.json", TABLE):
        work.tracker.attach(work.directory / name)
    work.tracker.tag({"mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}])})
    return Report(key=work.key, uri=work.uri)


def table(page: Page) -> dict[str, list[Any]]:
    """The models as a table that MLflow shows and loads: columns and rows, the same for every family."""
    columns = ["name", "family", "parameters", "steps", "seconds_per_step", "peak_memory"]
    columns += ["sampler", "evaluations"]
    rows = [{name: getattr(model, name) for name in columns} for model in page.models]
    for row, model in zip(rows, page.models, strict=True):
        row |= of_score(model.score, None) | of_excess(model) | of_quality(model.quality, None)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}


def _evaluation(scores: Scores) -> Evaluation:
    raw = Place.at(scores.uri).read(SCORES)
    if raw is None:
        raise DiscdiffError(f"{scores.uri} lacks {SCORES}; give the folder of a finished evaluation")
    return Evaluation.model_validate_json(raw)


def _cell(scores: Scores) -> Cell:
    raw = Place.at(scores.uri).read(CELL)
    if raw is None:
        raise DiscdiffError(f"{scores.uri} lacks {CELL}; give the folder of a point of the frontier")
    return Cell.model_validate_json(raw)


def _page(spec: ReportSpec, found: Sequence[Evaluation], controls: Sequence[Evaluation]) -> Page:
    first = found[0]
    warnings = (
        []
        if _alike(found)
        else ["These evaluations are not of the same text: compare no numbers across them."]
    )
    warnings += [text for each in (*found, *controls) for text in _impossible(each.model)]
    return Page(
        title=spec.title,
        created=now()[:16].replace("T", " ") + " UTC",
        summary=spec.summary or _summary(found),
        models=tuple(each.model for each in found),
        unigram=first.unigram,
        real=next((each.real for each in found if each.real), None),
        real_samples=next((each.real_samples for each in found if each.real_samples), ()),
        controls=tuple(each.model for each in controls),
        comparisons=tuple(_comparisons(spec, found)),
        zero_shot=tuple(row for each in found for row in each.zero_shot),
        frontier=tuple(_cell(each) for each in spec.points),
        facts=_facts(found),
        specs={key: text for each in found for key, text in each.specs.items()},
        warnings=tuple(warnings),
    )


def _impossible(model: Model) -> list[str]:
    """A warning where a model scores better than the law of its data lets any."""
    if model.excess is None or model.excess.value >= -3 * (model.excess.se or 0.0):
        return []
    return [f"{model.name} claims {model.excess} nats per token over the entropy: its bound is wrong."]


def _summary(found: Sequence[Evaluation]) -> str:
    """The finding in a sentence or two."""
    scored = [(e.model.score.bits_per_character.value, e.model.name) for e in found if e.model.score]
    if not scored:
        return f"{len(found)} methods, none with a likelihood."
    (value, name), first = min(scored), found[0]
    data = f"{first.model.score.tokens:,} held-out tokens" if first.model.score else "held-out text"
    best = f"{len(found)} methods on {data}: the best, {name}, needs {value:.3f} bits per character"
    if first.unigram is None:
        return best + "."
    below = sum(each < first.unigram.bits_per_character.value for each, _ in scored)
    plain = f"a unigram model needs {first.unigram.bits_per_character.value:.3f}"
    return f"{best}; {plain}, which {below} of {len(scored)} undercut."


def _alike(found: Sequence[Evaluation]) -> bool:
    protocols = [each.model.score.protocol for each in found if each.model.score]
    return len({(p.tokenizer, p.packing, p.counted, p.data) for p in protocols}) <= 1


def _named(found: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations with every model's name unlike the others'."""
    names = [each.model.name for each in found]
    out: list[Evaluation] = []
    for i, each in enumerate(found):
        name = each.model.name
        own = name if names.count(name) == 1 else f"{name} {names[: i + 1].count(name)}"
        out.append(each.model_copy(update={"model": each.model.model_copy(update={"name": own})}))
    return out


def _facts(found: Sequence[Evaluation]) -> tuple[Fact, ...]:
    """Each fact once, in the order of its first mention."""
    return tuple(dict.fromkeys(fact for each in found for fact in each.facts))


def _comparisons(spec: ReportSpec, found: Sequence[Evaluation]) -> list[Comparison]:
    """Each scored model against the next better one, where both scored the same sequences."""
    scored = [
        (each.model.score.nats_per_token.value, each.model.name, _ledger(scores))
        for scores, each in zip(spec.scores, found, strict=True)
        if each.model.score
    ]
    ranked = sorted(scored, key=lambda entry: entry[0])
    return [
        Comparison(first=better[1], second=worse[1], difference=compare(better[2], worse[2]))
        for better, worse in itertools.pairwise(ranked)
        if np.array_equal(better[2].rows, worse[2].rows) and np.array_equal(better[2].tokens, worse[2].tokens)
    ]


def _ledger(scores: Scores) -> Ledger:
    raw = Place.at(scores.uri).read(LEDGER)
    if raw is None:
        raise DiscdiffError(f"{scores.uri} lacks {LEDGER}; evaluate that checkpoint again")
    with np.load(io.BytesIO(raw)) as file:
        return Ledger(file["rows"], file["nats"], file["tokens"])
