"""The yardstick of bench/exchange.py for words over gRPC: what grpc.aio itself takes for 64 bytes and as many back, with its own defaults
and nothing around it, as unary calls or as messages of one stream."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from crew import Order, Post, Vectors, run_on_uvloop, serve_on_loop
from movers import RAW_WORD, WORDS

SERVICE = "bench.Words"


async def _unary(request: bytes, context: Any) -> bytes:
    return request


async def _stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


class Words:
    """kind: unary or stream. Member 1 answers member 0."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._server = grpc.aio.server()
        self._channel: grpc.aio.Channel | None = None

    async def start(self) -> str:
        handlers: dict[str, Any] = {
            "unary": grpc.unary_unary_rpc_method_handler(_unary),
            "stream": grpc.stream_stream_rpc_method_handler(_stream),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def connect(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        await self._channel.channel_ready()

    async def play(self, order: Order, vectors: Vectors) -> dict[str, float]:
        """The median round trip, at the end that asks."""
        if self._channel is None:
            return {}
        seconds = []
        if self._kind == "unary":
            ask: Any = self._channel.unary_unary(f"/{SERVICE}/unary")
            for _ in range(WORDS):
                begun = time.monotonic()
                await ask(RAW_WORD)
                seconds.append(time.monotonic() - begun)
        else:
            call: Any = self._channel.stream_stream(f"/{SERVICE}/stream")()
            for _ in range(WORDS):
                begun = time.monotonic()
                await call.write(RAW_WORD)
                await call.read()
                seconds.append(time.monotonic() - begun)
            call.cancel()
        return {"median round trip": sorted(seconds)[WORDS // 2]}

    async def stop(self) -> None:
        if self._channel is not None:
            await self._channel.close()
        await self._server.stop(None)


def words_main(rank: int, size: int, end: socket.socket, kind: str) -> None:
    post = Post(end)

    async def live() -> None:
        words = Words(kind)
        post.say("address", await words.start())
        addresses = await post.hear_on_loop()
        if rank == 0:
            await words.connect(addresses[1])
        await serve_on_loop(post, words.play, lambda order, vectors: None)
        await words.stop()

    run_on_uvloop(live)
