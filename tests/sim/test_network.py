"""Times of messages against the formulas at the head of peer/sim/network.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from peer.scenario import Network, Partition
from peer.sim.network import LINK_AGAIN_SECONDS, NOTICED_SECONDS, Links


def test_a_vector_takes_the_uplink_one_after_the_other_and_then_the_latency() -> None:
    links = Links(Network(latency=0.5, bandwidth=100.0), 3)
    assert links.word(0, 1, 2.0) == 2.5
    assert links.vector(0, 1, 100, 2.0) == 3.5
    assert links.vector(0, 2, 100, 2.0) == 4.5, "the uplink was busy"
    assert links.vector(1, 2, 100, 2.0) == 3.5, "another peer's was not"
    assert links.vector(0, 1, 100, 9.0) == 10.5


def test_a_matrix_of_latencies_is_row_to_column(tmp_path: Path) -> None:
    file = tmp_path / "latency.csv"
    file.write_text("# seconds\n0, 1, 2\n3 0 4\n5,6,0\n")
    links = Links(Network(matrix=str(file)), 3)
    assert [links.word(i, j, 0.0) for i, j in ((0, 1), (0, 2), (1, 0), (2, 1))] == [1.0, 2.0, 3.0, 6.0]


def test_jitter_has_its_mean_and_never_reorders() -> None:
    links = Links(Network(latency=1.0, jitter=0.5), 2, seed=3)
    arrivals = [links.word(0, 1, 10.0 * k) - 10.0 * k for k in range(4000)]
    assert sum(arrivals) / len(arrivals) == pytest.approx(1.5, abs=0.04)
    close_together = [links.word(0, 1, 1e6 + 0.01 * k) for k in range(500)]
    assert close_together == sorted(close_together)


def test_loss_caps_the_rate_after_mathis_and_delays_some_words() -> None:
    network = Network(latency=0.05, loss=0.01)
    links = Links(network, 2)
    rate = 1448 / (0.1 * math.sqrt(2 * 0.01 / 3))
    transfers = [links.vector(0, 1, 10**6, 1e4 * k) - 1e4 * k for k in range(1, 300)]
    assert min(transfers) == pytest.approx(1e6 / rate + 0.05)
    waited = [links.word(0, 1, 1e9 + 10.0 * k) - 1e9 - 10.0 * k for k in range(20_000)]
    late = [seconds for seconds in waited if seconds > 0.1]
    assert len(late) / len(waited) == pytest.approx(0.01, abs=0.003)
    assert all(seconds == pytest.approx(0.25, abs=1e-6) for seconds in late)


def test_peers_on_one_machine_share_its_cores() -> None:
    links = Links(Network(latency=0.0, cores=2, message_seconds=1.0), 8)
    assert sorted(links.vector(i, (i + 1) % 8, 4, 0.0) for i in range(8)) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_a_short_cut_delays_and_a_long_one_loses() -> None:
    short = Partition(peers=(0,), at=10.0, until=12.0)
    links = Links(Network(latency=1.0), 3, [short])
    assert links.word(0, 1, 5.0) == 6.0
    assert links.word(0, 1, 9.5) == 13.0, "under way when the cut came"
    assert links.word(1, 0, 11.0) == 13.0
    assert links.word(1, 2, 11.0) == 12.0, "on the same side"
    assert links.word(0, 1, 12.0) == 13.0
    assert links.cuts() == []
    long = Partition(peers=(0,), at=10.0, until=60.0)
    links = Links(Network(latency=1.0), 3, [long])
    assert links.word(0, 1, 11.0) == math.inf
    assert links.cuts() == [(10.0 + NOTICED_SECONDS, 60.0 + LINK_AGAIN_SECONDS, [(0, 1), (0, 2)])]


def test_a_word_never_waits_behind_a_vector() -> None:
    """Vectors have a stream of their own, also where chance or a cut makes order a matter of bookkeeping."""
    links = Links(Network(latency=0.04, jitter=1e-6, bandwidth=1e5), 2, [Partition(peers=(0,), at=50.0, until=51.0)])
    assert links.vector(0, 1, 200_000, 0.0) == pytest.approx(2.04, abs=1e-3)
    assert links.word(0, 1, 0.0) == pytest.approx(0.04, abs=1e-3)
