"""The control lane as a plain socket: what a link has for its words where it has a data socket (direct.py) for its vectors.

A message is its length, u32, and so many bytes. On a stream of gRPC a word passes three threads on its way from the wire to the event
loop, and costs both ends together some 0.3 ms of processor time; here it is a system call at either end. It has a socket of its own, so it
never waits behind a vector that is not read.

The stream stays: it is how the link ends when the other end is silent, and what comes on it is heard as well. An end says all its words
on one of the two, so they stay in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from typing import Final

from peer.transport.handshake import MAX_CONTROL_BYTES
from peer.transport.lane import LaneClosed
from peer.transport.silence import SILENCE_SECONDS
from peer.transport.sockets import set_option

MOST_WAITING: Final = 64
"""Messages that may wait for the reader before no more are read from the socket."""

_READ_BYTES: Final = 64 * 1024
_LENGTH = struct.Struct("<I")


class WordLine:
    """One end of a connected socket, as the control lane of a link. Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._ended: str | None = None
        self._refused = ""
        self._unread = bytearray()  # the beginning of a message
        self._messages: deque[bytes] = deque()
        self._rest = b""  # of the message written last
        self._readable: asyncio.Future[None] | None = None
        self._flushed: asyncio.Future[None] | None = None
        self._reads = True
        tell_of_silence(sock)
        self._loop.add_reader(sock, self._on_readable)

    # -- writing

    @property
    def full(self) -> bool:
        """Whether a message would have to wait."""
        return bool(self._rest) or self._ended is not None

    def hand_over(self, message: bytes) -> None:
        """Write a message at once; only while it is not `full`."""
        self._rest = _LENGTH.pack(len(message)) + message
        self._send()
        if self._rest:
            self._loop.add_writer(self._socket, self._on_writable)

    async def write(self, message: bytes) -> None:
        await self._flush()
        self.hand_over(message)

    async def finish(self) -> bool:
        with contextlib.suppress(LaneClosed, OSError):
            await self._flush()
            self._socket.shutdown(socket.SHUT_WR)
        return True

    async def _flush(self) -> None:
        while self._rest and self._ended is None:
            self._flushed = self._loop.create_future()
            await self._flushed
        self._check_open()

    def _send(self) -> None:
        try:
            self._rest = self._rest[self._socket.send(self._rest) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as broken:
            self.close(_why(broken))

    def _on_writable(self) -> None:
        self._send()
        if not self._rest and self._ended is None:
            self._loop.remove_writer(self._socket)
            _wake(self._flushed)

    # -- reading

    async def read(self) -> bytes:
        while not self._messages:
            self._check_open()
            self._readable = self._loop.create_future()
            await self._readable
        if not self._reads and len(self._messages) <= MOST_WAITING // 2 and self._ended is None:
            self._reads = True
            self._loop.add_reader(self._socket, self._on_readable)
        return self._messages.popleft()

    def _on_readable(self) -> None:
        try:
            came = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as broken:
            self.close(_why(broken))
            return
        if not came:
            self.close("the other end closed the socket of words")
            return
        self._unread += came
        refused = self._cut()
        if refused:
            self._refused = "oversized"
            self.close(refused)
        elif len(self._messages) >= MOST_WAITING:
            self._reads = False
            self._loop.remove_reader(self._socket)
        if self._messages:
            _wake(self._readable)

    def _cut(self) -> str:
        """Take the messages that are whole; why the rest makes no sense, or nothing."""
        unread, at = self._unread, 0
        while len(unread) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(unread, at)
            if length > MAX_CONTROL_BYTES:
                return f"the other end sent a control message of {length} bytes, above the limit"
            start, at = at + _LENGTH.size, at + _LENGTH.size + length
            if at > len(unread):
                at = start - _LENGTH.size
                break
            self._messages.append(bytes(unread[start:at]))
        del unread[:at]
        return ""

    # -- both

    def close(self, reason: str = "the socket of words was closed") -> None:
        """End the lane at once, whoever waits in it. What was read before can still be taken."""
        if self._ended is not None:
            return
        self._ended, self._rest = reason, b""
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        _wake(self._readable)
        _wake(self._flushed)

    def _check_open(self) -> None:
        if self._ended is not None:
            raise LaneClosed(self._ended, self._refused)


def tell_of_silence(sock: socket.socket) -> None:
    """Let TCP end where nothing of what was sent is answered for SILENCE_SECONDS: a path may be lost to this socket and not to gRPC's, and
    then pings, which are always under way, keep the kernel from probing. Words are always read, so a busy other end is no silence."""
    if sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        set_option(sock, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE_SECONDS * 1000))


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _why(broken: OSError) -> str:
    return f"the socket of words broke: {(broken.strerror or type(broken).__name__).lower()}"
