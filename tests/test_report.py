"""The page: every number of the data is on it, it needs nothing else, and no data becomes markup."""

import re
from html.parser import HTMLParser

import pytest
from page_example import NAMES, page

from discdiff.evaluation.charts import Frame, Lines, Mark, Scale, Series, Whiskers, number
from discdiff.evaluation.page import Page
from discdiff.evaluation.report import render

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
    assert set(seen.links) <= {"data:,"}
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", HTML)
    assert len(HTML) < 200_000


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
    assert "autoregressive, batch 1 (its own judge)" in text


def test_lines_of_one_model_are_told_apart_by_their_dashes():
    (figure,) = re.findall(r'<figure id="chart-evaluations">(.*?)</figure>', HTML, re.S)
    lines = re.findall(r'<g class="series (c\d)"><polyline points="[^"]*" stroke-dasharray="([^"]*)"', figure)
    assert len(set(lines)) == 6  # three models, two batches


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


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0, 1, False), (1.3, 97, True), (-3, 4e5, False), (2, 5, True)]
)
def test_ticks_are_round_and_inside(low, high, log):
    scale = Scale(low, high, 0, 500, log)
    ticks = scale.ticks(5)
    assert 2 <= len(ticks) <= 13
    assert all(low <= tick <= high for tick in ticks)
    assert [scale(low), scale(high)] == pytest.approx([0, 500])
    assert all(len(number(tick)) <= 7 for tick in ticks)


def test_marks_stand_where_their_values_say():
    series = Series(name="s", marks=(Mark(x=0, y=1), Mark(x=10, y=3)))
    svg = Lines("t", "x", "y", [series]).draw(Frame(400, 200), named=False)
    (points,) = re.findall(r'points="([^"]+)"', svg)
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in points.split())
    assert (x0, x1) == (48, 388)
    assert y0 > y1  # up is more
    assert min(y0, y1) >= 22  # below the name of the axis
    assert "<title>s: 3</title>" in svg


def test_bars_stay_inside_the_axes():
    series = Series(name="s", marks=(Mark(x=0, y=1, se=0.9), Mark(x=10, y=3, se=2)))
    for log in (False, True):
        svg = Lines("t", "x", "y", [series], log_y=log).draw(Frame(400, 200), named=False)
        ends = re.findall(r'class="bar" x1="[^"]*" x2="[^"]*" y1="([^"]*)" y2="([^"]*)"', svg)
        assert all(22 <= float(each) <= 160 for pair in ends for each in pair)


def test_an_outlier_does_not_flatten_the_rest():
    rows = [Series(name=str(v), marks=(Mark(x=0, y=v, se=0.1),)) for v in (2.0, 2.5, 500.0)]
    svg = Whiskers("t", "x", rows, [("unigram", 4.0)]).draw(Frame(400, 200), named=True)
    at = [float(x) for x in re.findall(r'cx="([\d.]+)"', svg)]
    assert len(at) == 2
    assert at[1] - at[0] > 40
    assert "500 ▸" in svg


def test_every_row_stands_right_of_its_name():
    rows = [Series(name=str(v), marks=(Mark(x=0, y=v, se=0.001),)) for v in (1.5, 2.0, 9.0)]
    svg = Whiskers("t", "x", rows, [("unigram", 8.0)]).draw(Frame(400, 200), named=True)
    names = [float(x) for x in re.findall(r'class="row" x="([\d.]+)"', svg)]
    at = [float(x) for x in re.findall(r'cx="([\d.]+)"', svg)]
    assert len(at) == 3
    assert max(names) < min(at)
    assert max(at) < 400
