"""The script of faults; the faults themselves are played on a real engine in test_cluster.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from docker import chaos
from docker.chaos import Deed, Refused, parse, socket_path


def test_the_script_of_the_repository() -> None:
    deeds = parse(chaos.SCRIPT.read_text())
    assert {deed.action for deed in deeds} == {"kill", "pause", "cut", "repeat"}
    assert all(deed.peer < 4 for deed in deeds), "docker compose up starts four peers"
    assert all(deed.at + deed.seconds < deeds[-1].at for deed in deeds[:-1]), (
        "every fault is over before it begins again"
    )


def test_a_script() -> None:
    text = "\n# comment\n 1.5 kill 0\n2 pause 3 for 0.5  # short\n2 cut 1 for 10\n"
    assert parse(text) == [Deed(1.5, "kill", 0), Deed(2, "pause", 3, 0.5), Deed(2, "cut", 1, 10)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the script has no deed"),
        ("1 kill", "line 1: '1 kill' is none of"),
        ("1 kill 2 for 3", "line 1"),
        ("soon kill 2", "line 1"),
        ("1 pause 2", "line 1"),
        ("1 pause 2 for", "line 1"),
        ("1 pause 2 until 3", "line 1"),
        ("1 cut 2 for -1", "line 1"),
        ("1 cut 2 for nan", "line 1"),
        ("nan kill 2", "line 1"),
        ("1 kill -2", "line 1"),
        ("1 burn 2", "line 1"),
        ("0 repeat", "line 1"),
        ("2 kill 1\n1 kill 2", "line 2: the deeds stand in the order"),
        ("2 repeat\n3 kill 1", "line 2: the deeds stand in the order"),
    ],
)
def test_what_is_no_script(text: str, told: str) -> None:
    with pytest.raises(Refused, match=told):
        parse(text)


def test_the_socket_of_the_engine() -> None:
    assert socket_path("") == "/var/run/docker.sock"
    assert socket_path("unix:///run/user/1000/docker.sock") == "/run/user/1000/docker.sock"
    with pytest.raises(Refused, match="only unix:// sockets"):
        socket_path("tcp://10.0.0.1:2376")


def test_an_engine_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"can't be reached: No such file or directory"):
        chaos.Engine(str(tmp_path / "none.sock")).peers("grapevine")
