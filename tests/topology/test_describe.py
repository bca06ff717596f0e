"""What `grapevine plan` prints."""

from __future__ import annotations

import json

import pytest

from tests.topology.test_matcha import graph_0
from topology import MatchaSchedule, build, describe, draw_facts, draw_schedule


def test_the_facts_are_json_with_the_documented_keys() -> None:
    facts = json.loads(json.dumps(describe(graph_0, 0.5)))
    assert list(facts) == [
        "num_peers",
        "num_edges",
        "matchings",
        "activation_probabilities",
        "lambda2",
        "alpha",
        "rho",
        "spectral_gap",
        "expected_matchings_per_round",
    ]
    assert (facts["num_peers"], facts["num_edges"], len(facts["matchings"])) == (8, 12, 5)
    assert facts["expected_matchings_per_round"] == pytest.approx(2.5, abs=1e-5)
    assert describe(build("ring", 8), 1.0)["spectral_gap"] == pytest.approx(1 - 0.804738, abs=1e-6)


def test_the_drawing_shows_who_talks_when() -> None:
    schedule = MatchaSchedule(graph_0, 0.5, seed=0)
    lines = draw_schedule(schedule, rounds=10).splitlines()
    assert len(lines) == 1 + 5 + 1
    for j in range(5):
        blocks = lines[1 + j][-10:]
        assert [k for k, block in enumerate(blocks) if block == "█"] == [
            k for k in range(10) if j in schedule.active(k)
        ]
    assert lines[-1].split()[-1] == "".join(str(len(schedule.active(k))) for k in range(10))


def test_the_whole_picture() -> None:
    schedule = MatchaSchedule(graph_0, 0.5, seed=0)
    assert f"{draw_facts(describe(graph_0, 0.5))}\n\n{draw_schedule(schedule, rounds=8, width=12)}" == PICTURE


PICTURE = """\
num peers                     8
num edges                     12
matchings                     5
lambda2                       0.561202
alpha                         0.396430
rho                           0.643975
spectral gap                  0.138611
expected matchings per round  2.500000

matching             p  rounds 0 .. 7
0-4 1-5 ...      0.984  ████████
1-7 3-6          0.000  ········
0-1 3-7 5-6      0.758  ·██····█
0-7 1-2          0.758  █·██·█·█
1-3              0.000  ········
talking at once         22321213"""
