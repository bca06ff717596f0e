"""Every Prometheus metric is declared here; the set grows with the issue on observability.

A registry per peer (tests run several in one process). Metrics are a fold over `RoundReport`s and counters; nothing reads them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from peer import __version__
from peer.gossip.round import RoundReport

STALENESS_BUCKETS = (0, 1, 2, 4, 8, 16, 32)
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class MovedBytes(Protocol):
    """Bytes moved with one neighbour since the start."""

    @property
    def bytes_sent(self) -> int: ...

    @property
    def bytes_received(self) -> int: ...


class PeerMetrics:
    """The metrics of one peer."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.registry = registry = CollectorRegistry()
        Info("grapevine_build", "Version, algorithm and task", registry=registry).info(
            {"version": __version__, **labels}
        )
        self._round = Gauge("grapevine_round", "Rounds finished", registry=registry)
        self._rounds = Counter("grapevine_rounds", "Rounds closed, by reason", ["reason"], registry=registry)
        self._chunks = Counter(
            "grapevine_chunks",
            "Chunks computed, by what became of them: counted, redo, nonfinite",
            ["verdict"],
            registry=registry,
        )
        self._samples = Counter("grapevine_samples", "Samples whose gradient is in an update", registry=registry)
        self._loss = Gauge("grapevine_train_loss", "Mean loss of the samples of the last round", registry=registry)
        self._distance = Gauge(
            "grapevine_neighbor_distance",
            "Root mean square distance to the models received from neighbours, before mixing",
            registry=registry,
        )
        self._staleness = Histogram(
            "grapevine_staleness_updates",
            "Updates between reading parameters and applying a chunk's gradient",
            buckets=STALENESS_BUCKETS,
            registry=registry,
        )
        self._round_seconds = Histogram(
            "grapevine_round_seconds",
            "Seconds from opening a round to its end",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._exchange_seconds = Histogram(
            "grapevine_exchange_seconds",
            "Seconds waited for an exchange after the close",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._computing = Counter("grapevine_computing_seconds", "Seconds the trainer computed", registry=registry)
        self._idle = Counter("grapevine_idle_seconds", "Seconds the trainer had nothing to do", registry=registry)
        self._sent = Counter("grapevine_sent_bytes", "Bytes sent in exchanges", ["neighbor"], registry=registry)
        self._received = Counter(
            "grapevine_received_bytes", "Bytes received in exchanges", ["neighbor"], registry=registry
        )
        self._lost = Counter(
            "grapevine_edges_lost", "Edges lost for one exchange, by reason", ["reason"], registry=registry
        )
        self._words = Counter(
            "grapevine_closed_words", "CLOSED words heard: new, known, stale, future", ["kind"], registry=registry
        )
        self._refused = Counter(
            "grapevine_refused_links", "Links refused, by the field that differed", ["field"], registry=registry
        )
        self._dropped = Counter(
            "grapevine_dropped_messages", "Messages refused, by reason", ["reason"], registry=registry
        )
        self._moved: dict[int, tuple[int, int]] = {}
        self._verdicts: dict[str, int] = {}
        self._labelled: dict[
            tuple[int, str], Counter
        ] = {}  # looking a child up by its label is most of the cost of counting
        self._seconds = (0.0, 0.0)

    def _of(self, counter: Counter, label: str) -> Counter:
        found = self._labelled.get((id(counter), label))
        if found is None:
            found = self._labelled[id(counter), label] = counter.labels(label)
        return found

    def chunks(self, verdicts: Mapping[str, int]) -> None:
        """Totals since the start, by verdict."""
        for verdict, total in verdicts.items():
            self._of(self._chunks, verdict).inc(total - self._verdicts.get(verdict, 0))
        self._verdicts.update(verdicts)

    def word(self, kind: str) -> None:
        self._of(self._words, kind).inc()

    def refused(self, field: str) -> None:
        self._of(self._refused, field).inc()

    def dropped(self, reason: str) -> None:
        self._of(self._dropped, reason).inc()

    def round(self, report: RoundReport) -> None:
        self._round.set(report.round + 1)
        self._of(self._rounds, report.close_reason).inc()
        self._samples.inc(report.num_samples)
        if report.num_samples:
            self._loss.set(report.loss_sum / report.num_samples)
        if report.neighbor_distance is not None:
            self._distance.set(report.neighbor_distance)
        for staleness in report.staleness:
            self._staleness.observe(staleness)
        self._round_seconds.observe(report.timing.total)
        self._exchange_seconds.observe(report.timing.exchanging)
        for reason in report.lost.values():
            self._of(self._lost, reason).inc()

    def trainer(self, seconds_computing: float, seconds_idle: float) -> None:
        """Totals since the start."""
        computing, idle = self._seconds
        self._computing.inc(max(seconds_computing - computing, 0.0))
        self._idle.inc(max(seconds_idle - idle, 0.0))
        self._seconds = (seconds_computing, seconds_idle)

    def traffic(self, traffic: Mapping[int, MovedBytes]) -> None:
        """Totals since the start, by neighbour."""
        for peer, moved in traffic.items():
            sent, received = self._moved.get(peer, (0, 0))
            self._of(self._sent, str(peer)).inc(max(moved.bytes_sent - sent, 0))
            self._of(self._received, str(peer)).inc(max(moved.bytes_received - received, 0))
            self._moved[peer] = (moved.bytes_sent, moved.bytes_received)
