"""Scenarios with real processes: scripted deaths, and a slow network between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Grapevine

pytestmark = pytest.mark.processes


def up(grapevine: Grapevine, folder: Path, scenario: str, *words: str) -> dict[str, Any]:
    """The report of a run in that scenario."""
    file, report = folder / "scenario.toml", folder / "report.json"
    file.write_text(scenario)
    done = grapevine("up", "--scenario", str(file), "--report", str(report), "--metrics-port", "-1", *words)
    assert done.code == 0, done.err
    loaded: dict[str, Any] = json.loads(report.read_text())
    return loaded


def test_a_peer_dies_at_the_time_in_the_script_and_the_others_go_on(grapevine: Grapevine, tmp_path: Path) -> None:
    crash = "[[crash]]\npeer = 2\nat = '500ms'\n"
    report = up(grapevine, tmp_path, crash, "--peers", "4", "--chunk-seconds", "0.01", "--max-rounds", "25")
    assert [peer["peer"] for peer in report["peers"]] == [0, 1, 3]
    assert all(peer["rounds"] == 25 for peer in report["peers"])
    assert report["lost"].keys() == {"2"}
    for peer in report["peers"]:
        assert bool(peer["edges_lost"]) == (peer["peer"] in (1, 3))


@pytest.mark.parametrize(("wire", "steps"), [("fp32", 2), ("bf16", 6)])
def test_a_slow_network_costs_a_ring_its_latency_in_every_step(
    grapevine: Grapevine, tmp_path: Path, wire: str, steps: int
) -> None:
    """Four peers: small vectors travel whole, N / 2 steps, or as shards, 2 (N - 1) of 30 ms, though computing takes next to nothing."""
    slow = "[network]\nlatency = '30ms'\nbandwidth = '1Gbit/s'\n"
    words = (
        "--peers",
        "4",
        "--algorithm",
        "ring-all-reduce",
        "--closing",
        "barrier",
        "--chunk-seconds",
        "0.001",
        "--max-rounds",
        "8",
        "--wire-dtype",
        wire,
    )
    report = up(grapevine, tmp_path, slow, *words)
    for peer in report["peers"]:
        assert len(peer["timeline"]) == 8
        assert peer["timeline"][-1][-1] >= (8 * steps - 1) * 0.03, "one message after the other"


def test_what_only_a_simulator_can_play_is_refused_before_a_process_starts(
    grapevine: Grapevine, tmp_path: Path
) -> None:
    file = tmp_path / "cut.toml"
    file.write_text("[[partition]]\npeers = [0]\nat = 1\nuntil = 2\n")
    done = grapevine("up", "--scenario", str(file))
    assert done.code == 2
    assert done.err.strip().endswith("has a partition, which only `grapevine simulate` can play")
    assert "listens" not in done.out


def test_a_run_whose_vectors_travel_on_sockets_computes_the_same(grapevine: Grapevine, tmp_path: Path) -> None:
    words = ("--peers", "3", "--closing", "barrier", "--chunk-seconds", "0.001", "--max-rounds", "5")
    reports = [up(grapevine, tmp_path, "", *words, "--data-plane", name) for name in ("grpc", "direct", "auto")]
    for name in ("train_loss", "consensus_distance", "samples"):
        assert reports[0][name] == reports[1][name] == reports[2][name]
    assert not any(peer["edges_lost"] for report in reports for peer in report["peers"])


def test_an_emulated_network_is_not_in_data_sockets(grapevine: Grapevine) -> None:
    done = grapevine("up", "--scenario", "wan", "--peers", "2", "--max-rounds", "1", "--data-plane", "direct")
    assert done.code == 2
    assert "use grpc or auto" in done.err
