"""A caller that speaks gRPC well, shakes hands as a peer does, and then says what a test likes."""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib

import grpc
import grpc.aio
import numpy as np

from peer.transport import grpc as carrier
from peer.transport.base import ExchangeKey, Identity
from peer.transport.codec import HEADER_BYTES, Check, column_sums, encode_head, unchecked
from peer.transport.door import abstract
from peer.transport.handshake import PROTOCOL
from peer.wire import gossip_pb2 as wire

from .rig import identity

LANE_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))


CHECKS: dict[str, Check] = {"grpc": column_sums, "tcp": column_sums, "unix": unchecked}


class Caller:
    """Peer 0, or `me`, as an attacker would write it: shakes hands properly, then sends what the test says, on the bulk lane of that
    carrier."""

    def __init__(self, address: str, kind: str = "grpc", me: Identity | None = None) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=LANE_OPTIONS)
        self.me = identity(0) if me is None else me
        self.tag = 0
        self.kind = kind
        self.socket: socket.socket | None = None

    async def join(self) -> None:
        me = self.me
        plane = wire.DATA_PLANE_GRPC if self.kind == "grpc" else wire.DATA_PLANE_DIRECT
        hello = wire.Hello(
            protocol=PROTOCOL,
            run=me.run,
            peer=me.peer,
            num_peers=me.num_peers,
            fingerprint=me.fingerprint,
            settings=me.settings,
            data_plane=plane,
        )
        self.control: grpc.aio.StreamStreamCall[bytes, bytes] = self.channel.stream_stream(carrier.CONTROL)()
        await self.say(wire.ControlMessage(hello=hello))
        self.tag = (await self.hear()).hello.session
        await self.say(wire.ControlMessage(verdict=wire.Verdict()))
        if self.kind != "grpc":
            verdict = (await self.hear()).verdict
            assert not verdict.field
            self.socket = await connected(verdict.direct, self.kind)
            await take_up(self.socket, verdict.direct.token)
            return
        token = ((carrier.SESSION_KEY, struct.pack("<Q", self.tag)),)
        open_bulk: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(carrier.EXCHANGE)
        self.bulk: grpc.aio.StreamStreamCall[bytes, bytes] = open_bulk(metadata=token)
        assert not (await self.hear()).verdict.field

    async def say(self, message: wire.ControlMessage) -> None:
        await self.control.write(message.SerializeToString())

    async def hear(self) -> wire.ControlMessage:
        message = await self.control.read()
        assert isinstance(message, bytes)
        return wire.ControlMessage.FromString(message)

    def frame(self, round: int, values: list[float], total: int | None = None, offset: int = 0) -> bytes:
        piece = memoryview(np.array(values, dtype="<f4").tobytes())
        total = len(piece) if total is None else total
        return encode_head(ExchangeKey(round, 0), self.tag, total, offset, piece, CHECKS[self.kind]) + piece

    def piece(self, round: int, payload: bytes, start: int, end: int) -> bytes:
        """A frame with so much of a payload."""
        part = memoryview(payload)[start:end]
        return encode_head(ExchangeKey(round, 0), self.tag, len(payload), start, part, CHECKS[self.kind]) + part

    async def send(self, message: bytes) -> None:
        """A message on the bulk lane."""
        if self.socket is None:
            await self.bulk.write(message)
        else:
            await asyncio.get_running_loop().sock_sendall(self.socket, framed(message))

    async def leave(self) -> None:
        if self.socket is not None:
            self.socket.close()
        await self.channel.close()


async def connected(offer: wire.DirectOffer, kind: str) -> socket.socket:
    """A socket to the door of that offer."""
    made = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
    made.setblocking(False)
    address = abstract(offer.unix_name) if kind == "unix" else ("127.0.0.1", offer.port)
    await asyncio.get_running_loop().sock_connect(made, address)
    return made


async def say_token(to: socket.socket, token: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(to, b"GRPD" + token)


async def take_up(to: socket.socket, token: bytes) -> None:
    """What the dialling end says, to the end."""
    await say_token(to, token)
    assert await asyncio.get_running_loop().sock_recv(to, 1) == b"\x01"
    await asyncio.get_running_loop().sock_sendall(to, b"\x02")


def framed(message: bytes, *, in_slot: bool = False) -> bytes:
    """A message as it goes over a data socket. in_slot: it says that its piece is in shared memory."""
    length = struct.pack("<I", len(message) | in_slot << 31)
    return length + struct.pack("<I", zlib.crc32(message[:HEADER_BYTES], zlib.crc32(length))) + message
