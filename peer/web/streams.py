"""Open event streams. A browser is given the newest update or none: whoever reads slowly loses those between, and costs no memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

MAX_STREAMS: Final = 200
"""Event streams at once; one more is answered 503."""

RETRY_SECONDS: Final = 2
"""How long a browser waits before it connects again."""

_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",
}


def event(name: str, data: str) -> bytes:
    """One server-sent event; data: one line."""
    return f"event: {name}\ndata: {data}\n\n".encode()


class Streams:
    """All event streams of one server."""

    def __init__(self) -> None:
        self._open: set[_Stream] = set()
        self._ending: bytes | None = None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def full(self) -> bool:
        return len(self._open) >= MAX_STREAMS

    async def serve(self, request: web.Request, first: Callable[[], bytes]) -> web.StreamResponse:
        """Run one stream to its end. first: what a browser is told when it comes."""
        response = web.StreamResponse(headers=_HEADERS)
        stream = _Stream(request)
        self._open.add(stream)
        try:
            await response.prepare(request)
            await response.write(f"retry: {RETRY_SECONDS * 1000}\n\n".encode() + first())
            while self._ending is None:
                update = await stream.update()
                if self._ending is None:
                    await response.write(update)
            if stream.idle:
                await response.write(self._ending)
        except ConnectionError:
            pass  # it is gone
        finally:
            self._open.discard(stream)
        return response

    def publish(self, update: bytes) -> None:
        """Give it to every browser that has taken what it was given before."""
        for stream in self._open:
            stream.offer(update)

    def end(self, last: bytes) -> None:
        """Every stream ends with this, and no other begins."""
        self._ending = last
        for stream in self._open:
            stream.wake()


class _Stream:
    def __init__(self, request: web.Request) -> None:
        self._transport = request.transport
        self._given: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def idle(self) -> bool:
        """Whether all that was written has left this process."""
        return self._transport is not None and self._transport.get_write_buffer_size() == 0

    async def update(self) -> bytes:
        """The next one."""
        given = await self._given
        self._given = asyncio.get_running_loop().create_future()
        return given

    def offer(self, update: bytes) -> None:
        if not self._given.done() and self.idle:  # else it is lost; the next one has all of it
            self._given.set_result(update)

    def wake(self) -> None:
        if not self._given.done():
            self._given.set_result(b"")
