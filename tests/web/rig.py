"""A watch that has heard of a cluster, a server that shows it, and callers that read as slowly as a test wants."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from peer.assembly import make_schedule
from peer.daemon.counts import PeerMetrics
from peer.daemon.watch import Watch
from peer.gossip.digest import Digest
from peer.web.server import WebServer
from tests.daemon.rig import config

PATIENCE_SECONDS = 10.0
TRAINING = 2


def watch(num_peers: int = 4, **values: object) -> Watch:
    """Peer 0's, who has heard all the others say a digest, and has said its own. How often peers speak does not slow the pages."""
    chosen = config(peers=num_peers, topology="ring", **values)
    made = Watch(0, chosen, make_schedule(chosen), lambda: digest(0))
    made.heard(1, [digest(peer) for peer in range(1, num_peers)])
    made._say(made.now())
    made.every = 0.0
    return made


def digest(peer: int, **values: Any) -> Digest:
    told = Digest(
        peer,
        stamp=10,
        state=TRAINING,
        round=12,
        seconds=3.0,
        samples=400,
        samples_per_second=100.0,
        train_loss=0.5,
        computing=0.5,
        waiting=0.25,
        exchanging=0.125,
        mixing=0.0625,
        finished_fraction=1.0,
        closed_rounds={"quota": 9, "word": 3},
    )
    return told._replace(**values)


@dataclass
class Site:
    server: WebServer
    port: int
    metrics: PeerMetrics

    async def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        """Status, headers (names in lower case) and body of a plain HTTP/1.1 request on a connection of its own."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await self.ask(path, headers)
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        return understood(answer)

    async def says(self, *said: bytes) -> bytes:
        """All that comes until the end for one who says this, whatever it is, and goes on listening."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            for part in said:
                writer.write(part)
                await asyncio.sleep(0.001)
            answer = await reader.read()
            writer.transport.abort()
        return answer

    async def ask(
        self, path: str, headers: Mapping[str, str] = MappingProxyType({}), *, close: bool = True
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        sent = {"Host": f"127.0.0.1:{self.port}", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if close:
            sent["Connection"] = "close"
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items() if value)]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        return reader, writer

    async def stream(self) -> Stream:
        reader, writer = await self.ask("/events", close=False)
        return Stream(reader, writer)

    def deaf(self) -> socket.socket:
        """Asks for events and reads nothing of the answer; its own buffer is as small as the system allows."""
        caller = socket.socket()
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        caller.connect(("127.0.0.1", self.port))
        caller.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return caller


def understood(answer: bytes) -> tuple[int, dict[str, str], str]:
    """Status, headers (names in lower case) and body of one answer."""
    head, _, body = answer.decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    named = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), named, body


@dataclass
class Stream:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def status(self) -> int:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return int((await self.reader.readline()).split()[1])

    async def event(self, name: str) -> dict[str, Any]:
        """The data of the next event of that name."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await self.reader.readline()) != f"event: {name}\n".encode():
                if self.reader.at_eof():
                    raise EOFError(f"the stream ended without {name}")
            line = await self.reader.readline()
        data = json.loads(line.removeprefix(b"data: "))
        assert isinstance(data, dict)
        return data

    async def ended(self) -> bool:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.reader.read()
        return self.reader.at_eof()

    def close(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def site(watched: Watch | None = None, host: str = "127.0.0.1", names: Sequence[str] = ()) -> AsyncIterator[Site]:
    metrics = PeerMetrics("run", 0)
    for _ in range(3):
        metrics.word("new")
    server = WebServer(watched or watch(), metrics, names)
    port = await server.start(host, 0)
    try:
        yield Site(server, port, metrics)
    finally:
        await server.stop()
