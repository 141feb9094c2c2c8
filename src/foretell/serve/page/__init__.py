"""The page at `/`: one file, with nothing loaded from anywhere."""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from starlette.responses import HTMLResponse


@cache
def _page() -> tuple[str, str]:
    """The page, and the policy that lets run what is in it and nothing else."""
    parts = {name: (files(__package__) / f"page.{name}").read_text("utf-8") for name in _KINDS}
    html, css, js = (parts[name] for name in _KINDS)
    whole = html.replace("/* page.css */", css).replace("/* page.js */", js)
    policy = (
        f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return whole, policy


_KINDS = ("html", "css", "js")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def page() -> HTMLResponse:
    """The answer that has it."""
    content, policy = _page()
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(content, headers=headers)
