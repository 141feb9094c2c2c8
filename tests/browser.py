"""Pages in a headless Chromium: the fixture `chromium` in conftest.py starts one.

`Opened.complaints` and `.requests` are what a test looks at first; `contrasts` is for text that axe
does not judge.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

__all__ = ["Browser", "Opened", "contrasts", "open_chromium", "opened", "violations"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """The installed Chromium with an empty profile; FORETELL_CHROMIUM names another."""
    found = [os.environ.get("FORETELL_CHROMIUM"), *map(shutil.which, NAMES)]
    path = next((path for path in found if path), None)
    if path is None:
        _without("no Chromium found; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def _without(reason: str) -> NoReturn:
    if os.environ.get("FORETELL_REQUIRE_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Opened:
    """A page, what its console complains about, and what it asks for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, url: str, **look: Any) -> Iterator[Opened]:
    """Open a page; `look` is for playwright's `new_context`: viewport, color_scheme, …"""
    context = browser.new_context(**look)
    found = Opened(context.new_page())
    found.page.on("console", lambda message: _note(found, message.type, message.text))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    try:
        found.page.goto(url)
        yield found
    finally:
        context.close()


def _note(found: Opened, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        found.complaints.append(text)


def violations(page: Page) -> list[str]:
    """Broken accessibility rules (axe-core), and where."""
    broken = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {[node['html'] for node in rule['nodes'][:3]]}" for rule in broken]


CONTRASTS = """
selector => {
  const channels = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = text => channels(text).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll(selector)].map(element => {
    const ink = light(getComputedStyle(element).fill);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  });
}
"""


def contrasts(page: Page, selector: str) -> list[float]:
    """Contrast ratios (WCAG 2) of the fill of SVG elements to the page behind them."""
    found: list[float] = page.evaluate(CONTRASTS, selector)
    return found
