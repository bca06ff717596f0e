"""`grapevine compare`: the matrix with a progress bar, then the page, the plots and the table."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from peer.cli.voice import Voice
from peer.cluster.live import Frame, headline
from peer.compare.page import write_comparison
from peer.compare.results import Cell, Result, matrix
from peer.compare.run import check_cells, config_of, open_folder, play
from peer.compare.tables import failures, remarks, summarise, summary_lines, time_lines
from peer.compare.watch import CellWatch
from peer.config import Config, ConfigError, choices
from topology.suggestion import nearest


def run_comparison(
    config: Config,
    voice: Voice,
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
    check_cells(cells, config)
    open_folder(out, config, simulated=simulated, resume=resume, scenarios=scenarios)
    with _terminated_as_interrupted():
        results = _play(cells, config, voice, out, simulated=simulated)
    if not voice.as_json:
        voice.console.print(summary_lines(results))
        for said in [*failures(results), *remarks(results, summarise(results))]:
            voice.console.print(said, style="yellow")
        voice.console.print("\nwhere the time goes", style="bold")
        voice.console.print(time_lines(results))
    write_comparison(out, results)
    voice.say(f"report: {out / 'report.html'}; plots, CSV and JSON beside it", "report", path=str(out / "report.html"))


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


def _play(cells: Sequence[Cell], config: Config, voice: Voice, out: Path, *, simulated: bool) -> list[Result]:
    show = _Show(cells, config, voice, simulated=simulated)
    try:
        with show:
            return play(cells, config, out, simulated=simulated, done=show.done, heard=show.heard)
    except KeyboardInterrupt:
        kept = f"interrupted: {show.finished} of {len(cells)} cells are kept in {out}; go on with --resume"
        voice.say(kept, "interrupted", finished=show.finished, cells=len(cells), path=str(out))
        raise


class _Show:
    """A line for each finished cell; in a terminal a bar as well, and below it the peers of the cell that is being played."""

    def __init__(self, cells: Sequence[Cell], config: Config, voice: Voice, *, simulated: bool) -> None:
        self.finished = 0
        self._config = config
        self._voice = voice
        self._cell: Cell | None = None
        self._watch = CellWatch()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=voice.console)
        self._task = self._bar.add_task("virtual time" if simulated else "real processes", total=len(cells))
        self._shown = ExitStack()
        self._terminal = voice.console.is_interactive and not voice.as_json
        self._real = not simulated

    def __enter__(self) -> _Show:
        if self._terminal:
            live = Live(get_renderable=self._picture, console=self._voice.console, refresh_per_second=4, transient=True)
            self._shown.enter_context(live)
            if self._real:
                self._shown.enter_context(self._watch)
        return self

    def __exit__(self, *exc: object) -> None:
        self._shown.close()

    def heard(self, cell: Cell, said: Mapping[str, Any]) -> None:
        """A line of the log of a cell."""
        if cell != self._cell:
            self._cell = cell
            self._watch.forget()
        self._watch.heard(said)

    def done(self, result: Result) -> None:
        self.finished += 1
        self._bar.update(self._task, advance=1)
        self._cell = None
        self._watch.forget()
        cell, seconds, error = result.cell, result.report["seconds_to_target"], result.report["error"]
        reached = error or (f"{seconds:.1f} s" if seconds is not None else "target not reached")
        told = f"{cell.scenario:14s} {cell.label:26s} seed {cell.seed}  {reached}"
        self._voice.say(told, "cell", **asdict(cell), seconds_to_target=seconds, error=error)

    def _picture(self) -> RenderableType:
        cell = self._cell
        if cell is None:
            return self._bar
        head = headline(config_of(cell, self._config), self._watch.curve)
        return Group(self._bar, Frame(head, self._watch.rows, spare=2) if self._watch.rows else head)
