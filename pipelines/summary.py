"""The table that ends an experiment on a terminal."""

from collections.abc import Callable

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from discdiff.evaluation.estimate import Estimate
from discdiff.evaluation.page import Model, Page
from pipelines.artifacts import Report
from pipelines.place import Place

Column = Callable[[Model], str]

COLUMNS: dict[str, Column] = {
    "method": lambda model: model.name,
    "nats/token": lambda model: _score(model, "nats_per_token"),
    "bits/char": lambda model: _score(model, "bits_per_character"),
    "perplexity": lambda model: _score(model, "perplexity"),
    "entropy drawn": lambda model: "" if model.quality is None else _estimate(model.quality.entropy),
    "NFE": lambda model: "" if model.evaluations is None else f"{model.evaluations:g}",
}


def summarize(report: Report, console: Console) -> None:
    """Print one line a method, and what they are to be compared with."""
    page = Page.model_validate_json(Place.at(report.uri).read(report.data) or b"{}")
    table = Table(title=page.title, title_justify="left", box=SIMPLE, padding=0)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
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
    digits = 3 if estimate.value < 10 else 2
    error = "" if estimate.se is None else f" ± {estimate.se:.{digits}f}"
    return f"{estimate.value:.{digits}f}{error}"
