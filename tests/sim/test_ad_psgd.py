"""AD-PSGD in virtual time: averaging in pairs keeps the mean, nobody waits for the slow, and nothing hangs on any graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peer.config import Config
from peer.gossip.round import RoundReport
from peer.sim.host import SimPeer
from peer.sim.simulator import Simulation
from tests.daemon.rig import config

NO_STEP = 1e-30  # a learning rate: only averaging moves anything


def play(**settings: object) -> Simulation:
    return Simulation(config(**{"algorithm": "ad-psgd", "chunk_seconds": 0.01, "max_rounds": 40, **settings}))


def scatter(run: Simulation) -> torch.Tensor:
    """Give every peer another vector; returns their mean."""
    run._params.copy_(torch.randn(run._params.shape, generator=torch.Generator().manual_seed(3)))
    return run._params.double().mean(0)


@pytest.mark.parametrize(
    ("topology", "peers"), [("ring", 5), ("star", 6), ("complete", 7), ("torus", 9), ("exponential", 8)]
)
def test_averaging_keeps_the_mean_and_finds_it(topology: str, peers: int) -> None:
    run = play(topology=topology, peers=peers, lr=NO_STEP, straggler=("all=exp:1",), scenario="wan")
    mean = scatter(run)
    before = float((run._params.double() - mean).norm())
    run.run()
    assert torch.allclose(run.models().double().mean(0), mean, atol=1e-5)
    assert float((run.models().double() - mean).norm()) < 0.5 * before
    assert all(peer.round == 40 for peer in run.peers)


def test_the_mean_is_kept_whatever_is_cut_and_whoever_rests(tmp_path: Path) -> None:
    """Cuts come in the middle of exchanges; each counts on both ends or on none."""
    cuts = "".join(
        f"[[partition]]\npeers = [{k % 6}]\nat = {0.31 * k + 0.1}\nuntil = {0.31 * k + 0.25}\n" for k in range(12)
    )
    file = tmp_path / "cuts.toml"
    file.write_text(
        f"straggler = ['3=pause:1s@1s/3s']\n[network]\nlatency = '8ms'\njitter = '4ms'\n{cuts}".replace(
            "[network]", "[network]"
        )
    )
    run = play(topology="complete", peers=6, lr=NO_STEP, scenario=str(file), max_rounds=100)
    mean = scatter(run)
    run.run()
    assert sum(sum(peer.ledger.edges_lost.values()) for peer in run.peers) > 10
    assert torch.allclose(run.models().double().mean(0), mean, atol=1e-5)


def test_nobody_waits_for_a_slow_peer() -> None:
    """One of six is ten times slower: the others finish as many gradients as without it."""
    rounds = []
    for straggler in ((), ("2=10x",)):
        run = play(peers=6, topology="complete", straggler=straggler, max_rounds=None, max_seconds=3.0)
        run.run()
        rounds.append([peer.round for peer in run.peers])
    assert rounds[1][2] == pytest.approx(rounds[0][2] / 10, rel=0.2)
    for i in (0, 1, 3, 4, 5):
        assert rounds[1][i] == pytest.approx(rounds[0][i], rel=0.1)


def test_a_dead_peer_costs_its_edges(tmp_path: Path) -> None:
    file = tmp_path / "crash.toml"
    file.write_text("[[crash]]\npeer = 3\nat = 0.5\n")
    run = play(peers=5, topology="complete", scenario=str(file), max_rounds=60)
    run.run()
    assert run.failure is None
    assert [peer.round for peer in run.peers if peer.peer != 3] == [60] * 4
    assert run.agenda.now < 60 * 0.04 * 1.3
    assert run.peers[4].ledger.staleness, "it was averaged with while it computed"
    assert max(run.peers[4].ledger.staleness) >= 1


def test_it_learns() -> None:
    run = play(peers=4, topology="ring", task="digits", lr=0.3, batch_size=16, max_rounds=60)
    run.run()
    assert run.curve[-1].loss < 0.6 * run.curve[0].loss
    assert run.curve[-1].consensus_distance < 0.5


def test_whoever_ends_first_keeps_nobody_waiting() -> None:
    """Peers end at different times, and requests to those that have ended are on their way."""
    for peers, topology in ((4, "ring"), (16, "exponential")):
        run = play(peers=peers, topology=topology, max_rounds=10)
        run.run()
        assert run.agenda.now < 10 * 0.04 * 2.5
        assert all("deadline" not in peer.ledger.edges_lost for peer in run.peers)


def test_another_neighbour_is_asked_in_the_place_of_a_dead_one(tmp_path: Path) -> None:
    file = tmp_path / "crash.toml"
    file.write_text("[[crash]]\npeer = 3\nat = 0.5\n")
    run = play(peers=5, topology="complete", scenario=str(file), max_rounds=60)
    run.run()
    assert run.peers[0].ledger.edges_lost["suspect"] > 3, "the choice fell on it"
    assert run.peers[0].algorithm._averagings >= 58  # type: ignore[attr-defined]


class Reported(Simulation):
    """Keeps all reports."""

    def __init__(self, config: Config) -> None:
        self.reports: list[RoundReport] = []
        super().__init__(config)

    def round_ended(self, peer: SimPeer, report: RoundReport) -> bool:
        self.reports.append(report)
        return super().round_ended(peer, report)


@pytest.mark.parametrize("algorithm", ["ad-psgd", "async-sgd"])
def test_the_parts_of_a_round_do_not_overlap(algorithm: str) -> None:
    topology = {"ad-psgd": "complete", "async-sgd": "star"}[algorithm]
    settings = {"algorithm": algorithm, "topology": topology, "chunk_seconds": 0.01, "peers": 5, "scenario": "wan"}
    run = Reported(config(**settings, max_rounds=40, straggler=("3=3x", "all=exp:1")))
    run.run()
    for report in run.reports:
        timing = report.timing
        parts = (timing.computing, timing.accumulating - timing.computing, timing.exchanging, timing.mixing)
        assert min(parts) >= -1e-9
        assert sum(parts) <= timing.total + 1e-9
