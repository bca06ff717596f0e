"""How a container finds out which peer it is: `settle` with a table of who answers when; the real DNS is asked in test_cluster.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from docker.join import (
    ABSENT,
    CONFIG,
    LOOK_UP_SECONDS,
    PATIENCE_SECONDS,
    SETTLED_SECONDS,
    CannotJoin,
    command,
    given_peers,
    replica,
    settle,
)
from peer.config import Config, flag


class Network:
    """`at(second)` answers to the service's name; time goes on only by waiting."""

    def __init__(self, at: Callable[[float], set[int]], me: int = 1, prefix: str = "grapevine-peer-") -> None:
        self.seconds = 0.0
        self._at, self._me, self._prefix = at, me, prefix

    def settle(self, peers: int | None) -> tuple[int, list[str]]:
        return settle("peer", peers, self._see, self._own, lambda: self.seconds, self._wait)

    def _see(self, service: str) -> frozenset[str]:
        return frozenset(f"{self._prefix}{k}" for k in self._at(self.seconds))

    def _own(self) -> str:
        return f"{self._prefix}{self._me}"

    def _wait(self, seconds: float) -> None:
        self.seconds += seconds


def names(count: int) -> list[str]:
    return [f"grapevine-peer-{k}" for k in range(1, count + 1)]


def one_after_the_other(count: int, every: float) -> Callable[[float], set[int]]:
    return lambda seconds: {k for k in range(1, count + 1) if seconds >= (k - 1) * every}


def test_counted_replicas_agree_wherever_they_start() -> None:
    """Twelve containers, one every second; each looks from its own start on."""
    for me in range(1, 13):
        network = Network(one_after_the_other(12, 1.0), me)
        network.seconds = me - 1.0
        assert network.settle(None) == (me - 1, names(12))
        assert 11 + SETTLED_SECONDS <= network.seconds <= 11 + SETTLED_SECONDS + 2 * LOOK_UP_SECONDS


def test_a_given_number_is_waited_for_and_no_longer() -> None:
    network = Network(one_after_the_other(4, 2.0))
    assert network.settle(4) == (0, names(4))
    assert network.seconds == 6.0


def test_one_who_comes_back_finds_the_highest_number_while_another_is_away() -> None:
    assert Network(lambda seconds: {1, 2, 5}, me=2).settle(None) == (1, names(5))


def test_with_a_given_number_it_does_not_depend_on_one_who_never_comes() -> None:
    network = Network(lambda seconds: {1, 2, 4}, me=4)
    assert network.settle(4) == (3, names(4))
    assert network.seconds == PATIENCE_SECONDS


def test_more_replicas_than_peers_is_a_mistake() -> None:
    with pytest.raises(CannotJoin, match=r"this is replica 6 of 'peer', but GRAPEVINE_PEERS is 4") as told:
        Network(lambda seconds: {1, 2, 3, 4, 5, 6}, me=6).settle(4)
    assert told.value.code == CONFIG
    assert Network(lambda seconds: {1, 2, 3, 4, 5, 6}, me=2).settle(4) == (1, names(4))


def test_replicas_that_never_settle() -> None:
    with pytest.raises(CannotJoin, match="kept changing for 60 s") as told:
        Network(lambda seconds: {1, 2 + int(seconds / 2)}).settle(None)
    assert told.value.code == ABSENT


def test_a_container_outside_the_service() -> None:
    with pytest.raises(CannotJoin, match=r"not among the replicas of 'peer' \(grapevine-peer-1\)"):
        Network(lambda seconds: {1}, me=2).settle(None)
    with pytest.raises(CannotJoin, match="no such service"):
        Network(lambda seconds: set()).settle(3)


def test_two_services_under_one_name_would_share_ids() -> None:
    def see(service: str) -> frozenset[str]:
        return frozenset({"grapevine-peer-1", "grapevine-peer-gpu-1"})

    with pytest.raises(CannotJoin, match="grapevine-peer-gpu-1 also answers to 'peer'"):
        settle("peer", None, see, lambda: "grapevine-peer-1")


def test_replica_of_a_name() -> None:
    assert replica("my-run-peer-12.my-run_default") == ("my-run-peer-", 12)
    assert replica("old_style_peer_3") == ("old_style_peer_", 3)
    for name in ("7f3a9c2b11de", "peer", "peer-0", "-3"):
        with pytest.raises(CannotJoin, match="has no number"):
            replica(name)


def test_given_peers() -> None:
    assert given_peers({}) is None
    assert given_peers({"GRAPEVINE_PEERS": ""}) is None
    assert given_peers({"GRAPEVINE_PEERS": "6"}) == 6
    for wrong in ("0", "-1", "six"):
        with pytest.raises(CannotJoin, match="GRAPEVINE_PEERS: give a number"):
            given_peers({"GRAPEVINE_PEERS": wrong})


def test_the_command_is_one_that_grapevine_knows() -> None:
    words = command(1, names(2), 7000, ["--config", "cluster.toml"])
    assert words[1:4] == ["-m", "peer", "peer"]
    assert " ".join(words[4:]) == (
        "--peer 1 --peers 2 --listen 0.0.0.0:7000 "
        "--address grapevine-peer-1:7000 --address grapevine-peer-2:7000 --config cluster.toml"
    )
    flags = {flag(name) for name in Config.model_fields} | {"--config"}
    assert {word for word in words if word.startswith("--")} <= flags
