"""Closed forms: the reference's numbers, limits, and the simulator reaching the ceiling where nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.compare.theory import expected_speed_up, exponential_chunks, one_slow, own_rate, theory
from peer.config import validated
from peer.sim.play import simulate
from peer.training.stragglers import parse


def test_the_numbers_of_the_reference() -> None:
    assert [one_slow(8, 8, k, "redo") for k in (2, 3, 4, 10)] == pytest.approx([1.875, 2.71875, 3.625, 8.75])
    assert [one_slow(8, 8, k, "carry") for k in (2, 4, 10)] == pytest.approx([1.875, 3.625, 8.875])
    assert exponential_chunks(8, 8) == pytest.approx(1.554, abs=1e-3)
    # of three with one chunk each the first alone finishes, so S is the mean of the last: 1 + 1/2 + 1/3
    assert exponential_chunks(3, 1) == pytest.approx(11 / 6)
    assert exponential_chunks(8, 200) > exponential_chunks(8, 500) > 1


@pytest.mark.parametrize(
    ("spec", "rate"),
    [
        ("0=2x", 100.0),
        ("0=exp:1", 200.0 * 0.596347),  # E[1 / (1 + E)] = e E_1(1)
        ("0=chunk-exp:2", 100.0),
        ("0=pareto:2", 200.0 * 2 / 3),
        ("0=bimodal:0.1,10", 200.0 * 0.91),
        ("0=pause:5s@5s/20s", 150.0),
        ("0=pause:30s@20s", 140.0),
        ("0=pause:60s@70s/80s", 140.0),
    ],
)
def test_a_devices_own_rate(spec: str, rate: float) -> None:
    """2 samples in 10 ms nominally; a run of 100 s."""
    assert own_rate(parse([spec], 1).for_peer(0), 0.01, 2, 100.0) == pytest.approx(rate, rel=1e-5)


def test_where_no_formula_fits_none_is_given() -> None:
    for specs in (["0=2x", "1=3x"], ["all=exp:1"], ["0=pause:3s@1s"], ["all=chunk-exp:1", "0=2x"]):
        assert expected_speed_up(parse(specs, 4).peers, 8, "redo") is None
    assert expected_speed_up(parse([], 4).peers, 8, "carry") == 1.0
    assert expected_speed_up(parse(["0=2x"], 4).peers, 8, "drain") is None


@pytest.mark.parametrize("scenario", ["none", "one-4x", "hetero-1-to-4"])
def test_non_blocking_training_reaches_nearly_the_ceiling_and_blocking_does_not(scenario: str) -> None:
    shares = {}
    for closing in ("first", "barrier"):
        config = validated(
            {"task": "timing", "scenario": scenario, "closing": closing, "max_rounds": 150, "chunk_seconds": 0.1}
        )
        told = theory(config, simulate(config))
        assert told["share_of_ceiling"] is not None
        shares[closing] = told["share_of_ceiling"]
    assert 0.97 < shares["first"] <= 1.0 + 1e-9
    # in lock-step all eight run at the pace of the slowest, a quarter
    ceilings = {"none": 8.0, "one-4x": 7.25, "hetero-1-to-4": sum(7 / (7 + 3 * i) for i in range(8))}
    pace = 1.0 if scenario == "none" else 0.25
    assert shares["barrier"] == pytest.approx(8 * pace / ceilings[scenario], abs=0.01)


def test_a_ceiling_only_where_every_device_has_a_nominal_time(tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("0.01\n" * 500)
    report = {"wall_seconds": 10.0, "samples": 500}
    config = validated({"peers": 2, "straggler": (f"0=trace:{trace}",)})
    assert theory(config, report)["ceiling_samples_per_second"] is None
    assert theory(config, report, 0.01)["ceiling_samples_per_second"] == pytest.approx(400.0)


def test_the_dead_compute_nothing(tmp_path: Path) -> None:
    file = tmp_path / "crash.toml"
    file.write_text("[[crash]]\npeer = 1\nat = 5\n")
    found = theory(validated({"peers": 2, "scenario": str(file)}), {"wall_seconds": 10.0, "samples": 500}, 0.01)
    assert found["ceiling_samples_per_second"] == pytest.approx(200.0 * 1.5)
