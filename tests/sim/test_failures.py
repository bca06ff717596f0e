"""Deaths, cuts, pauses and ends in virtual time: the same effects as in the daemon's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.gossip.closing import CLOSINGS
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


@pytest.mark.parametrize("closing", CLOSINGS)
@pytest.mark.parametrize("algorithm", ["dpsgd", "matcha"])
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
    assert run.error is not None
    assert "ring-all-reduce needs every peer" in run.error
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
@pytest.mark.parametrize("algorithm", ["ring-all-reduce", "dpsgd", "matcha"])
def test_every_sample_has_one_fate_and_all_time_is_accounted_for(
    tmp_path: Path, algorithm: str, closing: str, in_flight: str
) -> None:
    scenario = "straggler = ['0=6x', '1=exp:1', '2=chunk-exp:1', '3=pause:1s@1s/3s']\n[network]\nlatency = '20ms'\njitter = '5ms'\n"
    run = play(tmp_path, scenario, algorithm=algorithm, closing=closing, in_flight=in_flight, max_rounds=40)
    for summary in run.summaries():
        fates = [summary[f"samples{name}"] for name in ("", "_redone", "_nonfinite", "_abandoned")]
        assert summary["samples_started"] == sum(fates)  # type: ignore[arg-type]
        assert summary["rounds"] == 40
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
