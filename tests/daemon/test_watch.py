"""From any one peer the whole cluster is seen, over real daemons; stale knowledge is known to be."""

from __future__ import annotations

import asyncio
import json

import pytest

from peer.accounts import chronicle
from peer.daemon import watch as watching
from peer.gossip import digest as digests
from peer.transport.faulty import FaultyWiring
from peer.web.picture import whole
from tests.daemon.rig import Rig, config


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten digests a second."""
    monkeypatch.setattr(digests, "SAY_SECONDS", 0.1)
    monkeypatch.setattr(watching, "TELL_SECONDS", 0.025)


async def test_every_peer_of_a_ring_sees_all_of_it_and_the_straggler() -> None:
    rig = Rig(
        config(peers=5, topology="ring", max_rounds=None, max_seconds=1.0, chunk_seconds=0.004, straggler=("2=8x",))
    )
    await rig.run()
    for peer in rig.peers:
        seen = json.loads(whole(peer.watch))
        assert [row["age"] is not None for row in seen["peers"]] == [True] * 5
        assert min(row["round"] for row in seen["peers"]) > 5
        finished = [row["finished_fraction"] for row in seen["peers"]]
        assert finished[2] < 0.5 < min(finished[:2] + finished[3:])
        assert len(seen["edges"]) == 5
        assert len(seen["curve"]) > 3
        assert any(event["text"].startswith("peer 2 is a straggler") for event in seen["events"])
        assert peer.metrics.registry.get_sample_value("grapevine_dropped_messages_total", {"reason": "digest"}) is None


async def test_a_peer_that_is_cut_off_is_lost_old_and_back() -> None:
    """Peers 0 - 1 - 2 - 3 - 0; peer 2 loses both its links, then has them again."""
    rig = Rig(config(topology="ring", max_rounds=None, chunk_seconds=0.004)).build()
    wiring = rig.network.wiring = FaultyWiring()
    running = asyncio.create_task(rig.run())
    seen = rig.peers[0].watch
    log = [""]

    async def until(text: str) -> None:
        async with asyncio.timeout(15):
            while not any(text in line for line in log):
                await asyncio.sleep(0.02)
                log[:] = [event.text for event in seen.events]

    try:
        await until("peer 2 is training")
        for other in (1, 3):
            wiring.cut(2, other)
        await until("peer 1 lost its edge to peer 2")
        await until("peer 2 has not been heard of for")
        row = json.loads(whole(seen))["peers"][2]
        assert row["age"] > chronicle.SILENT_AFTER * 0.1
        assert row["membership"] == "suspect"
        for other in (1, 3):
            wiring.heal(2, other)
        await until("peer 2 is heard of again")
        await until("peer 1 has its edge to peer 2 again")
        async with asyncio.timeout(10):
            while (row := json.loads(whole(seen))["peers"][2])["membership"] != "alive" or row["age"] > 1.0:
                await asyncio.sleep(0.02)
        rig.peers[2].request_stop("it goes")
        await until("peer 2 said goodbye")
        assert json.loads(whole(seen))["peers"][2]["membership"] == "left"
    finally:
        for peer in rig.peers:
            peer.request_stop("the test is over")
        await running


async def test_random_graphs_are_drawn_as_they_change() -> None:
    rig = Rig(
        config(
            peers=6,
            topology="random-regular",
            degree=3,
            random_graph_every=2,
            max_rounds=None,
            max_seconds=0.8,
            chunk_seconds=0.004,
        )
    )
    await rig.run()
    for peer in rig.peers:
        assert set(peer.watch.held) == set(range(6))
        assert list(peer.watch.edges()) == list(peer.parts.schedule.base(peer.watch.held[peer.peer].digest.round).edges)
