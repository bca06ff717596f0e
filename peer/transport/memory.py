"""A network within one process: the same links over bounded lanes of bytes, without sockets. For tests and small
experiments."""

from __future__ import annotations

import asyncio
import errno
import secrets
from typing import Final, Protocol

from peer.transport.base import Identity, Listener
from peer.transport.handshake import HELLO_SECONDS, Session
from peer.transport.lane import Lane, LaneClosed, MemoryLane, memory_lane
from peer.transport.linked import LinkedTransport

BULK_MESSAGES: Final = 2
"""Frames that lie in one direction of a bulk lane at most."""

CONTROL_MESSAGES: Final = 64


class Wiring(Protocol):
    """What may stand between two peers of a `MemoryNetwork`; see faulty.py."""

    def reachable(self, here: int, there: int) -> bool:
        """Whether these two can link now."""

    def wire(self, here: int, there: int, control: MemoryLane, bulk: MemoryLane) -> tuple[Lane, Lane]:
        """The lanes, as peer `here` shall see them, of a new link to `there`."""


class MemoryNetwork:
    """Mints transports that reach each other by the address "memory:<peer>"."""

    def __init__(self, wiring: Wiring | None = None) -> None:
        self.wiring = wiring
        self.listening: dict[str, MemoryTransport] = {}

    def transport(self, identity: Identity, *, commit_grace_seconds: float = 1.0) -> MemoryTransport:
        return MemoryTransport(self, identity, commit_grace_seconds=commit_grace_seconds)

    @staticmethod
    def address(peer: int) -> str:
        return f"memory:{peer}"


class MemoryTransport(LinkedTransport):
    """One peer on a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, identity: Identity, *, commit_grace_seconds: float = 1.0) -> None:
        super().__init__(identity, commit_grace_seconds=commit_grace_seconds)
        self._network = network
        self._lanes: set[MemoryLane] = set()

    async def start(self, listener: Listener) -> str:
        address = self._network.address(self.identity.peer)
        if address in self._network.listening:
            raise OSError(errno.EADDRINUSE, f"{address} is taken")
        self._network.listening[address] = self
        self._listener = listener
        return address

    async def stop(self) -> None:
        address = self._network.address(self.identity.peer)
        if self._network.listening.get(address) is self:
            del self._network.listening[address]
        await super().stop()
        self.kill()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    def kill(self) -> None:
        """What the others see when the process dies: every lane of this peer ends."""
        address = self._network.address(self.identity.peer)
        if self._network.listening.get(address) is self:
            del self._network.listening[address]
        for lane in list(self._lanes):
            lane.close("the other end is gone")
        for task in list(self._tasks):
            task.cancel()

    async def _attempt(self, peer: int, address: str) -> bool:
        other = self._network.listening.get(address)
        wiring = self._network.wiring
        if other is None or (wiring is not None and not wiring.reachable(self.identity.peer, peer)):
            return False
        control, their_control = memory_lane(CONTROL_MESSAGES)
        bulk, their_bulk = memory_lane(BULK_MESSAGES)
        other._spawn(other._answer(self.identity.peer, their_control, their_bulk), f"answer {self.identity.peer}")
        return await self._serve(peer, peer, control, bulk)

    async def _answer(self, caller: int, control: MemoryLane, bulk: MemoryLane) -> None:
        await self._serve(None, caller, control, bulk)

    async def _serve(self, expected: int | None, there: int, control: MemoryLane, bulk: MemoryLane) -> bool:
        lanes: tuple[Lane, Lane] = (control, bulk)
        if self._network.wiring is not None:
            lanes = self._network.wiring.wire(self.identity.peer, there, control, bulk)
        self._lanes |= {control, bulk}
        try:
            session = await self._greet(lanes[0], expected)
            if session is not None:
                await self._run_link(session, lanes[0], self._framed(session, lanes[1], "memory"))
            return session is not None
        finally:
            control.close()
            bulk.close()
            self._lanes -= {control, bulk}

    async def _greet(self, lane: Lane, expected: int | None) -> Session | None:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                return await self._agree(lane, expected, secrets.randbits(64))
        except (LaneClosed, TimeoutError):
            return None
