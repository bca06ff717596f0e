"""How two ends of a link come to a data socket (direct.py), agreed on over gRPC.

The end that was dialled has a door: a TCP port on the host that gRPC listens on, and on Linux a Unix socket in the abstract namespace
with a random name. With the verdict that accepts the dialling end it sends an offer: port, name, and a random token of 16 bytes, for one
use. The dialling end connects, by the Unix socket if that name exists where it is (then both are on one machine), else by TCP to the
host it dialled, and says the token; the door answers with one byte, the dialling end with another, and the socket is the link's bulk
lane. Without the last byte the dialling end may have given up waiting, and take the stream, while the answering end believes in the socket.
With its byte over a Unix socket each end hands over the memory that it shares for what it sends (shared.py), if it can have any.

Whoever else connects says no good token: it is cut and counted. Callers that have not said theirs are bounded in time and number;
when there are too many the one that has waited longest goes, so that a crowd of silent ones does not shut out who knows what to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from peer.transport.direct import DirectLane, tune
from peer.transport.shared import hand_over, take_over
from peer.wire import gossip_pb2 as wire

DIRECT_SECONDS: Final = 2.0
"""How long the dialling end tries; and how long a caller has to say its token."""

MAX_CALLERS: Final = 128
"""Connections that have not said their token yet."""

_MAGIC: Final = b"GRPD"
_TOKEN_BYTES: Final = 16
_WELCOME: Final = b"\x01"
_COMING: Final = b"\x02"
_ACCEPTED_AT_ONCE: Final = 16
_PAUSE_SECONDS: Final = 0.1  # when the process has no file descriptors left


class Door:
    """Lets data sockets in. `refused` is told why somebody was not: token, silent, crowd."""

    def __init__(self, refused: Callable[[str], None]) -> None:
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._listeners: list[socket.socket] = []
        self._callers: dict[socket.socket, asyncio.Task[bool]] = {}  # oldest first
        self._expected: dict[bytes, tuple[asyncio.Future[DirectLane], bool]] = {}  # by token; whether memory is shared
        self._port = 0
        self._name = ""

    async def open(self, host: str, port: int = 0, *, local: bool = True) -> None:
        """Listen on `host`, port 0: any; with `local`, by a Unix socket too where that can be. Raises OSError."""
        infos = await self._loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(infos, key=lambda info: info[0] is not socket.AF_INET)
        try:
            listener = self._listen(family, address)
        except OSError as error:
            raise OSError(error.errno, f"cannot let data sockets in on {host}:{port}: {error.strerror}") from None
        self._port = listener.getsockname()[1]
        if local and sys.platform == "linux":
            name = f"grapevine-{secrets.token_hex(16)}"
            with contextlib.suppress(OSError):  # forbidden here: TCP will do
                self._listen(socket.AF_UNIX, abstract(name))
                self._name = name

    def _listen(self, family: int, address: Any) -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            tune(listener)  # what is accepted inherits it
            if family != socket.AF_UNIX:
                # A peer that starts again must not wait until the kernel has forgotten its links.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(MAX_CALLERS)
        except OSError:
            listener.close()
            raise
        self._listeners.append(listener)
        self._loop.add_reader(listener, self._accept, listener)
        return listener

    def expect(self, arrived: asyncio.Future[DirectLane], *, shares: bool = True) -> wire.DirectOffer:
        """An offer; `arrived` is given the lane of whoever takes it up, unless it is done by then. shares: memory too, where that can be.
        Withdraw it in any case."""
        token = secrets.token_bytes(_TOKEN_BYTES)
        self._expected[token] = arrived, shares
        return wire.DirectOffer(token=token, port=self._port, unix_name=self._name)

    def withdraw(self, offer: wire.DirectOffer) -> None:
        self._expected.pop(offer.token, None)

    def close(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        for task in list(self._callers.values()):
            task.cancel()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                caller, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError:  # no file descriptors left: it would be tried again at once, for ever
                self._loop.remove_reader(listener)
                self._loop.call_later(_PAUSE_SECONDS, self._resume, listener)
                return
            caller.setblocking(False)
            tune(caller, address[0] if isinstance(address, tuple) else "")
            if len(self._callers) >= MAX_CALLERS:
                self._callers.pop(next(iter(self._callers))).cancel()
                self._refused("crowd")
            task = self._callers[caller] = self._loop.create_task(self._admit(caller), name="door caller")
            task.add_done_callback(partial(self._dismiss, caller))

    def _resume(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _dismiss(self, caller: socket.socket, task: asyncio.Task[bool]) -> None:
        self._callers.pop(caller, None)
        if task.cancelled() or not task.result():
            caller.close()

    async def _admit(self, caller: socket.socket) -> bool:
        """Hear the token of one caller; whether it was a good one, and the socket belongs to a lane now."""
        try:
            async with asyncio.timeout(DIRECT_SECONDS):
                said = await self._hear(caller)
                expected = self._expected.pop(said[len(_MAGIC) :], None) if said.startswith(_MAGIC) else None
                if expected is None or expected[0].done():
                    self._refused("token")
                    return False
                arrived, shares = expected
            async with asyncio.timeout(DIRECT_SECONDS):
                outgoing = await hand_over(caller, _WELCOME, shares=shares)
                with contextlib.ExitStack() as undone:
                    if outgoing is not None:
                        undone.callback(outgoing.close)
                    said, incoming = await take_over(caller)
                    if incoming is not None:
                        undone.callback(incoming.close)
                    if said != _COMING:
                        raise ConnectionResetError  # it could not wait
                    if arrived.done():
                        return False
                    undone.pop_all()
        except (TimeoutError, OSError):
            self._refused("silent")
            return False
        arrived.set_result(DirectLane(caller, outgoing, incoming))
        return True

    async def _hear(self, caller: socket.socket) -> bytes:
        """What a caller says first, as long as it must be. Raises OSError if it hangs up before."""
        said = b""
        while len(said) < len(_MAGIC) + _TOKEN_BYTES:
            piece = await self._loop.sock_recv(caller, len(_MAGIC) + _TOKEN_BYTES - len(said))
            if not piece:
                raise ConnectionResetError
            said += piece
        return said


def abstract(name: str) -> str:
    """The address of a name in Linux' abstract namespace of Unix sockets."""
    return f"\0{name}"


async def knock(offer: wire.DirectOffer, host: str, *, local: bool = True, shares: bool = True) -> DirectLane:
    """Take up an offer of the peer that was dialled at `host`; with `local`, by its Unix socket if it is on this machine; `shares`: with
    memory beside that. Raises OSError or TimeoutError, within DIRECT_SECONDS."""
    loop = asyncio.get_running_loop()
    broken: OSError = ConnectionRefusedError("no address")
    async with asyncio.timeout(DIRECT_SECONDS):
        doors: list[tuple[int, Any]] = []
        if local and sys.platform == "linux" and offer.unix_name.startswith("grapevine-"):
            doors.append((socket.AF_UNIX, abstract(offer.unix_name)))
        infos = await loop.getaddrinfo(host, offer.port, type=socket.SOCK_STREAM)
        doors += [(family, address) for family, _, _, _, address in infos]
        for family, address in doors:
            try:
                return await _enter(family, address, offer.token, shares)
            except OSError as refused:
                broken = refused
    raise broken


async def _enter(family: int, address: Any, token: bytes, shares: bool) -> DirectLane:
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setblocking(False)
        tune(sock, address[0] if isinstance(address, tuple) else "")
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, _MAGIC + token)
        said, incoming = await take_over(sock)
        if incoming is not None:
            stack.callback(incoming.close)
        if said != _WELCOME:
            raise ConnectionRefusedError("the other end did not accept the token")
        outgoing = await hand_over(sock, _COMING, shares=shares)
        stack.pop_all()
    return DirectLane(sock, outgoing, incoming)
