"""`grapevine up`: a local cluster from start to report."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from os import _exit
from typing import Any

import torch
from rich.console import Console

from peer.accounts.report import Run, make_report
from peer.assembly import (
    BAD_INPUT,
    head_of,
    make_optimizer,
    make_outer,
    make_real_scenario,
    make_schedule,
    make_shares,
    make_stragglers,
    make_wire,
)
from peer.cluster.browser import address_here, open_in_browser, page_address
from peer.cluster.launcher import Launcher
from peer.cluster.live import View, make_view
from peer.cluster.observer import Observer, pause_after
from peer.config import Config, ConfigError
from peer.daemon.playing import ASKED
from peer.daemon.tracing import check_tracing
from peer.exit_codes import ExitCode, Fatal
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.delivery import Delivery
from peer.training.evaluate import Evaluator
from peer.training.flat import FlatModel
from peer.training.task import Task, build_model, load_task
from peer.transport.client import PeerClient, PeerUnreachable
from peer.wire.gossip_pb2 import State

STATUS_EVERY = 0.5
LAST_PORT = 65535
#: Why training ended when all peers ended by themselves.
LIMIT = "the limit of rounds or seconds was reached"


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known to be good before a process is started."""

    task: Task
    num_elements: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """report: all that was measured. fatal: what ended the run before its time, None if it ended well."""

    report: dict[str, Any]
    fatal: Fatal | None


def check(config: Config) -> Checked:
    """Find everything that can be wrong before any process is started. Raises Fatal."""
    try:
        if config.report is not None and not config.report.absolute().parent.is_dir():
            raise ConfigError(f"--report: there is no folder {config.report.absolute().parent}")
        ports = config.metrics_port, config.data_port
        if min(ports) > 0 and abs(ports[0] - ports[1]) < config.peers:
            raise ConfigError(
                f"--data-port: {config.peers} peers need as many ports from {ports[1]} on, and {ports[0]} on are for --metrics-port"
            )
        for name, port in zip(("--metrics-port", "--data-port"), ports, strict=True):
            if port > 0 and port + config.peers - 1 > LAST_PORT:
                raise ConfigError(
                    f"{name}: {config.peers} peers need as many ports from {port} on, but the last is {LAST_PORT}; "
                    "start lower, or give 0 for any free ones"
                )
        check_tracing(config)
        make_schedule(config)
        make_wire(config)
        make_outer(config)
        make_stragglers(config, make_real_scenario(config))
        task = load_task(config.task)
        make_shares(config, task, task.train_data())
        model = FlatModel(build_model(task, config.seed))
        make_optimizer(config, task, model, model.vector)
        return Checked(task, model.vector.numel())
    except BAD_INPUT as error:
        raise Fatal(ExitCode.CONFIG, str(error)) from None


async def up(
    config: Config,
    console: Console,
    view: View | None = None,
    *,
    open_page: bool = False,
    begins: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a cluster until its target, a limit, a signal, or a failure. Raises Fatal or Interrupted if it ends before training.

    open_page: open the page of peer 0 in the browser. begins: called when nothing is left to refuse.
    """
    torch.set_num_threads(1)
    checked = check(config)
    begins()
    evaluator = Evaluator(checked.task, config.seed)
    evaluator.loss(torch.zeros(checked.num_elements))  # torch's first call is slow; it is paid before the clock starts
    started_at = time.monotonic()
    launcher = Launcher(config)
    view = view or make_view(console, config)
    async with _running(launcher, view) as stop:
        with view:
            view.say(f"starting {config.peers} peers ...")
            await launcher.introduce()
            _point_to_page(config, launcher, view, open_page=open_page)
            ready_at = await launcher.all_ready()
            bound = [child.address for child in launcher.children]
            view.ready([address_here(address, address.rpartition(":")[2]) for address in bound])
            clients = [PeerClient(child.address) for child in launcher.children]
            models = torch.zeros(config.peers, checked.num_elements)
            observer = Observer(clients, evaluator, models, ready_at, head_of(config))
            end = await _train(config, launcher, observer, view, stop)
            wall_seconds = time.monotonic() - ready_at
            view.say("stopping ...")
            await launcher.stop(end.reason)
    fatal = end.fatal or _last_word(launcher)
    run = Run(
        config=config,
        error=fatal.sentence if fatal is not None else None,
        seconds_to_target=end.seconds_to_target,
        wall_seconds=wall_seconds,
        start_seconds=ready_at - started_at,
        stop_reason=end.reason if fatal is not None else _true_reason(end.reason, config, launcher),
        curve=observer.curve,
        summaries=[child.summary for child in launcher.children if child.summary is not None],
        models={peer: observer.models[peer] for peer in observer.answered},
        lost=launcher.lost(),
    )
    return Outcome(await asyncio.to_thread(make_report, run, evaluator), fatal)


def _point_to_page(config: Config, launcher: Launcher, view: View, *, open_page: bool) -> None:
    port = launcher.children[0].metrics_port
    if port <= 0:
        return
    url, loop = page_address(config.listen, port), asyncio.get_running_loop()
    view.note(f"page of peer 0: {url}")

    def failed() -> None:
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(view.note, "no browser could be opened; open the page yourself")

    if open_page:
        open_in_browser(url, failed)


def _true_reason(reason: str, config: Config, launcher: Launcher) -> str:
    """Where all peers ended by themselves: whether that was a limit, or that one was told to stop without which the others can't go on."""
    if reason != LIMIT:
        return reason
    head, kind = head_of(config), ALGORITHMS[config.algorithm]
    told = {
        child.peer: child.summary["stop_reason"].removeprefix(ASKED)
        for child in launcher.children
        if child.summary is not None and child.summary["stop_reason"].startswith(ASKED)
    }
    for peer, by in told.items():
        if peer == head or kind.delivery is Delivery.EVERY_MESSAGE:
            needs = "its head" if peer == head else "every peer"
            return f"peer {peer} was told to stop ({by}), and {config.algorithm} needs {needs}"
    if len(told) == len(launcher.children):
        return f"all peers were told to stop ({next(iter(told.values()))})"
    return reason


def _last_word(launcher: Launcher) -> Fatal | None:
    """What the peers said, or did not say, when they were told to end."""
    try:
        launcher.check()
    except Fatal as fatal:
        return fatal
    if all(child.summary is None for child in launcher.children):
        return Fatal(ExitCode.LOST, "no peer told how it ended")
    return None


@asynccontextmanager
async def _running(launcher: Launcher, view: View) -> AsyncIterator[asyncio.Event]:
    """The children live as long as this context. Yields the event that the first SIGINT or SIGTERM sets; a second SIGINT ends
    everything at once, a second SIGTERM changes nothing: who sends it does not know whether somebody else has."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    interrupts = itertools.count(1)

    def asked(sign: signal.Signals) -> None:
        if sign is signal.SIGINT and next(interrupts) > 1:
            launcher.kill()
            _exit(ExitCode.INTERRUPTED)
        view.say(f"asked to stop by {sign.name}; a second ctrl-C ends everything at once")
        stop.set()
        launcher.stopping = True
        launcher.changed.set()

    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, asked, sign)
    try:
        launcher.start()
        yield stop
    finally:
        await launcher.stop("the cluster stops")
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class End:
    """Why training ended."""

    reason: str
    seconds_to_target: float | None = None
    fatal: Fatal | None = None


async def _train(config: Config, launcher: Launcher, observer: Observer, view: View, stop: asyncio.Event) -> End:
    """Watch until training ends, well or not: what was measured until then is worth a report either way."""
    try:
        seconds = await _watch(config, launcher, observer, view, stop)
    except Fatal as fatal:
        return End(fatal.sentence, fatal=fatal)
    finally:
        await asyncio.gather(*(client.close() for client in observer.clients))
    if seconds is not None:
        return End(f"target loss {config.target_loss:g} reached", seconds_to_target=seconds)
    return End("interrupted" if stop.is_set() else LIMIT)


async def _watch(
    config: Config, launcher: Launcher, observer: Observer, view: View, stop: asyncio.Event
) -> float | None:
    """Observe until the target, the peers' own limits, or a signal, beside the statuses. Returns seconds to target, None if it was
    not reached."""
    try:
        async with asyncio.TaskGroup() as group:  # an error of one ends the other, and is told
            statuses = group.create_task(_keep_statuses(observer), name="statuses")
            seconds = await _observe(config, launcher, observer, view, stop)
            statuses.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return seconds


async def _observe(
    config: Config, launcher: Launcher, observer: Observer, view: View, stop: asyncio.Event
) -> float | None:
    while not stop.is_set():
        launcher.check()
        finished = _all_finished(observer, launcher)
        began, busy = time.monotonic(), time.process_time()
        try:
            seen = await observer.observe()
        except PeerUnreachable as error:
            if stop.is_set():
                return None
            await launcher.explained()
            raise Fatal(ExitCode.LOST, str(error)) from None
        view.show(observer.curve, observer.statuses)
        if config.target_loss is not None and seen.loss <= config.target_loss:
            return seen.seconds
        if finished:
            return None
        await _pause(pause_after(time.monotonic() - began, time.process_time() - busy, config.eval_every), stop)
    return None


async def _keep_statuses(observer: Observer) -> None:
    while True:
        await observer.refresh_statuses()
        await asyncio.sleep(STATUS_EVERY)


async def _pause(seconds: float, stop: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def _all_finished(observer: Observer, launcher: Launcher) -> bool:
    """All peers that still run say so, or have been silent for long while others are finished."""
    if not observer.statuses:
        return False
    running = [i for i in launcher.running() if not observer.silent_for_long(i)]
    return all((status := observer.statuses[i]) is not None and status.state == State.STATE_FINISHED for i in running)
