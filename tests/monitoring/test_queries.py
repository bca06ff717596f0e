"""Every query of every panel and rule, asked of the real Prometheus about real clusters: D-PSGD with a straggler and a peer that is killed,
and MATCHA beside it. Prometheus's clock is 12 times as fast (prometheus.py), so that a minute's rate needs five seconds."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_up import assert_no_orphans, free_block, pids_of_peers, wait_for, warm
from tests.monitoring.asked import Asked, boards, filled, queries
from tests.monitoring.prometheus import FASTER, SCRAPE_SECONDS, Prometheus, finite, labels_of, running, static, until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="there is no `prometheus` here: install the Debian package prometheus, or put its release on the PATH",
    ),
]
STRAGGLER, VICTIM = 0, 3
#: Of a panel of rates: Grafana takes at least four scrapes.
RATE_MS = int(4 * SCRAPE_SECONDS * 1000)
VALUES = {"__rate_interval": f"{RATE_MS}ms", "__range": f"{15 * 60 // FASTER}s", "peers": ".*", "neighbors": ".*"}
CHOSEN = {
    "cluster.json": {"run": "gossip"},
    "peer.json": {"run": "gossip", "peer": str(STRAGGLER)},
    "laboratory.json": {"runs": ".*"},
}
#: What the killing and the straggler must set off.
EXPECTED_ALERTS = {
    ("GrapevinePeerDown", str(VICTIM)),
    ("GrapevineStraggler", str(STRAGGLER)),
    ("GrapevineNonfiniteChunks", str(STRAGGLER)),
}


@dataclass(frozen=True, slots=True)
class Watched:
    """Two clusters, and the Prometheus that scrapes them."""

    prometheus: Prometheus
    since: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """After all that the panels show has happened."""
    first = free_block(8)
    common = ["--chunk-seconds", "0.008", "--metrics-eval-every", "0.3"]
    task = ["--task", "tests.monitoring.tasks:NowAndThenNan"]
    gossip = ["--run", "gossip", "--peers", "4", "--straggler", f"{STRAGGLER}=6x", *task]
    matcha = ["--run", "matcha", "--peers", "3", "--algorithm", "matcha", "--topology", "complete"]
    with (
        warm("up", *gossip, *common, "--metrics-port", str(first)) as one,
        warm("up", *matcha, *common, "--metrics-port", str(first + 4)) as two,
        running(tmp_path, first + 7, static(range(first, first + 7))) as prometheus,
    ):
        since = time.monotonic()
        for process in (one, two):
            wait_for(process, "loss")
        prometheus.until("count(run_peer:grapevine_slowness:ratio_rate1m)", lambda found: _values(found) == [7.0])
        os.kill(pids_of_peers(one.pid)[VICTIM], signal.SIGKILL)
        firing = 'ALERTS{alertstate="firing",run="gossip"}'
        prometheus.until(firing, lambda found: {_alert(series) for series in found} >= EXPECTED_ALERTS)
        yield Watched(prometheus, since)
        for process in (one, two):
            process.send_signal(signal.SIGINT)
        for process in (one, two):
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, out + err
            assert_no_orphans(process.pid)


@pytest.mark.slow
@pytest.mark.timeout(300)  # on a machine with ten times the work that it has cores
def test_every_panel_and_every_rule_has_data(watched: Watched) -> None:
    """Asked again for a while: on a busy machine a scrape or two come too late."""

    def wrong() -> str:
        return "\n".join([*_panels(watched), *_variables(watched), *_rules(watched), *_numbers(watched)])

    until(wrong, lambda found: not found)


#: Of a run, and the page of its peer 0: panels that have nothing to show. The head of async-sgd computes nothing.
NOTHING = {
    "async": {
        "peer.json: Train loss (A)",
        "peer.json: Slowness (A)",
        "peer.json: Idle since it began (A)",
        "peer.json: Trainer (A)",
        "laboratory.json: Activated matchings (A)",
    },
    "pairs": {"laboratory.json: Activated matchings (A)"},
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_panels_show_of_methods_without_rounds(tmp_path: Path) -> None:
    """All but what docs/monitoring.md leaves out; and why their rounds end, and how stale their gradients are, is told."""
    first = free_block(7)
    common = ["--peers", "3", "--chunk-seconds", "0.008", "--metrics-eval-every", "0.3"]
    with (
        warm("up", "--run", "async", "--algorithm", "async-sgd", *common, "--metrics-port", str(first)) as one,
        warm("up", "--run", "pairs", "--algorithm", "ad-psgd", *common, "--metrics-port", str(first + 3)) as two,
        running(tmp_path, first + 6, static(range(first, first + 6))) as prometheus,
    ):
        watched = Watched(prometheus, time.monotonic())
        for process in (one, two):
            wait_for(process, "loss")
        prometheus.until("count(run_peer:grapevine_slowness:ratio_rate1m)", lambda found: bool(found))
        until(lambda: {run: _without_data(watched, run) for run in NOTHING}, lambda found: found == NOTHING)
        for expr in (
            'grapevine_rounds_total{run="async",peer="0",reason="gradient"} > 0',
            'grapevine_staleness_updates_sum{run="async",peer="0"} > 0',
            'sum(grapevine_staleness_updates_sum{run="pairs"}) > 0',
        ):
            prometheus.until(expr, lambda found: len(found) == 1)
        for process in (one, two):
            process.send_signal(signal.SIGINT)
        for process in (one, two):
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, out + err
            assert_no_orphans(process.pid)


def _without_data(watched: Watched, run: str) -> set[str]:
    """Panels in which a query is wrong or has no data, of that run and its peer 0."""
    chosen = {"cluster.json": {"run": run}, "peer.json": {"run": run, "peer": "0"}, "laboratory.json": {"runs": run}}
    return {
        asked.where
        for name, board in boards().items()
        for asked in queries(name, board)
        if any(_asked(watched, asked, filled(asked.expr, {**VALUES, **chosen[name]})))
    }


def _panels(watched: Watched) -> Iterator[str]:
    """What is wrong with the panels' queries."""
    for name, board in boards().items():
        values = {**VALUES, **CHOSEN[name]}
        for asked in queries(name, board):
            yield from _asked(watched, asked, filled(asked.expr, values))


def _asked(watched: Watched, asked: Asked, expr: str) -> Iterator[str]:
    try:
        found = watched.prometheus.range(expr, watched.seconds) if asked.over_time else watched.prometheus.instant(expr)
    except AssertionError as error:
        yield f"{asked.where}: {error}"
        return
    if not found:
        yield f"{asked.where}: no data: {expr}"
    for series in found:
        if not asked.labels <= labels_of(series):
            yield f"{asked.where}: {series['metric']} lacks one of {sorted(asked.labels)}"
    samples = [value for series in found for _, value in series.get("values", [series.get("value")])]
    if found and not any(map(finite, samples)):
        yield f"{asked.where}: no finite value: {expr}"
    if len({tuple(sorted((label, series["metric"].get(label)) for label in asked.labels)) for series in found}) < len(
        found
    ):
        yield f"{asked.where}: several series look alike: {[series['metric'] for series in found]}"


def _variables(watched: Watched) -> Iterator[str]:
    """What is wrong with the choices that a dashboard offers."""
    for name, board in boards().items():
        for variable in board["templating"]["list"]:
            if variable["type"] == "datasource":
                continue
            parts = re.fullmatch(r"label_values\((.+), (\w+)\)", filled(variable["query"], {**VALUES, **CHOSEN[name]}))
            assert parts, variable
            offered = watched.prometheus.get(f"label/{parts[2]}/values", **{"match[]": parts[1]})
            expected = {
                "run": ["gossip", "matcha"],
                "peer": ["0", "1", "2", "3"],
                "neighbor": ["1", "3"],
            }[parts[2]]
            if offered != expected:
                yield f"{name}: ${variable['name']} offers {offered}"


def _rules(watched: Watched) -> Iterator[str]:
    """What is wrong with the rules. A comparison leaves out what does not fulfil it; with `bool` it says 0 of that."""
    for group in watched.prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            if rule["health"] != "ok":
                yield f"{rule['name']}: {rule.get('lastError')}"
            everything = re.sub(r" (==|!=|>=|<=|>|<) ", r" \1 bool ", rule["query"])
            found = watched.prometheus.instant(everything)
            keys = {"run", "peer"} if "peer" in rule["name"] or rule["type"] == "alerting" else {"run"}
            if rule["name"] == "GrapevineConsensusDistanceGrows":
                keys = {"run"}
            if not found:
                yield f"{rule['name']}: no data: {everything}"
            yield from (
                f"{rule['name']}: {series['metric']}" for series in found if labels_of(series) - {"__name__"} != keys
            )
            if rule["type"] == "recording" and not watched.prometheus.instant(rule["name"]):
                yield f"{rule['name']} was not recorded"


def _numbers(watched: Watched) -> Iterator[str]:
    """What is wrong with numbers that are known: three of four peers train, and shares are shares of one."""
    known: dict[str, Callable[[float], bool]] = {
        "cluster.json: Peers training (A)": lambda value: value == 3,
        "cluster.json: Peers missing (A)": lambda value: value == 1,
        "cluster.json: Alerts (A)": lambda value: value >= len(EXPECTED_ALERTS),
        "cluster.json: Idle share (A)": lambda value: 0 <= value <= 1,
        "peer.json: Slowness (A)": lambda value: value > 2,
    }
    shares = {"cluster.json: Share of wall time (A)", "peer.json: Share of wall time (A)", "peer.json: Trainer (A)"}
    for name, board in boards().items():
        for asked in queries(name, board):
            expr = filled(asked.expr, {**VALUES, **CHOSEN[name]})
            is_so = known.pop(asked.where, None)
            if is_so and not all(map(is_so, _values(watched.prometheus.instant(expr)))):
                yield f"{asked.where}: {watched.prometheus.instant(expr)}"
            if asked.where in shares and abs(sum(_values(watched.prometheus.instant(expr))) - 1) > 1e-6:
                yield f"{asked.where}: not shares of one: {watched.prometheus.instant(expr)}"
    yield from known
    nodes, edges = (
        watched.prometheus.instant(filled(asked.expr, {**VALUES, **CHOSEN["cluster.json"]}))
        for asked in queries("cluster.json", boards()["cluster.json"])
        if asked.where.startswith("cluster.json: Edges")
    )
    ids = {node["metric"]["id"] for node in nodes}
    ends = {edge["metric"][end] for edge in edges for end in ("source", "target")}
    if not {str(STRAGGLER), str(VICTIM)} <= ends <= ids:
        yield f"Grafana's node graph breaks at edges without a node: {ends - ids}"


def _values(found: list[dict[str, Any]]) -> list[float]:
    return [float(series["value"][1]) for series in found]


def _alert(series: dict[str, Any]) -> tuple[str, str]:
    labels = series["metric"]
    return labels["alertname"], labels.get("peer", "")
