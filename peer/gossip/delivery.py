"""When an exchange is over, and what a lost peer means.

Each algorithm declares the delivery it needs to stay correct (`Delivery`). How long a neighbour is waited for is decided here:
median + mads * MAD of how long that neighbour was waited for recently, within bounds, never less than a few rounds' time.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from peer.gossip.statistics import median_and_mad
from topology import RoundPlan


class Delivery(enum.StrEnum):
    """What an algorithm needs of the network to stay correct."""

    FRESHEST = "freshest"  # any newer payload may replace an older one
    EDGE_ATOMIC = "edge_atomic"  # an edge counts on both ends or on none
    EVERY_MESSAGE = "every_message"  # no payload may be lost


@dataclass(frozen=True, slots=True)
class DeadlineBounds:
    """Bounds of the wait for a neighbour after a round has closed, in seconds.

    least: never give up earlier; raising it costs more when a peer dies silently. most: never wait longer; it holds until
    `warm_up` exchanges were seen. mads: how many median absolute deviations above the median; raising it loses fewer late
    payloads and waits longer for dead peers.
    """

    least: float
    most: float
    mads: float = 8.0
    warm_up: int = 8


PRESETS: Mapping[str, DeadlineBounds] = {
    "local": DeadlineBounds(least=2.0, most=20.0),
    "lan": DeadlineBounds(least=2.0, most=30.0),
    "wan": DeadlineBounds(least=5.0, most=120.0),
}


class NeighborDeadlines:
    """Adaptive deadline per neighbour, from how long it was waited for recently."""

    def __init__(self, bounds: DeadlineBounds, window: int = 32) -> None:
        self._bounds = bounds
        self._window = window
        self._seconds: dict[int, deque[float]] = {}

    def observe(self, peer: int, seconds: float) -> None:
        """An exchange with that peer was committed so many seconds after the round had closed here; 0 if it was there before."""
        recent = self._seconds.get(peer)
        if recent is None:
            recent = self._seconds[peer] = deque(maxlen=self._window)
        recent.append(seconds)

    def seconds(self, peer: int, round_seconds: float) -> float:
        """clamp(median + mads * MAD, max(least, 2 * round_seconds), most): how long to wait for that peer after the close.

        round_seconds: a typical round here; a healthy neighbour may be one round behind.
        """
        recent = self._seconds.get(peer, ())
        if len(recent) < self._bounds.warm_up:
            return self._bounds.most
        median, mad = median_and_mad(recent)
        least = max(self._bounds.least, 2.0 * round_seconds)
        return min(max(median + self._bounds.mads * mad, least), self._bounds.most)


def mixing_weights(plan: RoundPlan, received: Mapping[int, object]) -> tuple[float, dict[int, float]]:
    """(self weight, weight by neighbour) once edges were lost: a lost edge gives its weight back to self.

    Both ends lose the same edge with the same weight, so the matrix stays symmetric and doubly stochastic.
    """
    kept = {j: w for j, w in zip(plan.neighbors, plan.weights, strict=True) if j in received}
    if len(kept) == len(plan.neighbors):
        return plan.self_weight, kept
    returned = sum(w for j, w in zip(plan.neighbors, plan.weights, strict=True) if j not in received)
    return plan.self_weight + returned, kept
