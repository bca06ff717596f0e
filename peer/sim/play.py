"""From a config to the report of a simulated run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from peer.accounts.report import Run, make_report
from peer.assembly import BAD_INPUT
from peer.config import TIMING, Config, ConfigError
from peer.exit_codes import ExitCode, Fatal
from peer.sim.simulator import Simulation


def simulate(
    config: Config,
    *,
    exact: bool = False,
    num_parameters: int = 50_826,
    begins: Callable[[], object] = lambda: None,
    progress: Callable[[Simulation], None] = lambda simulation: None,
) -> dict[str, Any]:
    """The report of a run, like that of `up` with virtual seconds, and what simulating took (`simulation`). begins: called when nothing of
    the config can be refused any more. Raises Fatal."""
    torch.set_num_threads(1)
    started = time.monotonic()
    try:
        _check(config)
        simulation = Simulation(config, exact=exact, num_parameters=num_parameters, progress=progress)
        begins()
        simulation.run()
    except BAD_INPUT as error:
        raise Fatal(ExitCode.CONFIG, str(error)) from None
    took = time.monotonic() - started
    code = simulation.failure.code if simulation.failure is not None else ExitCode.OK
    cost = {"seconds": took, "events": simulation.agenda.num_events, "exit_code": int(code)}
    return {**_report(config, simulation), "simulation": cost}


def _check(config: Config) -> None:
    if config.report is not None and not config.report.absolute().parent.is_dir():
        raise ConfigError(f"--report: there is no folder {config.report.absolute().parent}")
    if config.max_rounds is None and config.max_seconds is None:
        if config.task == TIMING:
            raise ConfigError("--task timing has no loss to reach: give --max-rounds or --max-seconds")
        if config.target_loss is None:
            raise ConfigError("a simulation needs an end: give --target-loss, --max-rounds or --max-seconds")


def _report(config: Config, simulation: Simulation) -> dict[str, Any]:
    alive = [peer.peer for peer in simulation.peers if peer.peer not in simulation.dead]
    run = Run(
        config=config,
        error=simulation.failure.sentence if simulation.failure is not None else None,
        seconds_to_target=simulation.seconds_to_target,
        wall_seconds=simulation.agenda.now,
        start_seconds=0.0,
        stop_reason=simulation.stop_reason,
        curve=simulation.curve,
        summaries=simulation.summaries(),
        models=dict(zip(alive, simulation.models(), strict=True)) if simulation.evaluator is not None else {},
        lost=dict.fromkeys(simulation.dead, "crashed"),
    )
    return make_report(run, simulation.evaluator)
