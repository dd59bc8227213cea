"""Charts by matplotlib: numbers to figures, and nothing of the page that they stand in.

Every chart is drawn twice, for a wide and for a narrow page, because scaled-down labels cannot be read. Whose
a line is shows in color, in marks and in dashes at once, so that it can be told without color.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from discdiff.evaluation.series import Mark, Series
from discdiff.evaluation.svg import DIM, INK, PAPER, RULE, SETTINGS, color, element

_MARKERS = (("o", 5.5), ("s", 5.0), ("D", 4.8), ("v", 6.0), ("^", 6.0), ("P", 7.5), ("X", 7.0))
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (7, 2, 1, 2)))
_FILLS = ("full", "open", "bottom", "top", "left", "right")
_ROW, _NAME = 26, 16
_LEGEND: dict[str, Any] = {
    "frameon": False,
    "labelcolor": INK,
    "fontsize": 11.5,
    "labelspacing": 0.3,
    "borderpad": 0,
    "handlelength": 2.8,
}


@dataclass(frozen=True)
class Frame:
    """A drawing of so many pixels, and where it has its legend."""

    width: int
    height: int
    legend: str
    columns: int

    def extra(self, names: int) -> int:
        """What the legend needs in height beyond the frame."""
        height = _NAME * -(-names // self.columns)
        return height if self.columns > 1 else max(0, height + 30 - self.height)


WIDE, NARROW = Frame(880, 340, "outside right upper", 1), Frame(350, 250, "outside lower left", 2)


def number(value: float) -> str:
    """A tick's label: no trailing zeros, thousands as 2k."""
    if abs(value) >= 1000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.6g}".replace("-", "−")


@dataclass(frozen=True)
class Lines:
    """Points joined by lines over shared axes, with bars of one standard error to either side."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False

    def draw(self, name: str, frame: Frame) -> Markup:
        """The chart as an SVG element whose ids begin with `name`."""
        drawn = [each for each in self.series if each.marks]
        variants = list(dict.fromkeys(each.variant for each in drawn))
        with style.context(["default", SETTINGS]):
            handles = [*_names(drawn), *_variants(variants)]
            figure, axes = _figure(frame.width, frame.height + frame.extra(len(handles)))
            axes.set_title(self.y, loc="left", fontsize=12, fontstyle="italic", color=DIM)
            axes.set_xlabel(self.x, loc="right", fontstyle="italic")
            for i, each in enumerate(drawn):
                self._errors(axes, each)
                _line(axes, each, _FILLS[variants.index(each.variant) % len(_FILLS)], f"series-{i}")
            _scale(axes, self.log_x, self.log_y, frame)
            placed: dict[str, Any] = {"loc": frame.legend, "ncols": frame.columns}
            figure.legend(handles=handles, **placed, **_LEGEND)
        return element(figure, name, self.title, {f"series-{i}": _told(s) for i, s in enumerate(drawn)})

    def _errors(self, axes: Axes, series: Series) -> None:
        x, low, high = _intervals(series, self.log_y)
        axes.vlines(x, low, high, color=color(series.color), linewidth=1, alpha=0.6, clip_on=False)


class Curves(Lines):
    """Lines of something continuous, with a band of one standard error to either side."""

    def _errors(self, axes: Axes, series: Series) -> None:
        x, low, high = _intervals(series, self.log_y)
        axes.fill_between(x, low, high, color=color(series.color), alpha=0.15, linewidth=0, clip_on=False)


@dataclass(frozen=True)
class Whiskers:
    """One value a row with its two-standard-error interval, and dashed vertical references."""

    title: str
    x: str
    rows: Sequence[Series]
    references: Sequence[tuple[str, float]] = field(default_factory=tuple)

    def draw(self, name: str, frame: Frame) -> Markup:
        """The chart as an SVG element, as tall as its rows need."""
        rows = [each for each in self.rows if each.marks]
        low, high = self._limits([each.marks[0] for each in rows])
        with style.context(["default", SETTINGS]):
            figure, axes = _figure(frame.width, _ROW * len(rows) + 70)
            axes.set_xlim(low, high)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.grid(axis="x", color=RULE, linewidth=1, clip_on=False)
            _ticks(axes.xaxis, frame.width // 75, False)
            axes.set_yticks(range(len(rows)), [each.name for each in rows], color=INK)
            axes.set_xlabel(self.x, loc="right", fontstyle="italic")
            for label, value in self.references:
                axes.axvline(value, color=DIM, linestyle=(0, (3, 3)), linewidth=1)
                side = "right" if value > (low + high) / 2 else "left"
                axes.text(value, -0.65, label, ha=side, va="bottom", fontstyle="italic", color=DIM)
            for i, each in enumerate(rows):
                _row(axes, each, i, (low, high))
        return element(figure, name, self.title, {f"series-{i}": _told(s) for i, s in enumerate(rows)})

    def _limits(self, marks: Sequence[Mark]) -> tuple[float, float]:
        """The axis: what is far beyond the best and the references must not flatten all the rest."""
        best = min(m.y for m in marks)
        held = max([best, *(value for _, value in self.references)])
        near = [m for m in marks if m.y <= 1.5 * held]
        ends = [m.y + k * 2 * (m.se or 0) for m in near for k in (-1, 1)]
        inside = [min(max(end, 0.5 * best), 1.5 * held) for end in ends] + [held]
        low, high = min(inside), max(inside)
        pad = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
        return low - pad, high + pad


def _figure(width: int, height: int) -> tuple[Figure, Axes]:
    """A transparent figure of so many pixels, its axes without a box."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=6)
    axes.set_axisbelow(True)
    return figure, axes


def _scale(axes: Axes, log_x: bool, log_y: bool, frame: Frame) -> None:
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    axes.margins(x=0.02, y=0.06)
    axes.grid(axis="y", color=RULE, linewidth=1, clip_on=False)
    _ticks(axes.xaxis, frame.width // 75, log_x)
    _ticks(axes.yaxis, frame.height // 50, log_y)


def _ticks(axis: Axis, count: int, log: bool) -> None:
    """About `count` round numbers, written as `number` writes them."""
    low, high = axis.get_view_interval()
    subs = (1,) if log and high > 1e3 * low else (1, 2, 5)
    linear = MaxNLocator(max(2, count), steps=[1, 2, 2.5, 5, 10])
    axis.set_major_locator(LogLocator(subs=subs, numticks=count + 2) if log else linear)
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_locator(NullLocator())


def _look(series: Series, fill: str) -> dict[str, Any]:
    """How a line looks: color, marks and dashes by whom it is of, the marks' filling by the variant."""
    own, (marker, size) = color(series.color), _MARKERS[series.color % len(_MARKERS)]
    return {
        "color": own,
        "linewidth": 1.6,
        "linestyle": _DASHES[series.color // len(_MARKERS) % len(_DASHES)],
        "marker": marker,
        "markersize": size,
        "markeredgewidth": 1,
        "markerfacecolor": PAPER if fill == "open" else own,
        "markerfacecoloralt": PAPER,
        "fillstyle": "full" if fill == "open" else fill,
    }


def _line(axes: Axes, series: Series, fill: str, gid: str) -> None:
    x, y = [mark.x for mark in series.marks], [mark.y for mark in series.marks]
    axes.plot(x, y, **_look(series, fill), markevery=_every(series), clip_on=False, gid=gid)


def _every(series: Series) -> int:
    """One in so many points is marked: at most 24."""
    return max(1, math.ceil(len(series.marks) / 24))


def _told(series: Series) -> list[str]:
    """What a pointer is told: of the line, then of each mark."""
    who = f"{series.name}, {series.variant}" if series.variant else series.name
    return [who, *(f"{who}: {_value(mark)}" for mark in series.marks[:: _every(series)])]


def _value(mark: Mark) -> str:
    return f"{mark.y:.5g}" + (f" ± {mark.se:.2g}" if mark.se else "")


def _names(series: Sequence[Series]) -> list[Line2D]:
    """Each name once, in the order in which the lines end, from above."""
    last = {each.name: each for each in sorted(series, key=lambda each: each.marks[-1].y)}
    return [Line2D([], [], label=each.name, **_look(each, "full")) for each in reversed(last.values())]


def _variants(variants: Sequence[str]) -> list[Line2D]:
    """How the marks of each variant are filled, if there are several."""
    if len(variants) < 2:
        return []
    return [_variant(each, fill) for each, fill in zip(variants, cycle(_FILLS), strict=False)]


def _variant(name: str, fill: str) -> Line2D:
    look = _look(Series(name=name, marks=()), fill)
    look.update(color=DIM, linestyle="none", markerfacecolor=PAPER if fill == "open" else DIM)
    return Line2D([], [], label=name, **look)


def _row(axes: Axes, series: Series, at: int, limits: tuple[float, float]) -> None:
    mark, (least, most) = series.marks[0], limits
    if mark.y > most:
        axes.text(most, at, f"{mark.y:.4g} ▸", ha="right", va="center", color=color(series.color))
        return
    se = 2 * (mark.se or 0.0)
    if se:
        ends = [max(mark.y - se, least), min(mark.y + se, most)]
        axes.plot(ends, [at, at], color=color(series.color), linewidth=1.6)
    axes.plot([mark.y], [at], **_look(series, "full"), gid=f"series-{at}")


def _intervals(series: Series, log: bool) -> tuple[list[float], list[float], list[float]]:
    """Where marks with an error are, and its ends; on a logarithmic axis none goes down past zero."""
    known = [(mark, mark.se) for mark in series.marks if mark.se]
    low = [mark.y - se if mark.y > se or not log else mark.y for mark, se in known]
    return [mark.x for mark, _ in known], low, [mark.y + se for mark, se in known]
