"""Control messages that wait: written in order, waited for by whoever wants to, and never without a bound."""

from __future__ import annotations

import asyncio

from peer.transport.base import Traffic
from peer.transport.goodbye import Goodbye
from peer.transport.lane import MemoryLane, memory_lane
from peer.transport.outbox import QUEUED_WORDS, Outbox
from peer.transport.pings import Pings
from peer.wire import gossip_pb2 as wire

PING = wire.ControlMessage(ping=wire.Ping(nonce=7))


def outbox() -> tuple[Outbox, asyncio.Future[str], MemoryLane]:
    """With the future of its link's end, and the end of its lane that reads."""
    here, there = memory_lane(1)
    down: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def overflows(reason: str) -> None:
        if not down.done():
            down.set_result(reason)

    return Outbox(here, down, Traffic(), overflows), down, there


async def test_all_who_wait_for_the_words_to_be_written_go_on() -> None:
    words, _, there = outbox()
    for _ in range(3):
        words.put(PING)
    waiting = [asyncio.create_task(words.empty()) for _ in range(2)]
    await asyncio.sleep(0)
    writing = asyncio.create_task(words.run())
    async with asyncio.timeout(10):
        assert [await there.read() for _ in range(3)] == [PING.SerializeToString()] * 3
        await asyncio.gather(*waiting)
    writing.cancel()
    assert len(words) == 0


async def test_who_asks_and_never_reads_the_answers_is_cut() -> None:
    """Pings and goodbyes are answered whatever their number, so a link ends when nobody reads what is queued."""
    words, down, _ = outbox()
    writing = asyncio.create_task(words.run())
    pings, goodbye = Pings(words.put, down, Traffic()), Goodbye(words.put, down)
    for nonce in range(2 * QUEUED_WORDS):
        pings.hear(wire.Ping(nonce=nonce))
        goodbye.hear(wire.Goodbye(frames=0))
    async with asyncio.timeout(10):
        assert await down == "the other end does not read its control words"
        await words.empty()
    assert len(words) <= 2 * QUEUED_WORDS
    writing.cancel()
