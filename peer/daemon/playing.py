"""What a player plays with: its rules, the master vector, the exchanges of one effect, the clock of one round."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from torch import Tensor

from peer.gossip.delivery import DeadlineBounds
from peer.gossip.round import Timing
from peer.training.accumulator import InFlight

#: How the reason begins why a peer stopped that was told to.
ASKED = "asked: "


class Stopped(Exception):
    """The peer was asked to stop in the middle of a round; the round is abandoned."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What becomes of a chunk in flight, and when exchanges are given up."""

    in_flight: InFlight
    round_timeout: float
    bounds: DeadlineBounds


@dataclass(slots=True)
class Master:
    """The master vector [d], and the rounds whose updates are in it. `lock` is held by whoever changes the two and by whoever
    copies them from another thread."""

    params: Tensor
    lock: threading.Lock
    rounds: int = 0


class Stopwatch:
    """Collects the `Timing` of one round. Not by the loop's clock: uvloop's stands still until the loop goes on, and counts in
    milliseconds."""

    def __init__(self, origin: float) -> None:
        self.now = time.monotonic
        self.started = self.now()
        self.computing = self.accumulating = self.exchanging = self.mixing = 0.0
        self._origin = origin

    def timing(self) -> Timing:
        return Timing(
            began=self.started - self._origin,
            total=self.now() - self.started,
            computing=self.computing,
            accumulating=self.accumulating,
            exchanging=self.exchanging,
            mixing=self.mixing,
        )
