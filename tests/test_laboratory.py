"""The generated tables of docs/algorithms.md, and how bench/laboratory.py makes them of runs."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peer.config import choices, validated
from peer.gossip.algorithms import ALGORITHMS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def laboratory(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("laboratory")


def test_the_tables_of_the_docs_are_what_the_kept_runs_give_and_forget_no_algorithm() -> None:
    script = [sys.executable, "bench/laboratory.py", "--check"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_an_algorithm_without_a_row_is_named(laboratory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(choices("algorithm")) == set(ALGORITHMS)
    rows = {name: row for name, row in laboratory.ROWS.items() if row["algorithm"] != "choco-sgd"}
    monkeypatch.setattr(laboratory, "ROWS", rows)
    assert laboratory.check({}) == "no row of bench/laboratory.py is for choco-sgd"


def test_other_tables_than_the_runs_give_are_told(laboratory: Any) -> None:
    runs, _ = made(laboratory)
    assert "other tables than the results give" in laboratory.check(runs)


def test_every_row_is_a_config(laboratory: Any) -> None:
    for row in laboratory.ROWS:
        for partition in laboratory.PARTITIONS:
            config = validated(laboratory.settings(row, partition, 0.1))
            assert config.chunks * config.chunk_seconds == pytest.approx(laboratory.BATCH_SECONDS)


def made(laboratory: Any) -> tuple[dict[str, Any], str]:
    """Runs of two methods and the name of their partition: the seeds of dpsgd need 1, 2, 3 seconds times the scenario's place; one of
    matcha's three gets to the target with nobody slow, two in the next scenario, and elsewhere all in 1 second."""
    partition = "iid"
    runs: dict[str, Any] = {}
    for row in ("dpsgd", "matcha"):
        tried = [{"lr": lr, "seconds_to_target": s, "train_loss": 0.3} for lr, s in ((0.1, 10.5), (0.2, 10), (0.4, 12))]
        runs[laboratory.sweep_key(row, partition)] = {"tried": tried}
        for place, scenario in enumerate(laboratory.SCENARIOS):
            for seed in range(3):
                seconds: float | None = (seed + 1.0) * (place + 1)
                if row == "matcha":
                    seconds = 1.0 if seed <= place else None
                runs[laboratory.run_key(row, partition, scenario, seed)] = {
                    "seconds_to_target": seconds,
                    "test_accuracy": 0.9 if row == "dpsgd" else 0.95,
                    "worst_peer_test_accuracy": 0.8 - place / 100,
                    "bytes_sent": 80e6 if row == "dpsgd" else 40e6,
                }
    return runs, partition


def test_a_table_has_medians_tells_who_does_not_get_there_and_marks_the_best(laboratory: Any) -> None:
    runs, partition = made(laboratory)
    _, _, first, second = laboratory.table(runs, partition)
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[:5] == ["dpsgd", "0.1", "**2.0**", "4.0", "6.0"]
    mean = 2 * 362880 ** (1 / 9)  # of 2, 4, ... 18
    assert cells[-4:] == [f"**{mean:.1f}**", "90.0", "**72.0**", "10.0"]
    cells = [cell.strip() for cell in second.strip("|").split("|")]
    assert cells[:5] == ["matcha", "0.1", "- (1 of 3)", "**1.0 (2 of 3)**", "**1.0**"]
    assert cells[-4:] == ["-", "**95.0**", "**72.0**", "**5.0**"]


def test_the_best_are_methods_each_by_its_best_row(laboratory: Any) -> None:
    runs, partition = made(laboratory)
    for scenario in laboratory.SCENARIOS:
        for seed in range(3):
            run = runs[laboratory.run_key("dpsgd", partition, scenario, seed)]
            runs[laboratory.run_key("dpsgd, `base`", partition, scenario, seed)] = {**run, "seconds_to_target": 0.5}
    assert laboratory.best(runs, partition) == ["dpsgd, `base`", "matcha"]


def test_it_is_told_over_how_many_seeds_the_medians_are(laboratory: Any) -> None:
    runs, partition = made(laboratory)
    assert laboratory.seeds_told(runs) == "Medians are over 3 seeds."
    for row in ("dpsgd", "matcha"):
        del runs[laboratory.run_key(row, partition, "wan", 2)]
    others = ", ".join(scenario for scenario in laboratory.SCENARIOS if scenario != "wan")
    assert laboratory.seeds_told(runs) == f"Medians are over 3 seeds ({others}), 2 seeds (wan)."


def test_rows_without_runs_are_named_below_the_table(laboratory: Any) -> None:
    runs, _ = made(laboratory)
    told = next(line for line in laboratory.section(runs).splitlines() if line.startswith("Not run yet: "))
    assert "choco-sgd" in told
    assert "matcha," not in told.replace("al-matcha,", "")


def test_the_least_learning_rate_within_a_tenth_is_chosen(laboratory: Any) -> None:
    runs, partition = made(laboratory)
    assert laboratory.chosen(runs, "dpsgd", partition) == 0.1
    tried = [
        {"lr": lr, "seconds_to_target": None, "train_loss": loss} for lr, loss in ((0.1, 0.9), (0.2, 0.7), (0.4, None))
    ]
    runs[laboratory.sweep_key("dpsgd", partition)] = {"tried": tried}
    assert laboratory.chosen(runs, "dpsgd", partition) == 0.2
