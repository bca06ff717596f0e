"""Plays the matrix: cell by cell as real processes, or several at once in virtual time."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from peer.assembly import make_outer, make_scenario, make_stragglers, make_wire
from peer.cluster.forkserver import context
from peer.compare.results import Cell, Result, load, save
from peer.compare.theory import theory
from peer.config import ENV_ALIASES, ENV_PREFIX, Config, ConfigError, flag, validated
from peer.exit_codes import ExitCode, Fatal
from peer.methods import usual
from peer.refusals import check_method, idle_options
from peer.scenario import files_of

#: Options whose flag is in the singular because it repeats, and those that a cell or the comparison itself decides.
_SINGULAR = {"addresses": "--address"}
_DECIDED = {"report", "peer", "listen", "addresses", "log_format"}
#: Neither changes what is measured.
_TOLD = {*_DECIDED, "tracing"}
#: Told of each line that a cell of real processes logs.
Heard = Callable[[Cell, Mapping[str, Any]], None]
#: Reports as they come; closing it ends the processes.
Played = Generator[tuple[Cell, dict[str, Any]], None, None]


def config_of(cell: Cell, base: Config) -> Config:
    """The config of one cell, without the options that mean nothing in it: a matrix has them for its other cells. Raises ConfigError."""
    values = _values(cell, base)
    idle = idle_options(validated(values))
    return validated({name: value for name, value in values.items() if name not in idle})


def check_cells(cells: Sequence[Cell], base: Config) -> None:
    """Raises ConfigError for a cell that can't be run, and for an option that means nothing in any of them."""
    for cell in cells:
        config = config_of(cell, base)
        check_method(config)
        make_wire(config)
        make_outer(config)
    idle = [idle_options(validated(_values(cell, base))) for cell in cells]
    for name, sentence in idle[0].items():
        if all(name in others for others in idle):
            raise ConfigError(sentence)


def _values(cell: Cell, base: Config) -> dict[str, Any]:
    update = {
        "scenario": cell.scenario,
        "algorithm": cell.algorithm,
        "closing": cell.closing,
        "seed": base.seed + cell.seed,
    }
    return {**base.model_dump(exclude_unset=True), **update, "report": None}


def command_line(config: Config) -> list[str]:
    """The options that make this config out of the defaults."""
    words: list[str] = []
    own = usual(config.model_dump(include={"algorithm", "backup_workers"}))
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if name in _DECIDED or value == own.get(name, field.default):
            continue
        spelled = _SINGULAR.get(name, flag(name))
        if isinstance(value, bool):
            words.append(spelled if value else f"--no-{spelled.removeprefix('--')}")
            continue
        for entry in value if isinstance(value, tuple) else (value,):
            words += [spelled, str(entry)]
    return words


def play_really(config: Config, heard: Callable[[Mapping[str, Any]], None] = lambda said: None) -> dict[str, Any]:
    """Run `grapevine up` and return its report, also of a run that failed after training began (`error` in it). Raises Fatal with its
    sentence if there is none. heard: told of each line of its log."""
    with tempfile.TemporaryDirectory(prefix="grapevine-compare-") as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable,
            "-m",
            "peer",
            "up",
            *command_line(config),
            "--log-format",
            "json",
            "--report",
            str(report),
        ]
        code, last = _listen(command, heard)
        if code == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        if not report.exists():
            raise Fatal(ExitCode(code) if code in set(ExitCode) else ExitCode.BUG, last)
        content: dict[str, Any] = json.loads(report.read_text())
        return content


def _listen(command: Sequence[str], heard: Callable[[Mapping[str, Any]], None]) -> tuple[int, str]:
    """(exit code, the last sentence that was said of a failure) of a command that logs in JSON."""
    last = "it ended before training began"
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_clean_environment()
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                said = _read(line)
                if said is None:
                    last = line.strip() or last
                    continue
                heard(said)
                if said["event"] == "failed":
                    last = said["message"]
        except BaseException:
            process.kill()  # its peers see that it is gone
            raise
    return process.returncode, last


def _read(line: str) -> dict[str, Any] | None:
    """A line of the log; None if it is not ours, but of the interpreter, of the task, or of a library in C."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and "event" in said else None


def play_virtually(config: Config) -> dict[str, Any]:
    """Simulate it. Raises Fatal."""
    from peer.sim.play import simulate

    return simulate(config)


def play(
    cells: Sequence[Cell],
    base: Config,
    folder: Path,
    *,
    simulated: bool,
    done: Callable[[Result], None],
    heard: Heard = lambda cell, said: None,
) -> list[Result]:
    """All cells, those first that are finished already. Each is kept in `folder` as soon as it is there. Raises Fatal."""
    results: dict[Cell, Result] = {}
    for cell in cells:
        if (kept := load(cell, folder)) is not None:
            results[cell] = kept
            done(kept)
    missing = [cell for cell in cells if cell not in results]
    played = _virtual(missing, base) if simulated else _real(missing, base, heard)
    # closed now, also if a signal comes between two results: its traceback would keep the processes alive
    with closing(played):
        for cell, report in played:
            expected = theory(config_of(cell, base), report, _default_chunk(simulated))
            result = results[cell] = Result(cell, report, expected)
            save(result, folder)
            done(result)
    return [results[cell] for cell in cells]


def _default_chunk(simulated: bool) -> float:
    from peer.sim.simulator import CHUNK_SECONDS

    return CHUNK_SECONDS if simulated else 0.0


def _real(cells: Sequence[Cell], base: Config, heard: Heard) -> Played:
    """One after the other: they would slow each other down."""
    for cell in cells:
        yield cell, play_really(config_of(cell, base), partial(heard, cell))


def _virtual(cells: Sequence[Cell], base: Config) -> Played:
    """As many at once as there are processors: virtual time does not mind."""
    if not cells:
        return
    pool = ProcessPoolExecutor(min(os.cpu_count() or 1, len(cells)), context(base), initializer=_ignore_interrupts)
    try:
        playing = {pool.submit(play_virtually, config_of(cell, base)): cell for cell in cells}
        for over in as_completed(playing):
            yield playing[over], over.result()
    except BrokenProcessPool:
        raise Fatal(ExitCode.BUG, "a simulating process was killed; for want of memory?") from None
    finally:
        for process in list(pool._processes.values()):  # a simulation that nobody waits for may take minutes yet
            process.terminate()
        if pool._result_queue is not None:  # or half a report, cut with its process, would be waited for for ever
            pool._result_queue._writer.close()  # type: ignore[attr-defined]
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """ctrl-C reaches the whole process group; the parent decides, and ends the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _fingerprint(scenario: str, base: Config) -> str:
    """Of all files that the devices and the network of a scenario come from."""
    config = validated({**base.model_dump(), "scenario": scenario})
    loaded = make_scenario(config)
    traces = {slow.trace.file for slow in make_stragglers(config, loaded).peers if slow.trace is not None}
    digest = hashlib.sha256()
    for file in [*files_of(scenario, loaded), *map(Path, sorted(traces))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def open_folder(
    folder: Path, base: Config, *, simulated: bool, resume: bool, scenarios: Collection[str] = ("none",)
) -> None:
    """Make the folder of a comparison, or go on with one that was made with the same settings and the same files. Raises ConfigError."""
    settings = {**base.model_dump(mode="json", exclude=_TOLD), "simulated": simulated}
    files = {name: _fingerprint(name, base) for name in scenarios}
    path = folder / "settings.json"
    if any((folder / "cells").glob("*.json")):
        if not resume:
            raise ConfigError(
                f"--out: {folder} holds finished cells already; add --resume to go on, or choose another folder"
            )
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError):
            raise ConfigError(
                f"--resume: {path} can't be read, so it is not known what {folder} was made with"
            ) from None
        for name, value in settings.items():
            if before.get(name) != value:
                told = f"{folder} was made with {flag(name)} {before.get(name)}, not {value}"
                raise ConfigError(f"--resume: {told}; give the same options or choose another --out")
        for name, fingerprint in files.items():
            if before.get("files", {}).get(name, fingerprint) != fingerprint:
                raise ConfigError(
                    f"--resume: scenario {name} has changed since {folder} was made; choose another --out"
                )
        files = {**before.get("files", {}), **files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**settings, "files": files}, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"--out: can't write to {folder}: {error.strerror}") from None


def _clean_environment() -> dict[str, str]:
    """Options come by the command line alone."""
    ours = {*ENV_ALIASES.values()}
    return {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX) and name not in ours}
