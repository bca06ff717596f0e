"""`grapevine simulate`: the run of `up` in virtual time."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console

from peer.assembly import BAD_INPUT
from peer.cluster.live import describe, summary
from peer.cluster.report import Run, make_report, write_report
from peer.config import TIMING, Config, ConfigError
from peer.exit_codes import ExitCode, Fatal
from peer.sim.simulator import Simulation


def run_simulation(config: Config, console: Console, *, exact: bool, num_parameters: int) -> None:
    """Simulate, print the summary, write the report. Raises Fatal."""
    report = simulate(config, exact=exact, num_parameters=num_parameters, console=console)
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
        raise Fatal(ExitCode.LOST, report["error"])


def simulate(
    config: Config, *, exact: bool = False, num_parameters: int = 50_826, console: Console | None = None
) -> dict[str, Any]:
    """The report of a simulated run: that of `up`, with virtual seconds, and what simulating took. Raises Fatal."""
    torch.set_num_threads(1)
    if config.max_rounds is None and config.max_seconds is None and config.target_loss is None:
        raise Fatal(ExitCode.CONFIG, "a simulation needs an end: give --target-loss, --max-rounds or --max-seconds")
    if config.task == TIMING and config.max_rounds is None and config.max_seconds is None:
        raise Fatal(ExitCode.CONFIG, "--task timing has no loss to reach: give --max-rounds or --max-seconds")
    if console is not None:
        console.print(describe(config) + ", simulated", style="dim")
    started = time.monotonic()
    try:
        _check(config)
        progress = Progress(console) if console is not None else None
        simulation = Simulation(config, exact=exact, num_parameters=num_parameters, progress=progress or _silent)
        simulation.run()
    except BAD_INPUT as error:
        raise Fatal(ExitCode.CONFIG, str(error)) from None
    took = time.monotonic() - started
    return {**_report(config, simulation), "simulation": {"seconds": took, "events": simulation.agenda.num_events}}


def _check(config: Config) -> None:
    if config.report is not None and not config.report.absolute().parent.is_dir():
        raise ConfigError(f"--report: there is no folder {config.report.absolute().parent}")


def _report(config: Config, simulation: Simulation) -> dict[str, Any]:
    models = simulation.models()
    alive = [peer.peer for peer in simulation.peers if peer.peer not in simulation.dead]
    run = Run(
        config=config,
        error=simulation.error,
        seconds_to_target=simulation.seconds_to_target,
        wall_seconds=simulation.agenda.now,
        start_seconds=0.0,
        stop_reason=simulation.stop_reason,
        curve=simulation.curve,
        summaries=simulation.summaries(),
        models=dict(zip(alive, models, strict=True)) if simulation.evaluator is not None else {},
    )
    return make_report(run, simulation.evaluator)


def _timing_summary(report: dict[str, Any]) -> str:
    return (
        f"{report['rounds']} rounds, {report['samples']:,} samples in {report['wall_seconds']:.2f} virtual s "
        f"({report['samples'] / report['wall_seconds'] if report['wall_seconds'] else 0:,.0f} samples/s), "
        f"idle {report['idle_fraction']:.0%}, {report['finished_fraction']:.0%} of all chunks finished"
    )


def _silent(simulation: Simulation) -> None:
    return None


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
