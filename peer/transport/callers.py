"""Callers of gRPC that have not agreed on a link yet, bounded as at the door for sockets (door.py).

Each connection may have CALLS_AT_ONCE of them; more are refused, and counted as `crowd`. Of all connections together MAX_CALLERS may
wait; beyond that the one that has waited longest goes, so that a crowd of silent ones does not shut out who knows what to say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

CALLS_AT_ONCE: Final = 8
"""Of one connection: a peer has one under way."""

MAX_CALLERS: Final = 128


class Callers:
    """`refused` is told why somebody was not let in: crowd, silent."""

    def __init__(self, refused: Callable[[str], None]) -> None:
        self._refused = refused
        self._waiting: dict[asyncio.Timeout, str] = {}  # whose time it is to agree, oldest first; by connection
        self._calls: Counter[str] = Counter()

    def takes(self, connection: str) -> bool:
        """Whether that connection may have one more; else it is counted as refused."""
        if self._calls[connection] < CALLS_AT_ONCE:
            return True
        self._refused("crowd")
        return False

    @contextlib.contextmanager
    def waiting(self, connection: str, patience: asyncio.Timeout) -> Iterator[None]:
        """While a caller agrees, within `patience`, which may be over early, when others need the place."""
        if len(self._waiting) >= MAX_CALLERS:
            oldest = next(iter(self._waiting))
            self._forget(oldest)
            oldest.reschedule(asyncio.get_running_loop().time())
            self._refused("crowd")
        self._waiting[patience] = connection
        self._calls[connection] += 1
        try:
            yield
        finally:
            if patience in self._waiting and patience.expired():  # who had to go is counted already
                self._refused("silent")
            self._forget(patience)

    def _forget(self, patience: asyncio.Timeout) -> None:
        connection = self._waiting.pop(patience, None)
        if connection is None:
            return
        self._calls[connection] -= 1
        if not self._calls[connection]:
            del self._calls[connection]
