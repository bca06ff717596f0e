"""Under drops, damage and cuts, both ends of an atomic exchange commit, or both lose it; see
peer/transport/exchange.py."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch

from peer.transport.base import ExchangeKey, LossReason, Outcome
from peer.transport.codec import FRAME_BYTES
from peer.transport.faulty import FaultyWiring

from .rig import PATIENCE_SECONDS, Member, Rig, without

SIZE = 600_000  # two frames
ROUNDS = 40
Record = dict[tuple[int, int, int], Outcome]  # by (round, peer, other peer)


async def play(rig: Rig, members: list[Member], first: int, rounds: int, *, cutting: bool = False) -> Record:
    """Every peer exchanges its marked vector with every other in each round. No clock decides anything: a peer waits for each
    exchange that the script of faults lets through, and then gives up the others."""
    dice = random.Random(5)
    record: Record = {}
    for k in range(first, first + rounds):
        cut: asyncio.TimerHandle | None = None
        if cutting:
            await mend(members, rig.wiring)
            i, j = sorted(dice.sample(range(3), 2))
            cut = asyncio.get_running_loop().call_later(dice.random() * 0.008, rig.wiring.cut, i, j)
        async with asyncio.timeout(PATIENCE_SECONDS):
            ended = await asyncio.gather(*(play_round(rig.wiring, members, me, k) for me in range(len(members))))
        record |= {(k, i, j): outcome for i, outcomes in enumerate(ended) for j, outcome in outcomes.items()}
        if cut is not None:
            cut.cancel()
    return record


async def mend(members: list[Member], wiring: FaultyWiring) -> None:
    for i, member in enumerate(members):
        others = without(dict.fromkeys(range(len(members)), ""), i)
        for j in others:
            wiring.heal(i, j)
        await member.linked_to(*others)


async def play_round(wiring: FaultyWiring, members: list[Member], me: int, k: int) -> dict[int, Outcome]:
    others = [j for j in range(len(members)) if j != me]
    key, outbox = ExchangeKey(k, 0), torch.full((SIZE,), float(100 * k + me))
    inbox = {j: torch.zeros(SIZE) for j in others}
    handles = {j: members[me].open(j, key, outbox, inbox[j]) for j in others}
    for j in others:
        if not breaks_off(wiring, me, j, key):
            await handles[j].outcome
    for handle in handles.values():
        handle.give_up()
    outcomes = {j: await handle.outcome for j, handle in handles.items()}
    for j, outcome in outcomes.items():
        if outcome.lost is None:  # what was committed is what was sent, all of it
            assert torch.equal(inbox[j], torch.full((SIZE,), float(100 * k + j)))
    members[me].transport.advance(ExchangeKey(k + 1, 0))
    return outcomes


def breaks_off(wiring: FaultyWiring, i: int, j: int, key: ExchangeKey) -> bool:
    return any(wiring.breaks_off(*ends, key, 4 * SIZE) is not None for ends in ((i, j), (j, i)))


def is_damaged(wiring: FaultyWiring, i: int, j: int, key: ExchangeKey) -> bool:
    offsets = range(0, 4 * SIZE, FRAME_BYTES)
    return any(wiring.damages(*ends, key, offset) for ends in ((i, j), (j, i)) for offset in offsets)


def disagreements(record: Record) -> list[tuple[Outcome, Outcome]]:
    pairs = [(outcome, record[k, j, i]) for (k, i, j), outcome in record.items() if i < j]
    return [pair for pair in pairs if (pair[0].lost is None) != (pair[1].lost is None)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_lost_and_damaged_payloads_never_split_a_pair(seed: int) -> None:
    rig = Rig("memory", FaultyWiring(seed, drop=0.15, corrupt=0.03, delay_seconds=0.001), grace_seconds=0.1)
    try:
        record = await play(rig, await rig.cluster(3), 0, ROUNDS)
    finally:
        await rig.stop()
    assert disagreements(record) == []
    for (k, i, j), outcome in record.items():
        key = ExchangeKey(k, 0)
        struck = breaks_off(rig.wiring, i, j, key) or is_damaged(rig.wiring, i, j, key)
        assert (outcome.lost is not None) == struck, (k, i, j)
    lost = [outcome.lost for outcome in record.values()]
    assert {None, LossReason.CORRUPT, LossReason.DECLINED, LossReason.DEADLINE} <= set(lost)
    assert rig.wiring.counts.payloads_dropped > 10
    assert rig.wiring.counts.frames_corrupted > 3


async def test_cut_links_split_a_pair_at_most_once_per_cut_and_only_as_link_down() -> None:
    rig = Rig("memory", FaultyWiring(7, drop=0.05), grace_seconds=0.1)
    try:
        members = await rig.cluster(3)
        record = await play(rig, members, 0, ROUNDS, cutting=True)
        await mend(members, rig.wiring)
        rig.wiring.drop = 0.0
        after = await play(rig, members, ROUNDS, 3)
    finally:
        await rig.stop()
    assert all(outcome.lost is None for outcome in after.values())
    split = disagreements(record)
    assert len(split) <= rig.wiring.counts.cuts
    for pair in split:
        assert {outcome.lost for outcome in pair} == {None, LossReason.LINK_DOWN}
    lost = [outcome.lost for outcome in record.values()]
    assert lost.count(None) >= 2 * ROUNDS  # two of three edges are not cut in a round, a few payloads break off
