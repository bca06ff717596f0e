"""The numbers of a comparison: one flat row a run, and one summary a method with the statistics over its seeds."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from peer.compare.results import Result
from peer.gossip.algorithms import ALGORITHMS

REFERENCE = "barrier"
#: A round is one gradient of one peer, applied by the head.
COUNT_UPDATES = {name for name, kind in ALGORITHMS.items() if kind.has_head and not kind.has_rounds}
_CELL = ("scenario", "algorithm", "closing", "seed")
_OF_REPORT = (
    "seconds_to_target",
    "wall_seconds",
    "rounds",
    "samples",
    "train_loss",
    "test_accuracy",
    "worst_peer_test_accuracy",
    "consensus_distance",
    "idle_fraction",
    "finished_fraction",
    "max_staleness",
    "wasted_fraction",
    "sample_skew",
    "least_share",
    "bytes_sent",
    "error",
)
_OF_THEORY = ("ceiling_samples_per_second", "reached_samples_per_second", "share_of_ceiling", "expected_speed_up")
COLUMNS = (*_CELL, "simulated", *_OF_REPORT, *_OF_THEORY)


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the seeds of one method in one scenario; None is what nobody can tell.

    seconds, least, most: a run that did not reach the target counts as infinitely long, and infinity is None here.
    speed_up: median seconds of the same algorithm's barrier / seconds. Where only the barrier missed the target, the length of its
    runs stands for its seconds: speed_up is then a lower bound, said by at_least.
    rate_gain: the same of samples per second, which is what expected_speed_up (the closed form) is about. samples_needed: samples of the
    whole run / those of the same algorithm's barrier, None if one of the two missed the target: what staleness and skipped work cost;
    speed_up = rate_gain / samples_needed. computing, waiting, exchanging: shares of the trainers' time; they add up to 1."""

    scenario: str
    algorithm: str
    closing: str
    seeds: int
    reached: int
    failed: int
    seconds: float | None
    least: float | None
    most: float | None
    speed_up: float | None
    at_least: bool
    rate: float | None
    rate_gain: float | None
    expected_speed_up: float | None
    test_accuracy: float | None
    worst_peer_test_accuracy: float | None
    idle_fraction: float | None
    share_of_ceiling: float | None
    ceiling: float | None
    samples: float | None
    samples_needed: float | None
    computing_fraction: float | None
    waiting_fraction: float | None
    exchanging_fraction: float | None
    bytes_sent: float | None
    wasted_fraction: float | None
    sample_skew: float | None
    least_share: float | None

    @property
    def label(self) -> str:
        """Names the method."""
        return f"{self.algorithm} {self.closing}"


def row(result: Result) -> dict[str, Any]:
    """One run as flat, JSON-able values; NaN and infinities are None."""
    values: dict[str, Any] = {name: getattr(result.cell, name) for name in _CELL}
    values["simulated"] = "simulation" in result.report
    values |= {name: result.report.get(name) for name in _OF_REPORT}
    values |= {name: result.theory.get(name) for name in _OF_THEORY}
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """An empty field is an unknown value."""
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(rows: Sequence[Mapping[str, Any]], summaries: Sequence[Summary], path: Path) -> None:
    """The rows of the CSV, and the summaries."""
    content = {"schema": 1, "rows": list(rows), "summaries": [asdict(entry) for entry in summaries]}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def grouped(results: Iterable[Result]) -> dict[str, dict[tuple[str, str], list[Result]]]:
    """Scenario -> (algorithm, closing) -> its seeds, all in the order in which they first appear."""
    groups: dict[str, dict[tuple[str, str], list[Result]]] = {}
    for result in results:
        methods = groups.setdefault(result.cell.scenario, {})
        methods.setdefault((result.cell.algorithm, result.cell.closing), []).append(result)
    return groups


def summarise(results: Sequence[Result]) -> list[Summary]:
    """One entry a scenario and method, in order of appearance."""
    return [
        _summary(runs, methods.get((algorithm, REFERENCE), []))
        for methods in grouped(results).values()
        for (algorithm, _), runs in methods.items()
    ]


def seconds_to_target(result: Result) -> float:
    """Infinite if the run did not get there."""
    seconds = result.report.get("seconds_to_target")
    return math.inf if seconds is None else float(seconds)


def median_run(runs: Sequence[Result]) -> Result:
    """The run that stands for its seeds: the (lower) median by seconds to target, then by the loss at the end."""

    def order(result: Result) -> tuple[float, float]:
        loss = result.report.get("train_loss")
        return seconds_to_target(result), math.inf if loss is None else float(loss)

    return sorted(runs, key=order)[(len(runs) - 1) // 2]


def _summary(runs: Sequence[Result], barrier: Sequence[Result]) -> Summary:
    cell = runs[0].cell
    times = [seconds_to_target(result) for result in runs]
    speed_up, at_least = _speed_up(runs, barrier)
    rate, barrier_rate = (_median(group, "reached_samples_per_second", theory=True) for group in (runs, barrier))
    return Summary(
        scenario=cell.scenario,
        algorithm=cell.algorithm,
        closing=cell.closing,
        seeds=len(runs),
        reached=sum(map(math.isfinite, times)),
        failed=sum(result.report.get("error") is not None for result in runs),
        seconds=_finite(statistics.median(times)),
        least=_finite(min(times)),
        most=_finite(max(times)),
        speed_up=speed_up,
        at_least=at_least,
        rate=rate,
        rate_gain=rate / barrier_rate if rate is not None and barrier_rate else None,
        expected_speed_up=_median(runs, "expected_speed_up", theory=True),
        test_accuracy=_median(runs, "test_accuracy"),
        worst_peer_test_accuracy=_median(runs, "worst_peer_test_accuracy"),
        idle_fraction=_median(runs, "idle_fraction"),
        share_of_ceiling=_median(runs, "share_of_ceiling", theory=True),
        ceiling=_median(runs, "ceiling_samples_per_second", theory=True),
        samples=_median(runs, "samples"),
        samples_needed=_samples_needed(runs, barrier),
        **_shares_of_time(runs),
        bytes_sent=_median(runs, "bytes_sent"),
        wasted_fraction=_median(runs, "wasted_fraction"),
        sample_skew=_median(runs, "sample_skew"),
        least_share=_median(runs, "least_share"),
    )


def _speed_up(runs: Sequence[Result], barrier: Sequence[Result]) -> tuple[float | None, bool]:
    """Ratio of the medians, and whether it is only a lower bound."""
    if not barrier:
        return None, False
    mine, theirs = (statistics.median(seconds_to_target(result) for result in group) for group in (runs, barrier))
    if not math.isfinite(mine) or mine <= 0:
        return None, False
    if math.isfinite(theirs):
        return theirs / mine, False
    lasted = [min(seconds_to_target(result), result.report.get("wall_seconds") or 0.0) for result in barrier]
    bound = statistics.median(lasted) / mine
    return (bound, True) if bound > 1 else (None, False)


def _samples_needed(runs: Sequence[Result], barrier: Sequence[Result]) -> float | None:
    """Ratio of the medians, where all runs reached the target."""
    if not barrier or not all(math.isfinite(seconds_to_target(result)) for result in (*runs, *barrier)):
        return None
    mine, theirs = _median(runs, "samples"), _median(barrier, "samples")
    return mine / theirs if mine and theirs else None


def _shares_of_time(runs: Sequence[Result]) -> dict[str, float | None]:
    """Of the trainers' time over all peers and runs. Waiting is what is idle and not an exchange."""
    peers = [peer for result in runs for peer in result.report.get("peers") or []]
    computing, idle, exchanging = (
        sum(peer.get(name) or 0.0 for peer in peers)
        for name in ("seconds_computing", "seconds_idle", "seconds_exchanging")
    )
    names = ("computing_fraction", "waiting_fraction", "exchanging_fraction")
    if not (total := computing + idle):
        return dict.fromkeys(names)
    exchanging = min(exchanging, idle)  # a chunk that is carried is computed meanwhile
    return dict(zip(names, (computing / total, (idle - exchanging) / total, exchanging / total), strict=True))


def _median(runs: Sequence[Result], name: str, *, theory: bool = False) -> float | None:
    """Over the runs that know it."""
    found = [(result.theory if theory else result.report).get(name) for result in runs]
    known = [float(value) for value in found if value is not None and math.isfinite(value)]
    return statistics.median(known) if known else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def seconds_text(seconds: float | None) -> str:
    """Three digits and the unit; None is a target that was not reached."""
    return "not reached" if seconds is None else f"{digits(seconds)} s"


def failures(results: Sequence[Result]) -> list[str]:
    """A sentence for each run that failed."""
    return [f"{result.cell.key}: failed: {error}" for result in results if (error := result.report.get("error"))]


def remarks(results: Sequence[Result], summaries: Sequence[Summary]) -> list[str]:
    """Sentences without which the table would be read wrongly."""
    said = []
    limits = {result.report["config"].get("max_rounds") for result in results} - {None}
    updates = sorted({entry.algorithm for entry in summaries if entry.algorithm in COUNT_UPDATES})
    if limits and updates and any(entry.algorithm not in COUNT_UPDATES for entry in summaries):
        said.append(
            f"--max-rounds {limits.pop()} is not the same work for all: a round of {', '.join(updates)} is one gradient of one worker, "
            "a round of the others one of each peer. Compare them over samples or by time."
        )
    for entry in summaries:
        if entry.wasted_fraction and entry.sample_skew is not None and entry.least_share is not None:
            told = f"{entry.label} in scenario {entry.scenario}: steps dropped {entry.wasted_fraction:.1%} of all gradients"
            said.append(
                f"{told}; samples of a peer in updates, {entry.least_share:.2f} to {entry.sample_skew:.2f} of its fair share."
            )
    return said


def digits(value: float) -> str:
    """About three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def factor_text(factor: float | None, *, at_least: bool = False) -> str:
    """How many times; a dash where nobody knows."""
    return "–" if factor is None else f"{'> ' if at_least else ''}{digits(factor)}×"


def share_text(share: float | None) -> str:
    """Percent with one decimal; a dash where nobody knows."""
    return "–" if share is None else f"{share:.1%}"


def spread_text(entry: Summary) -> str:
    """Least to most seconds over the seeds; how many of them reached the target, if not all did."""
    if not entry.reached:
        return f"0 of {entry.seeds} seeds"
    if entry.reached < entry.seeds:
        return f"{entry.reached} of {entry.seeds} seeds, from {digits(entry.least or 0.0)}"
    return f"{digits(entry.least or 0.0)} – {digits(entry.most or 0.0)}" if entry.seeds > 1 else "one seed"


def summary_lines(results: Sequence[Result]) -> Table:
    """For the terminal, in 80 columns: a heading a scenario, a line a method."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    entries = summarise(results)
    spread = any(entry.seeds > 1 for entry in entries)
    table.add_column("", no_wrap=True)
    for name in ("to target", *(["min – max"] if spread else []), "speed-up", "accuracy", "idle", "ceiling"):
        table.add_column(name, justify="right")
    before = None
    for entry in entries:
        if entry.scenario != before:
            table.add_row(Text(entry.scenario, style="bold"))
        style = "bold green" if (entry.speed_up or 0) > 1.05 else ""
        cells = [Text(f"  {entry.label}")]
        reached = "failed" if entry.failed == entry.seeds else seconds_text(entry.seconds)
        cells += [Text(reached, style="yellow" if entry.seconds is None else "")]
        cells += [Text(spread_text(entry), style="dim")] if spread else []
        cells += [Text(factor_text(entry.speed_up, at_least=entry.at_least), style=style)]
        shares = (entry.test_accuracy, entry.idle_fraction, entry.share_of_ceiling)
        table.add_row(*cells, *[Text(share_text(share)) for share in shares])
        before = entry.scenario
    return table


def time_row(entry: Summary) -> tuple[str, ...]:
    """What `TIME_COLUMNS` name."""
    rate = "–" if entry.rate is None else digits(entry.rate)
    factors = (entry.rate_gain, entry.expected_speed_up, entry.samples_needed)
    shares = (entry.computing_fraction, entry.waiting_fraction, entry.exchanging_fraction)
    written = [f"{share:.0%}" if share is not None else "–" for share in shares]
    return (rate, *map(factor_text, factors), *written)


#: rate, gain in it over barrier, what the closed form says of that, samples to the target over barrier's, shares of the trainers' time
TIME_COLUMNS = ("samples/s", "gain", "theory", "samples", "compute", "wait", "exchange")


def ceiling_text(entry: Summary) -> str:
    """The ceiling of a scenario."""
    return "no ceiling is known" if entry.ceiling is None else f"ceiling {digits(entry.ceiling)} samples/s"


def time_lines(results: Sequence[Result]) -> Table:
    """For the terminal: the ceiling of each scenario, the closed form beside the measured gain, and where the time goes."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    for name in TIME_COLUMNS:
        table.add_column(name, justify="right")
    before = None
    for entry in summarise(results):
        if entry.scenario != before:
            table.add_row(Text(entry.scenario, style="bold"))
            table.add_row("  ceiling", "–" if entry.ceiling is None else digits(entry.ceiling), style="dim")
        table.add_row(f"  {entry.label}", *time_row(entry))
        before = entry.scenario
    return table
