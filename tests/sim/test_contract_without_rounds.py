"""The contract of methods whose peers share no rounds. Adding one adds one row here, by itself; the others are in
tests/gossip/test_contract.py.

A conductor has no rounds to play, so they run in virtual time, each over the topology that is its own where nobody names one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from peer.exit_codes import ExitCode
from peer.gossip.algorithm import Algorithm
from peer.gossip.algorithms import ALGORITHMS
from peer.sim.simulator import Simulation
from tests.daemon.rig import config

WITHOUT_ROUNDS = [algorithm for algorithm in ALGORITHMS.values() if not algorithm.has_rounds]
every_algorithm = pytest.mark.parametrize("algorithm", WITHOUT_ROUNDS, ids=lambda algorithm: algorithm.name)

N, HURT = 6, 3  # peers, and the one that something happens to: not the head
CHUNK = 0.02  # seconds; a gradient is 4 of them
SECONDS = 5.0
NO_STEP = 1e-30  # a learning rate: only mixing moves anything
SILENT = "straggler = ['3=pause:2s@1s']\n[[partition]]\npeers = [3]\nat = 1\nuntil = 3\n"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make(tmp_path: Path, algorithm: type[Algorithm], scenario: str = "", **options: object) -> Simulation:
    file = tmp_path / "scenario.toml"
    file.write_text(scenario)
    small: dict[str, object] = {"peers": N, "chunk_seconds": CHUNK, "max_rounds": None, "max_seconds": SECONDS}
    return Simulation(config(**{**small, "algorithm": algorithm.name, **options, "scenario": str(file)}))


def computing(algorithm: type[Algorithm]) -> range:
    """A head of these applies what comes, and computes nothing."""
    return range(int(algorithm.has_head), N)


def scatter(run: Simulation) -> Tensor:
    """Give every peer another vector; returns them, [n, d]."""
    run._params.copy_(torch.randn(run._params.shape, generator=torch.Generator().manual_seed(3)))
    return run._params.clone()


def assert_one_fate_each(run: Simulation) -> None:
    for summary in run.summaries():
        names = ("", "_redone", "_nonfinite", "_dropped", "_abandoned")
        fates = [summary[f"samples{name}"] for name in names]
        assert summary["samples_started"] == sum(fates), summary  # type: ignore[arg-type]


@every_algorithm
def test_from_start_to_end_every_sample_has_one_fate_and_time_goes_forward(
    tmp_path: Path, algorithm: type[Algorithm]
) -> None:
    slow = "straggler = ['0=6x', '1=exp:1', '2=chunk-exp:1', '3=pause:0.3s@0.3s/1s']\n[network]\nlatency = '20ms'\njitter = '5ms'\n"
    run = make(tmp_path, algorithm, slow, max_rounds=20, max_seconds=None)
    run.run()
    assert run.failure is None
    assert run.stop_reason == "20 rounds are done"
    ends = run.peers[:1] if algorithm.has_head else run.peers
    assert all(peer.round == 20 for peer in ends)
    assert_one_fate_each(run)
    for summary in run.summaries():
        assert summary["samples_redone"] == 0
        for begin, computed, closed, end in summary["timeline"]:  # type: ignore[attr-defined]
            assert begin <= computed + 1e-9
            assert computed <= closed + 1e-9
            assert closed <= end + 1e-9
    assert all(run.peers[i].ledger.samples > 0 for i in computing(algorithm))
    assert run.models().isfinite().all()


@every_algorithm
@pytest.mark.parametrize("scenario", ["", SILENT], ids=["alive", "silent"])
def test_mixing_alone_keeps_what_is_declared(tmp_path: Path, algorithm: type[Algorithm], scenario: str) -> None:
    run = make(tmp_path, algorithm, f"{scenario}[network]\nlatency = '8ms'\njitter = '4ms'\n", lr=NO_STEP)
    start = scatter(run)
    run.run()
    models = run.models()
    if algorithm.has_head:
        assert all(torch.equal(row, start[0]) for row in models), "the head's model, whatever the others had"
        return
    assert torch.allclose(models.double().mean(0), start.double().mean(0), atol=1e-5) is algorithm.keeps_mean
    apart = [float((rows - rows.mean(0)).norm()) for rows in (start, models)]
    assert apart[1] < 0.5 * apart[0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Rounds of each peer."""
    rounds = {}
    for algorithm in WITHOUT_ROUNDS:
        run = make(tmp_path_factory.mktemp("undisturbed"), algorithm)
        run.run()
        rounds[algorithm.name] = [peer.round for peer in run.peers]
    return rounds


@every_algorithm
def test_a_dead_peer_costs_its_own_rounds(
    tmp_path: Path, algorithm: type[Algorithm], undisturbed: dict[str, list[int]]
) -> None:
    run = make(tmp_path, algorithm, f"[[crash]]\npeer = {HURT}\nat = 1\n")
    run.run()
    assert run.failure is None
    alone = undisturbed[algorithm.name]
    assert run.peers[HURT].round <= 0.25 * alone[HURT]
    for i in computing(algorithm):
        assert i == HURT or run.peers[i].round >= 0.9 * alone[i], "nobody waited for the dead"
        assert run.peers[i].ledger.lost_by_neighbor.keys() <= {HURT}
    assert sum(HURT in peer.ledger.lost_by_neighbor for peer in run.peers) >= 1
    assert_one_fate_each(run)


@every_algorithm
def test_without_its_head_a_run_ends_with_the_sentence_and_without_any_other_it_goes_on(
    tmp_path: Path, algorithm: type[Algorithm]
) -> None:
    run = make(tmp_path, algorithm, "[[crash]]\npeer = 0\nat = 1\n")
    run.run()
    if not algorithm.has_head:
        assert run.failure is None
        assert run.agenda.now == pytest.approx(SECONDS)
        return
    assert run.failure is not None
    assert run.failure.code is ExitCode.LOST
    assert f"{algorithm.name} needs its head" in run.failure.sentence
    assert run.agenda.now < 2


@every_algorithm
def test_a_peer_that_pauses_holds_nobody_up_and_goes_on(
    tmp_path: Path, algorithm: type[Algorithm], undisturbed: dict[str, list[int]]
) -> None:
    run = make(tmp_path, algorithm, "straggler = ['3=pause:2s@1s']\n")
    run.run()
    alone = undisturbed[algorithm.name]
    for i in computing(algorithm):
        assert run.peers[i].round == pytest.approx(alone[i] * (1 - 2 / SECONDS * (i == HURT)), rel=0.1)
        assert not run.peers[i].ledger.edges_lost
    assert_one_fate_each(run)


@every_algorithm
def test_a_stopped_peer_is_back_when_it_wakes_up(
    tmp_path: Path, algorithm: type[Algorithm], undisturbed: dict[str, list[int]]
) -> None:
    """It computes nothing and nothing reaches it for 2 of 5 seconds. Who is in the middle of an exchange with it may wait as long."""
    run = make(tmp_path, algorithm, SILENT)
    run.run()
    assert run.failure is None
    alone = undisturbed[algorithm.name]
    for i in computing(algorithm):
        assert run.peers[i].round >= 0.5 * alone[i]
    assert run.peers[HURT].round >= 2 * alone[HURT] / SECONDS, "more than before it was stopped"
    others = [peer for i, peer in enumerate(run.peers) if i != HURT]
    assert all(peer.talk.directory.is_alive(HURT) for peer in others if HURT in run.links_of(peer.peer))
    assert_one_fate_each(run)
