"""The end of a run: who is done leaves, and a neighbour that is slower still has all it needs."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
import torch

from peer.transport import linked
from peer.transport.lane import Lane, MemoryLane
from peer.transport.linked import FLUSH_SECONDS
from peer.transport.memory import MemoryNetwork
from tests.daemon.rig import Rig, config

ROUNDS = 3
LAST = (ROUNDS - 1, 0)  # round and phase of the last exchange of a ring of two
_KEY = struct.Struct("<QI")  # from byte 16 of a frame on


@dataclass
class SlowReader:
    """A wiring over which peer 1 takes the last vector of peer 0 when `may` is done, no sooner."""

    may: Callable[[], Awaitable[object]]

    def reachable(self, here: int, there: int) -> bool:
        return True

    def wire(self, here: int, there: int, control: MemoryLane, bulk: MemoryLane) -> tuple[Lane, Lane]:
        return control, SlowLane(bulk, self.may) if (here, there) == (1, 0) else bulk


class SlowLane:
    def __init__(self, lane: MemoryLane, may: Callable[[], Awaitable[object]]) -> None:
        self._lane = lane
        self._may = may
        self.write, self.finish = lane.write, lane.finish

    async def read(self) -> bytes:
        message = await self._lane.read()
        if _KEY.unpack_from(message, 16) == LAST:
            await self._may()
        return message


def ring(may: Callable[[], Awaitable[object]]) -> Rig:
    settings = config(algorithm="ring-all-reduce", closing="barrier", max_rounds=ROUNDS, peers=2)
    return Rig(settings, network=MemoryNetwork(SlowReader(may))).build()


async def until_it_leaves(rig: Rig, over: asyncio.Event) -> None:
    while rig.peers[0].state != "draining" and not over.is_set():
        await asyncio.sleep(0.005)


async def test_a_neighbor_that_reads_slowly_ends_with_as_many_rounds_and_the_same_bits() -> None:
    """Its last shard is still on the way when the peer that sent it is done."""
    over = asyncio.Event()

    async def when_it_has_left() -> None:
        await until_it_leaves(rig, over)
        await asyncio.sleep(1.5 * FLUSH_SECONDS)

    rig = ring(when_it_has_left)
    try:
        assert [summary.rounds for summary in await rig.run()] == [ROUNDS] * 2
    finally:
        over.set()
    assert torch.equal(rig.peers[0].player.master.params, rig.peers[1].player.master.params)


async def test_a_peer_that_is_told_to_stop_does_not_wait_for_a_slow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linked, "READ_SECONDS", 0.1)
    gone = asyncio.Event()
    rig = ring(gone.wait)

    async def tell() -> None:
        await until_it_leaves(rig, gone)
        rig.peers[0].request_stop("enough")
        while 0 in rig.transports[1].linked():
            await asyncio.sleep(0.005)
        gone.set()

    telling = asyncio.create_task(tell())
    summaries = await rig.run()
    await telling
    assert [summary.rounds for summary in summaries] == [ROUNDS, ROUNDS - 1]
    assert summaries[1].stop_reason.startswith("peer 0 left")
