"""How late the event loop is: a timer that says how much later than asked for it was called."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

EVERY_SECONDS: Final = 0.1


class LoopLag:
    """Tells `late` ten times a second by how many seconds the loop was late, from `start` to `stop`."""

    def __init__(self, late: Callable[[float], None]) -> None:
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._due = time.monotonic() + EVERY_SECONDS  # the loop's own clock stands still while the loop does
        self._timer = self._loop.call_later(EVERY_SECONDS, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._late(max(time.monotonic() - self._due, 0.0))
        self.start()
