"""Who goes does not take along what it has sent."""

from __future__ import annotations

import asyncio

import pytest
import torch

from peer.transport import linked
from peer.transport.base import ExchangeHandle, ExchangeKey, LossReason, Word, WordKind
from peer.transport.linked import FLUSH_SECONDS

from .rig import Member, Rig, ends

K = ExchangeKey
SIZE = 2_000  # so small that three vectors lie in any carrier at once
LEAVING = Word(WordKind.LEAVING, 0, 9)


async def sends_and_goes(a: Member, b: Member) -> asyncio.Task[None]:
    """Three vectors in exchanges that are over for `a` and not yet open at `b`; then `a` stops, which `b` hears."""
    sent = [a.open(1, K(0, phase), torch.full((SIZE,), float(phase)), None, atomic=False) for phase in range(3)]
    assert await ends(*sent) == [None] * 3
    a.transport.tell(1, LEAVING)
    stopping = asyncio.create_task(a.transport.stop())
    await b.recorder.until(lambda: b.recorder.words == [(0, LEAVING)])
    return stopping


def opens(b: Member, phase: int) -> tuple[ExchangeHandle, torch.Tensor]:
    inbox = torch.full((SIZE,), torch.nan)
    return b.open(0, K(0, phase), None, inbox, atomic=False), inbox


async def test_a_slow_reader_gets_all_that_was_sent_by_who_stops_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        linked, "READ_SECONDS", 10.0
    )  # of its two seconds the waits below leave too few to a busy machine
    a, b = await rig.pair()
    stopping = await sends_and_goes(a, b)
    for phase in range(3):
        await asyncio.wait({stopping}, timeout=1.5 * FLUSH_SECONDS)  # longer than last words may take
        received, inbox = opens(b, phase)
        assert await ends(received) == [None]
        assert torch.equal(inbox, torch.full((SIZE,), float(phase)))
    async with asyncio.timeout(10):
        await stopping
    assert b.recorder.dropped == []


async def test_two_that_go_at_once_wait_for_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linked, "READ_SECONDS", 60.0)
    a, b = await rig.pair()
    stopping = await sends_and_goes(a, b)
    async with asyncio.timeout(10):
        await b.transport.stop()
        await stopping


async def test_who_does_not_read_is_waited_for_no_longer_than_that(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linked, "READ_SECONDS", 0.1)
    a, b = await rig.pair()
    async with asyncio.timeout(10):
        await (await sends_and_goes(a, b))
    await b.recorder.until(lambda: not b.transport.linked())
    assert await ends(opens(b, 0)[0]) == [LossReason.LINK_DOWN]


async def test_who_is_past_it_is_not_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linked, "READ_SECONDS", 60.0)
    a, b = await rig.pair()
    stopping = await sends_and_goes(a, b)
    b.transport.advance(K(1, 0))
    async with asyncio.timeout(10):
        await stopping


async def test_a_goodbye_may_be_said_long_before_the_end(rig: Rig) -> None:
    a, b = await rig.pair()
    sent = a.open(1, K(0, 0), torch.ones(SIZE), None, atomic=False)
    assert await ends(sent) == [None]
    goodbye = asyncio.create_task(a.transport.goodbye())
    await asyncio.wait({goodbye}, timeout=0.1)
    assert not goodbye.done()
    received, inbox = opens(b, 0)
    assert await ends(received) == [None]
    async with asyncio.timeout(10):
        await goodbye
        await a.transport.goodbye()
    assert torch.equal(inbox, torch.ones(SIZE))
    assert b.transport.linked(), "it has not hung up"


async def test_a_goodbye_ends_with_the_link(memory_rig: Rig) -> None:
    a, _ = await memory_rig.pair()
    assert await ends(a.open(1, K(0, 0), torch.ones(SIZE), None, atomic=False)) == [None]
    goodbye = asyncio.create_task(a.transport.goodbye())
    await asyncio.wait({goodbye}, timeout=0.1)
    assert not goodbye.done()
    memory_rig.wiring.cut(0, 1)
    async with asyncio.timeout(10):
        await goodbye
