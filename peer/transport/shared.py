"""Memory that two peers of one machine share: large pieces go through it, and only their headers through the Unix socket.

A Unix socket holds a few hundred kilobytes, so that each large frame wakes both event loops some ten times, and the kernel copies all
of it into buffers that it makes and frees. A slot takes a whole frame: one copy into it, one out of it, one message.

Each end makes one segment for what it sends: NUM_SLOTS slots of a frame each, used in turn. The other end is handed the segment and an
eventfd over the Unix socket; it adds NUM_SLOTS to the eventfd once it has mapped the segment, and 1 for each slot that it has read. So
the sender knows which slots are free; as long as it hears nothing, it sends pieces over the socket.

What the other end may do: it can't shrink the segment (which would end whoever reads it), as it is sealed; to change a slot after its
header came changes what it sends, no more, as a piece is checked where it was copied to; to say a slot is free that it has not read
spoils what it reads itself. Memory: a segment is given pages when slots are first used, at most SEGMENT_BYTES for each direction of a link.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
import stat
from typing import Final

import numpy as np

from peer.transport.codec import FRAME_BYTES

NUM_SLOTS: Final = 2
"""One is filled while the other is read."""

SEGMENT_BYTES: Final = NUM_SLOTS * FRAME_BYTES

_SEALS: Final = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0)


class Outgoing:
    """The end that writes. Raises OSError where there can't be such a thing; `close` it."""

    def __init__(self) -> None:
        if not (hasattr(os, "memfd_create") and hasattr(os, "eventfd")):
            raise OSError("shared memory is for Linux")
        with contextlib.ExitStack() as stack:
            self._memory = os.memfd_create("grapevine-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            stack.callback(os.close, self._memory)
            os.ftruncate(self._memory, SEGMENT_BYTES)
            fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, _SEALS)
            self._map = mmap.mmap(self._memory, SEGMENT_BYTES)
            stack.callback(self._map.close)
            self.freed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.pop_all()
        self._slots = _cut(self._map)
        self._next = 0
        self._free = 0
        self._mapped = False

    @property
    def handles(self) -> list[int]:
        """What the other end needs: file descriptors."""
        return [self._memory, self.freed]

    def is_mapped(self) -> bool:
        """Whether the other end reads it."""
        return self._mapped or self.is_free()

    def is_free(self) -> bool:
        """Whether the next slot may be filled. `freed` gets readable when that changes."""
        if not self._free:
            with contextlib.suppress(BlockingIOError):
                self._free = min(os.eventfd_read(self.freed), NUM_SLOTS)
                self._mapped = True
        return self._free > 0

    def put(self, piece: memoryview) -> None:
        """Into the next slot, which is free."""
        np.copyto(self._slots[self._next][: len(piece)], np.frombuffer(piece, np.uint8))
        self._next = (self._next + 1) % NUM_SLOTS
        self._free -= 1

    def close(self) -> None:
        self._slots.clear()
        self._map.close()
        os.close(self._memory)
        os.close(self.freed)


class Incoming:
    """The end that reads. handles: as they came, and owned by it from now on. Raises OSError if they are not what they should be."""

    def __init__(self, handles: list[int]) -> None:
        with contextlib.ExitStack() as stack:
            for handle in handles:
                stack.callback(os.close, handle)
            memory, self._freed = _checked(handles)
            self._map = mmap.mmap(memory, SEGMENT_BYTES, prot=mmap.PROT_READ)
            stack.pop_all()
        os.close(memory)  # the map has its own
        self._slots = _cut(self._map)
        self._next = 0
        self._free(NUM_SLOTS)

    def take(self, into: memoryview | None) -> None:
        """The piece in the next slot, to its place; None: it is left alone."""
        if into is not None:
            np.copyto(np.frombuffer(into, np.uint8), self._slots[self._next][: len(into)])
        self._next = (self._next + 1) % NUM_SLOTS
        self._free(1)

    def _free(self, slots: int) -> None:
        with contextlib.suppress(OSError):  # full, or none: who makes it so will wait for it
            os.eventfd_write(self._freed, slots)

    def close(self) -> None:
        self._slots.clear()
        self._map.close()
        os.close(self._freed)


def _cut(segment: mmap.mmap) -> list[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    whole = np.frombuffer(segment, np.uint8)
    return [whole[start : start + FRAME_BYTES] for start in range(0, SEGMENT_BYTES, FRAME_BYTES)]


def _checked(handles: list[int]) -> tuple[int, int]:
    """(segment, eventfd). Raises OSError."""
    if len(handles) != 2:
        raise OSError("not a segment and an eventfd")
    memory, freed = handles
    found = os.fstat(memory)
    sound = stat.S_ISREG(found.st_mode) and found.st_size == SEGMENT_BYTES
    if not sound or fcntl.fcntl(memory, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise OSError("not a sealed segment")
    os.set_blocking(freed, False)
    return memory, freed


async def hand_over(sock: socket.socket, said: bytes) -> Outgoing | None:
    """Say a byte over a new socket, and with it, if this is a Unix socket, hand over what this end shares. Raises OSError."""
    outgoing = _made() if _is_unix(sock) else None
    if outgoing is None:
        await asyncio.get_running_loop().sock_sendall(sock, said)
        return None
    try:
        socket.send_fds(sock, [said], outgoing.handles)
    except OSError:
        outgoing.close()
        raise
    return outgoing


async def take_over(sock: socket.socket) -> tuple[bytes, Incoming | None]:
    """The byte that the other end says, empty if it hangs up, and what it hands over with it. Raises OSError."""
    loop = asyncio.get_running_loop()
    if not _is_unix(sock):
        return await loop.sock_recv(sock, 1), None
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)
    said, handles, _, _ = socket.recv_fds(sock, 1, 2, socket.MSG_CMSG_CLOEXEC)
    if handles:
        with contextlib.suppress(OSError):  # not what it should be, or no memory: its pieces come over the socket
            return said, Incoming(handles)
    return said, None


def _is_unix(sock: socket.socket) -> bool:
    return sock.family not in (socket.AF_INET, socket.AF_INET6)


def _made() -> Outgoing | None:
    try:
        return Outgoing()
    except OSError:  # no memory, not allowed
        return None
