"""Memory that two peers of one machine share: large pieces go through it, and only their headers through the Unix socket.

A Unix socket holds a few hundred kilobytes, so that each large frame wakes both event loops some ten times, and the kernel copies all
of it into buffers that it makes and frees. A slot takes a whole frame: one copy into it, one out of it, one message.

Each end makes one segment for what it sends: NUM_SLOTS slots of a frame each, used in turn. The other end is handed the segment and one
end of a pair of sockets over the Unix socket; it says NUM_SLOTS bytes on that once it has mapped the segment, and one for each slot that it
has read. So the sender knows which slots are free; as long as it hears nothing, it sends pieces over the socket.

What the other end may do: it can't shrink the segment (which would end whoever reads it), as it is sealed; to change a slot after its
header came changes what it sends: a piece is checked where it was copied to, or, if it is read in its slot (`lend`), a moment before it
is added up, so a sum may become infinite or NaN, as it also may by large numbers; to say a slot is free that it has not read spoils what
it reads itself; and whatever it hands over, no call here waits for it. Memory: a segment is given pages when slots are first used, at
most SEGMENT_BYTES for each direction of a link.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
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
        if not hasattr(os, "memfd_create"):
            raise OSError("shared memory is for Linux")
        with contextlib.ExitStack() as stack:
            memory = os.memfd_create("grapevine-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            handed = contextlib.ExitStack()
            handed.callback(os.close, memory)
            stack.callback(handed.close)
            os.ftruncate(memory, SEGMENT_BYTES)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            self._map = mmap.mmap(memory, SEGMENT_BYTES)
            stack.callback(self._map.close)
            self.freed, theirs = socket.socketpair()
            stack.callback(self.freed.close)
            handed.callback(theirs.close)
            self.handles = [memory, theirs.fileno()]
            self._handed = handed
            stack.pop_all()
        self._slots = _cut(self._map)
        self._next = 0
        self._free = 0
        self._mapped = False

    def handed_over(self) -> None:
        """The other end has what it needs of this, the file descriptors `handles`; here they are closed."""
        self._handed.close()

    def is_mapped(self) -> bool:
        """Whether the other end reads it."""
        return self._mapped or self.is_free()

    def is_free(self) -> bool:
        """Whether the next slot may be filled. `freed` gets readable when that changes. Raises OSError if the other end is gone."""
        if not self._free:
            with contextlib.suppress(BlockingIOError):
                self._free = len(self.freed.recv(NUM_SLOTS, socket.MSG_DONTWAIT))
                if self._mapped and not self._free:
                    raise ConnectionResetError
                self._mapped = self._free > 0  # else the other end could not map it, and has let go of it
        return self._free > 0

    def put(self, piece: memoryview) -> None:
        """Into the next slot, which is free."""
        np.copyto(self._slots[self._next][: len(piece)], np.frombuffer(piece, np.uint8))
        self._next = (self._next + 1) % NUM_SLOTS
        self._free -= 1

    def close(self) -> None:
        self._slots.clear()
        self._map.close()
        self._handed.close()
        self.freed.close()


class Incoming:
    """The end that reads. handles: as they came, and owned by it from now on. Raises OSError if they are not what they should be."""

    def __init__(self, handles: list[int]) -> None:
        with contextlib.ExitStack() as stack:
            for handle in handles:
                stack.callback(os.close, handle)
            memory, told = _checked(handles)
            self._map = mmap.mmap(memory, SEGMENT_BYTES, prot=mmap.PROT_READ)
            self._freed = socket.socket(fileno=told)
            stack.pop_all()
        os.close(memory)  # the map has its own
        self._slots = _cut(self._map)
        self._next = 0
        self._free(NUM_SLOTS)

    def lend(self, num_bytes: int) -> memoryview:
        """The piece in the next slot, until it is taken. The other end can still write to it, as it could before."""
        return self._slots[self._next][:num_bytes].data

    def take(self, into: memoryview | None) -> None:
        """The piece in the next slot, to its place; None: it is left alone."""
        if into is not None:
            np.copyto(np.frombuffer(into, np.uint8), self._slots[self._next][: len(into)])
        self._next = (self._next + 1) % NUM_SLOTS
        self._free(1)

    def _free(self, slots: int) -> None:
        with contextlib.suppress(OSError):  # full, or gone: who makes it so will wait for it
            self._freed.send(bytes(slots), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        self._slots.clear()
        self._map.close()
        self._freed.close()


def _cut(segment: mmap.mmap) -> list[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    whole = np.frombuffer(segment, np.uint8)
    return [whole[start : start + FRAME_BYTES] for start in range(0, SEGMENT_BYTES, FRAME_BYTES)]


def _checked(handles: list[int]) -> tuple[int, int]:
    """(segment, socket). Raises OSError. Seals come first: only what lives in memory has them, and answers `fstat` at once."""
    if len(handles) != 2:
        raise OSError("not a segment and a socket")
    memory, freed = handles
    if fcntl.fcntl(memory, fcntl.F_GET_SEALS) & _SEALS != _SEALS or os.fstat(memory).st_size != SEGMENT_BYTES:
        raise OSError("not a sealed segment")
    return memory, freed


async def hand_over(sock: socket.socket, said: bytes, *, shares: bool = True) -> Outgoing | None:
    """Say a byte over a new socket, and with it, if `shares` and this is a Unix socket, hand over what this end shares. Raises OSError."""
    outgoing = _made() if shares and _is_unix(sock) else None
    if outgoing is not None:
        try:
            socket.send_fds(sock, [said], outgoing.handles)
        except OSError:  # not allowed: without
            outgoing.close()
        else:
            outgoing.handed_over()
            return outgoing
    await asyncio.get_running_loop().sock_sendall(sock, said)
    return None


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
    said, handles, _, _ = socket.recv_fds(sock, 1, 2)
    for handle in handles:
        os.set_inheritable(handle, False)
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
