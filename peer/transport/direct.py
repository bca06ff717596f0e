"""The bulk lane as a plain socket beside the gRPC channel: TCP, or between two peers of one machine a Unix socket.

gRPC moves every byte through messages of its own; here the kernel copies from the vector that is sent into the socket, and from
the socket into the vector it belongs to. A message on the wire is

    length u32 | crc32 of length and header, u32 | header and piece [length]

with the header and piece of codec.py. The prefix's checksum makes a damaged header break the link before it is believed: what
follows it can not be found any more. The length's highest bit says that the piece is not in the socket but in the next slot of the
memory that two peers of one machine share (shared.py): so pieces of at least SLOT_FROM bytes travel where there is such memory. How the
two ends come to a socket is in door.py.

Everything happens on the event loop, with sockets that do not block, one system call of at most a frame at a time. So an exchange that
ends takes its vectors back at once (`divert`, `let_go`), which a thread inside recv could not promise, and threads are not faster (README).
Between two machines pieces are summed (`column_sums`); within one they are not, because they never leave its memory.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
import zlib
from typing import Final

from peer.transport import silence
from peer.transport.codec import FRAME_BYTES, HEADER_BYTES, MAX_MESSAGE_BYTES, Check, column_sums, unchecked
from peer.transport.lane import Arrival, LaneClosed
from peer.transport.machine import is_loopback
from peer.transport.shared import Incoming, Outgoing
from peer.transport.sockets import fit_to_machine, set_option

TURN_BYTES: Final = 1024 * 1024
"""So much is moved, or as many frames as TURN_FRAMES, before others on the event loop have their turn."""

TURN_FRAMES: Final = 32

SLOT_FROM: Final = 32 * 1024
"""Pieces of so many bytes take a slot: below that, what the slot costs is not less than what it saves."""

SLOTTED_BYTES: Final = HEADER_BYTES + FRAME_BYTES
_IN_SLOT: Final = 1 << 31
_SCRATCH_BYTES: Final = 64 * 1024
_LENGTH = struct.Struct("<I")
_PREFIX = struct.Struct("<II")


def tune(sock: socket.socket, peer_host: str = "", silence_seconds: float = 3.0) -> None:
    """Set a data socket up; what the kernel refuses is left as it was. `peer_host`: the address of the other end, if it is known.

    TCP_USER_TIMEOUT stays unset, as a sender is held back by not reading: silence.py."""
    inet = sock.family in (socket.AF_INET, socket.AF_INET6)
    if not inet or is_loopback(peer_host):
        fit_to_machine(sock)
    if not inet:
        return
    set_option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = max(1, round(silence_seconds))
    for name, value in (("TCP_KEEPIDLE", seconds), ("TCP_KEEPINTVL", seconds), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            set_option(sock, socket.IPPROTO_TCP, getattr(socket, name), value)


class DirectLane:
    """One end of a connected socket, as the bulk lane of a link. Owns the socket, and the memory that is shared beside it."""

    def __init__(self, sock: socket.socket, outgoing: Outgoing | None = None, incoming: Incoming | None = None) -> None:
        local = sock.family not in (socket.AF_INET, socket.AF_INET6)
        self.plane = "unix" if local else "tcp"
        self.check: Check = unchecked if local else column_sums
        self._socket = sock
        self._outgoing, self._incoming = outgoing, incoming
        self._loop = asyncio.get_running_loop()
        self._ended: str | None = None
        self._moved = 0  # since others on the loop had their turn
        self._opening = memoryview(bytearray(_PREFIX.size + HEADER_BYTES))
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._left = 0  # bytes of the message being read that are still on the wire
        self._in_slot = False  # they are in a slot instead
        self._need = 0  # bytes of what is being filled that are still on the wire
        self._into: memoryview | None = None  # where they go; None: nowhere
        self._head_rest = self._piece_rest = memoryview(b"")  # what is still to be sent
        self._readable: asyncio.Future[None] | None = None
        self._watched = False  # whether the loop tells of what can be read
        self._writable: asyncio.Future[None] | None = None
        self._freed: asyncio.Future[None] | None = None

    # -- writing

    async def write(self, head: bytes, piece: memoryview) -> None:
        self._check_open()
        num_bytes = len(head) + len(piece)
        self._piece_rest = piece
        if len(piece) >= SLOT_FROM and self._outgoing is not None and self._is_free(self._outgoing):
            await self._put(self._outgoing)
            num_bytes |= _IN_SLOT
        length = _LENGTH.pack(num_bytes)
        prefix = length + _LENGTH.pack(zlib.crc32(head, zlib.crc32(length)))
        self._head_rest = memoryview(prefix + head)
        try:
            self._send()
            if self._unsent:
                self._writable = self._loop.create_future()
                self._loop.add_writer(self._socket, self._on_writable)
                await self._writable
        finally:
            self._stop_writing()
            self._piece_rest = memoryview(b"")
        await self._take_turns(len(piece))

    async def _put(self, outgoing: Outgoing) -> None:
        """The piece into a slot, when there is a free one."""
        try:
            while not self._is_free(outgoing, now=True):
                self._freed = self._loop.create_future()
                self._loop.add_reader(outgoing.freed, self._on_freed)
                await self._freed
                self._check_open()
            outgoing.put(self._piece_rest)
        finally:
            if self._freed is not None and self._ended is None:
                self._loop.remove_reader(outgoing.freed)
            self._freed = None
            self._piece_rest = memoryview(b"")

    def _is_free(self, outgoing: Outgoing, *, now: bool = False) -> bool:
        """Whether a slot may be filled now, or ever."""
        try:
            return outgoing.is_free() if now else outgoing.is_mapped()
        except OSError as gone:
            raise LaneClosed("the other end shares memory no more") from gone

    def _on_freed(self) -> None:
        if self._freed is not None and not self._freed.done():
            self._freed.set_result(None)

    def let_go(self) -> None:
        self._piece_rest = memoryview(bytes(self._piece_rest))

    @property
    def _unsent(self) -> int:
        return len(self._head_rest) + len(self._piece_rest)

    def _send(self) -> None:
        """As much as the socket takes now."""
        self._check_open()
        try:
            sent = self._socket.sendmsg((self._head_rest, self._piece_rest))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as broken:
            raise LaneClosed(_why(broken)) from broken
        of_head = min(sent, len(self._head_rest))
        self._head_rest, self._piece_rest = self._head_rest[of_head:], self._piece_rest[sent - of_head :]

    def _on_writable(self) -> None:
        waiter = self._writable
        if waiter is None or waiter.done():
            return
        try:
            self._send()
        except LaneClosed as ended:
            waiter.set_exception(ended)
            return
        if not self._unsent:
            waiter.set_result(None)

    def _stop_writing(self) -> None:
        if self._writable is not None:
            self._writable = None
            if self._ended is None:
                self._loop.remove_writer(self._socket)

    # -- reading

    async def read(self) -> Arrival:
        await self._receive(self._opening[: _PREFIX.size], _PREFIX.size)
        length, checksum = _PREFIX.unpack_from(self._opening)
        in_slot, length = bool(length & _IN_SLOT), length & ~_IN_SLOT
        if length > (SLOTTED_BYTES if in_slot else MAX_MESSAGE_BYTES):
            raise LaneClosed(f"the other end sent a message of {length} bytes, above the limit", "oversized")
        if in_slot and self._incoming is None:
            raise LaneClosed("the other end says that a piece is in shared memory, and there is none", "slot")
        num_head = min(length, HEADER_BYTES)
        head = self._opening[_PREFIX.size : _PREFIX.size + num_head]
        await self._receive(head, num_head)
        if zlib.crc32(head, zlib.crc32(self._opening[: _LENGTH.size])) != checksum:
            raise LaneClosed("the other end sent a damaged header", "checksum")
        self._left, self._in_slot = length - num_head, in_slot
        return Arrival(head, length, None)

    async def fill(self, into: memoryview) -> None:
        await self._take_piece(into)

    def lend(self) -> memoryview | None:
        if not self._in_slot or self._incoming is None:
            return None
        self._check_open()
        return self._incoming.lend(self._left)

    async def skip(self) -> None:
        await self._take_piece(None)

    async def _take_piece(self, into: memoryview | None) -> None:
        left, self._left = self._left, 0
        in_slot, self._in_slot = self._in_slot, False
        if not in_slot:
            await self._receive(into, left)
        elif self._incoming is not None:
            self._check_open()
            self._incoming.take(into)
        await self._take_turns(left)

    def divert(self) -> None:
        self._into = None

    async def _receive(self, into: memoryview | None, num_bytes: int) -> None:
        """The next bytes, to their place."""
        self._into, self._need = into, num_bytes
        try:
            self._recv()
            if self._need:
                self._readable = self._loop.create_future()
                if not self._watched:
                    self._loop.add_reader(self._socket, self._on_readable)
                    self._watched = True
                await self._readable
        finally:
            self._into = self._readable = None

    def _recv(self) -> None:
        """As much as the socket has now."""
        self._check_open()
        if not self._need:
            return
        try:
            target = self._scratch[: self._need] if self._into is None else self._into
            got = self._socket.recv_into(target)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as broken:
            raise LaneClosed(_why(broken)) from broken
        if not got:
            raise LaneClosed("the other end closed the data socket")
        self._need -= got
        if self._into is not None:
            self._into = self._into[got:]

    def _on_readable(self) -> None:
        """The socket stays watched until something comes that nobody waits for: most of the time somebody soon waits again."""
        waiter = self._readable
        if waiter is None or waiter.done():
            self._loop.remove_reader(self._socket)
            self._watched = False
            return
        try:
            self._recv()
        except LaneClosed as ended:
            waiter.set_exception(ended)
            return
        if not self._need:
            waiter.set_result(None)

    # -- both

    async def watch(self) -> None:
        heard = silence.Silence()
        while (known := silence.asked(self._socket)) is not None:
            if heard.lasts(time.monotonic(), known) >= silence.SILENCE_SECONDS:
                raise LaneClosed(f"nothing sent on the data socket was answered for {silence.SILENCE_SECONDS:g} s")
            await asyncio.sleep(silence.LOOK_SECONDS)

    async def _take_turns(self, num_bytes: int) -> None:
        """A socket that is always ready must not keep the loop for itself."""
        self._moved += num_bytes + TURN_BYTES // TURN_FRAMES
        if self._moved >= TURN_BYTES:
            self._moved = 0
            await asyncio.sleep(0)

    def _check_open(self) -> None:
        if self._ended is not None:
            raise LaneClosed(self._ended)

    def release(self) -> socket.socket:
        """The socket, which is the caller's from now on; of a lane that nobody uses yet, and which is over with that."""
        self._ended = "the socket is used for something else"
        self._unshare()
        return self._socket

    def close(self, reason: str = "the data socket was closed") -> None:
        """End the lane at once, whoever waits in it."""
        if self._ended is not None:
            return
        self._ended = reason
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._unshare()
        for waiter in (self._readable, self._writable, self._freed):
            if waiter is not None and not waiter.done():
                waiter.set_exception(LaneClosed(reason))

    def _unshare(self) -> None:
        if self._outgoing is not None:
            self._loop.remove_reader(self._outgoing.freed)
            self._outgoing.close()
        if self._incoming is not None:
            self._incoming.close()


def _why(broken: OSError) -> str:
    return f"the data socket broke: {(broken.strerror or type(broken).__name__).lower()}"
