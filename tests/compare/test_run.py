"""The matrix is played, kept, resumed, and refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from peer.cli.app import app
from peer.compare.results import Cell, Result, load, matrix, save
from peer.compare.run import command_line, config_of, open_folder, play, play_really
from peer.config import Config, ConfigError, validated
from peer.exit_codes import ExitCode, Fatal

BASE = {
    "peers": 3,
    "task": "tests.daemon.tasks:Linear",
    "batch_size": 8,
    "chunks": 4,
    "lr": 0.02,
    "max_rounds": 4,
    "chunk_seconds": 0.002,
}


def test_methods_of_one_scenario_and_seed_follow_each_other() -> None:
    cells = matrix(["none", "exp"], ["dpsgd", "matcha"], ["barrier", "first"], 2)
    assert len(cells) == len({cell.key for cell in cells}) == 16
    assert [(c.algorithm, c.closing) for c in cells[:4]] == [
        (a, c) for a in ("dpsgd", "matcha") for c in ("barrier", "first")
    ]
    assert {(c.scenario, c.seed) for c in cells[:4]} == {("none", 0)}


def test_a_command_line_makes_the_config_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = validated(
        {**BASE, "straggler": ("0=4x", "1=exp:1"), "reflection": True, "weighting": "samples", "closing": "quorum"}
    )
    words = command_line(config)
    assert words.count("--straggler") == 2
    assert "--reflection" in words
    seen: list[Config] = []

    def check(read: Config) -> None:
        seen.append(read)
        raise Fatal(ExitCode.CONFIG, "that is enough")

    monkeypatch.setattr("peer.cluster.up.check", check)
    CliRunner().invoke(app, ["up", *words])
    assert seen == [config]


def test_cells_are_kept_whole_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    cell = Cell("none", "dpsgd", "first", 1)
    assert load(cell, tmp_path) is None
    save(Result(cell, {"seconds_to_target": 1.5}, {"share_of_ceiling": None}), tmp_path)
    kept = load(cell, tmp_path)
    assert kept == Result(cell, {"seconds_to_target": 1.5}, {"share_of_ceiling": None})
    path = tmp_path / "cells" / f"{cell.key}.json"
    path.write_text(path.read_text()[:-20])
    assert load(cell, tmp_path) is None


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path: Path) -> None:
    base = validated({**BASE, "target_loss": 1e-9})
    cells = matrix(["none"], ["dpsgd", "matcha"], ["first"], 2)
    open_folder(tmp_path, base, simulated=True, resume=False)
    seen: list[Cell] = []

    def stop_after_two(result: Result) -> None:
        seen.append(result.cell)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(cells, base, tmp_path, simulated=True, done=stop_after_two)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.json")}
    assert len(kept) >= 2
    with pytest.raises(ConfigError, match="add --resume"):
        open_folder(tmp_path, base, simulated=True, resume=False)
    with pytest.raises(ConfigError, match=r"made with --lr 0\.02, not 0\.1"):
        open_folder(tmp_path, validated({**BASE, "target_loss": 1e-9, "lr": 0.1}), simulated=True, resume=True)
    with pytest.raises(ConfigError, match="--simulated True, not False"):
        open_folder(tmp_path, base, simulated=False, resume=True)
    open_folder(tmp_path, base, simulated=True, resume=True)
    results = play(cells, base, tmp_path, simulated=True, done=lambda result: None)
    assert [result.cell for result in results] == cells
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items()), "finished cells were played again"
    assert json.loads((tmp_path / "settings.json").read_text())["simulated"] is True


@pytest.mark.processes
def test_real_processes_and_virtual_time_give_the_same_kind_of_report(tmp_path: Path) -> None:
    base = validated({**BASE, "metrics_port": -1})
    cell = Cell("none", "dpsgd", "barrier", 0)
    reports = []
    for simulated in (False, True):
        (result,) = play([cell], base, tmp_path / str(simulated), simulated=simulated, done=lambda result: None)
        reports.append(dict(result.report))
    assert reports[0].keys() ^ reports[1].keys() == {"simulation"}
    assert reports[0]["rounds"] == reports[1]["rounds"] == 4
    assert reports[0]["samples"] == reports[1]["samples"]
    assert reports[0]["train_loss"] == pytest.approx(reports[1]["train_loss"], rel=1e-5)


@pytest.mark.processes
def test_what_a_run_says_when_it_fails_is_said() -> None:
    with pytest.raises(Fatal, match="task 'digitz' is unknown") as fatal:
        play_really(config_of(Cell("none", "dpsgd", "first", 0), validated({**BASE, "task": "digitz"})))
    assert fatal.value.code is ExitCode.CONFIG
