"""Deaths, cuts, pauses and ends in virtual time: the same effects as in the daemon's tests. Of methods without rounds:
test_contract_without_rounds.py."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from peer.exit_codes import ExitCode
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.closing import CLOSINGS
from peer.sim.play import simulate
from peer.sim.simulator import Simulation
from peer.training.stragglers import TraceEnded
from tests.daemon.rig import config


def play(tmp_path: Path, scenario: str, **options: object) -> Simulation:
    file = tmp_path / "scenario.toml"
    file.write_text(scenario)
    small: dict[str, object] = {
        "peers": 6,
        "chunk_seconds": 0.1,
        "max_rounds": 60,
        "task": "timing",
        "closing": "barrier",
    }
    simulation = Simulation(config(**{**small, **options, "scenario": str(file)}))
    simulation.run()
    return simulation


@pytest.mark.parametrize(
    ("topology", "first", "second"),
    [("ring", [(0, 7)], []), ("ring", [(0, 7)], [(3, 4)]), ("torus", [(0, 1)], [])],
    ids=["one-edge", "bit-by-bit", "torus"],
)
def test_an_edge_without_a_link_between_the_living_is_lost_as_such_and_nobody_waits(
    tmp_path: Path, topology: str, first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    """Its ends hear of each other, as long as they can: neither takes the other for silent, and a barrier waits for both."""
    file = tmp_path / "scenario.toml"
    file.write_text("[network]\nlatency = '5ms'\njitter = '3ms'\n")
    small = {"chunks": 1, "chunk_seconds": 0.1, "task": "timing", "closing": "barrier"}
    run = Simulation(config(peers=8, topology=topology, scenario=str(file), max_rounds=60, **small))
    run.agenda.at(1.03, run._cut, first)
    if second:
        run.agenda.at(4.03, run._cut, second)
    run.run()
    assert [peer.ledger.rounds_by_reason for peer in run.peers] == [{"barrier": 60}] * 8
    assert run.agenda.now < 60 * 0.2
    lost = {
        reason: sum(peer.ledger.edges_lost.get(reason, 0) for peer in run.peers) for reason in ("link_down", "suspect")
    }
    if not second:
        assert lost["link_down"] > 10 * lost["suspect"]


@pytest.mark.parametrize("closing", CLOSINGS)
@pytest.mark.parametrize("algorithm", ["dpsgd", "matcha", "qg-dsgdm", "gradient-tracking"])
def test_a_crash_costs_its_edges_and_no_waiting(tmp_path: Path, algorithm: str, closing: str) -> None:
    run = play(tmp_path, "[[crash]]\npeer = 2\nat = '5s'\n", algorithm=algorithm, closing=closing)
    rounds = [peer.round for peer in run.peers]
    assert rounds[2] < 15
    assert all(rounds[i] == 60 for i in (0, 1, 3, 4, 5))
    lost = [sum(peer.ledger.edges_lost.values()) for peer in run.peers]
    assert lost[0] == lost[4] == lost[5] == 0
    assert lost[1] > 0
    assert run.agenda.now == pytest.approx(60 * 0.4, rel=0.1), "nobody waited for the dead"
    summary = run.summaries()[2]
    assert summary["stop_reason"] == "crashed"


def test_a_ring_that_loses_a_peer_ends_with_the_sentence(tmp_path: Path) -> None:
    run = play(tmp_path, "[[crash]]\npeer = 2\nat = '5s'\n", algorithm="ring-all-reduce")
    assert run.failure is not None
    assert "ring-all-reduce needs every peer" in run.failure.sentence
    assert run.agenda.now < 7


@pytest.mark.parametrize("closing", CLOSINGS)
def test_both_sides_of_a_partition_go_on_and_meet_again(tmp_path: Path, closing: str) -> None:
    """Ring of 6 in two halves for 10 s: the cut edges are lost on both ends while it lasts, and carry again afterwards."""
    run = play(tmp_path, "[[partition]]\npeers = [0, 1, 2]\nat = 5\nuntil = 15\n", closing=closing, max_rounds=100)
    assert all(peer.round == 100 for peer in run.peers)
    for at, other in ((0, 5), (5, 0), (2, 3), (3, 2)):
        ledger = run.peers[at].ledger
        assert set(ledger.lost_by_neighbor) == {other}
        assert 10 < ledger.lost_by_neighbor[other] < 40, "about as many rounds as fit the cut"
        assert run.peers[at].talk.directory.is_alive(other)
    assert not run.peers[1].ledger.lost_by_neighbor
    assert not run.peers[4].ledger.lost_by_neighbor


def test_a_short_cut_only_delays(tmp_path: Path) -> None:
    run = play(tmp_path, "[[partition]]\npeers = [0, 1, 2]\nat = 5\nuntil = 6\n")
    assert all(not peer.ledger.edges_lost for peer in run.peers)
    assert run.agenda.now == pytest.approx(60 * 0.4 + 1.0, abs=0.5)


@pytest.mark.parametrize("closing", ["first", "barrier"])
def test_a_device_that_pauses_for_long_is_back_afterwards(tmp_path: Path, closing: str) -> None:
    run = play(tmp_path, "straggler = ['3=pause:20s@2s']\n", closing=closing, max_rounds=100)
    assert all(peer.round == 100 for peer in run.peers)
    resting = run.peers[3].ledger
    if closing == "first":
        assert run.agenda.now == pytest.approx(100 * 0.4, rel=0.05)
        assert resting.finished_fraction == pytest.approx(0.5, abs=0.05)
    else:
        assert run.agenda.now == pytest.approx(100 * 0.4 + 20, rel=0.05)
        assert resting.finished_fraction == 1.0


@pytest.mark.parametrize("in_flight", ["carry", "redo", "drain"])
@pytest.mark.parametrize("closing", CLOSINGS)
@pytest.mark.parametrize("algorithm", [name for name, algorithm in ALGORITHMS.items() if algorithm.has_rounds])
def test_every_sample_has_one_fate_and_all_time_is_accounted_for(
    tmp_path: Path, algorithm: str, closing: str, in_flight: str
) -> None:
    scenario = "straggler = ['0=6x', '1=exp:1', '2=chunk-exp:1', '3=pause:1s@1s/3s']\n[network]\nlatency = '20ms'\njitter = '5ms'\n"
    run = play(tmp_path, scenario, algorithm=algorithm, closing=closing, in_flight=in_flight, max_rounds=10)
    for summary in run.summaries():
        fates = [summary[f"samples{name}"] for name in ("", "_redone", "_nonfinite", "_abandoned")]
        assert summary["samples_started"] == sum(fates)  # type: ignore[arg-type]
        assert summary["rounds"] == 10
        assert in_flight == "redo" or summary["samples_redone"] == 0
        assert in_flight == "carry" or summary["max_staleness"] == 0
        for begin, computed, closed, end in summary["timeline"]:  # type: ignore[attr-defined]
            assert begin <= computed + 1e-9
            assert computed <= closed + 1e-9
            assert closed <= end + 1e-9
        assert 0 <= summary["seconds_computing"] <= summary["seconds"] + 1e-9  # type: ignore[operator]
    if algorithm == "ring-all-reduce":
        assert len({peer.algorithm.state.samples_clock for peer in run.peers}) == 1


def test_a_trace_that_ends_early_is_said_with_file_and_line(tmp_path: Path) -> None:
    trace = tmp_path / "device.txt"
    trace.write_text("0.1\n" * 30)
    with pytest.raises(TraceEnded, match=r"device.txt, line 30: the trace ends after 30 chunks"):
        play(tmp_path, f"straggler = ['0=trace:{trace}']\n")


def test_a_pair_that_two_cuts_sever_is_whole_when_both_are_over(tmp_path: Path) -> None:
    """Rounds of 0.4 s: within the first cut and between the two ends nobody waits for an exchange that can't be."""
    cuts = "".join(f"[[partition]]\npeers = [0]\nat = {at}\nuntil = {until}\n" for at, until in ((5, 20), (10, 60)))
    run = play(tmp_path, cuts, closing="first", max_rounds=200)
    assert run.peers[0].round == 200
    assert run.agenda.now == pytest.approx(200 * 0.4, rel=0.15)
    lost = run.peers[0].ledger.lost_by_neighbor
    assert set(lost) == {1, 5}
    assert all(110 < count < 150 for count in lost.values()), "about as many rounds as fit 5 .. 60 s"


def test_a_run_whose_peers_have_all_died_says_so(tmp_path: Path) -> None:
    crashes = "".join(f"[[crash]]\npeer = {peer}\nat = 2\n" for peer in range(6))
    file = tmp_path / "all.toml"
    file.write_text(crashes)
    report = simulate(config(peers=6, chunk_seconds=0.1, max_rounds=60, task="digits", scenario=str(file)))
    assert report["error"] == "every peer has died"
    assert report["simulation"]["exit_code"] == ExitCode.LOST
    assert report["train_loss"] is None


def test_a_run_that_diverges_ends_with_the_daemons_sentence() -> None:
    report = simulate(config(task="digits", lr=1e9, max_rounds=None, target_loss=0.1))
    assert "chunks in a row had NaN or infinite gradients; lower --lr" in report["error"]
    assert report["simulation"]["exit_code"] == ExitCode.NONFINITE


def test_a_ring_keeps_no_more_than_what_is_under_way() -> None:
    """Patience is 300 s: an event for each exchange that might be given up would be kept, with its vectors, for all that time."""
    run = Simulation(config(peers=8, algorithm="ring-all-reduce", task="timing", max_rounds=40))
    most, play = 0, run.round_ended

    def watch(*arguments: Any) -> bool:
        nonlocal most
        most = max(most, len(run.agenda))
        return play(*arguments)

    run.round_ended = watch  # type: ignore[method-assign,assignment]
    run.run()
    assert 0 < most < 8 * 10


def test_phases_that_find_everything_there_do_not_nest(tmp_path: Path) -> None:
    """The payloads of 198 phases are there before the last peer is: as calls within calls they would exceed this stack."""
    file = tmp_path / "far.toml"
    file.write_text("straggler = ['0=200x']\n")
    settings = {"peers": 100, "algorithm": "ring-all-reduce", "in_flight": "drain", "task": "timing", "max_rounds": 1}
    run = Simulation(config(**settings, scenario=str(file)))
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 2 * 99)
    try:
        run.run()
    finally:
        sys.setrecursionlimit(usual)
    assert all(peer.round == 1 for peer in run.peers)
