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

SCORES: dict[str, Column] = {
    "method": lambda model: model.name,
    "nats/token": lambda model: _score(model, "nats_per_token"),
    "bits/char": lambda model: _score(model, "bits_per_character"),
    "perplexity": lambda model: _score(model, "perplexity"),
    "entropy drawn": lambda model: "" if model.quality is None else _estimate(model.quality.entropy),
    "NFE": lambda model: "" if model.evaluations is None else f"{model.evaluations:.0f}",
}


def _compared(page: Page) -> dict[str, Column]:
    """The columns where there is a control: what a method costs, and what it needs above the entropy."""
    controls = {each.name: each for each in page.controls}

    def excess(model: Model) -> str:
        control = controls.get(model.name)
        return "" if control is None or control.excess is None else _estimate(control.excess)

    def bound(model: Model) -> str:
        control = controls.get(model.name)
        return "" if control is None or control.score is None else _estimate(control.score.nats_per_token)

    return {
        "method": lambda model: model.name,
        "params": lambda model: f"{model.parameters:,}" if model.parameters else "",
        "bits/char": lambda model: _score(model, "bits_per_character"),
        "law": bound,
        "excess": excess,
        "s/step": lambda model: "" if model.seconds_per_step is None else f"{model.seconds_per_step:.3f}",
        "GiB": lambda model: "" if model.peak_memory is None else f"{model.peak_memory:.2f}",
    }


def summarize(report: Report, console: Console) -> None:
    """Print one line a method, and what they are to be compared with."""
    page = Page.model_validate_json(Place.at(report.uri).read(report.data) or b"{}")
    table = Table(title=page.title, title_justify="left", box=SIMPLE, padding=0)
    columns = _compared(page) if page.controls else SCORES
    for name in columns:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for model in page.models:
        table.add_row(*(column(model) for column in columns.values()))
    if page.unigram is not None:
        unigram = Model(name="unigram", family="", parameters=0, steps=0, score=page.unigram)
        table.add_section()
        table.add_row(*(column(unigram) for column in columns.values()))
    known = next((each.entropy for each in page.controls), None)
    if known is not None:
        table.caption = f"law: nats/token of data with entropy {known:.4f}; excess over it, by sequence"
        table.caption_justify = "left"
    console.print(table)


def _score(model: Model, name: str) -> str:
    return "not scored" if model.score is None else _estimate(getattr(model.score, name))


def _estimate(estimate: Estimate) -> str:
    digits = 3 if estimate.value < 10 else 2
    error = "" if estimate.se is None else f" ± {estimate.se:.{digits}f}"
    return f"{estimate.value:.{digits}f}{error}"
