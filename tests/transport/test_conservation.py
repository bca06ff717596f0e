"""Under drops, damage and cuts, both ends of an atomic exchange commit, or both lose it; see
peer/transport/exchange.py."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch

from peer.transport.base import ExchangeKey, LossReason, Outcome
from peer.transport.faulty import FaultyWiring

from .rig import Member, Rig, without

SIZE = 600_000  # two frames
ROUNDS = 40


async def play(
    members: list[Member], rounds: int, patience: float, cuts: FaultyWiring | None, first: int = 0
) -> list[dict[int, Outcome]]:
    """Every peer exchanges its marked vector with every other in each round; by (round, peer): outcomes by other
    peer."""
    dice = random.Random(5)
    record: list[dict[int, Outcome]] = []
    for k in range(first, first + rounds):
        cut: asyncio.TimerHandle | None = None
        if cuts is not None:
            await mend(members, cuts)
            i, j = sorted(dice.sample(range(3), 2))
            cut = asyncio.get_running_loop().call_later(dice.random() * 0.008, cuts.cut, i, j)
        record += await asyncio.gather(*(play_round(m, i, len(members), k, patience) for i, m in enumerate(members)))
        if cut is not None:
            cut.cancel()
    return record


async def mend(members: list[Member], wiring: FaultyWiring) -> None:
    for i, member in enumerate(members):
        others = without(dict.fromkeys(range(len(members)), ""), i)
        for j in others:
            wiring.heal(i, j)
        await member.linked_to(*others)


async def play_round(member: Member, me: int, num_peers: int, k: int, patience: float) -> dict[int, Outcome]:
    others = [j for j in range(num_peers) if j != me]
    outbox = torch.full((SIZE,), float(100 * k + me))
    inbox = {j: torch.zeros(SIZE) for j in others}
    handles = {j: member.open(j, ExchangeKey(k, 0), outbox, inbox[j]) for j in others}
    _, late = await asyncio.wait([h.outcome for h in handles.values()], timeout=patience)
    for handle in handles.values():
        if handle.outcome in late:
            handle.give_up()
    outcomes = {j: await handle.outcome for j, handle in handles.items()}
    for j, outcome in outcomes.items():
        if outcome.lost is None:  # what was committed is what was sent, all of it
            assert torch.equal(inbox[j], torch.full((SIZE,), float(100 * k + j)))
    member.transport.advance(ExchangeKey(k + 1, 0))
    return outcomes


def disagreements(record: list[dict[int, Outcome]], num_peers: int) -> list[tuple[Outcome, Outcome]]:
    pairs = []
    for k in range(len(record) // num_peers):
        one = record[k * num_peers : (k + 1) * num_peers]
        pairs += [(one[i][j], one[j][i]) for i in range(num_peers) for j in range(i)]
    return [pair for pair in pairs if (pair[0].lost is None) != (pair[1].lost is None)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_lost_and_damaged_payloads_never_split_a_pair(seed: int) -> None:
    rig = Rig("memory", FaultyWiring(seed, drop=0.15, corrupt=0.03, delay_seconds=0.001))
    try:
        members = await rig.cluster(3)
        record = await play(members, ROUNDS, patience=0.05, cuts=None)
    finally:
        await rig.stop()
    assert disagreements(record, 3) == []
    lost = [outcome.lost for outcomes in record for outcome in outcomes.values() if outcome.lost is not None]
    assert rig.wiring.counts.payloads_dropped > 10
    assert rig.wiring.counts.frames_corrupted > 3
    assert {LossReason.CORRUPT, LossReason.DECLINED} <= set(lost)
    assert 20 < len(lost) < len(record)


async def test_cut_links_split_a_pair_at_most_once_per_cut_and_only_as_link_down() -> None:
    rig = Rig("memory", FaultyWiring(7, drop=0.05), grace_seconds=0.5)
    try:
        members = await rig.cluster(3)
        record = await play(members, ROUNDS, patience=0.05, cuts=rig.wiring)
        await mend(members, rig.wiring)
        assert disagreements(await play(members, 3, 5.0, None, first=ROUNDS), 3) == []
    finally:
        await rig.stop()
    split = disagreements(record, 3)
    assert len(split) <= rig.wiring.counts.cuts
    for pair in split:
        assert {outcome.lost for outcome in pair} == {None, LossReason.LINK_DOWN}
    outcomes = [outcome.lost for by_peer in record for outcome in by_peer.values()]
    assert LossReason.LINK_DOWN in outcomes
    assert outcomes.count(None) > len(outcomes) // 8
