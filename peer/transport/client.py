"""How an observer asks a peer: the launcher, `grapevine status`, a peer that catches up."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from peer.transport.base import ExchangeKey
from peer.transport.channel import GrpcOptions, client_options
from peer.transport.codec import Assembly, Malformed, decode
from peer.transport.service import PACKAGE_SERVICE
from peer.wire import gossip_pb2 as wire

if TYPE_CHECKING:
    from torch import Tensor


class PeerUnreachable(Exception):
    """A peer did not answer, or not with what was asked; the text is one sentence with its address."""


class PeerClient:
    """Asks one peer; make it, use it and close it on one event loop."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: grpc.aio.Channel | None = None

    async def status(self, timeout: float = 2.0) -> wire.StatusReply:
        """What the peer is doing. Raises PeerUnreachable."""
        ask: grpc.aio.UnaryUnaryMultiCallable[wire.StatusRequest, wire.StatusReply] = self._connected().unary_unary(
            f"/{PACKAGE_SERVICE}/Status", wire.StatusRequest.SerializeToString, wire.StatusReply.FromString
        )
        try:
            reply: wire.StatusReply = await ask(wire.StatusRequest(), timeout=timeout)
        except grpc.aio.AioRpcError as broken:
            raise self._unreachable(broken, timeout) from broken
        return reply

    async def snapshot(self, out: Tensor, timeout: float = 30.0) -> int:
        """Fill `out` [d] (float32, contiguous, CPU) with the peer's vector x_k and return k. Raises PeerUnreachable;
        `out` may then be half written."""
        from peer.transport.exchange import byte_view  # with it comes torch, for which a question alone does not wait

        request = wire.SnapshotRequest(tag=secrets.randbits(64))
        ask: grpc.aio.UnaryStreamMultiCallable[wire.SnapshotRequest, bytes] = self._connected().unary_stream(
            f"/{PACKAGE_SERVICE}/Snapshot", wire.SnapshotRequest.SerializeToString
        )
        call = ask(request, timeout=timeout)
        try:
            key = await self._fill(Assembly(byte_view(out)), request.tag, call)
        except grpc.aio.AioRpcError as broken:
            raise self._unreachable(broken, timeout) from broken
        finally:
            call.cancel()
        return key.round

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _fill(self, vector: Assembly, tag: int, messages: AsyncIterable[bytes]) -> ExchangeKey:
        key: ExchangeKey | None = None
        async for message in messages:
            frame = decode(message, tag)
            refusal = frame.reason if isinstance(frame, Malformed) else vector.take(frame)
            if isinstance(frame, Malformed) or refusal is not None or (key is not None and frame.key != key):
                raise PeerUnreachable(f"the snapshot of the peer at {self._address} does not fit: {refusal or 'round'}")
            key = frame.key
        if key is None or not vector.whole:
            raise PeerUnreachable(f"the snapshot of the peer at {self._address} broke off")
        return key

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            options = client_options(GrpcOptions())
            self._channel = grpc.aio.insecure_channel(self._address, options=options)
        return self._channel

    def _unreachable(self, broken: grpc.aio.AioRpcError, timeout: float) -> PeerUnreachable:
        code, address = broken.code(), self._address
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return PeerUnreachable(f"the peer at {address} did not answer within {timeout:g} s")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return PeerUnreachable(f"what listens at {address} is no Grapevine peer")
        if code is grpc.StatusCode.UNAVAILABLE:
            return PeerUnreachable(f"no peer answers at {address}")
        return PeerUnreachable(f"the peer at {address} could not answer: {broken.details()}")
