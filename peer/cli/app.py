"""The commands, and how errors become one sentence and an exit code."""

from __future__ import annotations

import asyncio
import atexit
import gc
import logging
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from peer import __version__
from peer.cli.options import DAEMON_OPTIONS, all_but, check_address, with_options
from peer.config import Config, ConfigError
from peer.exit_codes import ExitCode, Fatal
from peer.logs import as_json, begin_logs, event
from topology import TopologyError

if TYPE_CHECKING:
    from peer.cluster.up import Outcome

app = typer.Typer(
    name="grapevine",
    help="Peer-to-peer gossip training for PyTorch that never waits for a straggler.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)
log = logging.getLogger("grapevine.run")


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
    except Exception:
        if not as_json():
            raise
        log.critical("a bug", exc_info=True, extra=event("failed", code=int(ExitCode.BUG), exit=ExitCode.BUG.name))
        sys.exit(ExitCode.BUG)


def _fail(code: ExitCode, sentence: str) -> None:
    if as_json():
        log.error("%s", sentence, extra=event("failed", code=int(code), exit=code.name))
    else:
        print(f"grapevine: {sentence}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"grapevine {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    return None


@app.command()
@with_options(all_but("peer", "listen", "addresses"))
def up(
    config: Config,
    open_page: Annotated[
        bool, typer.Option("--open", metavar="", help="Open the page of peer 0 in the browser")
    ] = False,
) -> None:
    """Run a local cluster of N daemons, with a live view, until the target loss or a limit."""
    if open_page and config.metrics_port < 0:
        raise ConfigError("--open: with --metrics-port -1 there is no page; leave that out, or give a port")
    from peer.cluster.aside import in_the_way, lines_above

    begin_logs(config)
    with lines_above(console) if config.log_format == "text" and in_the_way(console) else nullcontext():
        outcome = _run_cluster(config, open_page=open_page)
    if outcome is None:
        return
    from peer.accounts.report import write_report
    from peer.cli.voice import Voice
    from peer.cluster.live import summary

    voice = Voice(console)
    voice.summary(summary(outcome.report, config.target_loss), outcome.report)
    if config.report is not None:
        write_report(outcome.report, config.report)
        voice.say(f"report: {config.report}", "report", style="dim", path=str(config.report))
    if outcome.fatal is not None:
        raise outcome.fatal


def _run_cluster(config: Config, *, open_page: bool) -> Outcome | None:
    """None if it was interrupted before training began. Raises Fatal."""
    from peer.cluster.forkserver import start_early

    start_early(config)
    from peer.cli.voice import Voice
    from peer.cluster import up as cluster
    from peer.cluster.launcher import Interrupted
    from peer.cluster.live import describe
    from peer.daemon.process import run_loop

    voice = Voice(console)

    def begins() -> None:
        voice.say(describe(config), "start", style="dim", run=config.run, peers=config.peers)

    try:
        return run_loop(cluster.up(config, console, open_page=open_page, begins=begins))
    except Interrupted:
        voice.say("interrupted before training began", "interrupted")
        return None


@app.command()
@with_options(all_but(*DAEMON_OPTIONS))
def simulate(
    config: Config,
    exact: Annotated[
        bool, typer.Option("--exact", metavar="", help="Compute chunk by chunk, bit for bit as the daemon; slower")
    ] = False,
    parameters: Annotated[
        int, typer.Option("--parameters", min=1, help="--task timing: floats in a model, for the network")
    ] = 50_826,
) -> None:
    """Play the run of `up` in virtual time: hundreds of peers, or with --task timing thousands, in one process."""
    from peer.cli.simulate import run_simulation

    run_simulation(config, console, exact=exact, num_parameters=parameters)


@app.command()
@with_options([*all_but(*DAEMON_OPTIONS, "algorithm", "closing", "scenario", "report"), "log_format"])
def compare(
    config: Config,
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", help="Name or TOML file; may be repeated", show_default="none")
    ] = None,
    algorithms: Annotated[str, typer.Option("--algorithms", help="Comma-separated")] = "ring-all-reduce,dpsgd,matcha",
    closings: Annotated[str, typer.Option("--closings", help="Comma-separated")] = "barrier,first",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each cell, from --seed on")] = 3,
    simulated: Annotated[
        bool, typer.Option("--simulate", metavar="", help="In virtual time instead of real processes")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", metavar="", help="Go on with the finished cells in --out")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for the report")] = Path("comparison"),
) -> None:
    """Play a matrix of scenarios, algorithms and closings, and write a report with plots."""
    if config.log_format == "json":
        begin_logs(config)
    if simulated:
        from peer.cluster.forkserver import start_early

        start_early(config)
    from peer.cli.compare import run_comparison
    from peer.cli.voice import Voice

    run_comparison(
        config,
        Voice(console),
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
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON")] = False,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds to draw")] = 24,
) -> None:
    """Print the topology and MATCHA's schedule on it, or its own where it changes from round to round."""
    from peer.cli.plan import show_plan

    show_plan(config, console, as_json=as_json, rounds=rounds)


@app.command()
def status(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the peer listens")],
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON")] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the answer")] = 5.0,
) -> None:
    """Ask a running peer how it is."""
    check_address(address)
    from peer.cli.status import show_status

    asyncio.run(show_status(address, console, as_json=as_json, timeout=timeout))


@app.command()
def top(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where any of the peers listens")],
    once: Annotated[bool, typer.Option("--once", metavar="", help="Print one table and end")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks")] = 1.0,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer")] = 2.0,
) -> None:
    """Show a running cluster live, a row per peer; ctrl-C ends it."""
    check_address(address)
    with suppress(KeyboardInterrupt):  # before there is an event loop
        from peer.cli.top import show_top

        asyncio.run(show_top(address, console, once=once, every=every, timeout=timeout))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write")] = Path("grapevine.toml"),
    force: Annotated[bool, typer.Option("--force", metavar="", help="Overwrite the file")] = False,
) -> None:
    """Write a commented config with every option at its default."""
    from peer.cli.template import write_template

    write_template(path, force=force)
    console.print(f"wrote {path}; run it with: grapevine up --config {path}")
