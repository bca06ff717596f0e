"""One peer of a local cluster: the process on the other end of the launcher's line.

Child to launcher: bound, ready, summary, fatal. Launcher to child: addresses, stop. When the line breaks, the launcher is gone and the
peer stops, so there are no orphans, however the launcher ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from peer.cluster.line import Line
from peer.config import Config
from peer.daemon.peer import Bound, Peer
from peer.daemon.process import run_loop, serve
from peer.exit_codes import ExitCode, Fatal
from peer.logs import begin_logs, event
from topology import Solutions, learn

log = logging.getLogger("grapevine.cluster")


class Leash:
    """The child's end of the line, on its event loop."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._host: Peer | None = None
        self._stop_reason = ""
        self._addresses: asyncio.Future[Sequence[str]] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(line.fileno(), self._read)

    def attach(self, host: Peer) -> None:
        """The peer that is stopped when the launcher says so or is gone."""
        self._host = host
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, "SIGTERM")
        if self._stop_reason:
            host.request_stop(self._stop_reason)

    async def address_book(self, bound: Bound) -> Sequence[str]:
        self.say("bound", asdict(bound))
        return await self._addresses

    def say(self, kind: str, content: object) -> None:
        try:
            self._line.say(kind, content)
        except OSError:
            self._stop("the launcher is gone")

    def _read(self) -> None:
        try:
            messages = self._line.heard()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._line.fileno())
            self._stop("the launcher is gone")
            return
        for message in messages:
            if message["kind"] == "addresses" and not self._addresses.done():
                self._addresses.set_result(message["content"])
            elif message["kind"] == "stop":
                self._stop(message["content"])

    def _stop(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason
        if self._host is not None:
            self._host.request_stop(reason)
        if not self._addresses.done():
            self._addresses.set_result([])  # nobody will introduce it any more


async def _live(config: Config, peer: int, line: Line) -> ExitCode:
    leash = Leash(line)

    def started(host: Peer) -> None:
        host.on_training = lambda: leash.say("ready", time.monotonic())
        leash.attach(host)

    try:
        summary = await serve(config, peer, leash.address_book, linger=True, started=started)
    except Fatal as fatal:
        leash.say("fatal", {"code": int(fatal.code), "sentence": fatal.sentence})
        return fatal.code
    leash.say("summary", summary.as_dict())
    return ExitCode.OK


def child_main(config_json: str, peer: int, end: socket.socket, solved: Solutions) -> None:
    """Entry point of the forked process. Never returns. solved: what the launcher computed of the schedule."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the whole process group; the launcher decides
    code = ExitCode.BUG
    try:
        learn(solved)
        config = Config.model_validate_json(config_json)
        begin_logs(config)
        code = run_loop(_live(config, peer, Line(end)))
    except Exception:
        log.exception("peer %d: a bug ended this peer", peer, extra=event("failed", code=int(code), exit=code.name))
    finally:
        end.close()
        logging.shutdown()
        for said in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or whatever a task has put in its place
                said.flush()
        os._exit(code)  # no interpreter tear-down: nothing of it is of use, and torch's takes long
