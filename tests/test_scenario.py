"""Scenario files: every named one loads, and what is wrong is told with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.assembly import make_real_scenario, make_scenario, make_stragglers
from peer.config import ConfigError, validated
from peer.scenario import load_scenario, names

FILE = """description = "mine"
straggler = ["0=4x"]
chunk_seconds = "20ms"

[network]
latency = "40ms"
bandwidth = "100Mbit/s"

[[crash]]
peer = 1
at = "20s"

[[crash]]
peer = 2
at = 30

[[partition]]
peers = [0, 1]
at = "20s"
until = "40s"
"""


def test_the_named_scenarios_load_and_slow_what_they_say() -> None:
    assert {"none", "one-4x", "one-10x", "exp", "hetero-1-to-4", "bimodal", "pareto", "pause", "wan"} <= set(names())
    for name in names():
        config = validated({"scenario": name})
        scenario = make_real_scenario(config)
        assert scenario.description
        peers = make_stragglers(config, scenario).peers
        slow = [p for p in peers if p.constant != 1 or p.draws or p.pauses]
        assert (len(slow) == 0) == (name == "none")


def test_the_command_lines_stragglers_are_added() -> None:
    config = validated({"scenario": "one-4x", "straggler": ("0=2x", "1=3x")})
    assert [p.constant for p in make_stragglers(config, make_real_scenario(config)).peers[:3]] == [8.0, 3.0, 1.0]


def test_units(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(FILE)
    scenario = load_scenario(str(file), 4)
    assert scenario.network is not None
    assert (scenario.network.latency, scenario.network.bandwidth, scenario.chunk_seconds) == (0.04, 12.5e6, 0.02)
    assert [crash.at for crash in scenario.crash] == [20.0, 30.0]
    assert (scenario.partition[0].at, scenario.partition[0].until) == (20.0, 40.0)


@pytest.mark.parametrize(
    ("wrong", "instead", "sentence"),
    [
        ('latency = "40ms"', 'latncy = "40ms"', "line 6: unknown field 'latncy'; did you mean latency?"),
        (
            'latency = "40ms"',
            'latency = "-40ms"',
            "line 6: latency: input should be greater than or equal to 0, not '-40ms'",
        ),
        ('latency = "40ms"', 'latency = "soon"', "line 6: latency: 'soon' is no time"),
        ('bandwidth = "100Mbit/s"', 'bandwidth = "fast"', "line 7: bandwidth: 'fast' is no rate"),
        ('straggler = ["0=4x"]', 'stragler = ["0=4x"]', "line 2: unknown field 'stragler'; did you mean straggler?"),
        ('chunk_seconds = "20ms"', "chunk_seconds = -1", "line 3: chunk_seconds: input should be greater"),
        ("peer = 2", "peer = 9", "line 14: there is no peer 9 among 4"),
        (
            'straggler = ["0=4x"]',
            'straggler = [\n  "0=2x",\n  "1=-2x",\n]',
            "line 4: straggler '1=-2x': times and factors can't be neg",
        ),
        ('straggler = ["0=4x"]', 'straggler = ["9=4x"]', "line 2: straggler '9=4x': 9 is not within peers 0 to 3"),
        ('until = "40s"', 'until = "10s"', "line 20: until: 10 s is not after at, 20 s"),
        ("at = 30", "at = -1", "line 15: at: input should be greater"),
        ("at = 30", "when = 30", "line 13: at: field required"),
        ("peers = [0, 1]", "peers = [0, 7]", "line 18: there is no peer 7 among 4"),
        ("[network]", "[network", "not valid TOML"),
        ("[network]", '[network]\nmatrix = "none.csv"', "none.csv: No such file"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(tmp_path: Path, wrong: str, instead: str, sentence: str) -> None:
    file = tmp_path / "mine.toml"
    assert wrong in FILE
    file.write_text(FILE.replace(wrong, instead, 1))
    with pytest.raises(ConfigError, match=rf"mine\.toml.*{sentence}" if "csv" not in sentence else sentence) as error:
        make_scenario(validated({"scenario": str(file), "peers": 4}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        ("0,1\n1,0,2\n0,0,0\n", "line 1: 2 latencies for 3 peers"),
        ("0,1,1\n1,0,2\n", "line 2: 2 rows of latencies for 3 peers"),
        ("0,1,1\n1,0,fast\n0,0,0\n", "line 2: a latency in seconds is expected"),
        ("0,1,1\n1,0,1\n0,-1,0\n", "line 3: -1 s is no latency"),
    ],
)
def test_a_matrix_of_the_wrong_size_is_told_with_file_and_line(tmp_path: Path, matrix: str, sentence: str) -> None:
    (tmp_path / "latency.csv").write_text(matrix)
    file = tmp_path / "mine.toml"
    file.write_text('[network]\nmatrix = "latency.csv"\n')
    with pytest.raises(ConfigError, match=rf"latency\.csv, {sentence}"):
        load_scenario(str(file), 3)


def test_a_misspelt_name_and_what_only_a_simulator_can_play(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean one-4x"):
        load_scenario("one4x", 4)
    for text, what in (
        ("[[partition]]\npeers = [0]\nat = 1\nuntil = 2\n", "a partition"),
        ("[network]\nloss = 0.1\n", "packet loss"),
        ("[network]\ncores = 2\n", "a number of cores"),
    ):
        file = tmp_path / "mine.toml"
        file.write_text(text)
        with pytest.raises(ConfigError, match=f"has {what}, which only `grapevine simulate` can play"):
            make_real_scenario(validated({"scenario": str(file)}))


def test_a_trace_lies_beside_the_scenario_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "laptop.txt").write_text("0.25\n0.5\n")
    file = tmp_path / "mine.toml"
    file.write_text('description = "mine"\nstraggler = ["0=trace:laptop.txt"]\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = validated({"scenario": str(file)})
    trace = make_stragglers(config, make_real_scenario(config)).peers[0].trace
    assert trace is not None
    assert trace.seconds == (0.25, 0.5)
    (tmp_path / "laptop.txt").unlink()
    file.write_text('description = "mine"\nstraggler = ["0=trace:gone.txt"]\n')
    with pytest.raises(ConfigError, match=r"mine.toml, line 2: .*gone.txt: No such file"):
        make_scenario(validated({"scenario": str(file), "peers": 4}))


def test_a_matrix_that_is_no_text_or_not_finite_is_told(tmp_path: Path) -> None:
    matrix, file = tmp_path / "m.csv", tmp_path / "mine.toml"
    file.write_text("[network]\nmatrix = 'm.csv'\n")
    matrix.write_bytes(b"\xff\xfe0")
    with pytest.raises(ConfigError, match=r"mine.toml, matrix: .*m.csv: not a text file"):
        load_scenario(str(file), 2)
    matrix.write_text("0 1\ninf 0\n")
    with pytest.raises(ConfigError, match=r"m.csv, line 2: inf s is no latency; it must be finite, and 0 or more"):
        load_scenario(str(file), 2)
    matrix.write_text("")
    with pytest.raises(ConfigError, match=r"m.csv, line 1: 0 rows of latencies for 2 peers"):
        load_scenario(str(file), 2)


def test_a_dotted_key_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("description = 'd'\n\nnetwork.latency = '-1ms'\n")
    with pytest.raises(ConfigError, match=r"line 3: latency: input should be greater than or equal to 0"):
        load_scenario(str(file), 2)
