"""Chromium for tests, where there is one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")


@contextmanager
def launched() -> Iterator[Any]:
    """A headless browser. Without one the test is skipped, or fails if one is required."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        absent("playwright is not installed")
    if not CHROMIUM.exists():
        absent(f"no browser at {CHROMIUM}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def absent(reason: str) -> None:
    """Skip; where FORETOKEN_REQUIRE_BROWSER=1 says that there must be a browser, fail."""
    if os.environ.get("FORETOKEN_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
