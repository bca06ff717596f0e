"""The clock of the simulator: things to happen, in the order of time, then of their making.

Devices that are alike do the same things at the same instant, so that many events share a time. A heap orders the times that differ,
and each has a list of what happens then.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any, TypeAlias

Event: TypeAlias = tuple[Callable[..., None], tuple[Any, ...]]


class Agenda:
    """`now` is the time of the event that is being handled, in seconds since the run's start."""

    __slots__ = ("_events", "_handled", "_times", "now", "stopped")

    def __init__(self) -> None:
        self.now = 0.0
        self.stopped = False
        self._times: list[float] = []  # a heap of the keys of `_events`
        self._events: dict[float, list[Event]] = {}
        self._handled = 0

    def at(self, when: float, happens: Callable[..., None], *arguments: Any) -> None:
        """Call `happens(*arguments)` at that time, which is not before `now`; never, if it is infinite."""
        events = self._events.get(when)
        if events is not None:
            events.append((happens, arguments))
        elif when < math.inf:
            self._events[when] = [(happens, arguments)]
            heapq.heappush(self._times, when)

    def play(self) -> None:
        """Until `stopped` or nothing more happens."""
        while self._times and not self.stopped:
            self.now = now = heapq.heappop(self._times)
            events = self._events[now]
            count = 0
            for happens, arguments in events:  # which may add to the list
                count += 1
                happens(*arguments)
                if self.stopped:
                    break
            self._handled += count
            if count == len(events):
                del self._events[now]
            else:
                del events[:count]
                heapq.heappush(self._times, now)

    def __len__(self) -> int:
        """Things still to happen, while none is happening."""
        return sum(map(len, self._events.values()))

    @property
    def num_events(self) -> int:
        """Made so far."""
        return self._handled + len(self)
