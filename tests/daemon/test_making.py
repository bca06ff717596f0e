"""Vectors that are made while their beginning is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch

from peer.daemon.making import Making
from peer.daemon.worker import T
from peer.gossip.effects import Exchange
from peer.transport.base import LossReason, Outcome
from peer.transport.codec import FRAME_BYTES

K = 4  # parts
PART = FRAME_BYTES // 8  # float32 elements: half a frame


class Handle:
    """Of an exchange that ends when it is told to."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.told: list[int] = []

    def made(self, num_bytes: int) -> None:
        self.told.append(num_bytes)

    def reply(self, send: torch.Tensor) -> None:
        raise AssertionError

    def give_up(self, reason: LossReason = LossReason.DEADLINE) -> None:
        self.end(reason)

    def end(self, lost: LossReason | None = None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(Outcome(0, lost, 0.0))


class Counting:
    """A maker of a part a call. log: of all makers, in order."""

    def __init__(self, name: str, log: list[str], fails_at: int = K + 1) -> None:
        self.done = 0
        self._name, self._log, self._fails_at = name, log, fails_at

    def __call__(self) -> int:
        self._log.append(self._name)
        self.done += 1
        if self.done == self._fails_at:
            raise ArithmeticError(self._name)
        return self.done * PART


async def off_loop(work: Callable[[], T]) -> T:
    await asyncio.sleep(0)
    return work()


def exchange(make: dict[int, Counting]) -> Exchange:
    send = {j: torch.zeros(K * PART) for j in make}
    return Exchange(0, send, dict.fromkeys(make, K * PART), atomic=True, make=make)


async def test_makers_take_turns_of_a_frame_and_who_is_made_for_is_told_of_bytes() -> None:
    log: list[str] = []
    both, other = Counting("both", log), Counting("other", log)
    handles = {1: Handle(), 2: Handle(), 3: Handle()}
    await Making(exchange({1: both, 2: both, 3: other}), handles, off_loop).finish()
    assert sorted(log) == ["both"] * K + ["other"] * K
    first, second = log[0], log[2]
    assert log == 2 * [first, first, second, second]
    assert all(handle.told == [4 * PART * (i + 1) for i in range(K)] for handle in handles.values())


async def test_nothing_is_made_for_who_takes_no_part_and_no_more_for_who_is_lost() -> None:
    log: list[str] = []
    mine, theirs = Counting("mine", log), Counting("theirs", log)
    handles = {1: Handle(), 2: Handle()}
    making = Making(exchange({1: mine, 2: theirs, 3: Counting("absent", log)}), handles, off_loop)
    while not handles[2].told:
        await asyncio.sleep(0)
    handles[2].end(LossReason.DECLINED)
    await making.finish()
    assert mine.done == K
    assert 1 <= theirs.done < K
    assert "absent" not in log


async def test_a_vector_for_two_is_made_while_one_of_them_takes_it() -> None:
    both = Counting("both", [])
    handles = {1: Handle(), 2: Handle()}
    handles[1].end(LossReason.LINK_DOWN)
    await Making(exchange({1: both, 2: both}), handles, off_loop).finish()
    assert both.done == K


async def test_a_maker_that_fails_gives_its_exchanges_up_and_is_heard_of() -> None:
    handles = {1: Handle(), 2: Handle()}
    making = Making(exchange({1: Counting("bad", [], fails_at=2), 2: Counting("good", [])}), handles, off_loop)
    async with asyncio.timeout(10):
        assert [(await handle.outcome).lost for handle in handles.values()] == [LossReason.LEFT] * 2
    with pytest.raises(ArithmeticError, match="bad"):
        await making.finish()


async def test_who_is_abandoned_makes_no_more() -> None:
    maker, handle = Counting("one", []), Handle()
    making = Making(exchange({1: maker}), {1: handle}, off_loop)
    while not handle.told:
        await asyncio.sleep(0)
    making.abandon()
    with pytest.raises(asyncio.CancelledError):
        await making.finish()
    assert maker.done < K
