"""The page: every number of the data is on it, it needs nothing else, and no data becomes markup."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
import pytest
from page_example import NAMES, page

from discdiff.evaluation.charts import NARROW, WIDE, Curves, Lines, Whiskers, number
from discdiff.evaluation.page import Page
from discdiff.evaluation.report import render
from discdiff.evaluation.series import Mark, Series
from discdiff.evaluation.svg import COLORS, PAPER, color, themed

HTML = render(page())


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def seen() -> Seen:
    parser = Seen()
    parser.feed(HTML)
    return parser


def test_the_page_needs_nothing_but_itself(seen):
    inside = {f"#{each}" for each in seen.ids}
    assert set(seen.links) <= {"data:,"} | inside
    assert not re.search(r"@import|url\(|https?://", HTML)
    assert len(HTML) < 220_000


def test_ids_are_unique_and_every_part_is_there(seen):
    assert len(seen.ids) == len(set(seen.ids))
    parts = {"likelihood", "quality", "frontier", "training", "time", "viewer", "samples", "protocols", "ran"}
    charts = {"likelihood", "bound", "loss", "time", "seen", "quality", "evaluations", "seconds"}
    assert parts <= set(seen.ids)
    assert {f"chart-{name}" for name in charts} <= set(seen.ids)


def test_every_number_is_on_the_page(seen):
    text = " ".join(seen.text.split())
    for model in page().models:
        assert model.name in text
        if model.score:
            for each in (model.score.bits_per_character, model.score.nats_per_token, model.score.perplexity):
                assert str(each).split(" ± ")[0] in text
        else:
            assert model.unscored in text
        assert f"{model.quality.self_bleu.value:.3f}" in text
    assert str(page().comparisons[0].difference).split(" ± ")[0] in text
    assert "Nothing here was trained." in text
    assert "real text" in text


def test_bounds_are_marked_and_exact_likelihoods_are_not():
    rows = re.findall(
        r'<th scope="row"><i class="swatch c\d"></i>(\w+)</th>\s*<td[^>]*class="key">(.*?)</td>', HTML, re.S
    )
    assert {name: "≤" in cell for name, cell in rows} == {"autoregressive": False, "mdlm": True, "udlm": True}


def test_a_bound_on_other_text_is_marked_and_its_protocol_said(seen):
    row = re.search(r"<td[^>]*>elsewhere</td>(.*?)</tr>", HTML).group(1)
    assert row.count("≤") == 2
    assert "mdlm on elsewhere: another law" in " ".join(seen.text.split())


def test_a_judge_of_its_own_samples_is_labelled(seen):
    rows = re.findall(r'<th scope="row"><i class="swatch c\d"></i>(\w+)</th>(.*?)</tr>', HTML, re.S)
    starred = {name for name, cells in rows if "<abbr" in cells}
    assert starred == {"autoregressive"}
    text = " ".join(seen.text.split())
    assert "autoregressive: the judge drew these samples itself" in text
    assert "* is its own samples, read by itself" in text
    assert "autoregressive*, batch 1: " in text
    assert "* is the judge itself" in text


def test_batches_of_one_model_are_told_apart_by_how_their_marks_are_filled():
    svg = drawing("evaluations")
    titles = [each.findtext("title") for each in svg.iter("g") if each.get("class") == "series"]
    assert {"udlm, batch 1", "udlm, batch 8"} <= set(titles)
    fills = {
        title: next(declared(each, "fill") for each in ancestors_of(svg, f"{title}: "))
        for title in ("udlm, batch 1", "udlm, batch 8")
    }
    assert fills["udlm, batch 8"] == "var(--paper)"
    assert re.fullmatch(r"var\(--c\d\)", fills["udlm, batch 1"])


def test_the_best_stands_first():
    rows = re.findall(r'<th scope="row"><i class="swatch c\d"></i>(\w+)</th>', HTML)[: len(NAMES)]
    scored = [m for m in page().models if m.score]
    ranked = sorted(scored, key=lambda m: m.score.nats_per_token.value)
    assert rows == [*(m.name for m in ranked), "latent"]


def test_text_never_becomes_markup(seen):
    assert "<parts>" not in HTML
    assert "<b>bold</b>" not in HTML
    assert HTML.count("</script>") == 2  # of the data and of the viewer
    assert "</script><b>bold</b> & plain" in seen.text


def test_the_data_survives_its_json():
    assert Page.model_validate_json(page().model_dump_json()) == page()


def test_an_empty_report_is_drawn():
    assert "<h1>nothing</h1>" in render(Page(title="nothing", created="now"))


def test_protocols_say_who_differs(seen):
    text = " ".join(seen.text.split())
    assert "mdlm: mdlm" in text  # estimators differ, each under its method
    assert "precision float64" in text  # what all share is said once


# Charts


def drawing(name: str, *, size: str = "wide") -> Element:
    """One chart of the page."""
    (figure,) = re.findall(rf'<figure id="chart-{name}">(.*?)</figure>', HTML, re.S)
    wide, narrow = re.findall(r"<svg.*?</svg>", figure, re.S)
    return ElementTree.fromstring(wide if size == "wide" else narrow)


def drawn(chart: Lines | Whiskers, frame=WIDE) -> Element:
    return ElementTree.fromstring(chart.draw("a", frame))


def declared(each: Element, name: str) -> str | None:
    found = re.search(rf"(?:^|;) *{name}:([^;]+)", each.get("style", ""))
    return found and found[1]


def ancestors_of(svg: Element, title: str) -> Iterator[Element]:
    """The mark of that title and what it is in, the nearest first, where something is declared."""
    parents = {child: parent for parent in svg.iter() for child in parent}
    at = next(each for each in svg.iter("use") if each.findtext("title", "").startswith(title))
    while True:
        if at.get("style"):
            yield at
        at = parents[at]


def marks(svg: Element, name: str) -> list[tuple[float, float]]:
    """Where the marks of a series are."""
    found = [each for each in svg.iter("use") if each.findtext("title", "").startswith(f"{name}: ")]
    return [(float(each.attrib["x"]), float(each.attrib["y"])) for each in found]


def ordinates(svg: Element, each: Element) -> list[float]:
    """The heights of the corners of what an element draws."""
    shared = {path.get("id"): path for path in svg.iter("path")}
    shapes = [(path, 0.0) for path in each.iter("path")]
    shapes += [(shared[use.attrib["href"][1:]], float(use.attrib["y"])) for use in each.iter("use")]
    return [float(y) + down for path, down in shapes for y in re.findall(r"-?[\d.]+", path.attrib["d"])[1::2]]


def line(name: str, *points: tuple[float, float], color: int = 0, se: float | None = None) -> Series:
    return Series(name=name, color=color, marks=tuple(Mark(x=x, y=y, se=se) for x, y in points))


def texts(svg: Element) -> list[str]:
    return [each.text or "" for each in svg.iter("text")]


@pytest.mark.parametrize(("log", "distance"), [(False, 90), (True, 1)])
def test_marks_stand_where_their_values_say(log, distance):
    """On a linear axis 1, 10 and 100 are 9 and 90 apart; on a logarithmic one as far as each other."""
    svg = drawn(Lines("t", "x", "y", [line("s", (1, 1), (10, 10), (100, 100))], log_x=log, log_y=log))
    (x0, y0), (x1, y1), (x2, y2) = marks(svg, "s")
    ratio = distance / (1 if log else 9)
    assert (x2 - x1) / (x1 - x0) == pytest.approx(ratio, rel=0.02)
    assert (y1 - y2) / (y0 - y1) == pytest.approx(ratio, rel=0.02)  # up is more
    assert "s: 10" in [each.text for each in svg.iter("title")]


@pytest.mark.parametrize("kind", [Lines, Curves])
@pytest.mark.parametrize("log", [False, True])
def test_errors_stay_inside_the_chart(kind, log):
    series = Series(name="s", marks=(Mark(x=0, y=1, se=0.9), Mark(x=10, y=3, se=2), Mark(x=20, y=1, se=4)))
    svg = drawn(kind("t", "x", "y", [series], log_y=log))
    heights = [y for each in svg.iter() if "opacity" in each.get("style", "") for y in ordinates(svg, each)]
    assert heights
    assert all(0 <= y <= WIDE.height for y in heights)


def test_an_outlier_does_not_flatten_the_rest():
    rows = [line(str(v), (0, v), se=0.1) for v in (2.0, 2.5, 500.0)]
    svg = drawn(Whiskers("t", "x", rows, [("unigram", 4.0)]), NARROW)
    (near,), (far,) = marks(svg, "2.0"), marks(svg, "2.5")
    assert far[0] - near[0] > 30
    assert marks(svg, "500.0") == []
    assert "500 ▸" in texts(svg)


def test_every_row_stands_right_of_its_name():
    rows = [line(f"a long name {v}", (0, v), se=0.001) for v in (1.5, 2.0, 9.0)]
    svg = drawn(Whiskers("t", "x", rows, [("unigram", 8.0)]), NARROW)
    names = [float(each.attrib["x"]) for each in svg.iter("text") if (each.text or "").startswith("a long")]
    at = [x for each in rows for x, _ in marks(svg, each.name)]
    assert len(at) == len(names) == 3
    assert max(names) < min(at)
    assert max(at) < NARROW.width


def test_lines_are_told_apart_without_color():
    """28 lines have 28 pairs of mark and dashes."""
    svg = drawn(Lines("t", "x", "y", [line(f"m{i}", (0, i), (1, i), color=i) for i in range(28)]))
    looks = set()
    for group in (each for each in svg.iter("g") if each.get("class") == "series"):
        mark = next(path.attrib["d"] for defs in group.iter("defs") for path in defs)
        looks.add((mark, declared(next(group.iter("path")), "stroke-dasharray")))
    assert len(looks) == 28


def test_the_legend_names_every_line_once_in_the_order_in_which_they_end():
    svg = drawn(Lines("t", "x", "y", [line("low", (0, 5), (1, 1)), line("high", (0, 1), (1, 5), color=1)]))
    assert [text for text in texts(svg) if text in ("low", "high")] == ["high", "low"]


@pytest.mark.parametrize("frame", [WIDE, NARROW])
def test_a_long_legend_has_room(frame):
    svg = drawn(
        Lines("t", "x", "y", [line(f"method {i}", (0, i), (1, i), color=i) for i in range(40)]), frame
    )
    height = float(svg.attrib["height"])
    assert len([text for text in texts(svg) if text.startswith("method")]) == 40
    assert all(0 < float(each.attrib["y"]) <= height for each in svg.iter("text"))


def test_a_chart_has_the_colors_of_the_page_and_no_others():
    found = re.findall(r"<svg.*?</svg>", HTML, re.S)
    assert len(found) == 16
    for svg in found:
        assert not re.search(r"(?:fill|stroke):(?!var\(--|none)", svg)
        assert "font-family" not in svg
        assert "<style" not in svg
        assert 'role="img" aria-label="' in svg


def test_stand_in_colors_become_variables():
    assert themed(f"fill: {PAPER}; stroke: {color(COLORS + 1)}") == "fill:var(--paper);stroke:var(--c1)"
    assert themed("font-size: 12px; font-family: 'A', serif; fill: none").split() == [
        "font-size:12px;",
        "fill:none",
    ]


def test_charts_of_one_page_share_no_id():
    chart = Lines("t", "x", "y", [line("s", (0, 1), (1, 2))])
    ids = [re.findall(r' id="([^"]+)"', chart.draw(name, WIDE)) for name in ("a", "b")]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])


def test_the_same_data_give_the_same_bytes_whatever_matplotlib_is_told_elsewhere():
    chart = Lines("t", "x", "y", [line("s", (0, 1), (1, 2), se=0.5)])
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "lines.marker": "s"}):
        elsewhere = chart.draw("a", WIDE)
    assert elsewhere == chart.draw("a", WIDE)
    assert matplotlib.rcParams["svg.hashsalt"] is None  # and nothing is left behind


def test_text_in_a_chart_never_becomes_markup():
    svg = str(Lines("<t>", "<x>", "$y$", [line('<i>&"', (0, 1), (1, 2))]).draw("a", WIDE))
    assert "<i>" not in svg
    assert {"<x>", "$y$", '<i>&"'} <= set(texts(ElementTree.fromstring(svg)))


@pytest.mark.parametrize(
    ("value", "label"), [(0.5, "0.5"), (2000.0, "2k"), (-3.0, "−3"), (1e-3, "0.001"), (1234.5, "1234.5")]
)
def test_numbers_of_an_axis_are_short(value, label):
    assert number(value) == label
