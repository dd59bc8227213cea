"""Charts as inline SVG: numbers to marks, nothing else.

The marks take their colors from the page's style sheet, so one chart serves light, dark and paper, prints
as vectors, and costs a few kilobytes; a plotting library's offline bundle is some 4.7 MB a page and draws
its own colors. Every chart is drawn twice, for a wide and for a narrow page, because scaled-down labels
cannot be read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from discdiff.types import Value

_DASHES = ("", "6 3", "2 3", "8 3 2 3")
COLORS = 8
Number = int | float


class Mark(Value, frozen=True):
    """A point of a series with its standard error, if it has one."""

    x: float
    y: float
    se: float | None = None


class Series(Value, frozen=True):
    """A named line. `points_only` draws marks without a line between them."""

    name: str
    marks: tuple[Mark, ...]
    color: int = 0


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis from data to pixels."""

    low: Number
    high: Number
    start: Number
    stop: Number
    log: bool = False

    def __call__(self, value: Number) -> Number:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / ((high - low) or 1.0) * (self.stop - self.start)

    def ticks(self, count: int) -> list[Number]:
        """Round numbers inside the axis, about `count` of them."""
        if self.log and self.high / self.low >= 10:
            decades = range(
                math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1
            )
            steps = (1.0,) if len(decades) > 2 else (1.0, 2.0, 5.0)
            values = [m * 10.0**d for d in range(decades.start - 1, decades.stop) for m in steps]
            return [v for v in values if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9)]
        step = _round_step((self.high - self.low) / max(count, 1))
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(rough: Number) -> Number:
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if rough <= m * power * (1 + 1e-9))


def number(value: Number) -> str:
    """A tick's label: no trailing zeros, thousands as 2k."""
    if abs(value) >= 1000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.6g}".replace("-", "−")


@dataclass(frozen=True)
class Frame:
    """A plotting area in a box of `width` by `height` pixels."""

    width: int
    height: int
    left: int = 48
    right: int = 12
    top: int = 22
    bottom: int = 40


@dataclass(frozen=True)
class Lines:
    """Lines with one-standard-error bars over shared axes, and dashed horizontal references."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    joined: bool = True
    references: Sequence[tuple[str, Number]] = field(default_factory=tuple)

    def draw(self, frame: Frame, *, named: bool) -> Markup:
        """The chart as an SVG element; `named` writes each series' name at its end."""
        xs = [m.x for s in self.series for m in s.marks]
        ys = [y for s in self.series for m in s.marks for y in _ends(m, self.log_y)]
        ys += [value for _, value in self.references]
        if not xs:
            return Markup("")
        right = frame.width - (frame.right + (self._names_width() if named else 0))
        across = Scale(*_range(xs, self.log_x, 0.0), frame.left, right, self.log_x)
        up = Scale(*_range(ys, self.log_y, 0.06), frame.height - frame.bottom, frame.top, self.log_y)
        parts = [_grid(frame, across, up, self.x, self.y, right)]
        parts += [_reference(name, value, up, frame.left, right) for name, value in self.references]
        parts += [self._series(s, across, up) for s in self.series]
        if named:
            parts.append(self._names(across, up, frame))
        return _svg(frame, self.title, parts)

    def _names_width(self) -> int:
        return 14 + round(6.6 * max(len(s.name) for s in self.series))

    def _series(self, series: Series, across: Scale, up: Scale) -> str:
        points = [(across(m.x), up(m.y), m) for m in series.marks]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        dash = _DASHES[series.color // COLORS % len(_DASHES)]
        line = f'<polyline points="{joined}" stroke-dasharray="{dash}"/>' if self.joined else ""
        bars = "".join(_bar(x, m, up) for x, _, m in points if m.se)
        dots = "".join(_dot(x, y, series.name, m) for x, y, m in points) if len(points) <= 40 else ""
        return f'<g class="series c{series.color % COLORS}">{line}{bars}{dots}</g>'

    def _names(self, across: Scale, up: Scale, frame: Frame) -> str:
        ends = sorted(
            ((up(s.marks[-1].y), across(s.marks[-1].x), s) for s in self.series if s.marks),
            key=lambda end: end[0],
        )
        out, floor = [], frame.top - 10.0
        room = frame.height - frame.bottom
        spots: list[Number] = []
        for y, _, _ in ends:
            floor = max(y, floor + 14)
            spots.append(floor)
        over = max(0.0, (spots[-1] if spots else 0) - room)
        edge = max(x for _, x, _ in ends)
        for (_, _, series), spot in zip(ends, spots, strict=True):
            out.append(
                f'<text class="name c{series.color % COLORS}" x="{edge + 8:.1f}" y="{spot - over + 4:.1f}">'
                f"{escape(series.name)}</text>"
            )
        return "".join(out)


@dataclass(frozen=True)
class Whiskers:
    """One value a row with its two-standard-error interval, and dashed vertical references."""

    title: str
    x: str
    rows: Sequence[Series]
    references: Sequence[tuple[str, Number]] = field(default_factory=tuple)

    def draw(self, frame: Frame, *, named: bool) -> Markup:
        """The chart as an SVG element, as tall as its rows need."""
        marks = [s.marks[0] for s in self.rows if s.marks]
        if not marks:
            return Markup("")
        left = 12 + round(6.8 * max(len(s.name) for s in self.rows))
        height = 26 * len(self.rows) + frame.bottom + 22
        box = Frame(frame.width, height, left=left, right=20, top=22, bottom=frame.bottom)
        across = Scale(*self._limits(marks), box.left, box.width - box.right)
        parts = [_columns(box, across, self.x)]
        parts += [_upright(name, value, across, box) for name, value in self.references]
        parts += [self._row(s, box.top + 13 + 26 * i, across) for i, s in enumerate(self.rows) if s.marks]
        return _svg(box, self.title, parts)

    def _limits(self, marks: Sequence[Mark]) -> tuple[Number, Number]:
        """The axis: what is far beyond the best and the references must not flatten all the rest."""
        best = min(m.y for m in marks)
        held = max([best, *(value for _, value in self.references)])
        near = [m for m in marks if m.y <= 1.5 * held]
        ends = [m.y + k * 2 * (m.se or 0) for m in near for k in (-1, 1)]
        return _range([min(max(end, 0.5 * best), 1.5 * held) for end in ends] + [held], False, 0.05)

    def _row(self, series: Series, y: Number, across: Scale) -> str:
        mark = series.marks[0]
        label = (
            f'<text class="row" x="{across.start - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(series.name)}</text>"
        )
        drawn = self._mark(series.name, mark, y, across)
        return f'{label}<g class="series c{series.color % COLORS}">{drawn}</g>'

    def _mark(self, name: str, mark: Mark, y: Number, across: Scale) -> str:
        if mark.y > across.high:
            text = f"{mark.y:.4g} ▸"
            return f'<text class="name" x="{across.stop:.1f}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        se = 2 * (mark.se or 0)
        low, high = max(mark.y - se, across.low), min(mark.y + se, across.high)
        bar = f'<line x1="{across(low):.1f}" x2="{across(high):.1f}" y1="{y}" y2="{y}"/>' if se else ""
        return bar + _dot(across(mark.y), y, name, mark)


def _svg(frame: Frame, title: str, parts: Sequence[str]) -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {frame.width} {frame.height}" width="{frame.width}" height="{frame.height}" '
        f'role="img" aria-label="{escape(title)}">{body}</svg>'
    )


def _range(values: Sequence[Number], log: bool, margin: Number) -> tuple[Number, Number]:
    low, high = min(values), max(values)
    if log:
        low = max(low, 1e-12)
        grow = (max(high, low) / low) ** margin
        return (low / grow, high * grow) if high > low else (low / 2, low * 2)
    pad = (high - low) * margin or (abs(high) * 0.1 or 1.0) * (1 if high == low else 0)
    return low - pad, high + pad


def _grid(frame: Frame, across: Scale, up: Scale, x: str, y: str, right: Number) -> str:
    lines = "".join(
        f'<line x1="{frame.left}" x2="{right}" y1="{up(v):.1f}" y2="{up(v):.1f}"/>'
        f'<text x="{frame.left - 7}" y="{up(v) + 4:.1f}" text-anchor="end">{number(v)}</text>'
        for v in up.ticks(max(2, (frame.height - frame.bottom) // 46))
    )
    bottom = frame.height - frame.bottom
    marks = "".join(
        f'<text x="{across(v):.1f}" y="{bottom + 17}" text-anchor="middle">{number(v)}</text>'
        for v in across.ticks(max(2, int(right - frame.left) // 80))
    )
    names = (
        f'<text class="axis" x="{right}" y="{frame.height - 6}" text-anchor="end">{escape(x)}</text>'
        f'<text class="axis" x="{frame.left}" y="{frame.top - 10}">{escape(y)}</text>'
    )
    return f'<g class="grid">{lines}{marks}{names}</g>'


def _columns(frame: Frame, across: Scale, x: str) -> str:
    bottom = frame.height - frame.bottom
    marks = "".join(
        f'<line x1="{across(v):.1f}" x2="{across(v):.1f}" y1="{frame.top}" y2="{bottom}"/>'
        f'<text x="{across(v):.1f}" y="{bottom + 17}" text-anchor="middle">{number(v)}</text>'
        for v in across.ticks(max(2, int(across.stop - across.start) // 80))
    )
    name = f'<text class="axis" x="{across.stop}" y="{frame.height - 6}" text-anchor="end">{escape(x)}</text>'
    return f'<g class="grid">{marks}{name}</g>'


def _reference(name: str, value: Number, up: Scale, left: Number, right: Number) -> str:
    y = up(value)
    return (
        f'<g class="reference"><line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{right - 4}" y="{y - 5:.1f}" text-anchor="end">{escape(name)}</text></g>'
    )


def _upright(name: str, value: Number, across: Scale, frame: Frame) -> str:
    x, bottom = across(value), frame.height - frame.bottom
    side = "end" if x > (across.start + across.stop) / 2 else "start"
    return (
        f'<g class="reference"><line x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{bottom}"/>'
        f'<text x="{x:.1f}" y="{frame.top - 7}" text-anchor="{side}">{escape(name)}</text></g>'
    )


def _ends(mark: Mark, log: bool) -> tuple[Number, Number]:
    """The ends of a mark's bar; on a logarithmic axis it has none downwards that would pass zero."""
    se = mark.se or 0.0
    return (mark.y - se if mark.y - se > 0 or not log else mark.y), mark.y + se


def _bar(x: Number, mark: Mark, up: Scale) -> str:
    low, high = _ends(mark, up.log)
    return f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{up(low):.1f}" y2="{up(high):.1f}"/>'


def _dot(x: Number, y: Number, name: str, mark: Mark) -> str:
    told = f"{name}: {mark.y:.5g}" + (f" ± {mark.se:.2g}" if mark.se else "")
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"><title>{escape(told)}</title></circle>'
