"""The commands, and how errors become one sentence and an exit code."""

from __future__ import annotations

import asyncio
import atexit
import gc
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from peer import __version__
from peer.cli.options import DAEMON_OPTIONS, all_but, with_options
from peer.config import Config, ConfigError
from peer.exit_codes import ExitCode, Fatal
from topology import TopologyError

app = typer.Typer(
    name="grapevine",
    help="Peer-to-peer gossip training for PyTorch that never waits for a straggler.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)


def main() -> None:
    """Run the command line; every known error is one sentence on stderr and a documented exit code."""
    atexit.register(gc.freeze)  # torch's modules live to the end: walking through them once more takes most of a second
    try:
        app()
    except Fatal as fatal:
        _fail(fatal.code, fatal.sentence)
    except (ConfigError, TopologyError) as error:
        _fail(ExitCode.CONFIG, str(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)


def _fail(code: ExitCode, sentence: str) -> None:
    print(f"grapevine: {sentence}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"grapevine {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    return None


@app.command()
@with_options(all_but("peer", "listen", "addresses"))
def up(config: Config) -> None:
    """Run a local cluster of N daemons, with a live view, until the target loss or a limit."""
    from peer.cluster.forkserver import start_early

    start_early()
    from peer.accounts.report import write_report
    from peer.cluster import up as cluster
    from peer.cluster.launcher import Interrupted
    from peer.cluster.live import describe, summary
    from peer.daemon.process import log_to_stderr, run_loop

    log_to_stderr(config)
    console.print(describe(config), style="dim")
    try:
        outcome = run_loop(cluster.up(config, console))
    except Interrupted:
        console.print("interrupted before training began")
        return
    console.print(summary(outcome.report, config.target_loss))
    if config.report is not None:
        write_report(outcome.report, config.report)
        console.print(f"report: {config.report}", style="dim")
    if outcome.fatal is not None:
        raise outcome.fatal


@app.command()
@with_options(all_but(*DAEMON_OPTIONS))
def simulate(
    config: Config,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compute chunk by chunk, bit for bit as the daemon; slower")
    ] = False,
    parameters: Annotated[
        int, typer.Option("--parameters", min=1, help="--task timing: floats in a model, for the network")
    ] = 50_826,
) -> None:
    """Play the run of `up` in virtual time: hundreds of peers, or with --task timing thousands, in one process."""
    from peer.cli.simulate import run_simulation

    run_simulation(config, console, exact=exact, num_parameters=parameters)


@app.command()
@with_options(all_but(*DAEMON_OPTIONS, "algorithm", "closing", "scenario", "report"))
def compare(
    config: Config,
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", help="Name or TOML file; may be repeated", show_default="none")
    ] = None,
    algorithms: Annotated[str, typer.Option("--algorithms", help="Comma-separated")] = "ring-all-reduce,dpsgd,matcha",
    closings: Annotated[str, typer.Option("--closings", help="Comma-separated")] = "barrier,first",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each cell, from --seed on")] = 3,
    simulated: Annotated[bool, typer.Option("--simulate", help="In virtual time instead of real processes")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the finished cells in --out")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for the report")] = Path("comparison"),
) -> None:
    """Play a matrix of scenarios, algorithms and closings, and write a report with plots."""
    if simulated:
        from peer.cluster.forkserver import start_early

        start_early()
    from peer.cli.compare import run_comparison

    run_comparison(
        config,
        console,
        scenarios=list(dict.fromkeys(scenario or ["none"])),
        algorithms=_names(algorithms),
        closings=_names(closings),
        seeds=seeds,
        simulated=simulated,
        resume=resume,
        out=out,
    )


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


@app.command()
@with_options(all_but())
def peer(config: Config) -> None:
    """Run one standalone daemon; the others are named by --address or in the config file."""
    from peer.cli.standalone import run_standalone

    run_standalone(config, console)


@app.command()
@with_options(["peers", "topology", "base_k", "degree", "probability", "radius", "budget", "seed"])
def plan(
    config: Config,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds to draw")] = 24,
) -> None:
    """Print the topology and MATCHA's schedule on it, or its own where it changes from round to round."""
    from peer.cli.plan import show_plan

    show_plan(config, console, as_json=as_json, rounds=rounds)


@app.command()
def status(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the peer listens")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the answer")] = 5.0,
) -> None:
    """Ask a running peer how it is."""
    from peer.cli.status import show_status

    asyncio.run(show_status(address, console, as_json=as_json, timeout=timeout))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write")] = Path("grapevine.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file")] = False,
) -> None:
    """Write a commented config with every option at its default."""
    from peer.cli.template import write_template

    write_template(path, force=force)
    console.print(f"wrote {path}; run it with: grapevine up --config {path}")
