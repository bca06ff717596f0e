"""The round trip of a link's control lane, and proof of life."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from typing import Final

from peer.transport.base import Traffic
from peer.wire import gossip_pb2 as wire

PING_SECONDS: Final = 5.0
"""Between two measurements of the round trip."""


class Pings:
    """Of one link. queue: sends a control message. down: done when the link is. traffic: where the round trip is written."""

    def __init__(
        self, queue: Callable[[wire.ControlMessage], None], down: asyncio.Future[str], traffic: Traffic
    ) -> None:
        self._queue = queue
        self._down = down
        self._traffic = traffic
        self._loop = asyncio.get_running_loop()
        self._pongs: dict[int, asyncio.Future[None]] = {}

    async def alive(self, seconds: float) -> bool:
        """Whether the other end answers a ping in time."""
        if self._down.done():
            return False
        nonce = secrets.randbits(64)
        pong = self._pongs[nonce] = self._loop.create_future()
        self._queue(wire.ControlMessage(ping=wire.Ping(nonce=nonce)))
        try:
            done, _ = await asyncio.wait((pong, self._down), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return pong in done
        finally:
            self._pongs.pop(nonce, None)

    def hear(self, ping: wire.Ping) -> None:
        if not ping.answer:
            self._queue(wire.ControlMessage(ping=wire.Ping(nonce=ping.nonce, answer=True)))
        elif (pong := self._pongs.get(ping.nonce)) is not None and not pong.done():
            pong.set_result(None)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            asked = time.monotonic()  # the loop's clock counts in milliseconds
            answered = await self.alive(PING_SECONDS)
            self._traffic.round_trip_seconds = time.monotonic() - asked if answered else math.nan
            await asyncio.sleep(PING_SECONDS)
