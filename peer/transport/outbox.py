"""Control messages of one link on their way: written at once where the lane can, else they wait here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from peer.transport.base import Traffic
from peer.transport.lane import Lane
from peer.transport.wordline import WordLine
from peer.wire import gossip_pb2 as wire

QUEUED_WORDS: Final = 1024
"""Control words waiting to be written; more are refused by `Link.tell`."""


class Outbox:
    """Of one link. down: done when the link is; overflows: told once a peer does not read at all."""

    def __init__(
        self, control: Lane, down: asyncio.Future[str], traffic: Traffic, overflows: Callable[[str], None]
    ) -> None:
        self._control = control
        self._line = control if isinstance(control, WordLine) else None
        self._down = down
        self._traffic = traffic
        self._overflows = overflows
        self._loop = asyncio.get_running_loop()
        self._words: deque[bytes] = deque()
        self._idle: asyncio.Future[None] | None = None  # the writer waits here
        self._drained: asyncio.Future[None] | None = None  # `empty` waits here

    def __len__(self) -> int:
        return len(self._words) + (self._line is not None and self._line.full)

    @property
    def takes_words(self) -> bool:
        """Whether there is room for what may be refused."""
        return not self._down.done() and len(self._words) < QUEUED_WORDS

    def put(self, message: wire.ControlMessage) -> None:
        """Votes, aborts and pings are few, one or two per exchange; a peer that lets them pile up does not read at
        all."""
        if self._down.done():
            return
        if len(self._words) >= 2 * QUEUED_WORDS:
            self._loop.call_soon(self._overflows, "the other end does not read its control words")
            return
        written = message.SerializeToString()
        if self._line is not None and not self._words and not self._line.full:
            self._line.hand_over(written)
            self._traffic.bytes_sent += len(written)
            return
        self._words.append(written)
        release(self._idle)

    def clear(self) -> None:
        self._words.clear()

    async def empty(self) -> None:
        """Until all is written, or the link is down."""
        while self._words and not self._down.done():
            if self._drained is None or self._drained.done():
                self._drained = self._loop.create_future()
            await asyncio.wait((self._drained, self._down), return_when=asyncio.FIRST_COMPLETED)

    async def run(self) -> None:
        """Write until cancelled. Raises `LaneClosed`."""
        while True:
            while self._words:
                message = self._words[0]
                await self._control.write(message)
                self._traffic.bytes_sent += len(message)
                if self._words:
                    self._words.popleft()
            release(self._drained)
            self._idle = self._loop.create_future()
            await self._idle


def release(waiter: asyncio.Future[None] | None) -> None:
    """Whoever waits there goes on."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
