"""The matrix is played, kept, resumed, and refused in one sentence."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from peer.accounts.observation import Observation
from peer.cli.app import app
from peer.cluster.live import how_far
from peer.compare.results import Cell, Result, load, matrix, save
from peer.compare.run import _listen, check_cells, command_line, config_of, open_folder, play, play_really
from peer.compare.watch import CellWatch
from peer.config import Config, ConfigError, validated
from peer.exit_codes import ExitCode, Fatal
from peer.logs import line
from peer.refusals import idle_options
from tests.cluster.warm import instead_of_popen
from tests.compare.half import half_a_report
from tests.conftest import Grapevine

BASE = {
    "peers": 3,
    "task": "tests.daemon.tasks:Linear",
    "batch_size": 8,
    "chunks": 4,
    "lr": 0.02,
    "max_rounds": 4,
    "chunk_seconds": 0.002,
}


@pytest.fixture
def warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """`grapevine up` of a real cell without its imports; test_real_processes_and_virtual_time... starts cold."""
    monkeypatch.setattr("peer.compare.run.subprocess.Popen", instead_of_popen)


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


def test_an_option_is_for_the_cells_in_which_it_means_something() -> None:
    base = validated({**BASE, "budget": 0.3, "quorum": 0.9, "outer_lr": 0.5, "mixing": "best-constant", "head": 2})
    cells = matrix(["none"], ["dpsgd", "matcha", "slowmo", "sync-sgd", "ad-psgd"], ["first", "quorum"], 1)
    check_cells(cells, base)
    usually = validated({})
    for cell in cells:
        made = config_of(cell, base)
        assert idle_options(made) == {}
        assert made.budget == (0.3 if cell.algorithm == "matcha" else usually.budget)
        assert made.quorum == (0.9 if cell.closing == "quorum" else usually.quorum)
        assert made.outer_lr == (0.5 if cell.algorithm == "slowmo" else None)
        assert made.mixing == ("best-constant" if cell.algorithm == "dpsgd" else "metropolis")
        assert made.head == (2 if cell.algorithm == "sync-sgd" else 0)


@pytest.mark.parametrize(
    ("algorithms", "options", "sentence"),
    [
        (
            ["dpsgd", "slowmo"],
            {"budget": 0.3},
            "--budget: it is for matcha and al-matcha, and means nothing with dpsgd",
        ),
        (["dpsgd", "matcha"], {"quorum": 0.3}, "--quorum: it is for --closing quorum, and means nothing with barrier"),
        (["matcha", "qg-dsgdm"], {"local_steps": 2}, "--local-steps: qg-dsgdm makes one step"),
        (["dpsgd", "noloco"], {"wire_dtype": "int8"}, "noloco can't send int8"),
        (
            ["slowmo", "noloco"],
            {"outer_momentum": 0.9},
            "--consensus-step: with --outer-momentum 0.9 and 3 peers noloco",
        ),
    ],
)
def test_what_no_cell_takes_and_what_one_can_not_be_run_with_is_refused(
    algorithms: list[str], options: dict[str, object], sentence: str
) -> None:
    cells = matrix(["none"], algorithms, ["barrier", "first"], 1)
    with pytest.raises(ConfigError, match=sentence):
        check_cells(cells, validated({**BASE, **options}))


def test_what_one_method_has_without_a_word_is_not_given_to_the_others() -> None:
    base = validated({**BASE, "algorithm": "noloco", "backup_workers": 1})
    assert (base.topology, base.in_flight) == ("complete", "redo")
    made = [config_of(Cell("none", name, "barrier", 0), base) for name in ("noloco", "dpsgd", "sync-sgd")]
    assert [config.topology for config in made] == ["complete", "ring", "star"]
    assert [config.in_flight for config in made] == ["carry", "carry", "redo"]
    assert [config.backup_workers for config in made] == [0, 0, 1]


def test_what_others_say_on_standard_error_is_no_line_of_the_log() -> None:
    heard: list[Mapping[str, Any]] = []
    said = ["3", "null", "[1]", '"event"', '{"loss": 1}', "Killed", '{"event": "progress"}', ""]
    code, last = _listen([sys.executable, "-c", f"import sys; sys.stderr.write({chr(10).join(said)!r})"], heard.append)
    assert (code, last, heard) == (0, "Killed", [{"event": "progress"}])
    code, last = _listen([sys.executable, "-c", 'import sys; sys.exit("[1]")'], heard.append)
    assert (code, last) == (1, "[1]"), "the last sentence may look like JSON"


def test_the_live_view_of_a_cell_outlives_a_loss_that_is_no_number() -> None:
    watch = CellWatch()
    for loss in (0.5, math.nan):
        seen = Observation(1.0, 3.0, loss, math.inf, 9)
        watch.heard(json.loads(line({"event": "progress", **asdict(seen)})))
    shown = how_far(validated(BASE), watch.curve)
    assert "loss of the mean model nan" in shown.plain


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


@pytest.mark.slow
@pytest.mark.processes
def test_real_processes_and_virtual_time_give_the_same_kind_of_report(tmp_path: Path) -> None:
    base = validated({**BASE, "metrics_port": -1})
    cell = Cell("none", "dpsgd", "barrier", 0)
    reports, heard = [], []
    for simulated in (False, True):
        (result,) = play(
            [cell],
            base,
            tmp_path / str(simulated),
            simulated=simulated,
            done=lambda result: None,
            heard=lambda cell, said: heard.append((cell, said["event"])),
        )
        reports.append(dict(result.report))
    assert {(cell, event) for event in ("start", "ready", "progress", "summary")} <= set(heard)
    assert reports[0].keys() ^ reports[1].keys() == {"simulation"}
    assert reports[0]["rounds"] == reports[1]["rounds"] == 4
    assert reports[0]["samples"] == reports[1]["samples"]
    assert reports[0]["train_loss"] == pytest.approx(reports[1]["train_loss"], rel=1e-5)


@pytest.mark.processes
@pytest.mark.usefixtures("warm_start")
def test_what_a_run_says_when_it_fails_is_said() -> None:
    with pytest.raises(Fatal, match="task 'digitz' is unknown") as fatal:
        play_really(config_of(Cell("none", "dpsgd", "first", 0), validated({**BASE, "task": "digitz"})))
    assert fatal.value.code is ExitCode.CONFIG


def test_a_simulation_that_fails_ends_the_comparison_in_a_sentence(tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("0.01\n0.01\n")
    base = validated({**BASE, "straggler": (f"0=trace:{trace}",)})
    cells = matrix(["none"], ["dpsgd"], ["barrier"], 1)
    with pytest.raises(Fatal, match=r"trace.txt, line 2: the trace ends after 2 chunks") as fatal:
        play(cells, base, tmp_path, simulated=True, done=lambda result: None)
    assert fatal.value.code is ExitCode.CONFIG


@pytest.mark.processes
@pytest.mark.usefixtures("warm_start")
def test_a_real_run_that_failed_after_training_began_is_a_result_like_a_simulated_one(tmp_path: Path) -> None:
    file = tmp_path / "crash.toml"
    file.write_text("[[crash]]\npeer = 1\nat = '100ms'\n")
    base = validated({**BASE, "metrics_port": -1, "chunk_seconds": 0.02, "max_rounds": 500})
    cell = Cell(str(file), "ring-all-reduce", "first", 0)
    (result,) = play([cell], base, tmp_path, simulated=False, done=lambda result: None)
    assert "peer 1 died" in result.report["error"]
    assert load(cell, tmp_path) == result


def test_an_interruption_between_two_results_ends_the_simulations(tmp_path: Path) -> None:
    """Though who catches it keeps the traceback."""

    def interrupted(result: Result) -> None:
        raise KeyboardInterrupt

    cells = matrix(["none"], ["dpsgd"], ["first", "barrier"], 2)
    with pytest.raises(KeyboardInterrupt) as kept:
        play(cells, validated(BASE), tmp_path, simulated=True, done=interrupted)
    assert multiprocessing.active_children() == []
    assert kept.tb is not None


def test_half_a_report_is_not_waited_for_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.compare.run.play_virtually", half_a_report)
    cells, base = matrix(["none"], ["dpsgd"], ["first"], 1), validated({**BASE, "run": str(os.getpid())})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            play(cells, base, tmp_path, simulated=True, done=lambda result: None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert multiprocessing.active_children() == []


def test_a_scenario_that_has_changed_is_not_resumed(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("straggler = ['0=2x']\n")
    base, out = validated(BASE), tmp_path / "out"
    cell = Cell(str(file), "dpsgd", "first", 0)
    assert cell.key != Cell(str(tmp_path / "b" / "mine.toml"), "dpsgd", "first", 0).key
    open_folder(out, base, simulated=True, resume=False, scenarios=[str(file)])
    save(Result(cell, {}, {}), out)
    open_folder(out, base, simulated=True, resume=True, scenarios=[str(file), "none"])
    file.write_text("straggler = ['0=3x']\n")
    with pytest.raises(ConfigError, match=r"mine.toml has changed since .* was made"):
        open_folder(out, base, simulated=True, resume=True, scenarios=[str(file)])


@pytest.mark.slow
@pytest.mark.processes
def test_a_terminated_comparison_leaves_no_process_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = [
        "compare",
        "--simulate",
        "--peers",
        "3",
        "--max-rounds",
        "400",
        "--seeds",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "peer", *words, "--closings", "first"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.terminate()
        rest = process.stdout.read()  # ends when the last process that could write has ended
    assert "seed" in first
    assert "go on with --resume" in " ".join(rest.split())
    assert process.returncode == ExitCode.INTERRUPTED


def test_names_that_come_twice_are_played_once_and_none_is_refused(grapevine: Grapevine, tmp_path: Path) -> None:
    words = [
        "compare",
        "--simulate",
        "--task",
        "timing",
        "--peers",
        "3",
        "--max-rounds",
        "3",
        "--seeds",
        "1",
        "--closings",
        "first",
    ]
    done = grapevine(
        *words, "--scenario", "none", "--scenario", "none", "--algorithms", "dpsgd,dpsgd", "--out", str(tmp_path / "a")
    )
    assert done.code == 0, done.err
    assert len(list((tmp_path / "a" / "cells").iterdir())) == 1
    done = grapevine(*words, "--algorithms", ",", "--out", str(tmp_path / "b"))
    assert done.code == 2
    assert "--algorithms: name at least one" in done.err


def test_a_failed_run_is_told_in_the_terminal_and_on_the_page(grapevine: Grapevine, tmp_path: Path) -> None:
    file, out = tmp_path / "crash.toml", tmp_path / "out"
    file.write_text("[[crash]]\npeer = 1\nat = '300ms'\n")
    words = [
        "compare",
        "--simulate",
        "--scenario",
        str(file),
        "--algorithms",
        "ring-all-reduce",
        "--peers",
        "4",
        "--seeds",
        "1",
    ]
    done = grapevine(
        *words, "--closings", "barrier,first", "--max-rounds", "60", "--target-loss", "1.9", "--out", str(out)
    )
    assert done.code == 0, done.err
    assert "ring-all-reduce needs every peer" in done.out
    page = (out / "report.html").read_text()
    assert "ring-all-reduce needs every peer" in page
    assert "2 runs failed" in page
    assert "missed the target" not in page


def test_options_that_only_some_methods_have_can_be_compared_and_their_costs_are_told(
    grapevine: Grapevine, tmp_path: Path
) -> None:
    words = ["compare", "--simulate", "--peers", "4", "--seeds", "1", "--max-rounds", "5", "--closings", "barrier"]
    done = grapevine(*words, "--algorithms", "sync-sgd", "--backup-workers", "1", "--out", str(tmp_path / "backups"))
    assert done.code == 0, done.err
    assert "steps dropped 25.0% of all gradients" in " ".join(done.out.split())
    lines = (tmp_path / "backups" / "results.csv").read_text().splitlines()
    values = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert (values["wasted_fraction"], values["least_share"]) == ("0.25", "0.0")
    assert float(values["sample_skew"]) == pytest.approx(4 / 3)
    assert "steps dropped 25.0% of all gradients" in (tmp_path / "backups" / "report.html").read_text()
    done = grapevine(*words, "--algorithms", "async-sgd,sync-sgd", "--head", "2", "--out", str(tmp_path / "heads"))
    assert done.code == 0, done.err
    reports = [json.loads(file.read_text())["report"] for file in (tmp_path / "heads" / "cells").glob("*.json")]
    configs = {report["config"]["algorithm"]: report["config"] for report in reports}
    assert {(name, made["head"], made["head_computes"]) for name, made in configs.items()} == {
        ("async-sgd", 2, False),
        ("sync-sgd", 2, True),
    }
