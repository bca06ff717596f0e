"""A neighbour that agrees as a peer does and then sends its vector a byte at a time, against the deadline of real daemons."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from peer.daemon.peer import Peer
from peer.gossip.delivery import PRESETS, DeadlineBounds
from peer.transport.base import ExchangeKey, LossReason, Transport
from peer.transport.exchange import byte_view
from peer.transport.grpc import GrpcOptions, GrpcTransport
from peer.transport.handshake import DataPlane
from peer.wire import gossip_pb2 as wire
from tests.daemon.rig import Rig, config
from tests.daemon.tasks import Wide
from tests.daemon.test_metrics import told
from tests.transport.caller import Caller, framed

PACE_SECONDS = 0.02
"""Between two bytes: the vector would take a quarter of an hour."""

ROUNDS = 5
"""So many go on while it comes."""


class Long(Wide):
    outputs = 2000


VECTOR = np.zeros(7 * Long.outputs, "<f4").tobytes()


class Trickler(Caller):
    """Peer 0. whole_frame: what comes byte by byte is one frame of all the vector; else each byte is a frame."""

    def __init__(self, address: str, kind: str, peer: Peer, *, whole_frame: bool) -> None:
        super().__init__(address, kind, peer.parts.identity)
        self.newest = -1  # of the rounds that are said to be closed
        self.heard: list[tuple[str | None, int]] = []  # votes and aborts: of which round
        self._whole_frame = whole_frame
        self._sent = 0
        self._mends = False
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Join, be ready, and read what the other end sends, so that it is this one alone that is slow."""
        await self.join()
        await self.say(wire.ControlMessage(word=wire.Word(kind=wire.WORD_KIND_READY, origin=0)))
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._read_vectors())]
        self.trickling = asyncio.create_task(self._trickle())

    async def _trickle(self) -> None:
        message = framed(self.piece(0, VECTOR, 0, len(VECTOR)))
        while not self._mends:
            at, self._sent = self._sent, self._sent + 1
            if not self._whole_frame:
                await self.send(self.piece(0, VECTOR, at, at + 1))
            else:
                assert self.socket is not None
                # the header at once: without it nobody knows whose byte this is
                first, last = (at and at + len(message) - len(VECTOR), at + 1 + len(message) - len(VECTOR))
                await asyncio.get_running_loop().sock_sendall(self.socket, message[first:last])
            await asyncio.sleep(PACE_SECONDS)

    async def mend(self) -> None:
        """Be a good neighbour from now on: what was begun comes to its end, and so does one vector of a round that is to come."""
        self._mends = True
        await self.trickling  # not cancelled: within a write that would end gRPC's call
        if self._whole_frame:
            assert self.socket is not None
            await asyncio.get_running_loop().sock_sendall(self.socket, VECTOR[self._sent :])
        while not any(said == "vote" for said, _ in self.heard):
            round = self.newest + 2
            await self.send(self.piece(round, VECTOR, 0, len(VECTOR)))
            await self.say(wire.ControlMessage(vote=wire.Vote(round=round)))
            while ("vote", round) not in self.heard and ("abort", round) not in self.heard:
                await asyncio.sleep(0.005)

    async def _listen(self) -> None:
        while True:
            message = await self.hear()
            said = message.WhichOneof("body")
            if said == "word" and message.word.kind == wire.WORD_KIND_CLOSED:
                self.newest = max(self.newest, message.word.round)
            elif said in ("vote", "abort"):
                self.heard.append((said, getattr(message, said).round))

    async def _read_vectors(self) -> None:
        while True:
            if self.socket is not None:
                assert await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)
            else:
                await self.bulk.read()

    async def leave(self) -> None:
        for task in (*self._tasks, self.trickling):
            task.cancel()
        await asyncio.wait((*self._tasks, self.trickling))
        await super().leave()


class Edge:
    """What the exchanges of a peer with peer 0 came to. kept: the memory of the first one that is still held for it."""

    def __init__(self, transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lost: list[LossReason | None] = []
        self._views: list[weakref.ref[Any]] | None = None
        opens = transport.exchange

        def exchange(peer: int, key: ExchangeKey, *vectors: Any, **how: Any) -> Any:
            with monkeypatch.context() as patch:
                if peer == 0 and self._views is None:
                    self._views = []
                    patch.setattr("peer.transport.exchange.byte_view", self._view)
                handle = opens(peer, key, *vectors, **how)
            if peer == 0:
                handle.outcome.add_done_callback(lambda outcome: self.lost.append(outcome.result().lost))
            return handle

        monkeypatch.setattr(transport, "exchange", exchange)

    @property
    def kept(self) -> list[Any]:
        assert self._views is not None
        assert len(self._views) == 2  # of what was sent and what was to come
        return [view() for view in self._views if view() is not None]

    def _view(self, tensor: Tensor) -> memoryview:
        made = byte_view(tensor)
        assert self._views is not None
        self._views.append(weakref.ref(made.obj))
        return made


async def until(peers: list[Peer], rounds: int) -> None:
    while any(peer.player.ledger.rounds < rounds for peer in peers):
        await asyncio.sleep(0.01)


def two_of_three(kind: str) -> Rig:
    """Peers 1 and 2, who know all; peer 0 is built, to know how it would greet, and never runs."""
    settings = config(
        peers=3, topology="complete", task="tests.daemon.test_trickle:Long", max_rounds=None, chunk_seconds=0.002
    )
    made = Rig(settings, "grpc")
    plane = DataPlane.GRPC if kind == "grpc" else DataPlane.DIRECT
    options = GrpcOptions(data_plane=plane, local_sockets=kind == "unix")
    made.peers = [Peer(made.config, i) for i in range(3)]
    made.transports = [
        GrpcTransport(peer.parts.identity, "127.0.0.1:0", service=peer, options=options) for peer in made.peers[1:]
    ]
    made._addresses[0] = "127.0.0.1:9"
    return made


@pytest.mark.parametrize(
    ("kind", "whole_frame"),
    [("grpc", False), ("tcp", False), ("unix", False), ("tcp", True), ("unix", True)],  # gRPC hands over whole messages
)
async def test_a_byte_at_a_time_costs_the_edge_until_the_neighbor_mends(
    monkeypatch: pytest.MonkeyPatch, kind: str, *, whole_frame: bool
) -> None:
    monkeypatch.setitem(PRESETS, "local", DeadlineBounds(least=0.5, most=0.5))
    rig = two_of_three(kind)
    bad = rig.peers.pop(0)
    edges = [Edge(made, monkeypatch) for made in rig.transports]
    running = asyncio.create_task(rig.run())
    async with asyncio.timeout(40):
        while len(rig._addresses) < 3:
            await asyncio.sleep(0.01)
        tricklers = [Trickler(rig._addresses[i], kind, bad, whole_frame=whole_frame) for i in (1, 2)]
        await asyncio.gather(*(trickler.begin() for trickler in tricklers))

        await until(rig.peers, ROUNDS)
        assert not any(trickler.trickling.done() for trickler in tricklers)
        gc.collect()
        for peer, edge, trickler in zip(rig.peers, edges, tricklers, strict=True):
            assert edge.lost[0] is LossReason.DEADLINE
            assert not edge.kept, "an exchange that was given up keeps vectors for as long as the other's comes"
            assert ("abort", 0) in trickler.heard
            assert told(peer.metrics)["grapevine_neighbor_missed_payloads_total"]["0", "deadline"] >= 1

        await asyncio.gather(*(trickler.mend() for trickler in tricklers))
        for peer, edge in zip(rig.peers, edges, strict=True):
            while None not in edge.lost:
                await asyncio.sleep(0.01)
            dropped = told(peer.metrics)["grapevine_dropped_messages_total"]
            assert dropped["late",] + dropped["stale",] >= 1
            assert peer.player.ledger.lost_by_neighbor[0] >= 1
        for peer in rig.peers:
            peer.request_stop("the test is over")
        for trickler in tricklers:
            await trickler.leave()
        await running
