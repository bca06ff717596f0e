"""A caller as gRPC would not write it: HTTP/2 by hand, that opens calls and takes none of what it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import struct

from docker.health import ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, frame, word

_INITIAL_WINDOW_SIZE = 4


class Reluctant:
    """Answers gRPC's pings, so that it counts as alive, and leaves no room for an answer: its windows are of 0 bytes."""

    def __init__(self) -> None:
        self._streams = 0

    async def connect(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        no_room = frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0))
        self._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + no_room)
        self._alive = asyncio.create_task(self._answer_pings())

    def call(self, method: str) -> None:
        """A call with one empty message."""
        fields = (
            b"\x83\x86"  # :method POST, :scheme http
            + (b"\x04" + word(method.encode()))  # :path
            + (b"\x01" + word(b"peer"))  # :authority
            + (b"\x0f\x10" + word(b"application/grpc"))  # content-type
            + (b"\x00" + word(b"te") + word(b"trailers"))
        )
        stream = 2 * self._streams + 1
        self._streams += 1
        self._writer.write(frame(HEADERS, END_HEADERS, stream, fields) + frame(DATA, END_STREAM, stream, bytes(5)))

    async def leave(self) -> None:
        self._alive.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._alive
        self._writer.close()

    async def _answer_pings(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self._reader.readexactly(9)
                body = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] in (SETTINGS, PING) and not head[4] & ACK:
                    self._writer.write(frame(head[3], ACK, 0, body if head[3] == PING else b""))
