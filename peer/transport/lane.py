"""A lane: one ordered, bounded, two-way stream of messages between two peers, whatever carries it.

A link has two of them, control and bulk. `write` waits when the other end does not read (back-pressure), so what lies
in a lane is bounded by its carrier: a few messages in memory, a flow-control window in HTTP/2.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol


class LaneClosed(Exception):
    """The lane has ended, by either end or by the carrier. The text says why, in a few words."""


class Lane(Protocol):
    """One reader and one writer at a time."""

    async def read(self) -> bytes:
        """Next message. Raises `LaneClosed` at the end."""

    async def write(self, message: bytes) -> None:
        """Hand a message to the carrier, waiting while it is full. Raises `LaneClosed`."""

    async def finish(self) -> bool:
        """Tell the other end that nothing more comes, if the carrier can say so and still be read; whether it could."""


class Conveyor:
    """One direction of a lane within a process: at most `capacity` messages lie on it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._messages: deque[bytes] = deque()
        self._closed: str | None = None
        self._waiters: list[asyncio.Future[None]] = []

    async def put(self, message: bytes) -> None:
        while self._closed is None and len(self._messages) >= self._capacity:
            await self._change()
        if self._closed is not None:
            raise LaneClosed(self._closed)
        self._messages.append(message)
        self._wake()

    async def get(self) -> bytes:
        while not self._messages:
            if self._closed is not None:
                raise LaneClosed(self._closed)
            await self._change()
        message = self._messages.popleft()
        self._wake()
        return message

    def close(self, reason: str) -> None:
        """What lies on it can still be taken; nothing more comes."""
        if self._closed is None:
            self._closed = reason
            self._wake()

    def cut(self, reason: str) -> None:
        """Close it and lose what lies on it."""
        self._messages.clear()
        self.close(reason)

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


class MemoryLane:
    """One end of a lane within a process: reads from one conveyor, writes to another."""

    def __init__(self, inbound: Conveyor, outbound: Conveyor) -> None:
        self._inbound = inbound
        self._outbound = outbound

    async def read(self) -> bytes:
        return await self._inbound.get()

    async def write(self, message: bytes) -> None:
        await self._outbound.put(message)

    async def finish(self) -> bool:
        self._outbound.close("closed by the other end")
        return True

    def close(self, reason: str = "closed by the other end") -> None:
        self._outbound.close(reason)
        self._inbound.cut(reason)

    def cut(self, reason: str) -> None:
        self._outbound.cut(reason)
        self._inbound.cut(reason)


def memory_lane(capacity: int) -> tuple[MemoryLane, MemoryLane]:
    """Both ends of a lane that holds at most `capacity` messages in each direction."""
    there, back = Conveyor(capacity), Conveyor(capacity)
    return MemoryLane(back, there), MemoryLane(there, back)
