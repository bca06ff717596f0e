"""`grapevine simulate`: the run of `up` in virtual time."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from peer.accounts.report import write_report
from peer.cluster.live import describe, summary
from peer.config import TIMING, Config
from peer.exit_codes import ExitCode, Fatal
from peer.sim.play import simulate
from peer.sim.simulator import Simulation


def run_simulation(config: Config, console: Console, *, exact: bool, num_parameters: int) -> None:
    """Simulate, print the summary, write the report. Raises Fatal."""
    report = simulate(
        config,
        exact=exact,
        num_parameters=num_parameters,
        begins=lambda: console.print(describe(config) + ", simulated", style="dim"),
        progress=Progress(console),
    )
    if config.task == TIMING:
        console.print(_timing_summary(report))
    else:
        console.print(summary(report, config.target_loss))
    simulated = report["simulation"]
    console.print(
        f"simulated {report['wall_seconds']:.1f} s in {simulated['seconds']:.1f} s "
        f"({simulated['events']:,} events); docs/simulator.md says what is modelled",
        style="dim",
    )
    if config.report is not None:
        write_report(report, config.report)
        console.print(f"report: {config.report}", style="dim")
    if report["error"] is not None:
        raise Fatal(ExitCode(simulated["exit_code"]), report["error"])


def _timing_summary(report: dict[str, Any]) -> str:
    wasted = f", {report['wasted_fraction']:.1%} of all gradients dropped" if report["wasted_fraction"] else ""
    return (
        f"{report['rounds']} rounds, {report['samples']:,} samples in {report['wall_seconds']:.2f} virtual s "
        f"({report['samples'] / report['wall_seconds'] if report['wall_seconds'] else 0:,.0f} samples/s), "
        f"idle {report['idle_fraction']:.0%}, {report['finished_fraction']:.0%} of all chunks finished{wasted}"
    )


class Progress:
    """A line now and then; in a terminal it is written over."""

    def __init__(self, console: Console, every_seconds: float = 1.0) -> None:
        self._console = console
        self._every = every_seconds
        self._next = time.monotonic() + every_seconds

    def __call__(self, simulation: Simulation) -> None:
        now = time.monotonic()
        if now < self._next or not simulation.curve:
            return
        self._next = now + self._every
        seen = simulation.curve[-1]
        line = f"{seen.seconds:9.1f} virtual s  round {seen.rounds:6.0f}  loss {seen.loss:7.4f}"
        self._console.print(line, end="\r" if self._console.is_terminal else "\n", highlight=False, markup=False)
