"""One connection: what is no HTTP is answered in a sentence of ours, with the headers of every answer, and makes no noise in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

log = logging.getLogger("grapevine.web")

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Server": "grapevine",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer, refusals too. Server: or else aiohttp tells what we are made of."""


class Caller(web.RequestHandler):
    """answered: told the status of what this class answers by itself. options: those of `web.RequestHandler`."""

    __slots__ = ("_answered",)

    def __init__(self, manager: web.Server, answered: Callable[[int], None], **options: Any) -> None:
        super().__init__(manager, logger=log.getChild("http"), **options)
        self._answered = answered

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Of a request that could not be read, or whose answer broke."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        log.debug("not HTTP, from %s: %s", request.remote, type(exc).__name__)
        response = sentence(400, _what_is_wrong(exc))
        response.force_close()
        response.headers.update(HEADERS)  # the application never hears of it
        self._answered(response.status)
        return response


def sentence(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n")


def _what_is_wrong(error: HttpProcessingError) -> str:
    """Without a word of what the caller sent."""
    if isinstance(error, LineTooLong):
        return "a line or a header of this request is longer than this peer reads"
    return "this is not HTTP that this peer understands; see docs/page.md"
