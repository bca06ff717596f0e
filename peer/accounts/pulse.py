"""What one peer says of its recent rounds in its next digest, and the loss curve of a page: folds over round reports and digests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from peer.accounts.exchanges import Exchanges
from peer.accounts.ledger import Ledger
from peer.gossip.digest import MAX_SHARES, Digest
from peer.gossip.round import RoundReport

#: The recent rounds stand for now until none has finished for so many typical ones, and for so many seconds.
OVERDUE_ROUNDS = 4.0
OVERDUE_SECONDS = 2.0


class Pulse:
    """Since the digest before, but at least one round. quota: chunks of a full round."""

    __slots__ = (
        "_chunks",
        "_closed_by",
        "_ended",
        "_exchanges_waited",
        "_fresh",
        "_quota",
        "_recent",
        "_rounds",
        "_samples",
        "_seconds",
        "_waited_for",
    )

    def __init__(self, quota: int) -> None:
        self._quota = quota
        self._recent = Digest(0)
        self._fresh = False  # whether what is counted has been told
        self._exchanges_waited: dict[int, float] = {}  # when it was told
        self._ended = 0.0  # the last round, in seconds of training
        self._clear()

    def add(self, report: RoundReport) -> None:
        """One more round."""
        if self._fresh:
            self._clear()
        timing = report.timing
        self._ended = timing.began + timing.total
        self._rounds += 1
        self._chunks += report.num_chunks
        self._samples += report.num_samples
        for place, seconds in enumerate(
            (timing.total, timing.computing, timing.accumulating - timing.computing, timing.exchanging, timing.mixing)
        ):
            self._seconds[place] += max(seconds, 0.0)
        self._closed_by[report.closed_by] = self._closed_by.get(report.closed_by, 0) + 1
        for peer in report.waited_for:
            waited = max(timing.accumulating - timing.computing, 0.0) / len(report.waited_for)
            self._waited_for[peer] = self._waited_for.get(peer, 0.0) + waited

    def digest(self, peer: int, ledger: Ledger, exchanges: Exchanges, seconds: float) -> Digest:
        """The recent rounds and the totals, as a digest without stamp, state and links. The next round begins a new count.
        seconds: of training so far. While the next round is overdue, rates and shares are spread over the time since the last one, too:
        what that time goes into is known when the round ends."""
        if self._rounds and not self._fresh:
            total, *parts = self._seconds
            computing, waiting, exchanging, mixing = (_share(part, total) for part in parts)
            for other, seconds in exchanges.waited.items():
                waited = seconds - self._exchanges_waited.get(other, 0.0)
                self._waited_for[other] = self._waited_for.get(other, 0.0) + waited
            self._exchanges_waited = dict(exchanges.waited)
            self._recent = Digest(
                peer,
                samples_per_second=self._samples / total if total else 0.0,
                computing=computing,
                waiting=waiting,
                exchanging=exchanging,
                mixing=mixing,
                finished_fraction=_share(self._chunks, self._rounds * self._quota),
                waited_for=_most(self._waited_for, total),
                closed_by=_most(self._closed_by, self._rounds),
            )
            self._fresh = True
        return self._spread(seconds - self._ended, ledger.typical_round_seconds)._replace(
            origin=peer,
            round=ledger.rounds,
            samples=ledger.samples,
            train_loss=ledger.train_loss,
            neighbor_distance=ledger.neighbor_distance,
            max_staleness=ledger.max_staleness,
            closed_rounds=dict(ledger.rounds_by_reason),
        )

    def _spread(self, since: float, typical: float) -> Digest:
        """The recent rounds, as they are told so many seconds after the last."""
        total, recent = self._seconds[0], self._recent
        if not self._rounds or since <= max(OVERDUE_ROUNDS * typical, OVERDUE_SECONDS):
            return recent
        left = total / (total + since)
        return recent._replace(
            samples_per_second=recent.samples_per_second * left,
            computing=recent.computing * left,
            waiting=recent.waiting * left,
            exchanging=recent.exchanging * left,
            mixing=recent.mixing * left,
            waited_for={other: share * left for other, share in recent.waited_for.items()},
        )

    def _clear(self) -> None:
        self._fresh = False
        self._rounds: int = 0
        self._chunks: int = 0
        self._samples: int = 0
        self._seconds: list[float] = [0.0] * 5
        self._closed_by: dict[int, int] = {}
        self._waited_for: dict[int, float] = {}


def _share(part: float, whole: float) -> float:
    return min(part / whole, 1.0) if whole > 0 else 0.0


def _most(parts: Mapping[int, float], whole: float) -> dict[int, float]:
    """The greatest parts, as shares of the whole."""
    greatest = sorted(parts.items(), key=lambda item: (-item[1], item[0]))[:MAX_SHARES]
    return {peer: share for peer, part in greatest if (share := _share(part, whole)) > 0}


class Point(NamedTuple):
    """Training loss of the peers heard of at one moment: seconds of training, then mean, least, greatest, and one's own."""

    seconds: float
    mean: float
    least: float
    greatest: float
    own: float


def point(seconds: float, own: float, losses: Iterable[float]) -> Point | None:
    """None while no loss is finite."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return Point(seconds, sum(finite) / len(finite), min(finite), max(finite), own) if finite else None


class Curve:
    """At most `capacity` points of a run however long: when it is full, every other one goes, and from then on only every other comes."""

    __slots__ = ("_capacity", "_every", "_seen", "points")

    def __init__(self, capacity: int = 512) -> None:
        self.points: list[Point] = []
        self._capacity = capacity
        self._every = 1
        self._seen = 0

    def add(self, point: Point) -> None:
        if self._seen % self._every == 0:
            self.points.append(point)
        self._seen += 1
        if len(self.points) >= self._capacity:
            self.points = self.points[::2]
            self._every *= 2
