"""Pieces are summed unless both ends know that they are on one machine, and both always agree."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peer.transport import linked, machine
from peer.transport.codec import column_sums, unchecked
from peer.transport.grpc import _caller
from peer.transport.lane import MessageBulk
from peer.transport.machine import both_here, is_loopback, machine_name

from .rig import Rig, identity
from .test_direct import goes_on


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig("grpc")
    yield made
    await made.stop()


@pytest.mark.parametrize(
    ("names", "check"),
    [
        ((b"here", b"here"), unchecked),
        ((b"here", b"there"), column_sums),
        ((b"here", b""), column_sums),
        ((b"", b"here"), column_sums),
        ((b"", b""), column_sums),
    ],
)
async def test_pieces_are_summed_unless_both_ends_are_here(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, names: tuple[bytes, bytes], check: object
) -> None:
    asked = itertools.cycle(names)
    monkeypatch.setattr(linked, "machine_name", lambda run: next(asked))  # dialling and answering, in this order
    a, b = await rig.pair()
    for member, other in ((a, 1), (b, 0)):
        bulk = member.transport._links[other]._bulk  # type: ignore[attr-defined]
        assert isinstance(bulk, MessageBulk)
        assert bulk.check is check
    await goes_on(a, b, 0)


async def test_two_processes_of_this_machine_know_it(rig: Rig) -> None:
    a, b = await rig.start(identity(0)), await rig.start(identity(1))
    a.transport.connect({1: b.address})
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    assert a.transport._links[1].session.here  # type: ignore[attr-defined]
    assert b.transport._links[0].session.here  # type: ignore[attr-defined]


def test_the_name_is_of_the_run_and_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = {machine_name("a run"), machine_name("another run")}
    machine_name.cache_clear()
    try:
        monkeypatch.setattr(machine, "_BOOT_ID", tmp_path / "boot_id")
        assert machine_name("a run") == b""
        machine_name.cache_clear()
        (tmp_path / "boot_id").write_text("another machine\n")
        names.add(machine_name("a run"))
        assert len(names) == 3
        assert {len(name) for name in names} == {16}
    finally:
        machine_name.cache_clear()


def test_an_unknown_machine_is_never_this_one() -> None:
    assert not both_here(b"", b"")


@pytest.mark.parametrize(
    ("host", "is_one"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("10.0.0.1", False), ("localhost", False), ("", False)],
)
def test_loopback(host: str, is_one: bool) -> None:
    assert is_loopback(host) is is_one


class Called:
    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer


@pytest.mark.parametrize(
    ("peer", "host"), [("ipv4:127.0.0.1:1234", "127.0.0.1"), ("ipv6:%5B::1%5D:1234", "::1"), ("unix:", "")]
)
def test_who_calls(peer: str, host: str) -> None:
    assert _caller(Called(peer))[0] == host  # type: ignore[arg-type]
