"""From any one peer the whole cluster is seen, over real daemons; stale knowledge is known to be."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from peer.accounts import chronicle
from peer.daemon import waits as waiting
from peer.daemon import watch as watching
from peer.daemon.peer import Peer
from peer.gossip import digest as digests
from peer.transport.faulty import FaultyWiring
from peer.web.picture import whole
from tests.daemon.rig import Rig, config


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten digests a second."""
    monkeypatch.setattr(digests, "SAY_SECONDS", 0.1)
    monkeypatch.setattr(watching, "TELL_SECONDS", 0.025)


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    """All peers, until the test is over."""
    task = asyncio.create_task((rig if rig.peers else rig.build()).run())
    try:
        async with asyncio.timeout(30):
            yield rig
    finally:
        for peer in rig.peers:
            peer.request_stop("the test is over")
        await task


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.02)


def seen_by(peer: Peer) -> dict[str, Any]:
    """What its page would be told now."""
    return dict(json.loads(whole(peer.watch)))


def waits_seen_by(peer: Peer) -> dict[int, tuple[list[int], float]]:
    """Who waits in its open round, as its page would be told now: for whom, and how long."""
    rows = seen_by(peer)["peers"]
    return {row["peer"]: (row["waits_for"], row["waits_seconds"]) for row in rows if row.get("waits_for")}


def log_of(peer: Peer) -> str:
    return "\n".join(event.text for event in peer.watch.events)


async def test_every_peer_of_a_ring_sees_all_of_it_and_the_straggler() -> None:
    chosen = config(peers=5, topology="ring", max_rounds=None, chunk_seconds=0.004, straggler=("2=8x",))
    async with running(Rig(chosen)) as rig:
        for peer in rig.peers:
            await until(lambda peer=peer: len(peer.watch.held) == 5)  # type: ignore[misc]
            await until(lambda peer=peer: "peer 2 is a straggler" in log_of(peer))  # type: ignore[misc]
            # of the rounds since one digest: on a busy machine the others may be as slow in the few of a tenth of a second
            await until(lambda peer=peer: seen_by(peer)["peers"][2]["finished_fraction"] < 0.5)  # type: ignore[misc]
            seen = seen_by(peer)
            rows = seen["peers"]
            assert [row["state"] for row in rows] == ["training"] * 5
            assert any(closer != 2 for closer, _ in rows[2]["closed_by"]), "somebody else closes its rounds"
            assert len(seen["edges"]) == 5
            assert seen["curve"]
        told = rig.peers[0].metrics.text().decode().splitlines()
        [dropped] = [line for line in told if "dropped" in line and 'reason="digest"' in line]
        assert dropped.endswith(" 0")


@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ({"algorithm": "dpsgd"}, {0: [3], 1: [3], 2: [3]}),
        ({"algorithm": "ring-all-reduce"}, {0: [3], 1: [3], 2: [3]}),
        ({"algorithm": "sync-sgd", "head_computes": False}, {0: [3], 1: [3], 2: [3]}),
    ],
    ids=["dpsgd", "ring-all-reduce", "sync-sgd"],
)
async def test_whom_the_open_round_waits_for_is_seen_from_everywhere(
    options: dict[str, object], waits: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peer 3 stops computing in the middle of a round under a barrier, but lives: its links stay."""
    monkeypatch.setattr(waiting, "TOLD_AFTER_SECONDS", 0.3)
    chosen = config(
        **options, closing="barrier", max_rounds=None, chunk_seconds=0.004, straggler=("3=pause:60s@500ms",)
    )
    async with running(Rig(chosen)) as rig:
        for peer in rig.peers:
            await until(lambda peer=peer: waits_seen_by(peer).keys() == waits.keys())  # type: ignore[misc]
            assert {j: whom for j, (whom, _) in waits_seen_by(peer).items()} == waits
        before = waits_seen_by(rig.peers[1])
        await until(lambda: all(waits_seen_by(rig.peers[1])[j][1] > before[j][1] + 0.5 for j in waits))
        assert rig.peers[3].player.waits.told() == {}


async def test_who_waits_for_an_exchange_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring waits for each shard: none comes any more."""
    monkeypatch.setattr(waiting, "TOLD_AFTER_SECONDS", 0.3)
    rig = Rig(config(algorithm="ring-all-reduce", closing="first", max_rounds=None, chunk_seconds=0.004))
    wiring = rig.network.wiring = FaultyWiring()
    async with running(rig):
        zero = rig.peers[0]
        await until(lambda: all(peer.state == "training" and peer.player.ledger.rounds > 3 for peer in rig.peers))
        assert waits_seen_by(zero) == {}
        wiring.drop = 1.0
        await until(lambda: waits_seen_by(zero).keys() == {0, 1, 2, 3})
        for peer, (whom, seconds) in waits_seen_by(zero).items():
            assert set(whom) <= {(peer - 1) % 4, (peer + 1) % 4}
            assert seconds >= 0.3
    assert all(peer.player.waits.told() == {} for peer in rig.peers), "a round that was broken off waits for nobody"


async def test_a_peer_that_is_cut_off_is_lost_old_and_back() -> None:
    """Peers 0 - 1 - 2 - 3 - 0; peer 2 loses both its links, has them again, and goes."""
    rig = Rig(config(topology="ring", max_rounds=None, chunk_seconds=0.004))
    wiring = rig.network.wiring = FaultyWiring()
    async with running(rig):
        zero = rig.peers[0]
        await until(lambda: "peer 2 is training" in log_of(zero) or 2 in zero.watch.held)
        await until(lambda: all(peer.state == "training" for peer in rig.peers))
        for other in (1, 3):
            wiring.cut(2, other)
        await until(lambda: "peer 1 lost its edge to peer 2" in log_of(zero))
        await until(lambda: "peer 2 has not been heard of for" in log_of(zero))
        row = seen_by(zero)["peers"][2]
        assert row["age"] > chronicle.SILENT_AFTER * 0.1
        assert row["membership"] == "suspect"
        for other in (1, 3):
            wiring.heal(2, other)
        await until(lambda: "peer 2 is heard of again" in log_of(zero))
        await until(lambda: "peer 1 has its edge to peer 2 again" in log_of(zero))
        await until(lambda: seen_by(zero)["peers"][2]["membership"] == "alive")
        rig.peers[2].request_stop("it goes")
        await until(lambda: "peer 2 said goodbye" in log_of(zero))
        assert seen_by(zero)["peers"][2]["membership"] == "left"


@pytest.mark.parametrize("closing", ["barrier", "first"])
async def test_an_edge_without_a_link_is_told_once_and_not_in_every_round(
    closing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Peers 0 - 1 - 2 - 3 - 0 without the link between 1 and 2, which hear of each other by 0 and 3."""
    caplog.set_level(logging.INFO)
    rig = Rig(config(topology="ring", closing=closing, max_rounds=None, chunk_seconds=0.002))
    wiring = rig.network.wiring = FaultyWiring()
    async with running(rig):
        await until(lambda: all(peer.state == "training" for peer in rig.peers))
        wiring.cut(1, 2)
        one = rig.peers[1]
        await until(lambda: one.player.ledger.lost_by_neighbor.get(2, 0) > 20)
        if closing == "barrier":
            await until(lambda: one.watch.membership(2) == "alive")
        told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        told = [text for text in told if "peer 1" in text and "peer 2" in text]  # another may be late on a busy machine
        assert sorted(told) == ["peer 1 lost its link to peer 2: cut", "peer 2 lost its link to peer 1: cut"]
        about = [event.text for event in one.watch.events if event.peer == 2 and event.kind in ("lost", "edge")]
        assert about.count("peer 1 lost its link to peer 2: cut") == 1
        assert not [text for text in about if "silent" in text or "exchange" in text]
    assert set(one.player.ledger.edges_lost) <= {"link_down", "suspect"}


@pytest.mark.parametrize("closing", ["barrier", "first"])
async def test_that_there_never_was_a_link_is_told_once(closing: str, caplog: pytest.LogCaptureFixture) -> None:
    """Between peers that a later graph joins; a firewall between their hosts."""
    graphs = {"topology": "random-regular", "degree": 2, "random_graph_every": 2, "seed": 3}
    rig = Rig(config(peers=8, **graphs, closing=closing, max_rounds=None, chunks=1, chunk_seconds=0.004))
    wiring = rig.network.wiring = FaultyWiring()
    schedule = rig.build().peers[0].parts.schedule
    first = {edge for round in range(4) for edge in schedule.base(round).edges}
    i, j = next(edge for round in range(4, 60) for edge in schedule.base(round).edges if edge not in first)
    wiring.cut(i, j)
    async with running(rig):
        await until(lambda: all(peer.state == "training" for peer in rig.peers))
        await until(lambda: rig.peers[i].player.ledger.lost_by_neighbor.get(j, 0) > 4)
        assert f"peer {i} has no link to peer {j}" in log_of(rig.peers[i])
        told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert told.count(f"peer {i} has no link to peer {j}") == 1


async def test_a_peer_that_was_silent_before_its_links_went_down_is_lost_from_afar_too() -> None:
    """As when a cable is pulled: peers 1 and 3 miss a payload of peer 2 long before they know that their link to it is down."""
    rig = Rig(config(peers=6, topology="ring", closing="barrier", max_rounds=None, chunk_seconds=0.004))
    wiring = rig.network.wiring = FaultyWiring()
    async with running(rig):
        await until(lambda: all(peer.state == "training" for peer in rig.peers))
        for i in (1, 3):
            said = rig.peers[i]._said
            assert said is not None
            said.missed(2)  # as its deadline would; its next word would take it back
            assert rig.peers[i].watch.membership(2) == "suspect"
            wiring.cut(2, i)
        assert all(rig.peers[i].watch.membership(2) == "alive" for i in (0, 4, 5)), "a late payload is no death"
        await until(lambda: all(rig.peers[i].watch.membership(2) == "suspect" for i in (0, 4, 5)))


async def test_random_graphs_are_drawn_as_they_change() -> None:
    options = {"peers": 6, "topology": "random-regular", "degree": 3, "random_graph_every": 2}
    async with running(Rig(config(**options, max_rounds=None, chunk_seconds=0.004))) as rig:
        drawn: set[str] = set()

        def heard_and_drawn() -> bool:
            seen = seen_by(rig.peers[3])
            drawn.add(json.dumps(seen["edges"]))
            return len(drawn) > 3 and all(row["age"] is not None for row in seen["peers"])

        await until(heard_and_drawn)


async def test_a_barrier_shows_who_is_waited_for() -> None:
    chosen = config(topology="ring", closing="barrier", max_rounds=None, chunk_seconds=0.004, straggler=("2=6x",))
    async with running(Rig(chosen)) as rig:

        def waits_for_two() -> bool:
            rows = {row["peer"]: row for row in seen_by(rig.peers[0])["peers"] if row["age"] is not None}
            return all(i in rows and dict(rows[i]["waited_for"]).get(2, 0) > 0.4 for i in (0, 1, 3))

        await until(waits_for_two)
