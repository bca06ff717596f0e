"""A peer as a process: event loop, signals, metrics and page, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
import uvloop

from peer.accounts.summary import PeerSummary
from peer.assembly import BAD_INPUT
from peer.config import Config
from peer.daemon.assembly import warm_up
from peer.daemon.peer import AddressBook, Bound, Peer
from peer.daemon.tracing import open_tracing
from peer.exit_codes import ExitCode, Fatal
from peer.gossip.delivery import PRESETS
from peer.scenario import Scenario
from peer.training.remote import give_way
from peer.transport.emulated import SlowNetwork
from peer.transport.grpc import GrpcOptions, GrpcTransport
from peer.transport.handshake import DataPlane

if TYPE_CHECKING:
    from peer.web.server import WebServer

T = TypeVar("T")

OPEN_FILES: Final = 65_536
"""File descriptors that a process of ours asks for. A link takes up to five; the usual 1024 end at some 190 neighbours on one machine."""


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run on a fresh uvloop: one event loop per process (grpc.aio misbehaves with several)."""
    allow_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def allow_files() -> None:
    """As many file descriptors as are allowed without asking anybody, up to OPEN_FILES; where none more are, it stays as it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(
    config: Config,
    peer: int,
    address_book: AddressBook,
    *,
    linger: bool = False,
    started: Callable[[Peer], None] = lambda peer: None,
) -> PeerSummary:
    """Build and run one peer over gRPC. Raises Fatal, whatever is wrong."""
    torch.set_num_threads(1)
    try:
        host = Peer(config, peer)
    except BAD_INPUT as error:
        raise Fatal(ExitCode.CONFIG, str(error)) from None
    try:
        return await _serve(host, config, peer, address_book, linger, started)
    finally:
        await host.close()


async def _serve(
    host: Peer,
    config: Config,
    peer: int,
    address_book: AddressBook,
    linger: bool,
    started: Callable[[Peer], None],
) -> PeerSummary:
    """The peer that was made, to its end."""
    try:
        warm_up(config, host.parts)
    except BAD_INPUT as error:
        raise Fatal(ExitCode.CONFIG, str(error)) from None
    if host.parts.trainer_kind == "process":
        give_way()
    transport = GrpcTransport(
        host.parts.identity,
        config.listen,
        service=host,
        options=GrpcOptions(
            reflection=config.reflection,
            commit_grace_seconds=PRESETS[config.preset].least / 2,
            data_plane=DataPlane(config.data_plane),
            data_port=config.data_port,
        ),
        network=_slow_network(config, host.parts.scenario, config.seed + peer),
    )
    _crash_as_told(host)
    web = None
    try:
        host.spans = open_tracing(config, peer)
        web = await _serve_web(config, peer, host)
        started(host)
        return await host.run(transport, address_book, linger=linger)
    finally:
        if host.spans is not None:
            await host.spans.close()
        if web is not None:
            await web.stop()


def _slow_network(config: Config, scenario: Scenario, seed: int) -> SlowNetwork | None:
    network = scenario.network
    if network is None:
        return None
    if config.data_plane == "direct":
        raise Fatal(
            ExitCode.CONFIG,
            f"--data-plane: the network of --scenario {config.scenario} is emulated in gRPC's streams; use grpc or auto, not direct",
        )
    return SlowNetwork(network.latency, network.jitter, network.bandwidth, seed)


def _crash_as_told(host: Peer) -> None:
    """Die without a goodbye so many seconds after training began, if the scenario says so."""
    loop = asyncio.get_running_loop()
    for crash in host.parts.scenario.crash:
        if crash.peer == host.peer:
            host.at_start.append(partial(loop.call_later, crash.at, os.kill, os.getpid(), signal.SIGKILL))


def stop_on_signals(host: Peer) -> None:
    """SIGTERM and the first SIGINT drain; only a second SIGINT ends the process at once, whatever else asked it to stop before."""
    loop = asyncio.get_running_loop()
    interrupts = itertools.count(1)

    def interrupted() -> None:
        if next(interrupts) > 1:
            os._exit(ExitCode.INTERRUPTED)
        host.request_stop("SIGINT")

    loop.add_signal_handler(signal.SIGINT, interrupted)
    loop.add_signal_handler(signal.SIGTERM, host.request_stop, "SIGTERM")


def fixed_addresses(config: Config) -> AddressBook:
    """The address book of a standalone peer: its config."""

    async def book(bound: Bound) -> tuple[str, ...]:
        return config.addresses

    return book


async def _serve_web(config: Config, peer: int, host: Peer) -> WebServer | None:
    """`/metrics` and the page. Raises Fatal if the port is taken."""
    if config.metrics_port < 0:
        return None
    from peer.web.server import WebServer  # a third of a second of imports, which the launcher has no use for

    address = config.listen.rpartition(":")[0] or "127.0.0.1"
    names = (known.rpartition(":")[0] for known in (config.listen, *config.addresses))
    web = WebServer(host.watch, host.metrics, names)
    try:
        port = await web.start(address, config.metrics_port)
    except OSError as error:
        raise Fatal(
            ExitCode.PORT,
            f"peer {peer} can't serve metrics on {address}:{config.metrics_port}: {error.strerror}; try another --metrics-port",
        ) from None
    host.bound = Bound(peer, "", port)
    return web
