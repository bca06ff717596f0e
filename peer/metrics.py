"""Every Prometheus metric is declared here, and written out in the text format. docs/metrics.md is made of these declarations by
`python bench/metrics_page.py`.

A peer has one `PeerMetrics`: it keeps what nothing else keeps (words, refusals, histograms of seconds), and at a scrape asks its
peer for the rest, which others count anyway. So a round costs a few additions, and a scrape takes no lock and waits for nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from peer import __version__
from peer.gossip.round import RoundReport


class Kind(StrEnum):
    COUNTER = "counter"  # only grows; a new process begins at 0
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"  # a sum and a count, without quantiles
    INFO = "info"  # a gauge that is always 1; its labels say it


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """name: as in queries, `_total` and unit included; a histogram has `_bucket`, `_sum` and `_count` behind it, a summary the last
    two. labels: name -> what its values are, and how many at most. buckets: upper bounds, without +Inf."""

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""
    buckets: tuple[float, ...] = ()


ROUND_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 100.0)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
STALENESS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

NEIGHBOR = {"neighbor": "id of a peer that this one has a link to; as many as neighbours, at most the number of peers"}
OPTIONS = ("algorithm", "topology", "task", "closing", "in_flight", "weighting", "wire_dtype", "trainer")
ACTIVITIES = ("computing", "waiting", "exchanging", "mixing", "other")

BUILD = Metric(
    "grapevine_build_info",
    Kind.INFO,
    "What runs here",
    {"version": "of grapevine", "python": "its version", "torch": "its version"},
)
RUN = Metric(
    "grapevine_run_info",
    Kind.INFO,
    "What is run; join on instance to have the id of the peer in another query",
    {
        "run": "name of the run",
        "peer": "id of this peer",
        "peers": "number of peers",
        **{name: f"--{name.replace('_', '-')}" for name in OPTIONS},
    },
)
STATE = Metric(
    "grapevine_state",
    Kind.GAUGE,
    "1 for the state this peer is in, 0 for the others",
    {"state": "starting, training, finished, draining"},
)
TRAINING_SECONDS = Metric("grapevine_training_seconds_total", Kind.COUNTER, "Seconds of training", unit="seconds")

ROUND = Metric("grapevine_round", Kind.GAUGE, "Rounds finished: the number of the round that this peer is in")
ROUNDS = Metric(
    "grapevine_rounds_total",
    Kind.COUNTER,
    "Rounds finished, by why they closed",
    {"reason": "quota, word, quorum, deadline, barrier, timeout"},
)
CLOSED_FIRST = Metric(
    "grapevine_rounds_closed_first_total",
    Kind.COUNTER,
    "Rounds finished, by the peer that was the first known here to have closed them; this peer is one of them",
    {"closer": "id of a peer; at most the number of peers"},
)
ROUND_LENGTH = Metric(
    "grapevine_round_seconds",
    Kind.HISTOGRAM,
    "Seconds from opening a round to its end",
    unit="seconds",
    buckets=ROUND_SECONDS,
)
MATCHINGS = Metric(
    "grapevine_matchings_activated_total",
    Kind.COUNTER,
    "Rounds in which a matching was active (matcha; none elsewhere)",
    {"matching": "number of the matching; at most the largest degree plus 1"},
)

CHUNKS = Metric(
    "grapevine_chunks_total",
    Kind.COUNTER,
    "Chunks computed, by what became of them",
    {
        "fate": "finished (counted in the round it began in), carried (counted in a later one), redone (dropped, to be computed again), "
        "nonfinite (dropped: loss or gradient NaN or infinite)"
    },
)
SAMPLES = Metric(
    "grapevine_samples_total",
    Kind.COUNTER,
    "Samples, by what became of them",
    {"fate": "applied (their gradient is in an update), redone, nonfinite, abandoned (at the end of training)"},
)
STALENESS_UPDATES = Metric(
    "grapevine_staleness_updates",
    Kind.HISTOGRAM,
    "Updates between reading parameters and applying a chunk's gradient, of each chunk in an update",
    unit="updates",
    buckets=STALENESS,
)
TRAIN_LOSS = Metric("grapevine_train_loss", Kind.GAUGE, "Mean loss of the samples of the last 32 rounds")
EVAL_LOSS = Metric(
    "grapevine_eval_loss",
    Kind.GAUGE,
    "Mean loss of this peer's model over the test set (--metrics-eval-every)",
)
EVAL_ACCURACY = Metric(
    "grapevine_eval_accuracy_ratio",
    Kind.GAUGE,
    "Accuracy of this peer's model on the test set, where the task knows one (--metrics-eval-every)",
    unit="ratio",
)
EVAL_ROUND = Metric(
    "grapevine_eval_round", Kind.GAUGE, "Rounds finished by the model that was evaluated last (--metrics-eval-every)"
)
EVALUATION = Metric(
    "grapevine_evaluation_seconds",
    Kind.SUMMARY,
    "Seconds of an evaluation of this peer's model, beside training (--metrics-eval-every)",
    unit="seconds",
)
DISTANCE = Metric(
    "grapevine_neighbor_distance",
    Kind.GAUGE,
    "Consensus distance to the neighbours heard in the last round: sqrt(mean ||x_j - x_i||^2), before mixing (not in "
    "ring-all-reduce, where it is 0 by construction)",
)

ACTIVITY = Metric(
    "grapevine_activity_seconds_total",
    Kind.COUNTER,
    "Seconds of finished rounds, by what the round was at; all together the time since training began",
    {
        "activity": "computing (until the own quota is done, or the round closes), waiting (from there to the close), exchanging (from "
        "the close until every exchange is over: what did not hide behind computing), mixing (the algorithm's own mathematics), other "
        "(between these and between rounds)"
    },
    "seconds",
)
TRAINER = Metric(
    "grapevine_trainer_seconds_total",
    Kind.COUNTER,
    "Seconds of the trainer; both together the time since training began",
    {"state": "computing, idle"},
    "seconds",
)
IDLE = Metric(
    "grapevine_idle_ratio",
    Kind.GAUGE,
    "Share of the trainer's time in which it had nothing to compute, since training began",
    unit="ratio",
)
EXCHANGE_WAIT = Metric(
    "grapevine_exchange_wait_seconds",
    Kind.HISTOGRAM,
    "Seconds of a round from its close until every exchange is over",
    unit="seconds",
    buckets=ROUND_SECONDS,
)
WAITED = Metric(
    "grapevine_waited_seconds_total",
    Kind.COUNTER,
    "Who waits for whom: seconds this peer waited, by the peer it waited for; over all of them the same activities of "
    "grapevine_activity_seconds_total",
    {
        "waited_for": "id of the peer whose word, or whose exchange, came last; at most the number of peers",
        "activity": "waiting, exchanging",
    },
    "seconds",
)

NEIGHBOR_INFO = Metric(
    "grapevine_neighbor_info",
    Kind.INFO,
    "What vectors travel on, to and from a neighbour",
    {**NEIGHBOR, "data_plane": "grpc, tcp, unix, memory"},
)
NEIGHBOR_STATE = Metric(
    "grapevine_neighbor_state",
    Kind.GAUGE,
    "1 for the state a neighbour is believed to be in, 0 for the others",
    {**NEIGHBOR, "state": "alive, suspect, left"},
)
ROUND_TRIP = Metric(
    "grapevine_neighbor_round_trip_seconds",
    Kind.GAUGE,
    "The latest round trip of a control word, every 5 s; none while there is no answer",
    NEIGHBOR,
    "seconds",
)
SENT = Metric(
    "grapevine_neighbor_sent_bytes_total", Kind.COUNTER, "Bytes sent: payloads, headers, words", NEIGHBOR, "bytes"
)
RECEIVED = Metric(
    "grapevine_neighbor_received_bytes_total",
    Kind.COUNTER,
    "Bytes received: payloads, headers, words",
    NEIGHBOR,
    "bytes",
)
EXCHANGE = Metric(
    "grapevine_neighbor_exchange_seconds",
    Kind.SUMMARY,
    "Seconds from opening an exchange to its end, of those that were committed",
    NEIGHBOR,
    "seconds",
)
DEADLINE = Metric(
    "grapevine_neighbor_deadline_seconds",
    Kind.GAUGE,
    "The deadline now in force: how long a neighbour would be waited for after a close",
    NEIGHBOR,
    "seconds",
)
MISSED = Metric(
    "grapevine_neighbor_missed_payloads_total",
    Kind.COUNTER,
    "Payloads that did not come or did not count: the edge was lost for one exchange, by why",
    {
        **NEIGHBOR,
        "reason": "deadline (given up here), declined (given up there), stale, link_down, left, corrupt, restarted, suspect",
    },
)
LATE = Metric(
    "grapevine_neighbor_late_payloads_total",
    Kind.COUNTER,
    "Payloads that came when their exchange was over here",
    NEIGHBOR,
)
PEERS = Metric(
    "grapevine_peers",
    Kind.GAUGE,
    "Peers of the run by what this peer believes of them, itself among the living",
    {"state": "alive, suspect, left"},
)

CLOSED_WORDS = Metric(
    "grapevine_closed_words_total",
    Kind.COUNTER,
    "CLOSED words heard, and payloads that say the same",
    {"kind": "new, known, stale, future, own"},
)
REFUSED = Metric(
    "grapevine_refused_links_total",
    Kind.COUNTER,
    "Links refused, by what differed",
    {"field": "run, num_peers, fingerprint, peer, hello, protocol, duplicate, data-plane, an option; else other"},
)
DROPPED = Metric(
    "grapevine_dropped_messages_total",
    Kind.COUNTER,
    "Messages refused or dropped, which harmed nothing, by why",
    {"reason": "a fixed set: late, stale, checksum, size, tag, ... (peer/transport/README.md)"},
)

LOOP_LAG = Metric(
    "grapevine_loop_lag_seconds",
    Kind.HISTOGRAM,
    "How much later than asked for the event loop woke up, ten times a second",
    unit="seconds",
    buckets=LAG_SECONDS,
)
MEMORY = Metric("process_resident_memory_bytes", Kind.GAUGE, "Resident memory of this process (Linux)", unit="bytes")
CPU = Metric("process_cpu_seconds_total", Kind.COUNTER, "Processor seconds of this process (Linux)", unit="seconds")
OPEN_FILES = Metric("process_open_fds", Kind.GAUGE, "Open files and sockets of this process (Linux)")
STARTED = Metric(
    "process_start_time_seconds", Kind.GAUGE, "When this process started, since 1970 (Linux)", unit="seconds"
)

METRICS: tuple[Metric, ...] = tuple(found for found in list(globals().values()) if isinstance(found, Metric))
"""In the order of this file."""


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
