"""Whom an open round waits for: told after a while, as it is when asked, and no longer than the wait lasts."""

from __future__ import annotations

import pytest

from peer.daemon.waits import TOLD_AFTER_SECONDS, Waits
from peer.gossip.digest import MAX_SHARES


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_wait_is_told_after_a_while_as_it_is_then_and_ends() -> None:
    clock, whom = Clock(), {3, 1}
    waits = Waits(clock)
    assert waits.told() == {}
    with waits:
        waits.on(lambda: whom)
        clock.seconds += 0.9 * TOLD_AFTER_SECONDS
        assert waits.told() == {}
        waits.on(lambda: {7})  # it waits already
        clock.seconds += 0.2 * TOLD_AFTER_SECONDS
        assert waits.told() == {"waits_for": (1, 3), "waits_seconds": pytest.approx(1.1 * TOLD_AFTER_SECONDS)}
        whom.remove(1)
        assert waits.told()["waits_for"] == (3,)
        whom.clear()
        assert waits.told() == {}
        whom.update(range(100))
        assert waits.told()["waits_for"] == tuple(range(MAX_SHARES))
    assert waits.told() == {}


def test_a_wait_that_breaks_off_is_over() -> None:
    clock = Clock()
    waits = Waits(clock)
    try:
        with waits.on(lambda: {1}):
            clock.seconds += 10.0
            assert waits.told()
            raise TimeoutError
    except TimeoutError:
        assert waits.told() == {}
