"""The page: HTML, style and script in one answer, so that it needs no other address and works with the network cut."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Page:
    """policy: the Content-Security-Policy under which nothing but its own script and style runs, and nothing is fetched from elsewhere."""

    html: bytes
    policy: str


@cache
def page() -> Page:
    """Read from the package once."""
    folder = resources.files("peer.web")
    html, style, script = (folder.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(html.replace("/*style*/", style).replace("/*script*/", script).encode(), policy)


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
