"""`grapevine up`: a local cluster from start to report."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from os import _exit
from typing import Any

import torch
from rich.console import Console

from peer.cluster.launcher import Launcher
from peer.cluster.live import View, make_view
from peer.cluster.observer import Observer, pause_after
from peer.cluster.report import Run, make_report
from peer.config import Config, ConfigError
from peer.daemon.assembly import BAD_INPUT, make_schedule
from peer.exit_codes import ExitCode, Fatal
from peer.training.data import partition_dataset
from peer.training.evaluate import Evaluator
from peer.training.flat import FlatModel
from peer.training.optimizer import MasterOptimizer
from peer.training.stragglers import parse as parse_stragglers
from peer.training.task import Task, build_model, load_task
from peer.transport.client import PeerClient, PeerUnreachable
from peer.wire.gossip_pb2 import State

STATUS_EVERY = 0.5


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known to be good before a process is started."""

    task: Task
    num_elements: int


def check(config: Config) -> Checked:
    """Find everything that can be wrong before any process is started. Raises Fatal."""
    try:
        if config.report is not None and not config.report.absolute().parent.is_dir():
            raise ConfigError(f"--report: there is no folder {config.report.absolute().parent}")
        make_schedule(config)
        parse_stragglers(config.straggler, config.peers, config.seed)
        task = load_task(config.task)
        partition_dataset(task, task.train_data(), config.peers, config.partition, config.alpha, config.seed)
        model = FlatModel(build_model(task, config.seed))
        MasterOptimizer(task, model.layout, model.vector, config.optimizer, config.lr)
        return Checked(task, model.vector.numel())
    except BAD_INPUT as error:
        raise Fatal(ExitCode.CONFIG, str(error)) from None


async def up(config: Config, console: Console, view: View | None = None) -> dict[str, Any]:
    """Run a cluster until its target, a limit, or a signal. Returns the report. Raises Fatal."""
    torch.set_num_threads(1)
    checked = check(config)
    evaluator = Evaluator(checked.task, config.seed)
    evaluator.loss(torch.zeros(checked.num_elements))  # torch's first call is slow; it is paid before the clock starts
    started_at = time.monotonic()
    launcher = Launcher(config)
    view = view or make_view(console, config)
    async with _running(launcher) as stop:
        with view:
            view.say(f"starting {config.peers} peers ...")
            await launcher.introduce()
            ready_at = await launcher.all_ready()
            clients = [PeerClient(child.address) for child in launcher.children]
            models = torch.zeros(config.peers, checked.num_elements)
            observer = Observer(clients, evaluator, models, ready_at)
            try:
                seconds_to_target = await _watch(config, launcher, observer, view, stop)
            finally:
                await asyncio.gather(*(client.close() for client in clients))
            reason = _reason(config, launcher, stop, seconds_to_target)
            wall_seconds = time.monotonic() - ready_at
            view.say("stopping ...")
            await launcher.stop(reason)
    launcher.check()
    summaries = [child.summary for child in launcher.children if child.summary is not None]
    models = observer.models[[summary["peer"] for summary in summaries]]
    run = Run(
        config,
        seconds_to_target,
        wall_seconds,
        ready_at - started_at,
        reason,
        observer.curve,
        summaries,
        models,
    )
    return await asyncio.to_thread(make_report, run, evaluator)


@asynccontextmanager
async def _running(launcher: Launcher) -> AsyncIterator[asyncio.Event]:
    """The children live as long as this context. Yields the event that the first SIGINT or SIGTERM sets; a second SIGINT ends
    everything at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        if stop.is_set():
            launcher.kill()
            _exit(ExitCode.INTERRUPTED)
        stop.set()
        launcher.stopping = True
        launcher.changed.set()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    loop.add_signal_handler(signal.SIGTERM, interrupted)
    try:
        launcher.start()
        yield stop
    finally:
        await launcher.stop("the cluster stops")
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)


async def _watch(
    config: Config, launcher: Launcher, observer: Observer, view: View, stop: asyncio.Event
) -> float | None:
    """Observe until the target, the peers' own limits, or a signal. Returns seconds to target, None if it was not reached."""
    statuses = asyncio.create_task(_keep_statuses(observer), name="statuses")
    try:
        while not stop.is_set():
            launcher.check()
            finished = _all_finished(observer, launcher)
            began, busy = time.monotonic(), time.process_time()
            try:
                seen = await observer.observe()
            except PeerUnreachable as error:
                if stop.is_set():
                    return None
                launcher.check()
                raise Fatal(ExitCode.LOST, str(error)) from None
            view.show(observer.curve, observer.statuses)
            if config.target_loss is not None and seen.loss <= config.target_loss:
                return seen.seconds
            if finished:
                return None
            await _pause(pause_after(time.monotonic() - began, time.process_time() - busy, config.eval_every), stop)
        return None
    finally:
        statuses.cancel()
        await asyncio.gather(statuses, return_exceptions=True)


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


def _reason(config: Config, launcher: Launcher, stop: asyncio.Event, seconds_to_target: float | None) -> str:
    if seconds_to_target is not None:
        return f"target loss {config.target_loss:g} reached"
    return "interrupted" if stop.is_set() else "the limit of rounds or seconds was reached"
