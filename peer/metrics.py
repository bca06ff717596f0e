"""Every Prometheus metric is declared here, and how values of them are written out.

Declared are names, kinds, meanings, labels and buckets; docs/metrics.md is made of them by `python bench/metrics_page.py`. At a scrape
whoever knows the values fills in a `Sheet` (peer/daemon/readings.py and counts.py do for a peer), and `Exposition` makes text of it.

Labels are bounded: their values are fixed sets, or ids of peers, of which there are as many as peers in the run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
UNITS: Final = ("seconds", "bytes", "ratio", "updates")


class Kind(StrEnum):
    COUNTER = "counter"  # only grows; a new process begins at 0
    GAUGE = "gauge"
    HISTOGRAM = "histogram"  # <name>_bucket, <name>_sum and <name>_count
    SUMMARY = "summary"  # <name>_sum and <name>_count, no quantiles
    INFO = "info"  # a gauge that is always 1; its labels say it


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """name: as in queries, with unit and `_total`. labels: name -> what its values are. buckets: upper bounds, without +Inf."""

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    buckets: tuple[float, ...] = ()

    @property
    def unit(self) -> str:
        """The last word of the name, if it is one of UNITS."""
        word = self.name.removesuffix("_total").rpartition("_")[2]
        return word if word in UNITS else ""


SECTIONS: Final[dict[str, list[Metric]]] = {}
"""All of them by section, in the order of this file."""


def _section(title: str) -> None:
    SECTIONS[title] = []


def _declare(kind: Kind) -> Callable[..., Metric]:
    def declare(name: str, help: str, labels: Mapping[str, str] | None = None, *buckets: float) -> Metric:
        metric = Metric(name, kind, help, MappingProxyType(dict(labels or {})), buckets)
        next(reversed(SECTIONS.values())).append(metric)
        return metric

    return declare


_counter, _gauge, _histogram = _declare(Kind.COUNTER), _declare(Kind.GAUGE), _declare(Kind.HISTOGRAM)
_summary, _info = _declare(Kind.SUMMARY), _declare(Kind.INFO)

_ROUND_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 100.0)
_LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_NEIGHBOR: Final = {"neighbor": "id of a neighbour"}
ACTIVITIES: Final = ("computing", "waiting", "exchanging", "mixing", "other")
FATES: Final = ("finished", "carried", "redone", "nonfinite")
#: Of sets that are known, all values are told from the start: what grows from nothing to 1 has not increased, for Prometheus.
WORDS: Final = ("new", "known", "stale", "future", "own")
DROPS: Final = (
    *(
        "truncated",
        "magic",
        "version",
        "tag",
        "length",
        "checksum",
        "kind",
        "dtype",
        "range",
        "size",
        "order",
        "duplicate",
        "stale",
    ),
    *("late", "control", "word", "digest", "early", "oversized", "slot"),
    *("token", "silent", "crowd", "unreachable", "bad_origin"),
)
#: HTTP statuses.
ANSWERS: Final = (200, 400, 403, 404, 405, 503)
#: Labels of every sample. Prometheus knows the address that it scrapes, not whose it is, and addresses are used again.
EVERYWHERE: Final = {"run": "name of the run (--run)", "peer": "id of the peer that tells it"}
OPTIONS: Final = ("algorithm", "topology", "task", "closing", "in_flight", "weighting", "wire_dtype", "trainer")

_section("What runs")
BUILD = _info(
    "grapevine_build_info",
    "What this peer is made of",
    {"version": "of grapevine", "python": "its version", "torch": "its version"},
)
RUN = _info(
    "grapevine_run_info",
    "What is run",
    {
        "peers": "number of peers",
        **{name: f"--{name.replace('_', '-')}" for name in OPTIONS},
        "trainer": "thread or process: what --trainer came to",
    },
)
STATE = _gauge(
    "grapevine_state",
    "1 for the state this peer is in, 0 for the others",
    {"state": "starting, training, finished, draining"},
)
TRAINING_SECONDS = _counter("grapevine_training_seconds_total", "Seconds since training began, until its end")

_section("Rounds")
ROUND = _gauge("grapevine_round", "The round this peer is in, counted from 0: rounds finished")
ROUNDS = _counter(
    "grapevine_rounds_total",
    "Rounds finished, by why they closed",
    {"reason": "quota, word, quorum, deadline, barrier, missed, gradient, timeout"},
)
CLOSED_FIRST = _counter(
    "grapevine_rounds_closed_first_total",
    "Rounds finished, by the peer that was the first known here to have closed them, which may be this one",
    {"closer": "id of a peer"},
)
ROUND_LENGTH = _histogram("grapevine_round_seconds", "Seconds from opening a round to its end", {}, *_ROUND_SECONDS)
MATCHINGS = _counter(
    "grapevine_matchings_activated_total",
    "Rounds in which a matching was active (matcha; other algorithms have none)",
    {"matching": "its number; as many as the graph is cut into, which --topology FILE may say"},
)

_section("Work")
CHUNKS = _counter(
    "grapevine_chunks_total",
    "Chunks computed, by what became of them",
    {
        "fate": "finished (counts in the round it began in), carried (counts in a later one), redone (dropped, to be computed again), "
        "nonfinite (dropped, its loss or gradient being NaN or infinite)"
    },
)
SAMPLES = _counter(
    "grapevine_samples_total",
    "Samples, by what became of them",
    {
        "fate": "applied (the gradient is in an update), redone, nonfinite, dropped (by backup workers), "
        "abandoned (at the end of training)"
    },
)
STALENESS = _histogram(
    "grapevine_staleness_updates",
    "Of each chunk in an update, the updates between reading the parameters and applying its gradient",
    {},
    *(0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
)
TRAIN_LOSS = _gauge("grapevine_train_loss", "Mean loss of the samples of the last 32 rounds")
EVAL_LOSS = _gauge("grapevine_eval_loss", "Mean loss of this peer's model on the test set (--metrics-eval-every)")
EVAL_ACCURACY = _gauge(
    "grapevine_eval_accuracy_ratio",
    "Accuracy of this peer's model on the test set, if the task knows one (--metrics-eval-every)",
)
EVAL_ROUND = _gauge("grapevine_eval_round", "Rounds in the model that was evaluated last (--metrics-eval-every)")
EVALUATION = _summary(
    "grapevine_evaluation_seconds", "Seconds of an evaluation, beside the training (--metrics-eval-every)"
)
DISTANCE = _gauge(
    "grapevine_neighbor_distance",
    "Consensus distance to the neighbours heard in the last round, sqrt(mean ||x_j - x_i||^2), before mixing. None with "
    "ring-all-reduce, whose models are equal",
)

_section("Time")
ACTIVITY = _counter(
    "grapevine_activity_seconds_total",
    "Seconds of the finished rounds, by what was going on; together the time since training began",
    {
        "activity": "computing (until the own quota is done or the round closes), waiting (from there until it closes), exchanging "
        "(from there until every exchange is over: what did not hide behind computing; large vectors are encoded, looked at and, on a "
        "ring, added up meanwhile), mixing "
        "(the algorithm's mathematics otherwise), other (between those, and between rounds)"
    },
)
TRAINER = _counter(
    "grapevine_trainer_seconds_total",
    "Seconds of the trainer; together the time since training began. It goes on computing while the round exchanges and mixes",
    {"state": "computing, idle"},
)
IDLE = _gauge("grapevine_idle_ratio", "Share of the trainer's time since training began in which it had nothing to do")
EXCHANGE_WAIT = _histogram(
    "grapevine_exchange_wait_seconds",
    "Seconds of a round spent exchanging, as in grapevine_activity_seconds_total",
    {},
    *_ROUND_SECONDS,
)
WAITED = _counter(
    "grapevine_waited_seconds_total",
    "Who waits for whom: the seconds waiting and exchanging of grapevine_activity_seconds_total, by the peer that came last",
    {"waited_for": "id of a peer", "activity": "waiting (for its word), exchanging (for its payload or vote)"},
)
LOOP_LAG = _histogram(
    "grapevine_loop_lag_seconds",
    "How much later than asked for the event loop woke up, ten times a second",
    {},
    *_LAG_SECONDS,
)

_section("Neighbours and membership")
NEIGHBOR_INFO = _info(
    "grapevine_neighbor_info",
    "What vectors travel on between this peer and a neighbour",
    {**_NEIGHBOR, "data_plane": "grpc, tcp, unix, memory"},
)
NEIGHBOR_STATE = _gauge(
    "grapevine_neighbor_state",
    "1 for the state a neighbour is believed to be in, 0 for the others",
    {**_NEIGHBOR, "state": "alive, suspect, left"},
)
ROUND_TRIP = _gauge(
    "grapevine_neighbor_round_trip_seconds",
    "The latest round trip of a control word, taken every 5 s; none while there is no answer",
    _NEIGHBOR,
)
SENT = _counter("grapevine_neighbor_sent_bytes_total", "Bytes sent: payloads, headers and words", _NEIGHBOR)
RECEIVED = _counter("grapevine_neighbor_received_bytes_total", "Bytes received: payloads, headers and words", _NEIGHBOR)
EXCHANGE = _summary(
    "grapevine_neighbor_exchange_seconds",
    "Seconds of an exchange from its opening to its end, of those that were not lost",
    _NEIGHBOR,
)
DEADLINE = _gauge(
    "grapevine_neighbor_deadline_seconds",
    "The deadline now in force: how long after a close a neighbour would be waited for",
    _NEIGHBOR,
)
MISSED = _counter(
    "grapevine_neighbor_missed_payloads_total",
    "Payloads that did not come or did not count, so that the edge was lost for the round, by why",
    {
        **_NEIGHBOR,
        "reason": "deadline (given up here), declined (given up there), stale (past it there), suspect, left, link_down, corrupt, "
        "restarted",
    },
)
LATE = _counter(
    "grapevine_neighbor_late_payloads_total", "Payloads that came when their exchange was over here", _NEIGHBOR
)
PEERS = _gauge(
    "grapevine_peers",
    "Peers of the run by what this one believes of them; itself is among the living",
    {"state": "alive, suspect, left"},
)
CLOSED_WORDS = _counter(
    "grapevine_closed_words_total",
    "CLOSED words heard, and payloads that said the same",
    {"kind": ", ".join(WORDS)},
)
REFUSED = _counter(
    "grapevine_refused_links_total",
    "Links refused, by what differed",
    {"field": "run, num_peers, fingerprint, peer, hello, protocol, duplicate, data-plane, an option, or other"},
)
DROPPED = _counter(
    "grapevine_dropped_messages_total",
    "Messages dropped, and callers and observers turned away, by why",
    {"reason": f"{', '.join(DROPS)} (peer/transport/README.md)"},
)

_section("The process")
MEMORY = _gauge(
    "process_resident_memory_bytes", "Resident memory of the daemon's process (Linux, as are the next three)"
)
CPU = _counter("process_cpu_seconds_total", "Processor seconds of the daemon's process")
OPEN_FILES = _gauge("process_open_fds", "Open files and sockets of the daemon's process")
BEGAN = _gauge("process_start_time_seconds", "When the daemon's process began, in seconds since 1970")

HTTP_ANSWERS = _counter(
    "grapevine_http_answers_total",
    "Answers on the metrics port, scrapes and pages",
    {"status": "200, 400 (no HTTP), 403 (a foreign name or page), 404, 405, 503 (too many), or another of HTTP"},
)


METRICS: Final = tuple(metric for section in SECTIONS.values() for metric in section)


class Distribution:
    """The observations of a histogram: counts by bucket, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, metric: Metric) -> None:
        self.bounds = metric.buckets
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


Rows = dict[Metric, list[tuple[str, tuple[str, ...], float]]]
"""Of each metric: (suffix of the name, values of the labels, value)."""


class Sheet:
    """The values of one scrape. Values of labels are given in the order of the declaration."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: Rows = {}

    def put(self, metric: Metric, value: float, *labels: str) -> None:
        rows = self.rows.get(metric)
        if rows is None:
            rows = self.rows[metric] = []
        rows.append(("", labels, value))

    def put_all(self, metric: Metric, values: Mapping[str, float] | Mapping[int, float]) -> None:
        """By the metric's only label."""
        for label, value in list(values.items()):
            self.put(metric, value, str(label))

    def choose(self, metric: Metric, chosen: str, among: Iterable[str], *labels: str) -> None:
        """1 for the chosen value of the last label, 0 for the others."""
        for value in among:
            self.put(metric, float(value == chosen), *labels, value)

    def summarize(self, metric: Metric, total: float, count: float, *labels: str) -> None:
        self.rows.setdefault(metric, []).extend((("_sum", labels, total), ("_count", labels, count)))

    def spread(self, metric: Metric, seen: Distribution) -> None:
        rows, so_far = self.rows.setdefault(metric, []), 0
        for bound, count in zip((*map(repr, seen.bounds), "+Inf"), list(seen.counts), strict=True):
            so_far += count
            rows.append(("_bucket", (bound,), so_far))
        rows.extend((("_sum", (), seen.total), ("_count", (), so_far)))


class Exposition(Collector):
    """The page of a scrape. fill: writes the values into a sheet. everywhere: the values of EVERYWHERE."""

    def __init__(self, fill: Callable[[Sheet], None], *everywhere: str) -> None:
        self._fill = fill
        self._everywhere = dict(zip(EVERYWHERE, everywhere, strict=True))
        self._heads: dict[Metric, dict[tuple[str, tuple[str, ...]], str]] = {metric: {} for metric in METRICS}
        self.registry = CollectorRegistry()
        """For the library's formats and servers. They cost six times what `text` does: 16 ms for 64 neighbours."""
        self.registry.register(self)

    def text(self) -> bytes:
        """As CONTENT_TYPE says. The beginnings of lines are kept from scrape to scrape."""
        lines: list[str] = []
        rows = self._rows()
        for metric in METRICS:
            if metric not in rows:
                continue
            kind = Kind.GAUGE if metric.kind is Kind.INFO else metric.kind
            lines.append(f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {kind}\n")
            heads = self._heads[metric]
            for suffix, labels, value in rows[metric]:
                head = heads.get((suffix, labels))
                if head is None:
                    head = heads[suffix, labels] = self._head(metric, suffix, labels)
                number = repr(value)
                lines.append(f"{head} {_GO.get(number, number)}\n")
        return "".join(lines).encode()

    def collect(self) -> Iterator[Family]:
        """The same for the library."""
        for metric, found in self._rows().items():
            stem = metric.name.removesuffix("_total").removesuffix("_info")
            family = Family(stem, metric.help, metric.kind)
            for suffix, labels, value in found:
                family.add_sample(metric.name + suffix, self._labels(metric, suffix, labels), value)
            yield family

    def _labels(self, metric: Metric, suffix: str, labels: tuple[str, ...]) -> dict[str, str]:
        names = (*metric.labels, "le") if suffix == "_bucket" else tuple(metric.labels)
        return {**self._everywhere, **dict(zip(names, labels, strict=True))}

    def _head(self, metric: Metric, suffix: str, labels: tuple[str, ...]) -> str:
        """A line of the text format, up to its value."""
        named = self._labels(metric, suffix, labels).items()
        return f"{metric.name}{suffix}{{{','.join(f'{name}={_quoted(value)}' for name, value in named)}}}"

    def _rows(self) -> Rows:
        sheet = Sheet()
        self._fill(sheet)
        return sheet.rows


#: What the text format calls numbers that Python calls otherwise.
_GO: Final = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}


def _quoted(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'
