"""Totals of one peer: a fold over its round reports. Status, metrics, live view and summary read it; training does not."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from peer.gossip.round import RoundReport

#: Rounds of which the times are kept, for a picture.
TIMELINE_ROUNDS = 300


@dataclass(slots=True)
class Ledger:
    """quota: chunks of a full round. train_loss is the mean over the last `window` rounds' samples."""

    quota: int
    rounds: int = 0
    chunks: int = 0
    samples: int = 0
    rounds_dropped: int = 0
    max_staleness: int = 0
    neighbor_distance: float = 0.0
    rounds_by_reason: Counter[str] = field(default_factory=Counter)
    edges_lost: Counter[str] = field(default_factory=Counter)
    lost_by_neighbor: Counter[int] = field(default_factory=Counter)
    staleness: Counter[int] = field(default_factory=Counter)
    seconds_exchanging: float = 0.0
    seconds_mixing: float = 0.0
    timeline: list[tuple[float, float, float, float]] = field(default_factory=list)
    round_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=32))
    _losses: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=32))
    _typical: tuple[int, float] = field(default=(0, 0.0), compare=False)  # rounds, and what it was after them

    def add(self, report: RoundReport) -> None:
        self.rounds += 1
        self.chunks += report.num_chunks
        self.samples += report.num_samples
        self.rounds_dropped += report.dropped > 0
        if any(report.staleness):
            self.max_staleness = max(self.max_staleness, *report.staleness)
            self.staleness.update(report.staleness)
        elif report.staleness:
            self.staleness[0] += len(report.staleness)
        if report.neighbor_distance is not None:
            self.neighbor_distance = report.neighbor_distance
        self.rounds_by_reason[report.close_reason] += 1
        if report.lost:
            self.edges_lost.update(report.lost.values())
            self.lost_by_neighbor.update(report.lost.keys())
        began, total, computing, accumulating, exchanging, mixing = report.timing
        self.seconds_exchanging += exchanging
        self.seconds_mixing += mixing
        self.round_seconds.append(total)
        if len(self.timeline) < TIMELINE_ROUNDS:
            self.timeline.append((began, began + computing, began + accumulating, began + total))
        self._losses.append((report.loss_sum, report.num_samples))

    @property
    def train_loss(self) -> float:
        """Mean training loss of this peer's recent samples; NaN before the first."""
        recent = list(self._losses)
        samples = sum(n for _, n in recent)
        return sum(loss for loss, _ in recent) / samples if samples else float("nan")

    @property
    def finished_fraction(self) -> float:
        """Chunks counted in updates over chunks of full rounds."""
        return self.chunks / (self.rounds * self.quota) if self.rounds else 0.0

    @property
    def typical_round_seconds(self) -> float:
        """Median of the recent rounds; 0 before the first."""
        if self._typical[0] != self.rounds:
            recent = sorted(self.round_seconds)
            self._typical = self.rounds, recent[len(recent) // 2]
        return self._typical[1]
