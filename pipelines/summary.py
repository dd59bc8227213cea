"""The table that ends an experiment on a terminal."""

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from discdiff.evaluation.estimate import Estimate
from discdiff.evaluation.page import Model, Page
from pipelines.artifacts import Report
from pipelines.place import Place

Column = Callable[[Model], str]

COLUMNS: dict[str, Column] = {
    "method": lambda model: model.name,
    "parameters": lambda model: f"{model.parameters:,}",
    "nats/token": lambda model: _score(model, "nats_per_token"),
    "bits/char": lambda model: _score(model, "bits_per_character"),
    "perplexity": lambda model: _score(model, "perplexity"),
    "entropy of samples": lambda model: "" if model.quality is None else _estimate(model.quality.entropy),
    "evaluations": lambda model: "" if model.evaluations is None else f"{model.evaluations:g}",
}


def summarize(report: Report, console: Console) -> None:
    """Print one line a method, and what they are to be compared with."""
    page = Page.model_validate_json(Place.at(report.uri).read(report.data) or b"{}")
    table = Table(title=page.title, title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "method" else "right")
    for model in page.models:
        table.add_row(*(column(model) for column in COLUMNS.values()))
    if page.unigram is not None:
        unigram = Model(name="unigram", family="", parameters=0, steps=0, score=page.unigram)
        table.add_section()
        table.add_row(*(column(unigram) for column in COLUMNS.values()))
    console.print(table)


def _score(model: Model, name: str) -> str:
    return "not scored" if model.score is None else _estimate(getattr(model.score, name))


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.3f}" + ("" if estimate.se is None else f" ± {estimate.se:.3f}")
