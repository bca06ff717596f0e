"""Throughput in virtual time against the closed forms of Non-blocking SGD (He & Dube 2022) and of order statistics.

S is samples per second without waiting over samples per second with a barrier, for N = m = 8.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.config import Config, validated
from peer.gossip.round import RoundReport
from peer.sim.host import SimPeer
from peer.sim.simulator import Simulation

PEERS = CHUNKS = 8


@pytest.fixture
def no_network(tmp_path: Path) -> str:
    """Messages take a nanosecond: nothing but computing takes time."""
    file = tmp_path / "instant.toml"
    file.write_text("[network]\nlatency = 1e-9\n")
    return str(file)


def settings(scenario: str, **values: object) -> Config:
    always: dict[str, object] = {
        "peers": PEERS,
        "chunks": CHUNKS,
        "batch_size": CHUNKS,
        "chunk_seconds": 1.0,
        "task": "timing",
        "round_timeout": 1e6,
        "preset": "wan",
    }
    return validated({**always, "scenario": scenario, **values})


def play(
    scenario: str, closing: str, straggler: str, rounds: int, in_flight: str = "redo", algorithm: str = "dpsgd"
) -> Simulation:
    simulation = Simulation(
        settings(
            scenario,
            closing=closing,
            straggler=straggler,
            max_rounds=rounds,
            in_flight=in_flight,
            algorithm=algorithm,
        )
    )
    simulation.run()
    return simulation


def speed_up(scenario: str, straggler: str, rounds: int, in_flight: str = "redo", algorithm: str = "dpsgd") -> float:
    rates = []
    for closing in ("first", "barrier"):
        simulation = play(scenario, closing, straggler, rounds, in_flight, algorithm)
        rates.append(simulation.samples() / simulation.agenda.now)
    return rates[0] / rates[1]


@pytest.mark.parametrize("algorithm", ["dpsgd", "ring-all-reduce"])
@pytest.mark.parametrize(("k", "expected"), [(2, 1.875), (3, 2.71875), (4, 3.625), (10, 8.75)])
def test_one_peer_k_times_slower_with_redo(no_network: str, k: int, expected: float, algorithm: str) -> None:
    """S = k ((N-1) m + floor(m / k)) / (N m)."""
    assert expected == k * ((PEERS - 1) * CHUNKS + CHUNKS // k) / (PEERS * CHUNKS)
    assert speed_up(no_network, f"0={k}x", 20, algorithm=algorithm) == pytest.approx(
        expected, rel=2e-3
    )  # a chunk at the very end


@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_one_peer_k_times_slower_with_carry_wastes_nothing(no_network: str, k: int) -> None:
    """S = k (N - 1 + 1 / k) / N, but for the chunk in flight at the end."""
    rounds = 200
    assert speed_up(no_network, f"0={k}x", rounds, "carry") == pytest.approx(
        k * (PEERS - 1 + 1 / k) / PEERS, rel=1.5 / rounds
    )


@pytest.mark.slow  # many rounds for a mean
def test_iid_exponential_chunks(no_network: str) -> None:
    """The smallest and the largest of 8 Erlang(8) sums: E[min] 4.48, E[max] 12.42, finished fraction .561, S = 1.554."""
    rounds = 800
    first = play(no_network, "first", "all=chunk-exp:1", rounds)
    barrier = play(no_network, "barrier", "all=chunk-exp:1", rounds)
    assert first.agenda.now / rounds == pytest.approx(4.48, abs=0.1)
    assert barrier.agenda.now / rounds == pytest.approx(12.42, abs=0.15)
    finished = first.samples() / (rounds * PEERS * CHUNKS)
    assert finished == pytest.approx(0.561, abs=0.01)
    assert first.samples() / first.agenda.now / (barrier.samples() / barrier.agenda.now) == pytest.approx(
        1.554, abs=0.04
    )


@pytest.mark.slow
def test_one_exponential_draw_a_round(no_network: str) -> None:
    """Slowness 1 + Exp(1) of each round: S = 2.01."""
    assert speed_up(no_network, "all=exp:1", 800) == pytest.approx(2.01, abs=0.06)


class Reported(Simulation):
    """Keeps all reports."""

    def __init__(self, config: Config) -> None:
        self.reports: list[RoundReport] = []
        super().__init__(config)

    def round_ended(self, peer: SimPeer, report: RoundReport) -> bool:
        self.reports.append(report)
        return super().round_ended(peer, report)


@pytest.mark.parametrize("closing", ["barrier", "first"])
def test_reports_draw_the_straggler_map(no_network: str, closing: str) -> None:
    """Peer 6 is twice as fast as the others and peer 3 four times slower."""
    slow = ("3=4x", "6=0.5x")
    run = Reported(settings(no_network, closing=closing, straggler=slow, max_rounds=10, in_flight="redo"))
    run.run()
    assert len(run.reports) == 10 * PEERS
    assert {report.closed_by for report in run.reports} == {6}
    waited_for = {report.waited_for for report in run.reports if report.peer != 3}
    assert waited_for == ({(3,)} if closing == "barrier" else {()})
    assert all(not report.waited_for for report in run.reports if report.peer == 3)
    waiting = sum(r.timing.accumulating - r.timing.computing for r in run.reports if r.peer == 6)
    assert waiting == pytest.approx(10 * (4 - 0.5) * CHUNKS if closing == "barrier" else 0.0, abs=1e-3)
