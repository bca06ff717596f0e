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
from peer.daemon.worker import T

K = 10


class Slow:
    """A taker whose work ends when it is told to, and a thread for it."""

    read = None

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

    async def off_loop(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._thread, work)

    def go_on(self, times: int = 1) -> None:
        self._goes_on.release(times)


class Quick:
    """Keeps what it reads."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.told: list[int] = []

    def __call__(self, payload: Tensor, arrived: int) -> None:
        self.told.append(arrived)

    def read(self, piece: Tensor) -> None:
        self.seen += piece.tolist()

    async def never(self, work: Callable[[], T]) -> T:
        raise AssertionError("it was handed over")


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
    quick = Quick()
    taken = Taken(torch.arange(float(K)), quick, quick.never)
    assert taken.lent is None  # its payload is wanted whole
    for num_bytes, elements in ((4 * 3, 3), (4 * 3 + 2, 3), (4 * 8, 8), (4 * K, K)):
        taken.arrived(num_bytes)
        assert quick.seen == list(range(elements))
    await taken.finish(whole=True)
    assert quick.seen == list(range(K))


async def test_what_the_carrier_lends_is_read_there_and_what_it_does_not_in_the_payload() -> None:
    quick, payload = Quick(), torch.full((K,), -1.0)
    taken = Taken(payload, quick, quick.never, kept=False)
    assert taken.lent is not None
    payload[:2] = torch.tensor([0.0, 1.0])
    taken.arrived(8)
    lent = torch.arange(2.0, K - 1)
    taken.lent(memoryview(lent.numpy().tobytes()))
    taken.arrived(4 * (K - 1))
    payload[K - 1] = K - 1
    taken.arrived(4 * K)
    await taken.finish(whole=True)
    assert quick.seen == list(range(K))
    assert payload[2 : K - 1].eq(-1).all()


async def test_a_slow_taker_is_lent_nothing_and_of_nothing_everybody_is_told() -> None:
    slow, quick = Slow(), Quick()
    assert Taken(torch.zeros(K), slow, slow.off_loop, kept=False).lent is None

    async def at_once(work: Callable[[], T]) -> T:
        return work()

    await Taken(torch.zeros(0), quick, at_once, kept=False).finish(whole=True)
    assert quick.told == [0]


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
