"""Clocks for the trainer that obey the test."""

from __future__ import annotations

import queue
import threading


class SkippingClock:
    """A sleep is over at once, and that much later."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        if seconds is None:
            condition.wait()
        else:
            self.time += seconds


class ManualClock:
    """Time moves when the test says `advance`; `sleeps` tells when the trainer sleeps, and for how long."""

    def __init__(self) -> None:
        self.time = 100.0
        self.sleeps: queue.Queue[float] = queue.Queue()
        self._sleeping: threading.Condition | None = None

    def now(self) -> float:
        return self.time

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        self._sleeping = condition
        if seconds is not None:
            self.sleeps.put(seconds)
        condition.wait()

    def advance(self, seconds: float) -> None:
        assert self._sleeping is not None
        with self._sleeping:
            self.time += seconds
            self._sleeping.notify_all()
