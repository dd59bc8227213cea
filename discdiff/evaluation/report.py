"""The report: one HTML file that needs nothing else, drawn by jinja2 from a `Page`."""

from collections.abc import Callable, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from discdiff.evaluation.charts import NARROW, WIDE, Curves, Lines, Whiskers
from discdiff.evaluation.estimate import Estimate
from discdiff.evaluation.page import Cell, Model, Page, ZeroShot
from discdiff.evaluation.series import Mark, Series
from discdiff.evaluation.svg import COLORS


def render(page: Page) -> str:
    """The page as HTML: style, script, charts and data inline."""
    environment = Environment(
        loader=PackageLoader("discdiff.evaluation", "templates"),
        autoescape=lambda name: name is not None and name.startswith("report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["estimate"] = estimate
    environment.filters["plain"] = plain
    ranked = sorted(page.models, key=_rank)
    colors = {model.name: i for i, model in enumerate(ranked)}
    return environment.get_template("report.html.jinja").render(
        page=page,
        models=ranked,
        colors={name: color % COLORS for name, color in colors.items()},
        best=_best(ranked),
        charts=_charts(page, ranked, colors),
        traces={m.name: m.trace.model_dump(mode="json") for m in ranked if m.trace},
        known=_known(page),
        protocols=_protocols(ranked, page.zero_shot),
        notes=_notes(ranked),
    )


def estimate(value: Estimate | None, digits: int | None = None) -> Markup:
    """A value with its standard error set smaller; a dash where there is none."""
    if value is None:
        return Markup('<span class="none">–</span>')
    text = str(value) if digits is None else f"{value.value:.{digits}f}"
    number, _, error = text.partition(" ± ")
    return Markup(f'{number}<span class="se"> ± {error}</span>') if error else Markup(number)


def plain(value: float | None, digits: int = 3) -> Markup:
    """A number of so many digits; a dash where there is none."""
    return Markup('<span class="none">–</span>') if value is None else Markup(f"{value:,.{digits}f}")


def _rank(model: Model) -> tuple[bool, float, str]:
    return (model.score is None, model.score.nats_per_token.value if model.score else 0.0, model.name)


def _best(models: Sequence[Model]) -> set[str]:
    """The best model and those within two of its standard errors."""
    scored = [(m.name, m.score.nats_per_token) for m in models if m.score]
    if not scored:
        return set()
    first = min((each for _, each in scored), key=lambda each: each.value)
    return {name for name, each in scored if each.value <= first.value + 2 * (first.se or 0.0)}


def _known(page: Page) -> list[Model]:
    """Models on data of a known law, the one with the least excess first."""
    found = [(model.excess.value, model) for model in (*page.models, *page.controls) if model.excess]
    return [model for _, model in sorted(found, key=lambda pair: pair[0])]


def _notes(models: Sequence[Model]) -> list[tuple[str, str]]:
    """Each warning once, with the models it is about: `all`, or their names."""
    found: dict[str, list[str]] = {}
    for model in models:
        for warning in model.quality.warnings if model.quality else ():
            found.setdefault(warning, []).append(model.name)
    measured = [model.name for model in models if model.quality]
    return [
        ("all" if names == measured and len(names) > 1 else ", ".join(names), warning)
        for warning, names in found.items()
    ]


Chart = Lines | Whiskers


def _both(name: str, chart: Chart) -> Markup:
    """The chart drawn for a wide and for a narrow page; the style sheet shows one."""
    wide, narrow = chart.draw(f"{name}-wide", WIDE), chart.draw(f"{name}-narrow", NARROW)
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)


def _charts(page: Page, models: Sequence[Model], colors: dict[str, int]) -> dict[str, Markup]:
    """The charts that there is data for, by name."""
    drawn: dict[str, Chart | None] = {
        "likelihood": _likelihood(page, models, colors),
        "bound": _training(models, colors, "bound", "validation bound, nats per token"),
        "loss": _training(models, colors, "loss", "training loss, nats per token"),
        "time": _times(models, colors),
        "seen": _seen(page, models, colors),
        "quality": _frontier(
            page, colors, ("temperature", "top-p"), lambda c: c.entropy.value, "entropy, nats"
        ),
        "evaluations": _frontier(
            page, colors, ("steps", "batch"), lambda c: c.evaluations, "network evaluations"
        ),
        "seconds": _frontier(page, colors, ("steps", "batch"), lambda c: c.seconds, "seconds a sample"),
    }
    return {name: _both(name, chart) for name, chart in drawn.items() if chart is not None}


def _likelihood(page: Page, models: Sequence[Model], colors: dict[str, int]) -> Whiskers | None:
    rows = [
        Series(name=m.name, color=colors[m.name], marks=(Mark(x=0, y=each.value, se=each.se),))
        for m in models
        if m.score
        for each in [m.score.bits_per_character]
    ]
    unigram = [("unigram", page.unigram.bits_per_character.value)] if page.unigram else []
    return (
        Whiskers("Bits per character of each method", "bits per character", rows, unigram) if rows else None
    )


def _training(models: Sequence[Model], colors: dict[str, int], curve: str, y: str) -> Lines | None:
    series = [
        each.model_copy(update={"name": m.name, "color": colors[m.name]})
        for m in models
        for each in m.training
        if each.name == curve and each.marks
    ]
    return Curves(f"{y}, over training", "training step", y, series, log_y=_wide(series)) if series else None


def _times(models: Sequence[Model], colors: dict[str, int]) -> Lines | None:
    series = [
        Series(name=m.name, color=colors[m.name], marks=_strata(m.score.curve))
        for m in models
        if m.score and len(m.score.curve) > 1
    ]
    x, y = "time t, from data to noise", "nats per token and unit time"
    return Curves("The bound by time", x, y, series, log_y=_wide(series)) if series else None


def _wide(series: Sequence[Series]) -> bool:
    """Whether values are positive and spread over more than a factor of ten: then the axis is logarithmic."""
    values = [mark.y for each in series for mark in each.marks]
    return min(values) > 0 and max(values) > 10 * min(values)


def _strata(curve: Sequence[Estimate]) -> tuple[Mark, ...]:
    return tuple(Mark(x=(h + 0.5) / len(curve), y=each.value, se=each.se) for h, each in enumerate(curve))


def _seen(page: Page, models: Sequence[Model], colors: dict[str, int]) -> Lines | None:
    rows = [(m.name, colors[m.name], m.quality) for m in models] + [("real text", len(models), page.real)]
    series = [
        Series(
            name=name,
            color=color,
            marks=tuple(Mark(x=n, y=share) for n, share in sorted(quality.seen.items())),
        )
        for name, color, quality in rows
        if quality and quality.seen
    ]
    return (
        Lines("N-grams seen in training", "n", "share of n-grams seen in training", series, log_x=True)
        if series
        else None
    )


def _frontier(
    page: Page, colors: dict[str, int], sweeps: Sequence[str], x: Callable[[Cell], float], label: str
) -> Lines | None:
    """Judge perplexity against x, a line for each model, sweep and batch size. Entropy takes its place on y
    if there is no judge; a model that judges itself has a star.
    """
    series: list[Series] = []
    cells = [cell for cell in page.frontier if cell.sweep in sweeps]
    y = "judge perplexity" if any(cell.perplexity for cell in cells) else "entropy, nats"
    several_batches = len({c.batch for c in cells}) > 1
    several_sweeps = len({c.sweep for c in cells} - {"batch"}) > 1
    for batch, sweep, name in sorted({(c.batch, c.sweep, c.model) for c in cells}):
        own = [c for c in cells if (c.model, c.sweep, c.batch) == (name, sweep, batch)]
        marks = [Mark(x=x(c), y=each.value, se=each.se) for c in own for each in [c.perplexity or c.entropy]]
        said = [f"batch {batch}"] * several_batches + [sweep] * several_sweeps
        star = "*" if any(c.itself for c in own) else ""
        ordered = tuple(sorted(marks, key=lambda mark: mark.x))
        line = Series(name=name + star, color=colors.get(name, 0), variant=", ".join(said), marks=ordered)
        series.append(line)
    log_x = "steps" in sweeps
    return Lines(f"{y} against {label}", label, y, series, log_x=log_x) if series else None


def _protocols(
    models: Sequence[Model], elsewhere: Sequence[ZeroShot]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each aspect of the protocol with the models that share a wording, so that what differs is seen."""
    scored = [(m.name, m.score.protocol) for m in models if m.score]
    others = [(f"{each.model} on {each.store}", each.score.protocol) for each in elsewhere]
    aspects: list[tuple[str, list[tuple[str, str]]]] = []
    for aspect in scored[0][1].__class__.model_fields if scored else ():
        wordings: dict[str, list[str]] = {}
        for name, protocol in scored:
            wordings.setdefault(getattr(protocol, aspect), []).append(name)
        for name, protocol in others:
            if getattr(protocol, aspect) not in wordings:
                wordings[getattr(protocol, aspect)] = [name]
        everyone = len(wordings) == 1
        lines = [("all" if everyone else ", ".join(names), text) for text, names in wordings.items()]
        aspects.append((aspect.replace("_", " "), lines))
    return aspects
