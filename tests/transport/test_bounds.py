"""A reader that is slow, or reads nothing, does not make the writer's process grow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from peer.transport.base import ExchangeKey, LossReason

from .rig import PATIENCE_SECONDS, Member, Rig, ended, ends

K = ExchangeKey
MIB = 1 << 20
SIZE = 10 * MIB  # elements: 40 MiB
AHEAD = 6  # exchanges that the writer opens: 240 MiB
LIES_ON_THE_WAY = 24 * MIB
"""What any carrier may have taken of a vector that nobody reads: gRPC's window, a message at either end, a socket's buffers, slots."""


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


async def settled(what: Callable[[], int]) -> int:
    """Once it has not changed for a while."""
    now, before = what(), -1
    async with asyncio.timeout(PATIENCE_SECONDS):
        while now > before:
            before = now
            await asyncio.sleep(0.1)
            now = what()
    return now


def sent(member: Member) -> int:
    return member.transport.traffic()[1].bytes_sent


async def test_a_slow_reader_does_not_grow_a_fast_writer(rig: Rig) -> None:
    """Both ends are in this process, so whatever either piles up is in its resident memory."""
    a, b = await rig.pair()
    outbox, inbox = torch.ones(SIZE), torch.ones(SIZE)
    at_first = resident()
    handles = [a.open(1, K(k, 0), outbox, None, atomic=False) for k in range(AHEAD)]
    for k in range(AHEAD):
        assert await settled(lambda: sent(a)) < k * 4 * SIZE + LIES_ON_THE_WAY
        assert not handles[k].outcome.done()
        assert resident() - at_first < 4 * LIES_ON_THE_WAY
        assert await ends(b.open(0, K(k, 0), None, inbox, atomic=False)) == [None]
    assert await ends(*handles) == [None] * AHEAD


@pytest.mark.parametrize("whose", ["writer", "reader"])
async def test_what_was_given_up_lies_nowhere(rig: Rig, whose: str) -> None:
    """Neither end keeps what it had of a vector that was given up in the middle, again and again."""
    a, b = await rig.pair()
    outbox, inbox = torch.ones(SIZE), torch.ones(SIZE)
    resident_at: list[int] = []
    for k in range(4 * AHEAD):
        writing = a.open(1, K(k, 0), outbox, None, atomic=False)
        reading = b.open(0, K(k, 0), None, inbox, atomic=False)
        await b.recorder.until(lambda k=k: b.recorder.heard[-1:] == [(0, k)])  # type: ignore[misc]
        gives_up, hears = (writing, reading) if whose == "writer" else (reading, writing)
        gives_up.give_up()
        assert (await ended(gives_up)).lost is LossReason.DEADLINE
        assert (await ended(hears)).lost in (LossReason.DECLINED, LossReason.STALE)
        resident_at.append(resident())
    assert max(resident_at) - min(resident_at[:AHEAD]) < 4 * LIES_ON_THE_WAY
