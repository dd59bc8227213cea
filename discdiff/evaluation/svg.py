"""A matplotlib figure as an SVG element of a page, with the page's own colors and fonts.

matplotlib writes a file: with a color in every mark, a font in every text, a style sheet and ids that would
hold for the whole page. Here a figure is drawn in stand-in colors, which then become the page's CSS
variables, so that one drawing serves light, dark and paper; its ids are the chart's own, and its text stays
text. The same figure gives the same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure

COLORS = 8
PAPER, INK, DIM, RULE = "#fd0001", "#fd0002", "#fd0003", "#fd0004"
_VARIABLES = {PAPER: "paper", INK: "ink", DIM: "dim", RULE: "rule"} | {
    f"#fc000{i}": f"c{i}" for i in range(COLORS)
}
"""What matplotlib is told for a color, and the variable of the style sheet that takes its place."""
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "discdiff",
    "text.parse_math": False,
    "font.size": 12,
    "lines.solid_capstyle": "butt",
    "text.color": DIM,
    "axes.labelcolor": DIM,
    "xtick.color": DIM,
    "ytick.color": DIM,
}
_NEEDLESS = ("version", "transform", "clip-path")
"""Charts turn no text and clip no line: what matplotlib writes here is for nothing."""
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def color(index: int) -> str:
    """The stand-in for a line's color; it comes again after eight."""
    return f"#fc000{index % COLORS}"


def element(figure: Figure, name: str, label: str, told: Mapping[str, Sequence[str]]) -> Markup:
    """The figure as `<svg role="img">`, a pixel of it for a point of the figure.

    `name` begins every id. `told[gid]` is what a pointer over an artist of that gid is told: first of the
    artist, then of each of its marks in turn.
    """
    file = io.BytesIO()
    with style.context(["default", SETTINGS]):
        figure.savefig(file, format="svg", metadata=_NO_METADATA)
    root = ElementTree.fromstring(file.getvalue())
    _without_style_sheet(root)
    for each in root.iter():
        _plain(each)
    for each in root.iter("g"):
        if each.get("id") in told:
            _tell(each, told[each.attrib["id"]])
    _rename(root, name)
    _lean(root)
    size = {side: root.attrib[side].removesuffix("pt") for side in ("width", "height")}
    root.attrib.update({"role": "img", "aria-label": label, **size})
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _without_style_sheet(root: Element) -> None:
    """Drop the file's rules for `*`: inside a page they would hold for all of it."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith("}style"):
                parent.remove(child)


def _plain(each: Element) -> None:
    """Names without namespaces, colors and fonts of the page, coordinates to a tenth of a pixel."""
    each.tag = each.tag.rpartition("}")[2]
    attributes = {key.rpartition("}")[2]: value for key, value in each.attrib.items()}
    each.attrib.clear()
    each.attrib.update({key: _value(key, value) for key, value in attributes.items() if key not in _NEEDLESS})
    each.text, each.tail = (part.strip() if part else part for part in (each.text, each.tail))


def _value(key: str, value: str) -> str:
    if key == "style":
        return themed(value)
    if key == "d":
        value = re.sub(r"\s+", " ", value).strip()
    return value if key in ("id", "href") else re.sub(r"-?\d+\.\d+", _rounded, value)


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.1f}".removesuffix(".0")


def themed(declarations: str) -> str:
    """A style with the page's variables for stand-in colors, and without fonts' families: the page has its
    own.
    """
    declarations = re.sub(r"font-family:[^;]*;?", "", declarations)
    return re.sub(r"#[0-9a-f]{6}", _variable, declarations).replace(": ", ":").replace("; ", ";")


def _variable(found: re.Match[str]) -> str:
    return f"var(--{_VARIABLES[found[0]]})" if found[0] in _VARIABLES else found[0]


def _tell(group: Element, told: Sequence[str]) -> None:
    """Titles, which browsers show at the pointer, for a group and for each of its marks."""
    group.set("class", "series")
    whole, *parts = told
    for i, mark in enumerate(group.iter("use")):
        _title(mark, parts[i % len(parts)])
    _title(group, whole)


def _title(each: Element, text: str) -> None:
    title = Element("title")
    title.text = text
    each.insert(0, title)


def _rename(root: Element, name: str) -> None:
    """Ids that nothing else on the page has, and only where something refers to them."""
    links = {each.attrib["href"].removeprefix("#") for each in root.iter() if "href" in each.attrib}
    own = {each: f"{name}-{i}" for i, each in enumerate(sorted(links))}
    for each in root.iter():
        if each.attrib.get("id") in own:
            each.set("id", own[each.attrib["id"]])
        else:
            each.attrib.pop("id", None)
        if "href" in each.attrib:
            each.set("href", "#" + own[each.attrib["href"].removeprefix("#")])


def _lean(each: Element) -> None:
    """Nothing drawn changes: groups without attributes give way to what they hold, and what all of a group's
    elements declare is declared by the group.
    """
    held: list[Element] = []
    for child in each:
        _lean(child)
        empty = child.tag in ("g", "defs") and not len(child)
        held += [] if empty else list(child) if child.tag == "g" and not child.attrib else [child]
    each[:] = held
    styles = {child.get("style", "") for child in each}
    if each.tag == "g" and len(each) > 1 and "style" not in each.attrib and len(styles) == 1:
        each.set("style", styles.pop())
        for child in each:
            child.attrib.pop("style", None)
