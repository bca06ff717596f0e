"""Callers of gRPC, bounded as those at the door for sockets are (door.py): of a kind each, who would be a peer, who asks, who stays to
watch (observers.py).

Each connection may have so many calls at once; more are refused, and counted as `crowd`. A call counts until its caller knows how it
ended, which one that reads nothing puts off for as long as it is connected; that of a peer until it has agreed. Of all connections
together MAX_CALLERS may wait; beyond that the one that has waited longest goes, so that a crowd of silent ones does not shut out who
knows what to say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

import grpc

from peer.transport.streams import Context, end

CALLS_AT_ONCE: Final = 8
"""Of one connection."""

MAX_CALLERS: Final = 128


class Callers:
    """`refused` is told why somebody was not let in: crowd, silent. at_once: how many calls a connection may have."""

    def __init__(self, refused: Callable[[str], None], at_once: int = CALLS_AT_ONCE) -> None:
        self._refused = refused
        self._at_once = at_once
        self._waiting: dict[asyncio.Timeout, None] = {}  # whose time is running, oldest first
        self._calls: Counter[str] = Counter()  # by connection

    @contextlib.asynccontextmanager
    async def call(self, context: Context) -> AsyncIterator[Callable[[], None]]:
        """All of a call. It is refused if its connection has too many, and ends with an error if its time is up. For who is known what
        this yields is called, and it counts no more: a proxy may carry many peers over one connection."""
        connection = context.peer()
        if self._calls[connection] >= self._at_once:
            self._refused("crowd")
            await end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls of this connection at once")
        self._calls[connection] += 1
        counted = True

        def known() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._calls[connection] -= 1
                if not self._calls[connection]:
                    del self._calls[connection]

        try:
            await context.send_initial_metadata(())  # with the first message, it could be stuck, and no end be told
            yield known
        except TimeoutError:
            await end(context, grpc.StatusCode.DEADLINE_EXCEEDED, "too slow, or too many callers that are")
        finally:
            known()

    @contextlib.contextmanager
    def waiting(self, patience: asyncio.Timeout) -> Iterator[None]:
        """While a caller is waited for, within `patience`, which may be over early, when others need the place."""
        if len(self._waiting) >= MAX_CALLERS:
            self._send_away(next(iter(self._waiting)))
        self._waiting[patience] = None
        try:
            yield
        finally:
            if patience in self._waiting:  # who had to go is counted already
                del self._waiting[patience]
                if patience.expired():
                    self._refused("silent")

    def _send_away(self, oldest: asyncio.Timeout) -> None:
        del self._waiting[oldest]
        if oldest.expired():  # it is on its way out, and can't be told again
            self._refused("silent")
            return
        oldest.reschedule(asyncio.get_running_loop().time())
        self._refused("crowd")
