"""The clock of the simulator: a heap of things to happen, in the order of time, then of their making."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any


class Agenda:
    """`now` is the time of the event that is being handled, in seconds since the run's start."""

    __slots__ = ("_heap", "_made", "now", "stopped")

    def __init__(self) -> None:
        self.now = 0.0
        self.stopped = False
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._made = 0

    def at(self, when: float, happens: Callable[..., None], *arguments: Any) -> None:
        """Call `happens(*arguments)` at that time; never, if it is infinite."""
        if when < math.inf:
            self._made += 1
            heapq.heappush(self._heap, (when, self._made, happens, arguments))

    def play(self) -> None:
        """Until `stopped` or nothing more happens."""
        heap, pop = self._heap, heapq.heappop
        while heap and not self.stopped:
            self.now, _, happens, arguments = pop(heap)
            happens(*arguments)

    def __len__(self) -> int:
        """Things still to happen."""
        return len(self._heap)

    @property
    def num_events(self) -> int:
        """Made so far."""
        return self._made
