"""Scenario files: every named one loads, and what is wrong is told with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.assembly import make_real_scenario, make_stragglers
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
        ("at = 30", "at = -1", "line 15: at: input should be greater"),
        ("at = 30", "when = 30", "line 13: at: field required"),
        ("peers = [0, 1]", "peers = [0, 7]", "line 18: there is no peer 7 among 4"),
        ('until = "40s"', 'until = "10s"', "line 17: .*until: 10 s is not after at, 20 s"),
        ("[network]", "[network", "not valid TOML"),
        ("[network]", '[network]\nmatrix = "none.csv"', "none.csv: No such file"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(tmp_path: Path, wrong: str, instead: str, sentence: str) -> None:
    file = tmp_path / "mine.toml"
    assert wrong in FILE
    file.write_text(FILE.replace(wrong, instead, 1))
    with pytest.raises(ConfigError, match=rf"mine\.toml.*{sentence}" if "csv" not in sentence else sentence) as error:
        load_scenario(str(file), 4)
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
