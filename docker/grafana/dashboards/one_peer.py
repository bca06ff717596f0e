"""One peer: its rounds, its chunks, its neighbours, its process."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.board import Choice, Section, board
from dashboards.panels import (
    BLUE,
    GREEN,
    HALF,
    QUARTER,
    RED,
    THIRD,
    YELLOW,
    Query,
    facts,
    histogram,
    number,
    rows,
    series,
    states,
    steps,
)
from dashboards.promql import applied, mean, rate, share

CHOSEN = 'run="$run",peer="$peer"'
#: The neighbours chosen of the peer chosen.
EDGES = f'{CHOSEN},neighbor=~"$neighbors"'
NEIGHBOR_PAGE = (
    "/d/grapevine-peer/one-peer?var-datasource=${datasource}&var-run=${run}&var-peer=${__value.raw}&${__url_time_range}"
)


def one_peer() -> Dashboard:
    return board(
        "grapevine-peer",
        "Grapevine / One peer",
        "One peer of a run: its rounds, its chunks, its neighbours, its process.",
        [
            Choice("run", "A run that was scraped in the time shown", "label_values(grapevine_run_info, run)", False),
            Choice("peer", "A peer of the run", 'label_values(grapevine_run_info{run="$run"}, peer)', False),
            Choice(
                "neighbors",
                "Peers that it has links to",
                'label_values(grapevine_neighbor_info{run="$run",peer="$peer"}, neighbor)',
                True,
            ),
        ],
        [_now(), _rounds(), _chunks(), _neighbors(), _losses(), _process(), _settings()],
    )


def _now() -> Section:
    return Section(
        "Now",
        [
            number(
                "State",
                "starting, training, finished, draining.",
                Query(f"grapevine_state{{{CHOSEN}}} == 1", "{{state}}"),
                unit="none",
                trend=False,
                thresholds=steps(GREEN),
            ),
            number(
                "Round",
                "Rounds finished: the number of the round that it is in.",
                Query(f"grapevine_round{{{CHOSEN}}}"),
                unit="none",
            ),
            number(
                "Training for",
                "Time since training began.",
                Query(f"grapevine_training_seconds_total{{{CHOSEN}}}"),
                unit="dtdurations",
                decimals=0,
            ),
            number(
                "Train loss",
                "Mean loss of the samples of its last 32 rounds.",
                Query(f"grapevine_train_loss{{{CHOSEN}}}"),
                unit="none",
                decimals=3,
            ),
            number(
                "Samples per second",
                "Samples whose gradient went into an update.",
                Query(applied(CHOSEN)),
                unit="short",
            ),
            number(
                "Slowness",
                "Seconds it computes for a sample, as a multiple of the median of the run, over one minute.",
                Query(f"run_peer:grapevine_slowness:ratio_rate1m{{{CHOSEN}}}"),
                unit="suffix:x",
                thresholds=steps(GREEN, (1.5, YELLOW), (2, RED)),
                decimals=1,
            ),
            number(
                "Idle since it began",
                "Share of the trainer's time in which it had nothing to compute.",
                Query(f"grapevine_idle_ratio{{{CHOSEN}}}"),
                unit="percentunit",
                thresholds=steps(GREEN, (0.2, YELLOW), (0.5, RED)),
            ),
            number(
                "Consensus distance",
                "To the neighbours heard in the last round, before mixing. 0 in ring all-reduce.",
                Query(f"sum(grapevine_neighbor_distance{{{CHOSEN}}}) or vector(0)"),
                unit="none",
                decimals=4,
            ),
        ],
    )


def _rounds() -> Section:
    return Section(
        "Rounds",
        [
            series(
                "Share of wall time",
                "What its rounds are at. computing: until its quota is done or the round closes. waiting: from there to the close. "
                "exchanging: after the close, what did not hide behind computing. mixing: the algorithm's mathematics.",
                Query(
                    share("grapevine_activity_seconds_total", CHOSEN, "activity"),
                    "{{activity}}",
                ),
                unit="percentunit",
                stacked=True,
                most=1,
            ),
            histogram(
                "Length of rounds",
                "Seconds from opening a round to its end; rounds per second in each bucket.",
                rate("grapevine_round_seconds_bucket", CHOSEN, "le"),
                unit="s",
            ),
            series(
                "Why rounds close",
                "Rounds per second, by reason.",
                Query(rate("grapevine_rounds_total", CHOSEN, "reason"), "{{reason}}"),
                unit="short",
                width=THIRD,
                stacked=True,
            ),
            series(
                "Who closed them first",
                "Rounds per second, by the peer that was the first known here to have closed them.",
                Query(rate("grapevine_rounds_closed_first_total", CHOSEN, "closer"), "peer {{closer}}"),
                unit="short",
                width=THIRD,
                stacked=True,
            ),
            series(
                "Words heard",
                "CLOSED words per second, and payloads that say the same. new: closed a round here, or told that one may; known, stale: "
                "too late to; future: kept for later; own: came back.",
                Query(rate("grapevine_closed_words_total", CHOSEN, "kind"), "{{kind}}"),
                unit="short",
                width=THIRD,
            ),
        ],
    )


def _chunks() -> Section:
    return Section(
        "Chunks",
        [
            series(
                "Chunks",
                "Per second, by what became of them. finished: counted in the round they began in. carried: in a later one. redone: "
                "dropped when the round closed. nonfinite: loss or gradient NaN or infinite.",
                Query(rate("grapevine_chunks_total", CHOSEN, "fate"), "{{fate}}"),
                unit="short",
                width=THIRD,
                stacked=True,
            ),
            series(
                "Trainer",
                "Share of its time that the trainer computed, and had nothing to compute.",
                Query(
                    share("grapevine_trainer_seconds_total", CHOSEN, "state"),
                    "{{state}}",
                ),
                unit="percentunit",
                width=THIRD,
                stacked=True,
                most=1,
            ),
            histogram(
                "Staleness",
                "Updates between reading parameters and applying a chunk's gradient; chunks per second in each bucket.",
                rate("grapevine_staleness_updates_bucket", CHOSEN, "le"),
                unit="none",
                width=THIRD,
            ),
        ],
    )


def _neighbors() -> Section:
    waited = rate("grapevine_waited_seconds_total", f'{CHOSEN},waited_for=~"$neighbors"', "waited_for", "activity")
    return Section(
        "Neighbours",
        [
            rows(
                "Neighbours",
                "Each neighbour now. Its number leads to its own dashboard.",
                ["neighbor", "data_plane"],
                _column("grapevine_neighbor_state", 'state="alive"', "alive", "bool_yes_no"),
                _column("grapevine_neighbor_round_trip_seconds", "", "round trip", "s"),
                _column("grapevine_neighbor_deadline_seconds", "", "deadline", "s"),
                links={"neighbor": ("This peer", NEIGHBOR_PAGE)},
                width=HALF,
            ),
            states(
                "State",
                "What it believes of its neighbours. A suspect is not waited for until it is heard again.",
                Query(
                    f'max by (neighbor) (grapevine_neighbor_state{{{EDGES},state="suspect"}})'
                    f' + 2 * max by (neighbor) (grapevine_neighbor_state{{{EDGES},state="left"}})',
                    "peer {{neighbor}}",
                ),
                {"0": ("alive", GREEN), "1": ("suspect", YELLOW), "2": ("left", BLUE)},
            ),
            series(
                "Waiting for",
                "Share of its time that it waited for this neighbour: for its word, or for its exchange to be over.",
                Query(waited, "peer {{waited_for}}, {{activity}}"),
                unit="percentunit",
                width=QUARTER,
            ),
            series(
                "Exchange",
                "Mean seconds from opening an exchange to its end, of those that were committed. Most of it hides behind computing.",
                Query(
                    mean("grapevine_neighbor_exchange_seconds", EDGES, "neighbor"),
                    "peer {{neighbor}}",
                ),
                unit="s",
                width=QUARTER,
            ),
            series(
                "Deadline",
                "How long a neighbour would be waited for after a close: it adapts to how long it was waited for.",
                Query(f"grapevine_neighbor_deadline_seconds{{{EDGES}}}", "peer {{neighbor}}"),
                unit="s",
                width=QUARTER,
            ),
            series(
                "Round trip",
                "Of a control word, every five seconds.",
                Query(f"grapevine_neighbor_round_trip_seconds{{{EDGES}}}", "peer {{neighbor}}"),
                unit="s",
                width=QUARTER,
            ),
            series(
                "Bytes sent",
                "Per second: payloads, headers, words.",
                Query(rate("grapevine_neighbor_sent_bytes_total", EDGES, "neighbor"), "to {{neighbor}}"),
                unit="Bps",
            ),
            series(
                "Bytes received",
                "Per second: payloads, headers, words.",
                Query(
                    rate("grapevine_neighbor_received_bytes_total", EDGES, "neighbor"),
                    "from {{neighbor}}",
                ),
                unit="Bps",
            ),
        ],
    )


def _column(metric: str, more: str, heading: str, unit: str) -> Query:
    """A value of each neighbour, with what its vectors travel on."""
    selector = f"{EDGES},{more}" if more else EDGES
    joined = f"max by (neighbor) ({metric}{{{selector}}}) * on (neighbor) group_left (data_plane)"
    return Query(f"{joined} max by (neighbor, data_plane) (grapevine_neighbor_info{{{EDGES}}})", heading, unit=unit)


def _losses() -> Section:
    return Section(
        "Lost and refused",
        [
            series(
                "Missed payloads",
                "Edges lost for one exchange, per second, by neighbour and reason.",
                Query(
                    rate("grapevine_neighbor_missed_payloads_total", EDGES, "neighbor", "reason"),
                    "peer {{neighbor}}, {{reason}}",
                ),
                unit="short",
                width=QUARTER,
            ),
            series(
                "Late payloads",
                "That came when their exchange was over here, per second.",
                Query(
                    rate("grapevine_neighbor_late_payloads_total", EDGES, "neighbor"),
                    "peer {{neighbor}}",
                ),
                unit="short",
                width=QUARTER,
            ),
            series(
                "Messages dropped",
                "Per second, by reason; they harmed nothing.",
                Query(rate("grapevine_dropped_messages_total", CHOSEN, "reason"), "{{reason}}"),
                unit="short",
                width=QUARTER,
            ),
            series(
                "Links refused",
                "Per second, by the field in which the other end differed.",
                Query(rate("grapevine_refused_links_total", CHOSEN, "field"), "{{field}}"),
                unit="short",
                width=QUARTER,
            ),
        ],
    )


def _process() -> Section:
    return Section(
        "Process",
        [
            histogram(
                "Event-loop lag",
                "How much later than asked for the event loop woke up, ten times a second; wake-ups per second in each bucket.",
                rate("grapevine_loop_lag_seconds_bucket", CHOSEN, "le"),
                unit="s",
                width=HALF,
            ),
            series(
                "Answers",
                "Per second on the metrics port, by HTTP status: scrapes and pages are 200.",
                Query(rate("grapevine_http_answers_total", CHOSEN, "status"), "{{status}}"),
                unit="short",
                width=HALF,
            ),
            series(
                "Processor",
                "Cores in use.",
                Query(rate("process_cpu_seconds_total", CHOSEN, "peer"), "peer {{peer}}"),
                unit="none",
                width=THIRD,
            ),
            series(
                "Resident memory",
                "Of the peer's process.",
                Query(f"process_resident_memory_bytes{{{CHOSEN}}}", "peer {{peer}}"),
                unit="bytes",
                width=THIRD,
            ),
            series(
                "Open files",
                "Files and sockets.",
                Query(f"process_open_fds{{{CHOSEN}}}", "peer {{peer}}"),
                unit="none",
                width=THIRD,
            ),
        ],
    )


def _settings() -> Section:
    options = ("algorithm", "topology", "closing", "in_flight", "weighting", "wire_dtype", "trainer", "task", "peers")
    return Section(
        "Settings",
        [
            facts(
                "Run",
                "The options of the run that matter most.",
                Query(f"grapevine_run_info{{{CHOSEN}}}"),
                *options,
                width=16,
            ),
            facts(
                "Build",
                "What runs here.",
                Query(f"grapevine_build_info{{{CHOSEN}}}"),
                "version",
                "python",
                "torch",
                width=8,
            ),
        ],
    )
