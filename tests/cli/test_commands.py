"""The command line: output, exit codes, and no traceback whatever is typed. In this process, but for one that starts its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from peer import __version__
from peer.config import Config, choices
from tests.conftest import Grapevine

GRAPH_0 = [[[1, 5], [6, 7], [0, 4], [2, 3]], [[1, 7], [3, 6]], [[1, 0], [3, 7], [5, 6]], [[1, 2], [7, 0]], [[3, 1]]]


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No peer process is started here either."""
    monkeypatch.setattr("peer.cluster.forkserver.start_early", lambda config: None)
    monkeypatch.chdir(tmp_path)


def test_plan_as_json_has_the_reference_numbers(grapevine: Grapevine, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(GRAPH_0))
    done = grapevine("plan", "--topology", str(path), "--budget", "0.5", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["lambda2"] == pytest.approx(0.561202, abs=1e-4)
    assert facts["alpha"] == pytest.approx(0.39643, abs=1e-4)
    assert facts["rho"] == pytest.approx(0.64398, abs=1e-4)
    assert facts["matchings"][1] == [[1, 7], [3, 6]]
    assert (facts["num_peers"], facts["num_edges"]) == (8, 12)


def test_plan_for_people_has_a_table_and_a_drawing(grapevine: Grapevine) -> None:
    done = grapevine("plan", "--topology", "torus", "--peers", "16", "--rounds", "10")
    assert done.code == 0, done.err
    for word in ("torus, 16 peers, 32 edges", "rho", "rounds 0 .. 9", "█", "talking at once"):
        assert word in done.out


def test_plan_of_a_topology_that_varies(grapevine: Grapevine) -> None:
    done = grapevine("plan", "--topology", "base", "--peers", "5")
    assert done.code == 0, done.err
    for word in ("exact after 5 rounds", "5 edges in all rounds together", "0-1 (0.5)  3-4 (0.8)"):
        assert word in done.out
    facts = json.loads(grapevine("plan", "--topology", "base", "--peers", "5", "--json").out)
    assert facts["contraction"] is None
    assert (facts["rounds_to_consensus"], len(facts["rounds"]), facts["rounds"][2]) == (
        5,
        5,
        [[0, 1, 0.5], [3, 4, 0.8]],
    )
    facts = json.loads(grapevine("plan", "--topology", "equidyn", "--rounds", "6", "--json").out)
    assert (facts["rounds_to_consensus"], len(facts["rounds"]), facts["max_degree_in_a_round"]) == (None, 6, 1)
    assert 0.5 < facts["contraction"] < 2 / 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--peers 8 --topology equidyn", "8 peers, dpsgd on topology equidyn, "),
        ("--peers 3 --topology star", "3 peers, dpsgd on a star, non-blocking (first), "),
        ("--peers 3 --algorithm ad-psgd", "3 peers, ad-psgd on a ring, without rounds, "),
        ("--peers 5 --topology complete", "5 peers, dpsgd on topology complete, "),
    ],
)
def test_a_run_is_described_in_words(grapevine: Grapevine, words: str, line: str) -> None:
    done = grapevine("simulate", "--task", "timing", "--max-rounds", "1", *words.split())
    assert done.code == 0, done.err
    assert done.out.startswith(line)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["up", "--algorithm", "dspgd"], 2, "--algorithm: unknown algorithm 'dspgd'; did you mean dpsgd?"),
        (["up", "--topology", "rign"], 2, "did you mean ring?"),
        (["up", "--chunks", "3"], 2, "3 chunks do not divide a batch of 16 samples"),
        (["up", "--budget", "1.5"], 2, "must be in (0, 1], not 1.5"),
        (["up", "--peers", "1"], 2, "too few"),
        (["up", "--straggler", "0=4"], 2, "0=4x"),
        (["up", "--straggler", "99=4x"], 2, "99"),
        (["up", "--task", "nowhere:Task"], 2, "nowhere"),
        (["up", "--task", "digist"], 2, "did you mean 'digits'?"),
        (["up", "--optimizer", "adaam"], 2, "did you mean 'adam'?"),
        (["up", "--report", "/no/such/folder/r.json"], 2, "/no/such/folder"),
        (["up", "--algorithm", "ring-all-reduce", "--topology", "star"], 2, "use --topology ring"),
        (["up", "--outer-lr", "0.5"], 2, "--outer-lr: it is for slowmo, diloco and noloco, and means"),
        (["up", "--algorithm", "noloco", "--topology", "ring"], 2, "use --topology complete, not ring"),
        (["up", "--algorithm", "diloco", "--topology", "base"], 2, "diloco can't run on base: it passes shards"),
        (["up", "--algorithm", "diloco", "--wire-dtype", "top-k:0.1"], 2, "diloco can't send top-k:0.1"),
        (["up", "--algorithm", "slowmo", "--outer-momentum", "1"], 2, "--outer-momentum: input should be less than 1"),
        (
            ["up", "--algorithm", "noloco", "--outer-momentum", "0.9"],
            2,
            "--consensus-step: with --outer-momentum 0.9 and 8 peers noloco drives them apart from 0.436 on",
        ),
        (["up", "--algorithm", "diloco", "--outer-lr", "inf"], 2, "--outer-lr: input should be a finite number, not"),
        (["up", "--lr", "inf"], 2, "--lr: input should be a finite number, not"),
        (["up", "--wire-dtype", "top-k"], 2, "for instance top-k:0.1, not 'top-k'\n"),
        (
            ["simulate", "--algorithm", "sync-sgd", "--topology", "ring", "--max-rounds", "1"],
            2,
            "--topology star, not ring",
        ),
        (["up", "--base-k", "2"], 2, "--base-k: ring has none; it is for --topology base"),
        (["plan", "--degree", "3"], 2, "--degree: ring has none; it is for --topology random-regular"),
        (["up", "--budget", "0.3"], 2, "--budget: it is for matcha and al-matcha, and means nothing with dpsgd"),
        (["up", "--quorum", "0.3"], 2, "--quorum: it is for --closing quorum, and means nothing with first"),
        (
            ["up", "--topology", "base", "--algorithm", "matcha"],
            2,
            "matcha can't run on base: it decides on its own which edges of one graph talk in a round; dpsgd can",
        ),
        (["up", "--topology", "equidyn", "--algorithm", "ring-all-reduce"], 2, "it passes shards along the ring"),
        (["up", "--topology", "base", "--random-graph-every", "5"], 2, "base changes in every round already"),
        (["up", "--topology", "base", "--mixing", "best-constant"], 2, "the weights of base are its own"),
        (["plan", "--topology", "one-peer-exponential", "--peers", "6"], 2, "not a power of two"),
        (["up", "--random-graph-every", "5"], 2, "ring is the same graph every time"),
        (["up", "--peers", "2000"], 2, "cannot be divided among 2000 peers"),
        (
            ["up", "--peers", "8", "--metrics-port", "65530"],
            2,
            "--metrics-port: 8 peers need as many ports from 65530 on",
        ),
        (["up", "--open", "--metrics-port", "-1"], 2, "--open: with --metrics-port -1 there is no page"),
        (["up", "--task", "digits-cnn", "--batch-size", "36", "--lr", "0"], 2, "--lr: input should be greater than 0"),
        (["up", "--task", "digits-cnn", "--batch-size", "30"], 2, "4 chunks do not divide a batch of 30 samples"),
        (["plan", "--topology", "missing.json"], 2, "No such file"),
        (["peer"], 2, "--peer: which one is this?"),
        (["peer", "--peer", "0", "--peers", "2", "--address", "a:1"], 2, "1 addresses for 2 peers"),
        (["peer", "--peer", "0", "--peers", "1", "--address", "a"], 2, "'a' is no address of a peer; write HOST:PORT"),
        (["status", "127.0.0.1:1", "--timeout", "1"], 4, "127.0.0.1:1"),
        (["status", "localhost"], 2, "'localhost' is no address of a peer; write HOST:PORT, as in 127.0.0.1:7000"),
        (["top", "127.0.0.1:1", "--once", "--timeout", "1"], 4, "no peer answers at 127.0.0.1:1"),
        (["top", "127.0.0.1:1"], 4, "no peer answers at 127.0.0.1:1"),
        (["top", "127.0.0.1:70000"], 2, "'127.0.0.1:70000' is no address of a peer"),
        (["up", "--config", "missing.toml"], 2, "grapevine init"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(
    grapevine: Grapevine, words: list[str], code: int, sentence: str
) -> None:
    done = grapevine(*words)
    assert done.code == code, done.out + done.err
    assert done.out == "", "nothing is announced that is then refused"
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert done.err.count("\n") == 1
    assert "simulated" not in done.out, "what is refused does not begin"


def test_what_goes_wrong_is_said_in_the_format_that_was_asked_for(
    grapevine: Grapevine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also if the option is in a file or the environment, and if another source of options is the one that is bad."""
    (tmp_path / "bad.toml").write_text("lr = ")
    (tmp_path / "json.toml").write_text('log_format = "json"\nlr = 0')
    typed = [
        ["up", "--log-format", "json", "--config", "bad.toml"],
        ["up", "--config", "json.toml"],
        ["peer", "--log-format", "json"],
        ["plan", "--config", "json.toml"],
        ["compare", "--log-format", "json"],
    ]
    for words in typed:
        done = grapevine(*words)
        assert (done.code, done.out) == (2, ""), done.err
        said = json.loads(done.err)
        assert (said["level"], said["event"], said["code"], said["exit"]) == ("error", "failed", 2, "CONFIG")
    assert "a comparison needs an end" in said["message"]
    monkeypatch.setenv("GRAPEVINE_LOG_FORMAT", "json")
    assert "not valid TOML" in json.loads(grapevine("up", "--config", "bad.toml").err)["message"]
    assert grapevine("up", "--log-format", "text", "--lr", "0").err.startswith("grapevine: --lr")


def test_a_bug_is_a_line_too(grapevine: Grapevine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr("peer.cluster.up.check", broken)
    done = grapevine("up", "--log-format", "json")
    *_, said = [json.loads(line) for line in done.err.splitlines()]
    assert (done.code, said["level"], said["code"]) == (1, "critical", 1)
    assert said["traceback"].endswith("ZeroDivisionError: of ours")


def test_init_writes_a_config_that_up_understands(grapevine: Grapevine) -> None:
    assert grapevine("init").code == 0
    again = grapevine("init")
    assert (again.code, "exists already" in again.err) == (2, True)
    done = grapevine("up", "--config", "grapevine.toml", "--topology", "rign")
    assert "did you mean ring?" in done.err


def test_help_names_every_command_and_the_environment_is_checked(
    grapevine: Grapevine, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = grapevine("--help")
    assert done.code == 0
    for command in ("up", "peer", "plan", "status", "top", "init"):
        assert command in done.out
    monkeypatch.setenv("GRAPEVINE_TOPOLOGIE", "ring")
    wrong = grapevine("plan")
    assert (wrong.code, "did you mean GRAPEVINE_TOPOLOGY" in wrong.err) == (2, True)


@pytest.mark.parametrize("command", ["up", "simulate", "compare", "peer", "plan"])
def test_help_fits_a_terminal_and_cuts_nothing(
    grapevine: Grapevine, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = grapevine(command, "--help").out
    assert max(map(len, told.splitlines())) <= 80
    assert "…" not in told
    words = " ".join(told.replace("│", " ").split())
    for name in Config.model_fields.keys() - {"peer", "listen", "addresses"} if command == "up" else ():
        assert re.search(rf" --(no-)?{name.replace('_', '-')} ", words), name
        for choice in choices(name):
            assert choice in words
    assert ("needs grapevine[tracing]" in words) == (command in ("up", "peer"))
    assert "[default: 8]" in words


def test_a_switch_of_the_config_file_is_turned_off_on_the_command_line(grapevine: Grapevine, tmp_path: Path) -> None:
    (tmp_path / "on.toml").write_text('head_computes = true\nalgorithm = "dpsgd"\n')
    (tmp_path / "off.toml").write_text('head_computes = false\nalgorithm = "dpsgd"\n')
    few = ("simulate", "--peers", "2", "--max-rounds", "1", "--config")
    assert "--head-computes: it is for sync-sgd" in grapevine(*few, "on.toml", "--no-head-computes").err
    assert "--head-computes: it is for sync-sgd" in grapevine(*few, "off.toml").err
    assert grapevine(*few, "off.toml", "--head-computes").code == 0


def test_training_with_plain_sgd_imports_nothing_that_is_for_compilers() -> None:
    """sympy, half a second of a process's start, and torch._dynamo, as much again."""
    program = (
        "import sys; from peer.config import validated; from peer.sim.play import simulate\n"
        "simulate(validated({'peers': 2, 'max_rounds': 2}))\n"
        "print(sorted({'sympy', 'torch._dynamo'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_who_only_asks_a_peer_does_not_wait_for_what_computes() -> None:
    heavy = "{'torch', 'scipy', 'networkx'}"
    asked = f"import sys; import peer.cli.app, peer.cli.status, peer.cli.top; print(not {heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=55, check=True)
    assert done.stdout == "True\n", done.stderr


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "peer", "--version"], capture_output=True, text=True, timeout=55, check=True
    )
    assert done.stdout == f"grapevine {__version__}\n"
