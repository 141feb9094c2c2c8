"""The report as people meet it: in a browser, on paper, on a phone, by keyboard and by ear."""

import re
from collections.abc import Iterator

import pytest

import report_files
from browser import Browser, Opened, contrasts, opened, violations
from foretell.report import write_report

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1200, "height": 900}
LOOKS = {
    "light": {"viewport": DESK, "color_scheme": "light"},
    "dark": {"viewport": DESK, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light"},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a page that shows everything."""
    directory = tmp_path_factory.mktemp("report")
    write_report([report_files.write_all(directory / "results")], directory / "page.html")
    return (directory / "page.html").as_uri()


@pytest.fixture(params=LOOKS)
def shown(chromium: Browser, report: str, request: pytest.FixtureRequest) -> Iterator[Opened]:
    with opened(chromium, report, **LOOKS[request.param]) as found:
        yield found


@pytest.fixture
def light(chromium: Browser, report: str) -> Iterator[Opened]:
    with opened(chromium, report, **LOOKS["light"]) as found:
        yield found


def test_renders_without_complaint_and_asks_for_nothing_else(shown: Opened, report: str) -> None:
    assert shown.complaints == []
    assert [url for url in shown.requests if not url.startswith("data:")] == [report]
    assert shown.page.title() == "foretell: toy"
    assert shown.page.locator("svg").count() >= 13
    assert shown.page.locator("script").count() == 0


def test_no_accessibility_rule_is_broken(shown: Opened) -> None:
    assert violations(shown.page) == []


def test_text_of_figures_has_contrast(shown: Opened) -> None:
    found = contrasts(shown.page, "svg text[style*='--ink'], svg text[style*='--muted']")
    assert len(found) > 100
    assert min(found) >= 4.5


def test_lines_of_figures_have_contrast(shown: Opened) -> None:
    """Bars, and the signs of lines, which are drawn in their colours."""
    found = contrasts(shown.page, "svg [style*='fill: var(--series']:not([style*=opacity])")
    assert len(found) > 30
    assert min(found) >= 3


def test_nothing_is_wider_than_the_window(shown: Opened) -> None:
    width, window = shown.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= window


def test_figures_are_legible_on_a_phone(chromium: Browser, report: str) -> None:
    with opened(chromium, report, **LOOKS["phone"]) as found:
        sizes = found.page.locator("svg text").evaluate_all(
            "texts => texts.map(text => [parseFloat(getComputedStyle(text).fontSize), "
            "text.getScreenCTM()]).map(([size, m]) => size * Math.hypot(m.a, m.b))"
        )
    assert len(sizes) > 100
    assert min(sizes) > 7


def test_dark_mode_is_dark_and_paper_is_white(chromium: Browser, report: str) -> None:
    with opened(chromium, report, **LOOKS["dark"]) as found:
        colour = "getComputedStyle(document.body).backgroundColor"
        assert max(map(int, re.findall(r"\d+", found.page.evaluate(colour)))) < 60
        found.page.emulate_media(media="print", color_scheme="dark")
        assert min(map(int, re.findall(r"\d+", found.page.evaluate(colour)))) > 250


def test_figures_have_names_for_who_cannot_see_them(light: Opened) -> None:
    images = light.page.get_by_role("img")
    assert images.count() == light.page.locator("svg").count()
    assert light.page.get_by_role("img", name="Decoding speed, toy").count() == 1
    assert light.page.get_by_role("img", name="Acceptance by depth").count() == 1
    headings = light.page.get_by_role("heading", level=2).all_inner_texts()
    assert headings == [
        "Figures", "What was predicted, and what heads reach", "What was drafted, and what stands",
        "Tables", "Provenance",
    ]  # fmt: skip


def test_works_by_keyboard(light: Opened) -> None:
    page = light.page
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the content"
    assert page.locator(":focus").bounding_box()["x"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    focus = page.locator(":focus")
    assert focus.evaluate("element => element.tagName") == "SUMMARY"
    assert "Numbers" in focus.inner_text()
    assert page.locator("#speed-1 table").is_hidden()
    page.keyboard.press("Enter")
    assert page.locator("#speed-1 table").is_visible()
    assert focus.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"


def test_drafted_text_is_whole_and_escaped(light: Opened) -> None:
    text = light.page.locator(".drafts pre").text_content()
    assert text == '# "A" & <script>alert(1)</script>\ndef <b>é(x日):\n\treturn x'
    assert light.page.locator(".drafts pre .depth-1").all_text_contents() == [" <b>", ""]
    assert light.page.locator(".drafts pre .depth-2").all_text_contents() == ["é("]
    corrected = light.page.locator(".drafts pre .corrected").all_text_contents()
    assert corrected == ["日):\n\treturn", " x"]


def test_prints_everything_within_the_paper(chromium: Browser, report: str) -> None:
    with opened(chromium, report, viewport={"width": 718, "height": 1000}) as found:
        page = found.page
        printed = page.pdf(format="A4", margin=dict.fromkeys(("left", "right", "top"), "1cm"))
        assert printed.startswith(b"%PDF")
        assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 40
        page.emulate_media(media="print")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tables = page.locator("section[aria-labelledby=tables] table")
        hidden = tables.evaluate_all("tables => tables.filter(t => !t.checkVisibility()).length")
        assert hidden == 0
        assert page.locator("nav").is_hidden()
