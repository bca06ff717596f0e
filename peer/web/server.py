"""`/metrics`, the page and its events, served by one peer beside its training: on the same loop, within stated bounds.

A scrape or a page costs the loop what it takes to write it, and waits for nothing that training holds. Everything that a caller can
make grow is bounded: connections, event streams, bytes that wait for a reader, the time for a request and for the end.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import re
import socket
from collections.abc import Collection, Iterable
from typing import Final, Protocol, cast

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from peer.metrics import CONTENT_TYPE
from peer.web.caller import HEADERS, Caller, sentence
from peer.web.page import page
from peer.web.picture import Watched, update, whole
from peer.web.streams import MAX_STREAMS, Streams, event

log = logging.getLogger("grapevine.web")

MAX_CONNECTIONS: Final = MAX_STREAMS + 56
"""Open connections; one more is answered 503 and closed. What is above the streams is for scrapers, and for the answer to stream 201."""

UPDATE_SECONDS: Final = 1.0
"""Between two updates of a page; longer in a cluster whose peers say digests less often."""

REQUEST_SECONDS: Final = 30.0
"""A connection on which no whole request has come for so long is closed."""

WHOLE_SECONDS: Final = 0.25
"""For so long the same whole picture serves all who come: many may at once."""

WRITE_SECONDS: Final = 10.0
"""A reader that has bytes waiting for so long without taking all of them is cut."""

GRACE_SECONDS: Final = 0.5
"""What is being answered when the server ends may take so long."""


class Scraped(Protocol):
    """What `/metrics` is made of."""

    def text(self) -> bytes:
        """As CONTENT_TYPE says."""

    @property
    def registry(self) -> CollectorRegistry: ...

    def answered(self, status: int) -> None:
        """One more answer, of this HTTP status."""


class WebServer:
    """Serves until `stop`. names: hosts whose names may be asked for. Made, started and stopped on one event loop."""

    def __init__(self, watched: Watched, scraped: Scraped, names: Iterable[str] = ()) -> None:
        self._watched = watched
        self._streams = Streams()
        self._loop = asyncio.get_running_loop()
        self._names = frozenset(map(str.lower, (*names, socket.gethostname())))
        self._scraped = scraped
        self._other_formats = make_aiohttp_handler(scraped.registry, disable_compression=True)
        self._runner = self._make_runner()
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._whole = (-1.0, "")  # when it was made, and the picture
        self._waiting: dict[asyncio.Transport, float] = {}  # since when bytes have been waiting for their reader

    async def start(self, host: str, port: int) -> int:
        """Listen, on port 0 on any free one; returns the port. Raises OSError whose `strerror` says why not."""
        listening = _listen(host, port)
        await self._runner.setup()
        self._listener = await self._loop.create_server(self._admit, sock=listening)
        self._tick()
        return int(listening.getsockname()[1])

    async def stop(self) -> None:
        """Browsers are told, what is being answered is finished within GRACE_SECONDS, then every connection is closed."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.close()
        self._streams.end(event("end", whole(self._watched)))
        transports = self._transports()
        try:
            async with asyncio.timeout(4 * GRACE_SECONDS):
                await self._runner.cleanup()
        except TimeoutError:
            log.warning("peer %d: not every page was closed in time", self._watched.peer)
        for transport in transports:
            transport.abort()  # of one that does not read, bytes would wait for ever

    # bounds

    def _admit(self) -> asyncio.Protocol:
        server = self._runner.server
        if server is None or len(server.connections) >= MAX_CONNECTIONS:
            self._scraped.answered(503)
            return _Crowd()
        return Caller(
            server,
            self._scraped.answered,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=REQUEST_SECONDS,
            lingering_time=GRACE_SECONDS,
        )

    def _transports(self) -> list[asyncio.Transport]:
        server = self._runner.server
        found = [connection.transport for connection in server.connections] if server is not None else []
        return [transport for transport in found if transport is not None]

    def _tick(self) -> None:
        self._timer = self._loop.call_later(max(UPDATE_SECONDS, self._watched.every / 2), self._tick)
        self._cut_the_stuck()
        if len(self._streams):
            self._streams.publish(event("update", update(self._watched)))

    def _cut_the_stuck(self) -> None:
        now = self._loop.time()
        waiting = [transport for transport in self._transports() if transport.get_write_buffer_size()]
        self._waiting = {transport: self._waiting.get(transport, now) for transport in waiting}
        for transport, since in self._waiting.items():
            if now - since >= WRITE_SECONDS:
                transport.abort()

    # answers

    def _make_runner(self) -> web.AppRunner:
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        app.on_response_prepare.append(self._finish)
        app.router.add_get("/", self._page)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/state", self._state)
        app.router.add_get("/events", self._events, allow_head=False)
        return web.AppRunner(app, handler_cancellation=True, shutdown_timeout=GRACE_SECONDS)

    async def _finish(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(HEADERS)
        self._scraped.answered(response.status)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A page of another site must not read this one: a name of that site's own, which could be made to point here, is refused, and
        from nobody else's page anything is fetched; a link may lead here."""
        host = request.headers.get("Host")
        if host and not _means_here(host, self._names):
            return sentence(403, f"this peer answers to its address, not to the name {host[:100]}; see docs/page.md")
        foreign = request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        if foreign and request.headers.get("Sec-Fetch-Mode") != "navigate":
            return sentence(403, "this is for this peer's own page")
        return await handler(request)

    async def _page(self, request: web.Request) -> web.Response:
        made = page()
        headers = {"Content-Security-Policy": made.policy, "Content-Type": "text/html; charset=utf-8"}
        return web.Response(body=made.html, headers=headers)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        """The plain text format, whoever prefers what: it costs a fraction of the others, which are for who takes nothing else."""
        accepted = request.headers.get("Accept", "")
        if "openmetrics" in accepted and not re.search(r"text/plain|\*/\*", accepted):
            return await self._other_formats(request)
        return web.Response(body=self._scraped.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _state(self, request: web.Request) -> web.Response:
        return web.json_response(text=self._all())

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._streams.full:
            return sentence(503, f"{MAX_STREAMS} pages of this peer are open, which is as many as it serves")
        return await self._streams.serve(request, lambda: event("whole", self._all()))

    def _all(self) -> str:
        made_at, picture = self._whole
        if made_at < 0 or self._loop.time() - made_at >= WHOLE_SECONDS:
            self._whole = _, picture = self._loop.time(), whole(self._watched)
        return picture


class _Crowd(asyncio.Protocol):
    """Answers a connection above the bound, unread."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        caller = cast(asyncio.Transport, transport)
        text = f"{MAX_CONNECTIONS} connections are open, which is as many as this peer serves\n"
        told = {"Content-Type": "text/plain; charset=utf-8", "Connection": "close", **HEADERS}
        head = "HTTP/1.1 503 Service Unavailable\r\n" + "".join(f"{name}: {value}\r\n" for name, value in told.items())
        caller.write(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
        caller.close()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    if not found:
        raise OSError(errno.EADDRNOTAVAIL, "no such address")
    family, _, _, _, address = found[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(MAX_CONNECTIONS)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def _means_here(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names an address, one of these names, this machine, or a name without a dot, which a container network gives:
    none that a stranger could have registered."""
    name = host.rpartition(":")[0] if host.count(":") == 1 or "]:" in host else host
    name = name.strip("[]").rstrip(".").lower()
    if name in names or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return "." not in name
    return True
