"""A vector that is worked on while the rest of it is under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from peer.daemon.taken import Taken

K = 10


class Slow:
    """A taker whose work ends when it is told to, and a thread for it."""

    quick = False

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.error: Exception | None = None
        self.started = asyncio.Event()
        self._goes_on = threading.Semaphore(0)
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1)

    def __call__(self, payload: Tensor, arrived: int) -> None:
        self.seen.append(arrived)
        self._loop.call_soon_threadsafe(self.started.set)
        assert self._goes_on.acquire(timeout=10)
        if self.error:
            raise self.error

    async def off_loop(self, work: Callable[[], None]) -> None:
        await self._loop.run_in_executor(self._thread, work)

    def go_on(self, times: int = 1) -> None:
        self._goes_on.release(times)


def made(slow: Slow) -> Taken:
    return Taken(torch.zeros(K), slow, slow.off_loop)


async def test_what_arrives_during_the_work_is_the_next_piece() -> None:
    slow = Slow()
    taken = made(slow)
    taken.arrived(4)
    await slow.started.wait()
    for elements in (3, 7, 8):
        taken.arrived(4 * elements)
    slow.go_on()
    while slow.seen != [1, 8]:
        await asyncio.sleep(0)
    taken.arrived(4 * K)
    slow.go_on(2)
    await taken.finish(whole=True)
    assert slow.seen == [1, 8, K]


async def test_a_payload_that_comes_at_once_is_taken_at_the_end_alone() -> None:
    slow = Slow()
    taken = made(slow)
    taken.arrived(4 * K)
    slow.go_on()
    await taken.finish(whole=True)
    assert slow.seen == [K]


async def test_quick_work_is_done_as_it_comes_and_needs_no_thread() -> None:
    class Quick:
        quick = True

        def __init__(self) -> None:
            self.seen: list[int] = []

        def __call__(self, payload: Tensor, arrived: int) -> None:
            self.seen.append(arrived)

    async def never(work: Callable[[], None]) -> None:
        raise AssertionError("it was handed over")

    quick = Quick()
    taken = Taken(torch.zeros(K), quick, never)
    for elements in (3, 8, K):
        taken.arrived(4 * elements)
        assert quick.seen[-1] == elements
    await taken.finish(whole=True)
    assert quick.seen == [3, 8, K]


async def test_of_a_lost_payload_no_more_is_taken_but_the_work_under_way_ends_first() -> None:
    slow = Slow()
    taken = made(slow)
    taken.arrived(4)
    await slow.started.wait()
    finishing = asyncio.create_task(taken.finish(whole=False))
    await asyncio.sleep(0.01)
    assert not finishing.done()  # the vector is still in use
    slow.go_on()
    await finishing
    assert slow.seen == [1]


async def test_what_goes_wrong_on_the_thread_is_raised_at_the_end() -> None:
    slow = Slow()
    slow.error = ZeroDivisionError()
    taken = made(slow)
    taken.arrived(4)
    slow.go_on()
    with pytest.raises(ZeroDivisionError):
        await taken.finish(whole=True)
