"""A lane: one ordered, bounded, two-way stream of messages between two peers, whatever carries it.

A link has two of them, control and bulk. `write` waits when the other end does not read (back-pressure), so what lies
in a lane is bounded by its carrier: a few messages in memory, a flow-control window in HTTP/2, a socket's buffers.

The bulk lane of a link carries frames (`BulkLane`): header and piece are handed over apart, so that a carrier that can
(direct.py) takes the piece from the vector it is in and puts it into the vector it belongs to, without a copy of its own.
`MessageBulk` makes one out of any lane.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from peer.transport.codec import HEADER_BYTES, Check, column_sums


class LaneClosed(Exception):
    """The lane has ended, by either end or by the carrier. The text says why, in a few words. refused: what is counted, if it ended for
    what came."""

    def __init__(self, why: str, refused: str = "") -> None:
        super().__init__(why)
        self.refused = refused


class Lane(Protocol):
    """One reader and one writer at a time."""

    async def read(self) -> bytes:
        """Next message. Raises `LaneClosed` at the end."""

    async def write(self, message: bytes) -> None:
        """Hand a message to the carrier, waiting while it is full. Raises `LaneClosed`."""

    async def finish(self) -> bool:
        """Tell the other end that nothing more comes, if the carrier can say so and still be read; whether it could."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame that has begun to arrive: its first HEADER_BYTES (fewer if there are no more), and its size. `piece` is what
    follows, if the carrier has it already; else the reader must `fill` or `skip` it before the next `read`."""

    head: memoryview
    num_bytes: int
    piece: memoryview | None


class BulkLane(Protocol):
    """The lane of frames. One reader and one writer at a time; all of it on the event loop."""

    @property
    def plane(self) -> str:
        """What carries it, in a word."""

    @property
    def check(self) -> Check:
        """How pieces enter the checksum of their frame."""

    async def write(self, head: bytes, piece: memoryview) -> None:
        """Hand over one frame. Until it returns, or `let_go`, the memory of `piece` must not change. Raises
        `LaneClosed`."""

    def let_go(self) -> None:
        """The memory of the piece that is being written is not ours any more; what is left of it is sent from a copy."""

    async def read(self) -> Arrival:
        """Next frame. Raises `LaneClosed` at the end."""

    async def fill(self, into: memoryview) -> None:
        """Put the piece [all of it] of the frame read last into its place. Raises `LaneClosed`."""

    def lend(self) -> memoryview | None:
        """The piece [all of it] of the frame read last, if it lies in memory that the carrier has: to be read before anything is awaited,
        and then `skip` it."""

    async def skip(self) -> None:
        """Drop what is left of the frame read last. Raises `LaneClosed`."""

    def divert(self) -> None:
        """The memory that is being filled is not ours any more: what is left of the piece is dropped, `fill` still
        returns at its end."""

    async def watch(self) -> None:
        """Raises `LaneClosed` when the other end has been silent for too long; returns where that is not for this lane to notice."""


class MessageBulk:
    """Frames as the messages of a lane."""

    def __init__(self, lane: Lane, plane: str, check: Check = column_sums) -> None:
        self.plane = plane
        self.check = check
        self._lane = lane
        self._piece: memoryview | None = None

    async def write(self, head: bytes, piece: memoryview) -> None:
        await self._lane.write(b"".join((head, piece)))

    def let_go(self) -> None:
        """The message is a copy."""

    async def read(self) -> Arrival:
        message = memoryview(await self._lane.read())
        self._piece = message[HEADER_BYTES:]
        return Arrival(message[:HEADER_BYTES], len(message), self._piece)

    async def fill(self, into: memoryview) -> None:
        if self._piece is not None:
            into[:] = self._piece
        self._piece = None

    def lend(self) -> memoryview | None:
        return self._piece

    async def skip(self) -> None:
        self._piece = None

    def divert(self) -> None:
        """A piece is put into its place at once."""

    async def watch(self) -> None:
        """The carrier of the lane asks of its own accord."""


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
