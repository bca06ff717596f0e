"""Algorithm laboratory: runs beside each other, or after each other, by what they cost and what they gained."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.board import Choice, Section, board
from dashboards.panels import FULL, QUARTER, THIRD, Query, facts, rows, series
from dashboards.promql import applied, idle, mean, quantile, rate, share

CHOSEN = 'run=~"$runs"'
#: The last value of a series in the time shown, also of runs that have ended.
SHOWN = "[$__range]"


def algorithm_laboratory() -> Dashboard:
    return board(
        "grapevine-laboratory",
        "Grapevine / Algorithm laboratory",
        "Runs beside each other, or after each other: give each a name of its own with --run.",
        [Choice("runs", "Runs that were scraped in the time shown", "label_values(grapevine_run_info, run)", True)],
        [_runs(), _learning(), _speed(), _rounds(), _staleness(), _traffic()],
    )


def _runs() -> Section:
    options = (
        "run",
        "algorithm",
        "topology",
        "closing",
        "in_flight",
        "weighting",
        "wire_dtype",
        "trainer",
        "task",
        "peers",
    )
    return Section(
        "Runs",
        [
            facts(
                "Options",
                "What the runs differ in.",
                Query(f"max by ({', '.join(options)}) (last_over_time(grapevine_run_info{{{CHOSEN}}}{SHOWN}))"),
                *options,
                height=6,
            ),
            rows(
                "Results",
                "At the end of the time shown, or of the run. Evaluation needs --metrics-eval-every.",
                ["run"],
                Query(f"max by (run) (last_over_time(grapevine_round{{{CHOSEN}}}{SHOWN}))", "rounds", unit="none"),
                Query(
                    f'sum by (run) (last_over_time(grapevine_samples_total{{{CHOSEN},fate="applied"}}{SHOWN}))',
                    "samples",
                    unit="short",
                ),
                Query(
                    f"max by (run) (last_over_time(grapevine_training_seconds_total{{{CHOSEN}}}{SHOWN}))",
                    "seconds",
                    unit="s",
                ),
                Query(
                    f"avg by (run) (last_over_time(grapevine_train_loss{{{CHOSEN}}}{SHOWN}))",
                    "train loss",
                    unit="none",
                    decimals=3,
                ),
                Query(
                    f"avg by (run) (last_over_time(grapevine_eval_loss{{{CHOSEN}}}{SHOWN}))",
                    "eval loss",
                    unit="none",
                    decimals=3,
                ),
                Query(
                    f"avg by (run) (last_over_time(grapevine_eval_accuracy_ratio{{{CHOSEN}}}{SHOWN}))",
                    "accuracy",
                    unit="percentunit",
                    decimals=1,
                ),
                Query(
                    f"max by (run) (last_over_time(grapevine_eval_round{{{CHOSEN}}}{SHOWN}))",
                    "evaluated at round",
                    unit="none",
                ),
                Query(
                    f"avg by (run) (last_over_time(grapevine_idle_ratio{{{CHOSEN}}}{SHOWN}))",
                    "idle",
                    unit="percentunit",
                    decimals=1,
                ),
                Query(
                    f"sum by (run) (last_over_time(grapevine_neighbor_sent_bytes_total{{{CHOSEN}}}{SHOWN}))",
                    "sent",
                    unit="bytes",
                ),
                height=6,
            ),
        ],
    )


def _learning() -> Section:
    return Section(
        "Learning",
        [
            series(
                "Train loss",
                "Mean over the peers.",
                Query(f"avg by (run) (grapevine_train_loss{{{CHOSEN}}})", "{{run}}"),
                unit="none",
                width=QUARTER,
                logarithmic=True,
            ),
            series(
                "Eval loss",
                "On the test set; mean over the peers, and the worst. Needs --metrics-eval-every.",
                Query(f"avg by (run) (grapevine_eval_loss{{{CHOSEN}}})", "{{run}}"),
                Query(f"max by (run) (grapevine_eval_loss{{{CHOSEN}}})", "{{run}}, worst peer"),
                unit="none",
                width=QUARTER,
                logarithmic=True,
            ),
            series(
                "Eval accuracy",
                "On the test set; mean over the peers, and the worst. Needs --metrics-eval-every.",
                Query(f"avg by (run) (grapevine_eval_accuracy_ratio{{{CHOSEN}}})", "{{run}}"),
                Query(f"min by (run) (grapevine_eval_accuracy_ratio{{{CHOSEN}}})", "{{run}}, worst peer"),
                unit="percentunit",
                width=QUARTER,
                most=1,
            ),
            series(
                "Consensus distance",
                "Root mean square over the peers of the distance to their neighbours' models, before mixing. 0 in ring all-reduce.",
                Query(
                    f"sqrt(avg by (run) (grapevine_neighbor_distance{{{CHOSEN}}} ^ 2))"
                    f" or 0 * max by (run) (grapevine_round{{{CHOSEN}}})",
                    "{{run}}",
                ),
                unit="none",
                width=QUARTER,
            ),
        ],
    )


def _speed() -> Section:
    return Section(
        "Speed",
        [
            series(
                "Samples per second",
                "Samples whose gradient went into an update, of all peers.",
                Query(applied(CHOSEN, "run"), "{{run}}"),
                unit="short",
                width=QUARTER,
            ),
            series(
                "Rounds per second",
                "Rounds that a peer finishes, mean over the peers.",
                Query(f"avg by (run) ({rate('grapevine_rounds_total', CHOSEN, 'run', 'peer')})", "{{run}}"),
                unit="short",
                width=QUARTER,
            ),
            series(
                "Share of samples that count",
                "Samples in an update, of all that were computed: the rest was redone, or not finite.",
                Query(
                    applied(CHOSEN, "run") + " / " + rate("grapevine_samples_total", CHOSEN, "run"),
                    "{{run}}",
                ),
                unit="percentunit",
                width=QUARTER,
                most=1,
            ),
            series(
                "Idle share",
                "Share of the trainers' time in which they had nothing to compute.",
                Query(
                    idle(CHOSEN, "run"),
                    "{{run}}",
                ),
                unit="percentunit",
                width=QUARTER,
                most=1,
            ),
            series(
                "Share of wall time",
                "What the rounds are at, of all peers.",
                Query(
                    share("grapevine_activity_seconds_total", CHOSEN, "activity", within=("run",)),
                    "{{run}}, {{activity}}",
                ),
                unit="percentunit",
                width=FULL,
                most=1,
                table_legend=True,
            ),
        ],
    )


def _rounds() -> Section:
    return Section(
        "Rounds",
        [
            series(
                "Length of rounds",
                "Median and 95th percentile over all peers, from opening a round to its end.",
                *(
                    Query(
                        quantile(q, "grapevine_round_seconds", CHOSEN, "run"),
                        f"{{{{run}}}}, {name}",
                    )
                    for q, name in ((0.5, "median"), (0.95, "95 %"))
                ),
                unit="s",
                width=THIRD,
            ),
            series(
                "Waiting for exchanges",
                "Median and 95th percentile over all peers, from the close of a round until every exchange is over.",
                *(
                    Query(
                        quantile(q, "grapevine_exchange_wait_seconds", CHOSEN, "run"),
                        f"{{{{run}}}}, {name}",
                    )
                    for q, name in ((0.5, "median"), (0.95, "95 %"))
                ),
                unit="s",
                width=THIRD,
            ),
            series(
                "Why rounds close",
                "Share of the rounds of all peers, by reason.",
                Query(
                    share("grapevine_rounds_total", CHOSEN, "reason", within=("run",)),
                    "{{run}}, {{reason}}",
                ),
                unit="percentunit",
                width=THIRD,
                most=1,
            ),
        ],
    )


def _staleness() -> Section:
    return Section(
        "Staleness",
        [
            series(
                "Mean staleness",
                "Updates between reading parameters and applying a chunk's gradient, mean over the chunks of all peers.",
                Query(
                    mean("grapevine_staleness_updates", CHOSEN, "run"),
                    "{{run}}",
                ),
                unit="none",
                width=THIRD,
            ),
            series(
                "Staleness, 99th percentile",
                "Of the chunks of all peers; buckets end at 0, 1, 2, 4, 8, 16 and 32.",
                Query(
                    quantile(0.99, "grapevine_staleness_updates", CHOSEN, "run"),
                    "{{run}}",
                ),
                unit="none",
                width=THIRD,
            ),
            series(
                "What became of chunks",
                "Share of the chunks of all peers. Only with --in-flight redo are chunks redone.",
                Query(
                    share("grapevine_chunks_total", CHOSEN, "fate", within=("run",)),
                    "{{run}}, {{fate}}",
                ),
                unit="percentunit",
                width=THIRD,
                most=1,
            ),
        ],
    )


def _traffic() -> Section:
    return Section(
        "Traffic",
        [
            series(
                "Bytes sent for a round",
                "By a peer, to all its neighbours.",
                Query(
                    rate("grapevine_neighbor_sent_bytes_total", CHOSEN, "run")
                    + " / "
                    + rate("grapevine_rounds_total", CHOSEN, "run"),
                    "{{run}}",
                ),
                unit="bytes",
                width=QUARTER,
            ),
            series(
                "Missed payloads",
                "Edges lost for one exchange, in a peer's round.",
                Query(
                    rate("grapevine_neighbor_missed_payloads_total", CHOSEN, "run")
                    + " / "
                    + rate("grapevine_rounds_total", CHOSEN, "run"),
                    "{{run}}",
                ),
                unit="none",
                width=QUARTER,
            ),
            series(
                "Activated matchings",
                "MATCHA: share of the rounds in which a matching was active. It tends to the activation probability p_j, which "
                "grapevine plan shows.",
                Query(
                    f"avg by (run, matching) ({rate('grapevine_matchings_activated_total', CHOSEN, 'run', 'peer', 'matching')}"
                    f" / on (run, peer) group_left () {rate('grapevine_rounds_total', CHOSEN, 'run', 'peer')})",
                    "{{run}}, matching {{matching}}",
                ),
                unit="percentunit",
                width=QUARTER,
                most=1,
            ),
            series(
                "An evaluation",
                "Mean seconds of the evaluation of a peer's model, beside training. Needs --metrics-eval-every.",
                Query(
                    mean("grapevine_evaluation_seconds", CHOSEN, "run", over=SHOWN),
                    "{{run}}",
                ),
                unit="s",
                width=QUARTER,
            ),
        ],
    )
