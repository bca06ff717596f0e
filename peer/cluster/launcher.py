"""Starts the peers of a local cluster, introduces them to each other, and stops them.

Each peer binds its own port and reports it; only then are the addresses handed out, so ports never clash.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from typing import Any

from peer.assembly import head_of, make_schedule
from peer.cluster.forkserver import context
from peer.cluster.line import Line
from peer.config import Config
from peer.daemon.peer import GOODBYE_SECONDS, TRAINER_SECONDS
from peer.exit_codes import ExitCode, Fatal
from peer.gossip.algorithm import way_out
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.delivery import Delivery
from peer.logs import event
from peer.transport.linked import READ_SECONDS
from topology import Solutions, solutions

log = logging.getLogger("grapevine.cluster")

#: How long a peer that was told to stop is waited for. What it may take: its trainer's last chunk, a goodbye under way, a neighbour that
#: still reads, and about 3 s for links, servers and the end of the process; twice that, because all peers stop at once and share the cores.
PATIENCE = 2 * (TRAINER_SECONDS + GOODBYE_SECONDS + READ_SECONDS + 3.0)
#: How long peers that answer no more may take to say why: they close their links first.
EXPLAINED_WITHIN = 5.0
#: How long the system may take to end a process that was killed.
KILLED_WITHIN = 5.0


@dataclass(slots=True)
class Child:
    """The launcher's view of one peer. ended: its process has ended, and all it said has been read. overdue: it did not end when told to,
    and was killed."""

    peer: int
    process: ForkServerProcess
    line: Line
    address: str = ""
    metrics_port: int = -1
    ready_at: float | None = None
    summary: Mapping[str, Any] | None = None
    fatal: Fatal | None = None
    ended: bool = False
    overdue: bool = False

    @property
    def died(self) -> bool:
        """Ended without a word: killed, or a bug."""
        return self.ended and self.summary is None


class Interrupted(Exception):
    """A signal came before training began."""


@dataclass(slots=True)
class Launcher:
    """A local cluster. `changed` is set whenever a child says something or ends."""

    config: Config
    children: list[Child] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False

    def start(self) -> None:
        """Spawn all peers. Returns at once; see `introduce`."""
        processes = context(self.config)
        solved = solutions(make_schedule(self.config))  # once for all peers, and not in each of them
        for peer in range(self.config.peers):
            ours, theirs = socket.socketpair()
            config = self._config_of(peer)
            process = processes.Process(
                target=_enter, args=(config.model_dump_json(), peer, theirs, solved), name=f"grapevine-peer-{peer}"
            )
            process.start()
            theirs.close()
            self.adopt(Child(peer, process, Line(ours)))

    def adopt(self, child: Child) -> None:
        """Listen to a started process from now on."""
        self.children.append(child)
        asyncio.get_running_loop().add_reader(child.line.fileno(), self._read, child)

    async def introduce(self) -> None:
        """Wait until every peer listens, and tell all of them the addresses. Raises Fatal or Interrupted."""
        await self._until(lambda: all(child.address for child in self.children), "listens")
        addresses = [child.address for child in self.children]
        for child in self.children:
            self._say(child, "addresses", addresses)

    async def all_ready(self) -> float:
        """Wait until every peer trains; returns the (monotonic) time at which the last one was ready. Raises Fatal or Interrupted."""
        await self._until(lambda: all(child.ready_at is not None for child in self.children), "is ready")
        return max(child.ready_at or 0.0 for child in self.children)

    def running(self) -> list[int]:
        """Peers whose process has not ended."""
        return [child.peer for child in self.children if not child.ended]

    def lost(self) -> dict[int, str]:
        """Peers that have died, and how."""
        return {child.peer: _how(child) for child in self.children if child.died}

    def check(self) -> None:
        """Raises Fatal if a peer has ended with one, or has died and can't be done without."""
        needed = ALGORITHMS[self.config.algorithm].delivery is Delivery.EVERY_MESSAGE
        fatal = [
            f for child in self.children if (f := child.fatal) is not None and (needed or f.code is not ExitCode.LOST)
        ]
        if fatal:
            raise min(fatal, key=lambda f: f.code is ExitCode.ABSENT)
        training = all(child.ready_at is not None for child in self.children)
        head = head_of(self.config)
        for child in self.children:
            if child.died and (
                needed or child.peer == head or not training or sum(not other.died for other in self.children) < 2
            ):
                told = f"peer {child.peer} died ({_how(child)})"
                if child.peer == head and training:
                    told += f"; {way_out(self.config.algorithm, 'its head')}"
                raise Fatal(ExitCode.LOST, told)

    async def stop(self, reason: str, patience: float = PATIENCE) -> None:
        """Ask all peers to end, wait for them, kill those that do not. May be called again."""
        for child in self.children:
            self._say(child, "stop", reason)
        if not await self._comes(self._all_ended, patience):
            self.kill()
            await self._comes(self._all_ended, KILLED_WITHIN)
        for child in self.children:
            self._let_go(child)

    async def explained(self) -> None:
        """When no peer answers any more: wait a moment for the reason. Raises Fatal if it comes."""
        await self._comes(lambda: any(child.fatal for child in self.children) or self._all_ended(), EXPLAINED_WITHIN)
        self.check()

    def _all_ended(self) -> bool:
        return all(child.ended for child in self.children)

    async def _comes(self, condition: Callable[[], bool], patience: float) -> bool:
        """Whether it becomes true within so many seconds."""
        try:
            async with asyncio.timeout(patience):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to all peers that still run."""
        for child in self.children:
            if child.process.pid is not None and child.process.is_alive():
                child.overdue = True
                os.kill(child.process.pid, signal.SIGKILL)

    def _let_go(self, child: Child) -> None:
        """Nothing is read of a child any more. On the loop, and readers before the line: a closed number may be another file's next."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.process.sentinel)
        if not child.line.closed:
            loop.remove_reader(child.line.fileno())
            child.line.close()

    def _config_of(self, peer: int) -> Config:
        ports = {
            name: port + peer if (port := getattr(self.config, name)) > 0 else port
            for name in ("metrics_port", "data_port")
        }
        update = {
            "peer": peer,
            **ports,
            "target_loss": None,
            "report": None,
            "listen": self.config.listen.rpartition(":")[0] + ":0",
        }
        return self.config.model_copy(update=update)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(self.config.start_timeout + 10.0):
                while True:
                    self.changed.clear()
                    if self.stopping:
                        raise Interrupted
                    self.check()
                    if condition():
                        return
                    await self.changed.wait()
        except TimeoutError:
            raise Fatal(ExitCode.ABSENT, f"not every peer {what} after {self.config.start_timeout + 10:g} s") from None

    def _say(self, child: Child, kind: str, content: object) -> None:
        if child.ended:
            return
        try:
            child.line.say(kind, content)
        except OSError:
            return  # it is ending; what it said last is still read

    def _read(self, child: Child) -> None:
        try:
            messages = child.line.heard()
        except (EOFError, OSError):
            self._hung_up(child)
            return
        for message in messages:
            self._hear(child, message["kind"], message["content"])
        self.changed.set()

    def _hear(self, child: Child, kind: str, content: Any) -> None:
        match kind:
            case "bound":
                child.address, child.metrics_port = content["address"], content["metrics_port"]
            case "ready":
                child.ready_at = float(content)
            case "summary":
                child.summary = content
            case "fatal":
                child.fatal = Fatal(ExitCode(content["code"]), content["sentence"])

    def _hung_up(self, child: Child) -> None:
        """It has said all it will; its process ends a moment later, and only then is it known how."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.line.fileno())
        loop.add_reader(child.process.sentinel, self._end, child)

    def _end(self, child: Child) -> None:
        asyncio.get_running_loop().remove_reader(child.process.sentinel)
        child.process.join(0)
        child.ended = True
        if child.died and (child.fatal is None or child.fatal.code is ExitCode.LOST):
            how = _how(child)
            log.warning("peer %d died (%s)", child.peer, how, extra=event("peer-died", about=child.peer, reason=how))
        self.changed.set()


def _how(child: Child) -> str:
    if child.fatal is not None:
        return child.fatal.sentence
    if child.overdue:
        return "did not end when it was told to, and was killed"
    code = child.process.exitcode
    return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _enter(config_json: str, peer: int, end: socket.socket, solved: Solutions) -> None:
    from peer.cluster.child import child_main

    child_main(config_json, peer, end, solved)
