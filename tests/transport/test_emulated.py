"""The emulated network: when messages are due, and real processes through it."""

from __future__ import annotations

import time

import pytest

from peer.transport.emulated import SlowLane, SlowNetwork
from peer.transport.lane import memory_lane


def test_bulk_shares_one_uplink_and_words_go_beside_it() -> None:
    network = SlowNetwork(latency=0.5, bandwidth=100.0)
    assert network.due(100, 2.0, bulk=True) == 3.5
    assert network.due(100, 2.0, bulk=True) == 4.5
    assert network.due(100, 2.0, bulk=False) == 2.5
    assert network.due(100, 9.0, bulk=True) == 10.5


def test_jitter_has_its_mean() -> None:
    network = SlowNetwork(latency=1.0, jitter=0.5, seed=3)
    late = [network.due(1, 0.0, bulk=False) for _ in range(4000)]
    assert sum(late) / len(late) == pytest.approx(1.5, abs=0.05)
    assert min(late) >= 1.0


async def test_many_messages_are_under_way_at_once_in_order_and_none_is_early() -> None:
    ends = memory_lane(capacity=64)
    network = SlowNetwork(latency=0.05, jitter=0.02, seed=1)
    here, there = (SlowLane(end, network, bulk=True) for end in ends)
    sent = []
    for number in range(50):
        sent.append(time.monotonic())
        await here.write(bytes([number]))
    for number in range(50):
        assert await there.read() == bytes([number])
        assert time.monotonic() >= sent[number] + 0.05
    assert time.monotonic() < sent[0] + 50 * 0.05, "one after the other would take 50 latencies"
