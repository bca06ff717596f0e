"""Cluster overview: is the run well, and if not, which peer is to blame?"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.board import Choice, Section, board
from dashboards.panels import (
    FULL,
    GREEN,
    QUARTER,
    RED,
    THIRD,
    YELLOW,
    AnyPanel,
    Query,
    bars,
    graph,
    matrix,
    number,
    rows,
    series,
    states,
    steps,
)
from dashboards.promql import applied, idle, mean, quantile, rate, renamed, share

#: The peers chosen of the run chosen.
CHOSEN = 'run="$run",peer=~"$peers"'
PEER_PAGE = (
    "/d/grapevine-peer/one-peer?var-datasource=${datasource}&var-run=${run}&var-peer=${__value.raw}&${__url_time_range}"
)


def cluster_overview() -> Dashboard:
    return board(
        "grapevine-cluster",
        "Grapevine / Cluster overview",
        "All peers of one run: is it well, and if not, which peer is to blame?",
        [
            Choice("run", "A run that was scraped in the time shown", "label_values(grapevine_run_info, run)", False),
            Choice("peers", "Peers of the run", 'label_values(grapevine_run_info{run="$run"}, peer)', True),
        ],
        [_now(), _peers(), _learning(), _progress(), _waiting(), _time(), _failures(), _processes()],
    )


def _now() -> Section:
    return Section(
        "Now",
        [
            number(
                "Peers training",
                "Peers that are scraped and train.",
                Query('count(grapevine_state{run="$run",state="training"} == 1) or vector(0)'),
                unit="none",
                decimals=0,
            ),
            number(
                "Peers missing",
                "Peers of the run that are not scraped, or do not train.",
                Query(
                    'max(sum by (peer) (grapevine_peers{run="$run"}))'
                    ' - (count(grapevine_state{run="$run",state="training"} == 1) or vector(0))'
                ),
                unit="none",
                thresholds=steps(GREEN, (1, RED)),
                decimals=0,
            ),
            number(
                "Alerts",
                "Alerts of this run that fire now; docs/monitoring.md says what to do for each.",
                Query('count(ALERTS{alertstate="firing",run="$run"}) or vector(0)'),
                unit="none",
                thresholds=steps(GREEN, (1, RED)),
                decimals=0,
            ),
            number(
                "Train loss",
                "Mean over the peers of the loss of the samples of their last 32 rounds.",
                Query(f"avg(grapevine_train_loss{{{CHOSEN}}})"),
                unit="none",
                decimals=3,
            ),
            number(
                "Samples per second",
                "Samples whose gradient went into an update, of all peers.",
                Query(applied(CHOSEN)),
                unit="short",
            ),
            number(
                "Rounds per second",
                "Rounds that a peer finishes, mean over the peers.",
                Query(f"avg({rate('grapevine_rounds_total', CHOSEN, 'peer')})"),
                unit="short",
            ),
            number(
                "Idle share",
                "Share of the trainers' time in which they had nothing to compute.",
                Query(idle(CHOSEN)),
                unit="percentunit",
                thresholds=steps(GREEN, (0.2, YELLOW), (0.5, RED)),
            ),
            number(
                "Consensus distance",
                "Root mean square over the peers of the distance to their neighbours' models, before mixing. 0 in ring all-reduce, "
                "where all models are equal.",
                Query(f"sqrt(avg(grapevine_neighbor_distance{{{CHOSEN}}} ^ 2)) or vector(0)"),
                unit="none",
                decimals=4,
            ),
        ],
    )


def _peers() -> Section:
    slow = steps(GREEN, (1.5, YELLOW), (2, RED))
    return Section(
        "Peers",
        [
            rows(
                "Peers",
                "Each peer now. Its number leads to its own dashboard.",
                ["peer"],
                Query(f"max by (peer) (grapevine_round{{{CHOSEN}}})", "round", unit="none"),
                Query(f"max by (peer) (grapevine_train_loss{{{CHOSEN}}})", "train loss", unit="none", decimals=3),
                Query(
                    applied(CHOSEN, "peer"),
                    "samples per second",
                    unit="short",
                ),
                Query(
                    f"max by (peer) (run_peer:grapevine_slowness:ratio_rate1m{{{CHOSEN}}})",
                    "slowness",
                    unit="suffix:x",
                    decimals=1,
                    thresholds=slow,
                ),
                Query(f"max by (peer) (grapevine_idle_ratio{{{CHOSEN}}})", "idle", unit="percentunit", decimals=0),
                Query(
                    mean("grapevine_staleness_updates", CHOSEN, "peer"),
                    "staleness",
                    unit="none",
                    decimals=2,
                ),
                Query(f"max by (peer) (process_resident_memory_bytes{{{CHOSEN}}})", "memory", unit="bytes"),
                links={"peer": ("This peer", PEER_PAGE)},
            ),
        ],
    )


def _learning() -> Section:
    return Section(
        "Learning",
        [
            series(
                "Train loss",
                "Mean loss of the samples of each peer's last 32 rounds. A peer that stays above the others has harder data, or has lost "
                "its neighbours.",
                Query(f"grapevine_train_loss{{{CHOSEN}}}", "peer {{peer}}"),
                unit="none",
                logarithmic=True,
            ),
            series(
                "Consensus distance",
                "Of each peer to the models its neighbours sent, before mixing. It falls with the learning rate and with more exchange; "
                "growing without end means divergence. 0 in ring all-reduce.",
                Query(
                    f"max by (peer) (grapevine_neighbor_distance{{{CHOSEN}}}) or 0 * max by (peer) (grapevine_round{{{CHOSEN}}})",
                    "peer {{peer}}",
                ),
                unit="none",
            ),
        ],
    )


def _progress() -> Section:
    return Section(
        "Progress",
        [
            series(
                "Samples per second",
                "Samples whose gradient went into an update, by peer. A straggler's band is thin; the others' must not be.",
                Query(applied(CHOSEN, "peer"), "peer {{peer}}"),
                unit="short",
                stacked=True,
            ),
            series(
                "Why rounds close",
                "Rounds per second of all peers, by reason. quota: own work was done. word: somebody else's was. timeout: nobody's was.",
                Query(rate("grapevine_rounds_total", CHOSEN, "reason"), "{{reason}}"),
                unit="short",
                stacked=True,
            ),
            series(
                "Rounds behind the foremost",
                "How many rounds each peer is behind the one that has finished most. Who was stopped for a while comes back to about 0.",
                Query(
                    f'scalar(max(grapevine_round{{run="$run"}})) - max by (peer) (grapevine_round{{{CHOSEN}}})',
                    "peer {{peer}}",
                ),
                unit="none",
            ),
            bars(
                "Slowness",
                "Seconds that a peer computes for a sample, as a multiple of the median of the run, over one minute. The alert "
                "GrapevineStraggler fires above 2.",
                Query(f"run_peer:grapevine_slowness:ratio_rate1m{{{CHOSEN}}}", "peer {{peer}}"),
                unit="suffix:x",
                thresholds=steps(GREEN, (1.5, YELLOW), (2, RED)),
            ),
        ],
    )


def _waiting() -> Section:
    return Section(
        "Who waits for whom",
        [
            matrix(
                "Share of time waited",
                "Row: the peer that waits. Column: the peer whose word, or whose exchange, came last. A dark column is a straggler.",
                Query(rate("grapevine_waited_seconds_total", CHOSEN, "peer", "waited_for")),
                down="peer",
                across="waited_for",
                unit="percentunit",
                thresholds=steps("transparent", (0.05, YELLOW), (0.25, RED)),
            ),
            _edges(),
            series(
                "Who closes rounds first",
                "Rounds per second of all peers, by the peer that was the first to have closed them. In a healthy run of equal machines "
                "all take turns; a straggler never does.",
                Query(rate("grapevine_rounds_closed_first_total", CHOSEN, "closer"), "peer {{closer}}"),
                unit="short",
                width=FULL,
                stacked=True,
            ),
        ],
    )


def _edges() -> AnyPanel:
    """Grafana's panel breaks if an edge leads to a node that is not there: so the ends of edges, also those of a dead peer, are nodes, if
    need be without a number."""
    sent = rate("grapevine_neighbor_sent_bytes_total", CHOSEN, "peer", "neighbor")
    peers = (
        f"max by (peer) (grapevine_round{{{CHOSEN}}})"
        f" or NaN * max by (peer) ({sent})"
        f" or NaN * max by (peer) ({renamed(f'max by (neighbor) ({sent})', 'neighbor', 'peer')})"
    )
    edges = renamed(renamed(sent, "peer", "source"), "neighbor", "target")
    return graph(
        "Edges",
        "Peers with the number of rounds they have finished, and between them the bytes that travel per second.",
        nodes=Query(renamed(renamed(peers, "peer", "id"), "peer", "title", "peer $1"), unit="rounds"),
        edges=Query(f'label_join({edges}, "id", "-", "source", "target") / 1000', unit="kB/s"),
    )


def _time() -> Section:
    return Section(
        "Where the time goes",
        [
            series(
                "Share of wall time",
                "Of all peers' rounds. computing: until the own quota is done or the round closes. waiting: from there to the close. "
                "exchanging: after the close, what did not hide behind computing. mixing: the algorithm's mathematics.",
                Query(
                    share("grapevine_activity_seconds_total", CHOSEN, "activity"),
                    "{{activity}}",
                ),
                unit="percentunit",
                stacked=True,
                most=1,
            ),
            series(
                "Idle share",
                "Share of its time in which a peer's trainer had nothing to compute.",
                Query(
                    idle(CHOSEN, "peer"),
                    "peer {{peer}}",
                ),
                unit="percentunit",
                most=1,
            ),
        ],
    )


def _failures() -> Section:
    return Section(
        "When things fail",
        [
            series(
                "Members",
                "What the peers believe of each other: the most that any of them counts in a state.",
                Query(f"max by (state) (grapevine_peers{{{CHOSEN}}})", "{{state}}"),
                unit="none",
                width=QUARTER,
            ),
            series(
                "Missed payloads",
                "Edges lost for one exchange, per second, by reason. deadline: given up here; declined: given up there; suspect: not "
                "even begun with a silent peer; link_down: there is no link.",
                Query(rate("grapevine_neighbor_missed_payloads_total", CHOSEN, "reason"), "{{reason}}"),
                unit="short",
                width=QUARTER,
            ),
            series(
                "Chunks that did not count",
                "Per second. redone: dropped when a round closed, to be computed again. nonfinite: loss or gradient NaN or infinite.",
                Query(
                    rate("grapevine_chunks_total", f'{CHOSEN},fate=~"redone|nonfinite"', "fate"),
                    "{{fate}}",
                ),
                unit="short",
                width=QUARTER,
            ),
            states(
                "Alerts",
                "Which alerts of this run are pending or fire; docs/monitoring.md says what to do for each.",
                Query(
                    'max by (alertname) (ALERTS{run="$run"}) or label_replace(vector(0), "alertname", "none", "", "")',
                    "{{alertname}}",
                ),
                {"0": ("quiet", GREEN), "1": ("alert", RED)},
                width=QUARTER,
            ),
        ],
    )


def _processes() -> Section:
    return Section(
        "Processes",
        [
            series(
                "Event-loop lag, 99th percentile",
                "How much later than asked for the event loop woke up. The alert GrapevineLoopLag fires above the dashed line.",
                Query(
                    quantile(0.99, "grapevine_loop_lag_seconds", CHOSEN, "peer"),
                    "peer {{peer}}",
                ),
                unit="s",
                width=THIRD,
                limit=0.1,
            ),
            series(
                "Bytes sent",
                "Per second, by peer, over all its neighbours: payloads, headers, words.",
                Query(rate("grapevine_neighbor_sent_bytes_total", CHOSEN, "peer"), "peer {{peer}}"),
                unit="Bps",
                width=THIRD,
            ),
            series(
                "Resident memory",
                "Of each peer's process.",
                Query(f"process_resident_memory_bytes{{{CHOSEN}}}", "peer {{peer}}"),
                unit="bytes",
                width=THIRD,
            ),
        ],
    )
