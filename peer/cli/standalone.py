"""`grapevine peer`: one daemon, its own limits, its own report."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from rich.console import Console

from peer.accounts.report import write_report
from peer.accounts.summary import PeerSummary
from peer.cli.options import check_address
from peer.cli.voice import Voice
from peer.cluster.browser import page_address
from peer.cluster.observer import loss_of
from peer.config import Config, ConfigError
from peer.daemon.peer import Bound, Peer
from peer.daemon.process import fixed_addresses, run_loop, serve, stop_on_signals
from peer.daemon.tracing import check_tracing
from peer.exit_codes import Fatal
from peer.logs import begin_logs
from peer.training.evaluate import Evaluator


def run_standalone(config: Config, console: Console) -> None:
    """Run until a limit, the target or a signal; what was counted until then is reported however it ends. Raises Fatal or ConfigError."""
    peer = config.peer
    if peer is None:
        raise ConfigError("--peer: which one is this? Give its id, 0 to peers-1, by --peer, GRAPEVINE_PEER or RANK")
    if len(config.addresses) != config.peers:
        raise ConfigError(
            f"--address: {len(config.addresses)} addresses for {config.peers} peers; name HOST:PORT of every peer, in the order of ids"
        )
    for address in config.addresses:
        check_address(address)
    if "listen" not in config.model_fields_set and peer < config.peers:
        config = config.model_copy(update={"listen": config.addresses[peer]})
    if config.report is not None and not config.report.absolute().parent.is_dir():
        raise ConfigError(f"--report: there is no folder {config.report.absolute().parent}")
    begin_logs(config)
    check_tracing(config)
    voice = Voice(console)
    summary, evaluated, fatal = run_loop(_run(config, peer, voice))
    report = {**summary.as_dict(), **evaluated, "error": None if fatal is None else fatal.sentence}
    if fatal is not None:
        report["stop_reason"] = fatal.sentence
    voice.say(
        f"peer {summary.peer}: {summary.rounds} rounds, {summary.samples} samples in {summary.seconds:.1f} s "
        f"({report['stop_reason']}); batch loss {summary.train_loss:.4f}, idle {summary.idle_fraction:.0%}",
        "summary",
        **{name: value for name, value in report.items() if name not in ("peer", "timeline")},
    )
    if config.report is not None:
        write_report(report, config.report)
        voice.say(f"report: {config.report}", "report", style="dim", path=str(config.report))
    if fatal is not None:
        raise fatal


async def _run(config: Config, peer: int, voice: Voice) -> tuple[PeerSummary, dict[str, Any], Fatal | None]:
    """The last is what ended it before its time, if training had begun. Raises Fatal if it had not."""
    watchers: list[asyncio.Task[None]] = []
    hosts: list[Peer] = []
    fatal: Fatal | None = None
    found: dict[str, Any] = {"seconds_to_target": None}

    def started(host: Peer) -> None:
        hosts.append(host)
        stop_on_signals(host)
        host.on_training = lambda: voice.say(
            f"peer {peer}: all {config.peers} peers are ready, training", "training", style="dim"
        )
        if config.target_loss is not None:
            watcher = asyncio.create_task(_watch(config, host, config.target_loss, found), name="target")
            watcher.add_done_callback(lambda done: _end_with(done, host))
            watchers.append(watcher)

    book = fixed_addresses(config)

    async def announced(bound: Bound) -> tuple[str, ...]:
        metrics = f", metrics on port {bound.metrics_port}" if bound.metrics_port > 0 else ""
        page = page_address(config.listen, bound.metrics_port) if bound.metrics_port > 0 else None
        voice.say(
            f"peer {peer} listens on {bound.address}{metrics}; waiting for the others",
            "listening",
            style="dim",
            address=bound.address,
            metrics_port=bound.metrics_port,
            page=page,
        )
        if page is not None and not voice.as_json:
            voice.console.print(f"page of peer {peer}: {page}", style="dim")
        return tuple(await book(bound))

    try:
        summary = await serve(config, peer, announced, started=started)
    except Fatal as ended:
        if not hosts or not hosts[0].seconds():
            raise
        fatal, summary = ended, hosts[0].summary()
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(
            *watchers, return_exceptions=True
        )  # their errors are told below, unless the peer has its own
    for watcher in watchers:
        if fatal is None and not watcher.cancelled():
            watcher.result()
    return summary, found, fatal


def _end_with(watcher: asyncio.Task[None], host: Peer) -> None:
    """A peer whose target nobody watches any more would train for ever."""
    if not watcher.cancelled() and watcher.exception() is not None:
        host.request_stop("its model could not be evaluated")


async def _watch(config: Config, host: Peer, target: float, found: dict[str, Any]) -> None:
    """Stop the peer when its own model's loss on the whole training set is at the target; built and evaluated in a thread, because
    the loop must keep its appointments. Raises Fatal if the task's own code fails."""
    evaluator = await asyncio.to_thread(Evaluator, host.parts.task, config.seed)
    while True:
        await asyncio.sleep(config.eval_every)
        if host.state != "training":
            continue
        began, seconds = time.monotonic(), host.seconds()
        _, model = await host.snapshot()
        loss = await asyncio.to_thread(loss_of, evaluator, model)
        if loss <= target:
            found["seconds_to_target"] = seconds
            host.request_stop(f"target loss {target:g} reached")
            return
        await asyncio.sleep(9 * (time.monotonic() - began))
