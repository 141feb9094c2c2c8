"""The page in a real browser: what it shows, and that it can be used by everybody."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from browser import Browser, opened, violations
from serving import Running, offline, serving

PROMPT = "def main("
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(max_tokens=300) as running:
        yield running


@pytest.fixture
def page(chromium: Browser, running: Running) -> Iterator[Any]:
    with shown(chromium, running.url) as page:
        yield page


def seen(url: str) -> dict[str, Any]:
    """What a browser keeps of an earlier visit."""
    kept = [{"name": "foretell-seen", "value": "yes"}]
    return {"cookies": [], "origins": [{"origin": url, "localStorage": kept}]}


@contextmanager
def shown(chromium: Browser, url: str, *, first: bool = False, **look: Any) -> Iterator[Any]:
    """The page, of which nothing is loaded from elsewhere and nothing complains."""
    with opened(chromium, url, **look, storage_state=None if first else seen(url)) as found:
        found.page.set_default_timeout(60_000)
        expect(found.page.locator("#model")).to_contain_text("tiny-mtp")
        yield found.page
        # Chromium itself writes down every answer that refuses.
        assert [text for text in found.complaints if "status of 400" not in text] == []
        assert all(address.startswith((url, "data:")) for address in found.requests)


def generate(page: Any, tokens: int = 24) -> None:
    page.locator("#raw").check(force=True)  # under what is drawn in its place
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Tokens", exact=True).fill(str(tokens))
    page.get_by_role("button", name="Generate").click()


def figure(page: Any, section: str, name: str) -> float:
    return float(page.locator(f"#{section} [data-figure={name}]").text_content())


LONG = 120
"""Tokens: enough that a busy machine can still look at the page before they are there."""


def test_tokens_stream_and_show_where_they_came_from(page: Any) -> None:
    generate(page, LONG)
    expect(page.locator("#with .text span").nth(4)).to_be_visible()  # before it is done
    assert page.get_by_role("button", name="Generate").is_disabled()
    expect(page.get_by_role("status")).to_contain_text("the same text")
    for section in ("with", "plain"):
        assert page.locator(f"#{section} .text").text_content() == PROMPT + offline(PROMPT, LONG)
        assert figure(page, section, "count") == LONG
    drafted = page.locator("#with .text span:is(.d1, .d2, .d3)").count()
    assert drafted > 4
    counts = [int(text) for text in page.locator("#legend span").all_text_contents()]
    assert sum(counts) == LONG
    assert sum(counts[1:]) == drafted
    assert figure(page, "with", "forward") == pytest.approx(LONG / counts[0], abs=0.01)
    assert figure(page, "plain", "forward") == 1
    assert page.locator("#plain .text span:is(.d1, .d2, .d3)").count() == 0
    assert "drafted at depth 1" in page.locator("#with .d1").last.get_attribute("title")


def test_a_message_is_asked_by_the_models_template(page: Any, running: Running) -> None:
    page.get_by_label("Message").fill("def add(a, b):")
    page.get_by_label("Tokens", exact=True).fill("24")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_contain_text("the same text")
    answer = offline("# user: def add(a, b):\n# assistant:", 24)
    assert page.locator("#with .text").text_content() == f"def add(a, b):\n\n{answer}"
    blank = page.locator("#with .text .blank").all_text_contents()
    assert blank
    assert all(text.strip() == "" for text in blank)


def test_a_first_visit_shows_a_result(chromium: Browser, running: Running) -> None:
    with shown(chromium, running.url, first=True) as page:
        expect(page.get_by_role("status")).to_contain_text("the same text")
        assert figure(page, "with", "count") == 48
        assert "why the sky is blue" in page.locator("#plain .text").text_content()
        page.reload()
        expect(page.locator("#model")).to_contain_text("tiny-mtp")
        expect(page.get_by_role("button", name="Generate")).to_be_enabled()
        assert page.get_by_role("status").text_content() == ""


def test_mtp_is_switched_off_and_on(page: Any) -> None:
    switch = page.get_by_role("switch", name="Multi-token prediction")
    expect(switch).to_be_checked()
    page.get_by_text("Multi-token prediction", exact=True).click()
    expect(switch).not_to_be_checked()
    expect(page.locator("#with")).to_be_hidden()
    generate(page, 8)
    expect(page.get_by_role("status")).to_contain_text("Done")
    assert page.locator("#plain .text").text_content() == PROMPT + offline(PROMPT, 8)
    switch.focus()
    page.keyboard.press("Space")
    expect(page.locator("#with")).to_be_visible()
    generate(page, 8)
    expect(page.get_by_role("status")).to_contain_text("the same text")
    assert page.locator("#with .text").text_content() == PROMPT + offline(PROMPT, 8)


def test_the_keyboard_is_enough(page: Any, running: Running) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(PROMPT)
    for name in ("Multi-token prediction", "Raw text, no chat template"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("switch", name=name)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Tokens", exact=True)).to_be_focused()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("300")
    page.get_by_label("Message").focus()
    page.keyboard.press("ControlOrMeta+Enter")
    expect(page.locator("#with .text span").nth(4)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    running.eventually("foretell_requests_running", 0)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_what_is_refused_is_said(page: Any) -> None:
    page.locator("#raw").check(force=True)
    page.get_by_label("Prompt").fill("")
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_contain_text("the prompt is empty")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(chromium: Browser, running: Running, scheme: str) -> None:
    phone = {"width": 360, "height": 740}
    with shown(chromium, running.url, viewport=phone, color_scheme=scheme) as page:
        generate(page)
        expect(page.get_by_role("status")).to_contain_text("the same text")
        for name in ("#prompt", "#run", "#stop", "#with", "#plain", "#tokens", "#temperature"):
            box = page.locator(name).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= phone["width"], name
        assert page.locator("html").evaluate("page => page.scrollWidth") <= phone["width"]
        assert page.get_by_role("button", name="Generate").bounding_box()["height"] >= 44


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barriers(chromium: Browser, running: Running, scheme: str) -> None:
    """Labels, roles and contrast, by axe-core's rules."""
    with shown(chromium, running.url, color_scheme=scheme, bypass_csp=True) as page:
        generate(page)
        expect(page.get_by_role("status")).to_contain_text("the same text")
        assert violations(page) == []


def test_the_key_is_asked_for_and_used(chromium: Browser) -> None:
    with (
        serving(user="key", api_key="sesame") as guarded,
        opened(chromium, guarded.url) as found,
    ):
        page = found.page
        expect(page.get_by_role("status")).to_contain_text("give the API key")
        page.get_by_label("API key").fill("sesame")
        page.get_by_label("Tokens", exact=True).fill("8")
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("status")).to_contain_text("the same text")


def test_nothing_is_loaded_from_elsewhere(running: Running) -> None:
    answer = httpx.get(running.url)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=.?(https?:)?//", answer.text)
