"""`grapevine compare`: the matrix with a progress bar, then the page, the plots and the table."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from peer.compare.page import write_comparison
from peer.compare.results import Cell, Result, matrix
from peer.compare.run import config_of, open_folder, play
from peer.compare.tables import failures, summary_lines, time_lines
from peer.config import Config, ConfigError, choices
from topology.suggestion import nearest


def run_comparison(
    config: Config,
    console: Console,
    *,
    scenarios: Sequence[str],
    algorithms: Sequence[str],
    closings: Sequence[str],
    seeds: int,
    simulated: bool,
    resume: bool,
    out: Path,
) -> None:
    """Play the matrix and write what came of it into `out`. Raises Fatal or ConfigError."""
    for option, given, valid in (
        ("algorithm", algorithms, choices("algorithm")),
        ("closing", closings, choices("closing")),
    ):
        if not given:
            raise ConfigError(f"--{option}s: name at least one: {', '.join(valid)}")
        for name in given:
            if name not in valid:
                raise ConfigError(f"--{option}s: unknown {option} {name!r}; {nearest(name, valid)}")
    if config.target_loss is None and config.max_rounds is None and config.max_seconds is None:
        raise ConfigError("a comparison needs an end of its runs: give --target-loss, --max-rounds or --max-seconds")
    cells = matrix(scenarios, algorithms, closings, seeds)
    for cell in cells:
        config_of(cell, config)
    open_folder(out, config, simulated=simulated, resume=resume, scenarios=scenarios)
    with _terminated_as_interrupted():
        results = _play(cells, config, console, out, simulated=simulated)
    console.print(summary_lines(results))
    for said in failures(results):
        console.print(said, style="yellow")
    console.print("\nwhere the time goes", style="bold")
    console.print(time_lines(results))
    write_comparison(out, results)
    console.print(f"report: {out / 'report.html'}; plots, CSV and JSON beside it")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM as ctrl-C: finished cells are kept, and no process is left behind."""

    def interrupt(sign: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _play(cells: Sequence[Cell], config: Config, console: Console, out: Path, *, simulated: bool) -> list[Result]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("virtual time" if simulated else "real processes", total=len(cells))
        finished = 0

        def done(result: Result) -> None:
            nonlocal finished
            finished += 1
            seconds = result.report["seconds_to_target"]
            reached = f"{seconds:.1f} s" if seconds is not None else "target not reached"
            reached = result.report["error"] or reached
            bar.console.print(
                f"{result.cell.scenario:14s} {result.cell.label:26s} seed {result.cell.seed}  {reached}",
                highlight=False,
            )
            bar.update(task, advance=1)

        try:
            return play(cells, config, out, simulated=simulated, done=done)
        except KeyboardInterrupt:
            bar.stop()
            console.print(f"interrupted: {finished} of {len(cells)} cells are kept in {out}; go on with --resume")
            raise
