"""What is done beside the exchanges of one effect, and when nobody touches their vectors any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from peer.daemon.exchanging import UnderWay
from peer.daemon.making import Making
from peer.daemon.taken import Taken
from peer.daemon.worker import Worker
from peer.gossip.effects import Exchange
from peer.transport.base import LossReason
from tests.daemon.test_making import Handle

K = 4


class Held:
    """Work on a thread that ends when it is let go: a maker of one part, and a taker."""

    read = None

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.ended = 0
        self._error = error

    def __call__(self, payload: Tensor | None = None, arrived: int = 0) -> Any:
        self.begun.set()
        assert self.go.wait(10)
        self.ended += 1
        if self._error is not None:
            raise self._error
        return K

    async def is_on_the_thread(self) -> None:
        async with asyncio.timeout(10):
            while not self.begun.is_set():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def worker() -> AsyncIterator[Worker]:
    made = Worker(1 << 30, 1)
    yield made
    made.close()


def under_way(handle: Handle, off_loop: Worker, maker: Held | None, taker: Held | None) -> UnderWay:
    made = UnderWay(0.0, handles={1: handle})
    send, make = {1: torch.zeros(K)}, {} if maker is None else {1: maker}
    if maker is not None:
        made.making = Making(Exchange(0, send, {1: K}, atomic=True, make=make), made.handles, off_loop)
    if taker is not None:
        made.taken[1] = Taken(torch.zeros(K), taker, off_loop)
    return made


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


async def waits_for(held: Held, finishing: asyncio.Task[None]) -> None:
    """Until it is let go, and no longer."""
    await turns()
    assert not finishing.done()
    held.go.set()
    async with asyncio.timeout(10):
        await finishing


@pytest.mark.parametrize("lost", [None, LossReason.DEADLINE])
async def test_the_answer_waits_for_the_part_that_is_being_made(lost: LossReason | None) -> None:
    async with worker() as off_loop:
        maker, handle = Held(), Handle()
        beside = under_way(handle, off_loop, maker, None)
        await maker.is_on_the_thread()
        handle.end(lost)
        await waits_for(maker, asyncio.create_task(beside.finish()))
        assert maker.ended == 1


async def test_the_answer_waits_for_who_takes_a_part_of_a_vector_that_was_lost_meanwhile() -> None:
    async with worker() as off_loop:
        taker, handle = Held(), Handle()
        beside = under_way(handle, off_loop, None, taker)
        beside.taken[1].arrived(4)
        await taker.is_on_the_thread()
        handle.end(LossReason.DECLINED)
        await waits_for(taker, asyncio.create_task(beside.finish()))
        assert taker.ended == 1  # the rest of a vector that is lost is nobody's


async def test_an_error_of_one_is_raised_when_the_others_are_done() -> None:
    async with worker() as off_loop:
        maker, taker, handle = Held(ArithmeticError("made")), Held(), Handle()
        beside = under_way(handle, off_loop, maker, taker)
        await maker.is_on_the_thread()
        beside.taken[1].arrived(4)
        handle.end(None)
        finishing = asyncio.create_task(beside.finish())
        maker.go.set()
        await taker.is_on_the_thread()
        with pytest.raises(ArithmeticError, match="made"):
            await waits_for(taker, finishing)
        assert taker.ended == 2  # what had come, and the rest


async def test_who_is_abandoned_is_given_up_and_begins_nothing_any_more() -> None:
    async with worker() as off_loop:
        maker, taker, handle = Held(), Held(), Handle()
        beside = under_way(handle, off_loop, maker, taker)
        await maker.is_on_the_thread()
        beside.abandon()
        assert handle.outcome.result().lost is LossReason.LEFT
        beside.taken[1].arrived(4)
        maker.go.set()
        await turns()
        assert beside.making is not None
        with pytest.raises(asyncio.CancelledError):
            await beside.making.finish()
        assert not taker.begun.is_set()
