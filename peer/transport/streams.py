"""The two ends of a gRPC stream, as lanes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio

from peer.transport.lane import LaneClosed

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ServerLane:
    """A lane made of the answering end of a stream. It ends when the stream's method returns."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def read(self) -> bytes:
        try:
            message = await self._context.read()
        except (grpc.RpcError, grpc.aio.BaseError) as broken:
            raise LaneClosed("the stream broke") from broken
        if not isinstance(message, bytes):
            raise LaneClosed("the other end closed the stream")
        return message

    async def write(self, message: bytes) -> None:
        try:
            await self._context.write(message)
        except (grpc.RpcError, grpc.aio.BaseError) as broken:
            raise LaneClosed("the stream broke") from broken

    async def finish(self) -> bool:
        return False


async def end(context: Context, code: grpc.StatusCode, why: str) -> NoReturn:
    """Of a call that is being answered, with an error. Raises AbortError, when the caller knows."""
    try:
        await context.abort(code, why)
    except grpc.aio.InternalError as broken:
        raise asyncio.CancelledError from broken  # it hung up before


class ClientLane:
    """A lane made of the dialling end of a stream."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        self._call = call

    async def opened(self) -> None:
        """Until the other end has accepted the stream."""
        await self._call.initial_metadata()
        if self._call.done():
            raise LaneClosed("the other end refused the stream")

    async def read(self) -> bytes:
        try:
            message = await self._call.read()
        except (grpc.RpcError, grpc.aio.BaseError) as broken:
            raise LaneClosed(_why(broken), "oversized" if _was_oversized(broken) else "") from broken
        if not isinstance(message, bytes):
            raise LaneClosed("the other end closed the stream")
        return message

    async def write(self, message: bytes) -> None:
        try:
            await self._call.write(message)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as broken:
            raise LaneClosed(_why(broken)) from broken

    async def finish(self) -> bool:
        with contextlib.suppress(grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            await self._call.done_writing()
        return True

    def cancel(self) -> None:
        self._call.cancel()


def _was_oversized(broken: BaseException) -> bool:
    """Whether this end refused a message for its size. The answering end is told of no reason."""
    if not isinstance(broken, grpc.aio.AioRpcError) or broken.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return False
    return "CLIENT: Received message larger than max" in (broken.details() or "")


def _why(broken: BaseException) -> str:
    if isinstance(broken, grpc.aio.AioRpcError):
        return f"the stream broke: {broken.code().name.lower()}"
    return "the stream broke"
