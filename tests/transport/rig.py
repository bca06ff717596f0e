"""A small cluster of transports under test, and a listener that remembers what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peer.gossip.digest import Digest
from peer.transport.base import ExchangeHandle, ExchangeKey, Identity, LossReason, Outcome, Transport, Word
from peer.transport.faulty import FaultyWiring
from peer.transport.grpc import GrpcOptions, GrpcTransport
from peer.transport.handshake import DataPlane
from peer.transport.memory import MemoryNetwork
from peer.wire import gossip_pb2 as wire

PATIENCE_SECONDS = 10.0


class Recorder:
    """A listener whose memory can be waited on."""

    def __init__(self) -> None:
        self.words: list[tuple[int, Word]] = []
        self.links: list[tuple[int, str]] = []  # (peer, "up" or the reason of going down)
        self.refused: list[tuple[int | None, str, str]] = []
        self.dropped: list[str] = []
        self.heard: list[tuple[int, int]] = []
        self.digests: list[tuple[int, Digest]] = []
        self.traces: list[tuple[int, ExchangeKey, str]] = []
        self._changed = asyncio.Event()

    def on_word(self, peer: int, word: Word) -> None:
        self.words.append((peer, word))
        self._changed.set()

    def on_link_up(self, peer: int) -> None:
        self.links.append((peer, "up"))
        self._changed.set()

    def on_link_down(self, peer: int, reason: str) -> None:
        self.links.append((peer, reason))
        self._changed.set()

    def on_refused(self, peer: int | None, field: str, sentence: str) -> None:
        self.refused.append((peer, field, sentence))
        self._changed.set()

    def on_dropped(self, peer: int | None, reason: str) -> None:
        self.dropped.append(reason)
        self._changed.set()

    def on_heard(self, peer: int, round: int) -> None:
        self.heard.append((peer, round))
        self._changed.set()

    def on_digests(self, peer: int, digests: Sequence[Digest]) -> None:
        self.digests.extend((peer, digest) for digest in digests)
        self._changed.set()

    def on_trace(self, peer: int, key: ExchangeKey, traceparent: str) -> None:
        self.traces.append((peer, key, traceparent))
        self._changed.set()

    async def until(self, said: Callable[[], bool]) -> None:
        """Until the condition holds, looked at after everything this listener is told."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not said():
                self._changed.clear()
                await self._changed.wait()


class StubService:
    """Answers to observers with what it was given."""

    def __init__(self, reply: wire.StatusReply | None = None, vector: Tensor | None = None, round: int = 0) -> None:
        self.reply = reply or wire.StatusReply()
        self.vector = torch.zeros(0) if vector is None else vector
        self.round = round

    def status(self) -> wire.StatusReply:
        return self.reply

    async def snapshot(self) -> tuple[int, Tensor]:
        return self.round, self.vector.clone()


@dataclass
class Member:
    transport: Transport
    recorder: Recorder
    address: str

    def open(
        self, peer: int, key: ExchangeKey, send: Tensor | None, receive: Tensor | None, *, atomic: bool = True
    ) -> ExchangeHandle:
        return self.transport.exchange(peer, key, send, receive, atomic=atomic)

    async def linked_to(self, *peers: int) -> None:
        await self.recorder.until(lambda: set(peers) <= set(self.transport.linked()))


def identity(peer: int, num_peers: int = 2, **settings: str) -> Identity:
    return Identity("run", peer, num_peers, "f00d", {"lr": "0.1", **settings})


@dataclass
class Rig:
    """`carrier` is memory, grpc, or a data socket: tcp or unix."""

    carrier: str
    wiring: FaultyWiring = field(default_factory=FaultyWiring)
    grace_seconds: float = 1.0
    members: list[Member] = field(default_factory=list)
    network: MemoryNetwork | None = None

    async def start(self, who: Identity, listen: str = "127.0.0.1:0", data_plane: DataPlane | None = None) -> Member:
        transport: Transport
        if self.carrier == "memory":
            self.network = self.network or MemoryNetwork(self.wiring)
            transport = self.network.transport(who, commit_grace_seconds=self.grace_seconds)
        else:
            plane = DataPlane.GRPC if self.carrier == "grpc" else DataPlane.DIRECT
            options = GrpcOptions(
                commit_grace_seconds=self.grace_seconds,
                data_plane=plane if data_plane is None else data_plane,
                local_sockets=self.carrier == "unix",
            )
            transport = GrpcTransport(who, listen, service=StubService(), options=options)
        recorder = Recorder()
        member = Member(transport, recorder, await transport.start(recorder))
        self.members.append(member)
        return member

    async def pair(self) -> tuple[Member, Member]:
        a, b = await self.cluster(2)
        return a, b

    async def cluster(self, num_peers: int) -> list[Member]:
        """All peers, all linked."""
        members = [await self.start(identity(i, num_peers)) for i in range(num_peers)]
        addresses = {i: member.address for i, member in enumerate(members)}
        for i, member in enumerate(members):
            member.transport.connect(without(addresses, i))
        for i, member in enumerate(members):
            await member.linked_to(*without(addresses, i))
        return members

    async def stop(self) -> None:
        for member in self.members:
            await member.transport.stop()


def without(addresses: Mapping[int, str], peer: int) -> dict[int, str]:
    return {other: address for other, address in addresses.items() if other != peer}


async def ends(*handles: ExchangeHandle) -> list[LossReason | None]:
    """How exchanges ended."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [(await handle.outcome).lost for handle in handles]


async def ended(handle: ExchangeHandle) -> Outcome:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await handle.outcome
