"""Whoever asks a peer and is no peer: for its status, a snapshot, its health, its schema. Their calls are bounded (callers.py), as every
call takes one of the places that gRPC has for all, peers too.

A question is over within ASK_SECONDS, from its first byte to the last of the answer: either may be withheld by the caller. Of a connection
QUESTIONS_AT_ONCE may be under way. Who watches or reads the schema may stay, CALLS_AT_ONCE of a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from peer.transport.callers import CALLS_AT_ONCE, Callers
from peer.transport.streams import Context, end

ASK_SECONDS: Final = 5.0
QUESTIONS_AT_ONCE: Final = 32

Answer = Callable[[Any, Context], Coroutine[Any, Any, Any]]


class Health:
    """What grpc.health.v1 says of each service. That of grpcio-health-checking tells who watches one after the other, so that one who
    reads nothing holds up the others, and the end of the peer."""

    def __init__(self, services: Sequence[str]) -> None:
        self._states = dict.fromkeys(services, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._changed = asyncio.Event()

    def set(self, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        self._states = dict.fromkeys(self._states, states.SERVING if serving else states.NOT_SERVING)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def check(self, request: Any, context: Context) -> Any:
        if request.service not in self._states:
            await end(context, grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=self._states[request.service])

    async def watch(self, request: Any, context: Context) -> None:
        told = None
        while True:
            changed = self._changed
            state = self._states.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if state != told:
                await context.write(health_pb2.HealthCheckResponse(status=state))
                told = state
            await changed.wait()


class Observers:
    """`refused` is told why somebody was turned away: crowd, silent."""

    def __init__(self, refused: Callable[[str], None]) -> None:
        self._asking = Callers(refused, QUESTIONS_AT_ONCE)
        self._staying = Callers(refused, CALLS_AT_ONCE)

    def question(self, answer: Answer, request: Any, reply: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """A method with one request and one reply. To gRPC it is a stream: else gRPC itself would wait for them, for ever."""

        async def asked(_requests: AsyncIterator[Any], context: Context) -> None:
            async with self._asking.call(context), asyncio.timeout(ASK_SECONDS) as patience:
                with self._asking.waiting(patience):
                    await context.write(await answer(await _request(context), context))

        return _handler(asked, request, reply)

    def reading(self, answer: Answer, request: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """A method that is answered in many messages, and bounds itself how many at once and how long."""

        async def asked(_requests: AsyncIterator[Any], context: Context) -> None:
            async with self._asking.call(context):
                async with asyncio.timeout(ASK_SECONDS) as patience:
                    with self._asking.waiting(patience):
                        said = await _request(context)
                await answer(said, context)

        return _handler(asked, request, None)

    def watching(self, answer: Answer, request: Any, reply: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """A method that answers one request for as long as the caller likes."""

        async def asked(_requests: AsyncIterator[Any], context: Context) -> None:
            async with self._staying.call(context), asyncio.timeout(ASK_SECONDS) as patience:
                with self._staying.waiting(patience):
                    said = await _request(context)
                    patience.reschedule(None)
                    await answer(said, context)

        return _handler(asked, request, reply)

    def health(self, states: Health) -> grpc.GenericRpcHandler:
        request, reply = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
        methods = {
            "Check": self.question(states.check, request, reply),
            "Watch": self.watching(states.watch, request, reply),
        }
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)

    def schema(self, service: str) -> grpc.GenericRpcHandler:
        """Reflection, for grpcurl."""
        known = reflection.aio.ReflectionServicer((service, health.SERVICE_NAME, reflection.SERVICE_NAME))

        async def asked(requests: AsyncIterator[Any], context: Context) -> None:
            async with self._staying.call(context), asyncio.timeout(None) as patience:
                with self._staying.waiting(patience):
                    async for reply in known.ServerReflectionInfo(requests, context):
                        await context.write(reply)

        method = _handler(
            asked,
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": method})


def _handler(asked: Callable[..., Any], request: Any, reply: Any) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.stream_stream_rpc_method_handler(asked, request, reply)


async def _request(context: Context) -> Any:
    """The one request of a call."""
    said = await context.read()
    if said is grpc.aio.EOF:
        await end(context, grpc.StatusCode.INVALID_ARGUMENT, "no request")
    return said
