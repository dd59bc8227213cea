"""The page in a real browser: the viewer steps, charts are drawn, nothing is fetched or complained of.

Needs Debian's `chromium` and the package `playwright`; says so where one is missing.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_example import LETTERS, STEPS, page

from discdiff.evaluation.report import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 740}
SMALLEST = {"width": 320, "height": 568}
"""At which a page must still be read without scrolling sideways (WCAG 2.1, 1.4.10)."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no browser is installed: apt-get install chromium")
    sync = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    profile = tmp_path_factory.mktemp("profile")
    with sync.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, headless=True, args=FLAGS, offline=True
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(page()), encoding="utf-8")
    return path


@pytest.fixture
def tab(browser: Any, report: Path) -> Iterator[Any]:
    """The page, open; what it complains of or asks for fails the test at its end."""
    page, complaints, asked = browser.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size(DESKTOP)
    page.goto(report.as_uri())
    page.locator("#trace-model").select_option("mdlm")
    yield page
    page.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def shown(tab: Any) -> str:
    return tab.locator("#trace-text").evaluate("element => element.textContent")


def status(tab: Any) -> str:
    return tab.locator("#trace-status").inner_text()


def test_the_viewer_opens_on_the_finished_sample(tab):
    assert shown(tab) == "ab<b>&abb"
    assert status(tab).startswith(f"step {STEPS} of {STEPS}, t = 0.000")
    assert tab.locator("#trace-text b").count() == 0  # a token is text, whatever it spells


def test_the_slider_and_the_keys_step(tab):
    slider = tab.locator("#trace-step")
    slider.focus()
    tab.keyboard.press("Home")
    assert shown(tab) == "▁" * STEPS
    assert status(tab) == f"step 0 of {STEPS}, t = 1.000, {STEPS} masked"
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert shown(tab) == LETTERS + "▁" * (STEPS - 2)
    assert tab.locator("#trace-text .new").all_inner_texts() == ["b"]
    tab.keyboard.press("ArrowLeft")
    assert shown(tab) == "a" + "▁" * (STEPS - 1)
    tab.keyboard.press("End")
    assert shown(tab) == "ab<b>&abb"
    slider.fill("3")
    assert status(tab).startswith("step 3 of")


def test_the_buttons_step_and_play(tab):
    tab.locator("#trace-back").click()
    assert status(tab).startswith(f"step {STEPS - 1} of")
    tab.locator("#trace-next").click()
    assert status(tab).startswith(f"step {STEPS} of")
    play = tab.locator("#trace-play")
    play.click()
    assert play.get_attribute("aria-pressed") == "true"
    tab.wait_for_function(
        f"document.querySelector('#trace-status').textContent.startsWith('step {STEPS} of')"
    )
    tab.wait_for_function("document.querySelector('#trace-play').textContent === 'Play'")
    assert shown(tab) == "ab<b>&abb"


def test_space_plays_and_pauses_from_the_text(tab):
    tab.locator("#trace-text").focus()
    tab.keyboard.press("Home")
    tab.keyboard.press(" ")
    assert tab.locator("#trace-play").inner_text() == "Pause"
    tab.keyboard.press(" ")
    assert tab.locator("#trace-play").inner_text() == "Play"


def test_another_model_has_its_own_trajectory(tab):
    tab.locator("#trace-model").select_option("udlm")
    tab.locator("#trace-text").focus()
    tab.keyboard.press("Home")
    assert shown(tab) == "ababab"
    assert "masked" not in status(tab)


@pytest.mark.parametrize("size", [DESKTOP, PHONE, SMALLEST], ids=["desktop", "phone", "smallest"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_are_drawn_and_nothing_overflows(tab, size, scheme):
    tab.set_viewport_size(size)
    tab.emulate_media(color_scheme=scheme)
    figures = tab.locator("figure")
    assert figures.count() == 8
    for i in range(8):
        assert figures.nth(i).locator("svg:visible").count() == 1
        assert figures.nth(i).locator("svg:visible .series").count() >= 2
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = tab.evaluate(
        "[...document.querySelectorAll('main table, main svg, main pre')].filter(e => e.checkVisibility())"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert wide == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(tab, scheme):
    tab.emulate_media(color_scheme=scheme)
    contrasts = tab.evaluate(
        """() => {
          const lum = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
          const ground = lum(getComputedStyle(document.body).backgroundColor);
          const ratio = c => { const l = lum(c);
            return (Math.max(l, ground) + .05) / (Math.min(l, ground) + .05); };
          return [...document.querySelectorAll('p, td, th, dt, dd, figcaption, .notes li')]
            .map(e => ratio(getComputedStyle(e).color)).concat(
            [...document.querySelectorAll('svg text')].map(e => ratio(getComputedStyle(e).fill)));
        }"""
    )
    assert min(contrasts) >= 4.5  # WCAG 2 AA for text


def test_print_shows_the_finished_sample_without_controls(tab):
    tab.emulate_media(media="print")
    assert tab.locator("#trace-step").is_hidden()
    assert tab.locator("#trace-text").is_visible()
    assert len(tab.pdf(format="A4")) > 10_000


def test_nothing_is_cut_off_on_paper(tab):
    """A page of A4 has 688 pixels between its margins: what a table or chart has beyond is not printed."""
    tab.set_viewport_size({"width": 688, "height": 1000})
    tab.emulate_media(media="print")
    edges = tab.evaluate(
        "[...document.querySelectorAll('main table, main svg, main pre')].filter(e => e.checkVisibility())"
        ".map(e => e.getBoundingClientRect().right)"
    )
    assert len(edges) > 12
    assert max(edges) <= 688
    assert tab.locator("thead:visible").count() >= 2  # tables, not the cards of a phone
