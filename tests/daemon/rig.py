"""Several peers in one event loop, over memory or over gRPC: the daemon itself, without processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from peer.accounts.summary import PeerSummary
from peer.config import Config, validated
from peer.daemon.peer import Bound, Peer
from peer.transport.base import Transport
from peer.transport.grpc import GrpcTransport
from peer.transport.memory import MemoryNetwork

TASK = "tests.daemon.tasks:Linear"


def config(**values: object) -> Config:
    small: dict[str, object] = {
        "peers": 4,
        "task": TASK,
        "batch_size": 8,
        "chunks": 4,
        "lr": 0.02,
        "start_timeout": 20.0,
        "trainer": "thread",  # many peers and their threads in one process are nothing to fork from
    }
    return validated({**small, "metrics_port": -1, "max_rounds": 10, **values})


@dataclass(slots=True)
class Rig:
    """All peers of one config. over: "memory" or "grpc"."""

    config: Config
    over: str = "memory"
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    peers: list[Peer] = field(default_factory=list)
    transports: list[Transport] = field(default_factory=list)
    configs: dict[int, Config] = field(default_factory=dict)
    _addresses: dict[int, str] = field(default_factory=dict)

    def build(self) -> Rig:
        for i in range(self.config.peers):
            peer = Peer(self.configs.get(i, self.config), i)
            self.peers.append(peer)
            if self.over == "memory":
                self.transports.append(self.network.transport(peer.parts.identity))
            else:
                self.transports.append(GrpcTransport(peer.parts.identity, "127.0.0.1:0", service=peer))
        return self

    async def run(self, *, delays: Sequence[float] | None = None) -> list[PeerSummary]:
        """Run all peers to their end; a peer that fails ends the others and the failure is raised."""
        if not self.peers:
            self.build()
        async with asyncio.timeout(50):
            tasks = [
                asyncio.create_task(self._run(i, delays[i] if delays else 0.0), name=f"peer-{i}")
                for i in range(len(self.peers))
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if any(task.exception() for task in done):
                for peer in self.peers:
                    peer.request_stop("another peer failed")
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, PeerSummary)]

    async def _run(self, i: int, delay: float) -> PeerSummary:
        await asyncio.sleep(delay)
        return await self.peers[i].run(self.transports[i], self.address_book)

    @property
    def address_book(self) -> Callable[[Bound], Awaitable[Sequence[str]]]:
        everybody = asyncio.Event()

        async def book(bound: Bound) -> Sequence[str]:
            self._addresses[bound.peer] = bound.address
            while len(self._addresses) < self.config.peers:
                await asyncio.sleep(0.005)
            everybody.set()
            return [self._addresses[i] for i in range(self.config.peers)]

        return book
