"""A path that is lost to the vectors' socket alone is noticed; a reader that stops for as long as it likes is none."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator

import pytest
import torch

from peer.transport import silence
from peer.transport.base import ExchangeKey, LossReason
from peer.transport.codec import FRAME_BYTES
from peer.transport.direct import DirectLane
from peer.transport.grpc import GrpcTransport
from peer.transport.handshake import DataPlane
from peer.transport.silence import Asked, Silence, asked

from .rig import Member, Rig, ended, ends, identity

K = ExchangeKey
BIG = 6 * FRAME_BYTES  # floats: more than two sockets take
on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel's account of a connection, and filters of a socket"
)


# -- the rule


def told(*looks: tuple[float, Asked]) -> list[float]:
    rule = Silence()
    return [rule.lasts(now, known) for now, known in looks]


def test_bytes_that_are_not_acknowledged_are_counted_from_when_they_were_sent() -> None:
    lost = told(
        (100.0, Asked(3, 0, sent_ago=1.0, heard_ago=1.5)),
        (103.0, Asked(3, 0, sent_ago=0.5, heard_ago=4.5)),  # sent again
        (106.0, Asked(3, 0, sent_ago=3.5, heard_ago=7.5)),
        (109.0, Asked(3, 0, sent_ago=1.5, heard_ago=10.5)),  # and again
        (112.0, Asked(3, 0, sent_ago=4.5, heard_ago=13.5)),
    )
    assert lost == [0.0, 0.0, 0.0, 10.0, 13.0]


def test_whatever_comes_after_that_ends_the_silence() -> None:
    flowing = told(*((100.0 + 3 * look, Asked(40, 0, sent_ago=0.0, heard_ago=0.01)) for look in range(20)))
    assert max(flowing) == 0.0
    late = told(
        *((100.0 + 3 * look, Asked(3, 0, sent_ago=1.0, heard_ago=2.0 + 3 * look)) for look in range(4)),
        (112.0, Asked(3, 0, sent_ago=0.5, heard_ago=1.0)),
    )
    assert late == [0.0, 0.0, 7.0, 10.0, 0.0]


def test_what_was_asked_once_or_twice_may_be_lost() -> None:
    """At long intervals the kernel asks seldom: one lost packet is no lost path."""
    assert max(told(*((now, Asked(2, 0, sent_ago=now, heard_ago=now + 1.0)) for now in range(0, 60, 3)))) == 0.0
    for probes in (1, 2):
        assert (
            max(told(*((now, Asked(0, probes, sent_ago=90.0 + now, heard_ago=now)) for now in range(0, 60, 3)))) == 0.0
        )


def test_a_refusal_of_what_was_sent_last_is_an_answer() -> None:
    """The other end has no room for what is on its way: it says so each time, and the kernel sends it again ever later."""
    assert max(told(*((now, Asked(2, 0, sent_ago=now, heard_ago=now)) for now in range(0, 100, 3)))) == 0.0


def test_a_closed_window_is_silence_only_while_a_probe_is_not_answered() -> None:
    asked_of_a_reader = told(
        *((now, Asked(0, 0, sent_ago=200.0 + now, heard_ago=float(now))) for now in range(0, 120, 3))
    )
    assert max(asked_of_a_reader) == 0.0
    lost = told(
        (100.0, Asked(0, 1, sent_ago=80.0, heard_ago=20.0)),
        (103.0, Asked(0, 2, sent_ago=83.0, heard_ago=23.0)),
        (112.0, Asked(0, 3, sent_ago=92.0, heard_ago=32.0)),
        (115.0, Asked(0, 0, sent_ago=95.0, heard_ago=1.0)),
    )
    assert lost == [0.0, 0.0, 12.0, 0.0]


def test_who_has_nothing_to_say_waits_for_no_answer() -> None:
    assert told((100.0, Asked(0, 0, sent_ago=500.0, heard_ago=400.0))) == [0.0]


# -- what the kernel says


def drop_all(sock: socket.socket) -> None:
    """Whatever comes for this socket is lost, and nobody is told: a firewall in the middle of a connection's life."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))  # BPF: return 0 bytes of the packet
    sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("@HP", 1, ctypes.addressof(program)))  # SO_ATTACH_FILTER


def two_ends() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    for end in (here, there):
        end.setblocking(False)
    return here, there


def fill(sock: socket.socket) -> None:
    try:
        while True:
            sock.send(bytes(1 << 16))
    except BlockingIOError:
        return


async def longest_silence(sock: socket.socket, enough: asyncio.Event) -> float:
    """Looks until it has seen a second of it, or somebody says that it is enough."""
    rule, longest = Silence(), 0.0
    while longest < 1.0 and not enough.is_set():
        known = asked(sock)
        assert known is not None
        longest = max(longest, rule.lasts(time.monotonic(), known))
        await asyncio.sleep(0.02)
    return longest


@on_linux
async def test_the_kernel_tells_a_reader_that_stopped_from_a_path_that_is_lost() -> None:
    """Probes of a closed window come after 0.2, 0.6, 1.4 s, and so on: the rule wants three that it can tell apart."""
    stopped, lost, closed = two_ends(), two_ends(), two_ends()
    for pair in (stopped, closed):
        fill(pair[0])
    for end in (*lost, *closed):
        drop_all(end)
    lost[0].send(b"never acknowledged")
    over, never = asyncio.Event(), asyncio.Event()
    of_stopped = asyncio.create_task(longest_silence(stopped[0], over))
    async with asyncio.timeout(30):
        await asyncio.gather(*(longest_silence(pair[0], never) for pair in (lost, closed)))
    over.set()
    assert await of_stopped == 0.0
    for end in (*stopped, *lost, *closed):
        end.close()


def test_nothing_is_asked_of_what_is_no_tcp() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    assert asked(here) is None
    here.close()
    there.close()
    gone, other = two_ends()
    gone.close()
    other.close()
    assert asked(gone) is None


# -- links


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(silence, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(silence, "LOOK_SECONDS", 0.1)
    made = Rig("tcp")
    yield made
    await made.stop()


def lane_of(member: Member, other: int) -> DirectLane:
    assert isinstance(member.transport, GrpcTransport)
    lane = member.transport._links[other]._bulk
    assert isinstance(lane, DirectLane)
    return lane


async def pair(rig: Rig) -> tuple[Member, Member]:
    a = await rig.start(identity(0), data_plane=DataPlane.AUTO)
    b = await rig.start(identity(1), data_plane=DataPlane.AUTO)
    a.transport.connect({1: b.address})
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    return a, b


@on_linux
@pytest.mark.parametrize("heard_by", ["nobody", "one end"])
async def test_a_path_lost_to_the_vectors_alone_is_noticed_and_vectors_take_grpc(rig: Rig, heard_by: str) -> None:
    """Words, and gRPC, still get through; the door does not answer any more. In one direction: the dialling end is still heard."""
    a, b = await pair(rig)
    assert a.transport.traffic()[1].data_plane == "tcp"
    for lane in [lane_of(a, 1), lane_of(b, 0)][: 2 if heard_by == "nobody" else 1]:
        drop_all(lane._socket)
    assert isinstance(b.transport, GrpcTransport)
    assert b.transport._door is not None
    for listener in b.transport._door._listeners:
        drop_all(listener)
    x, y = torch.randn(1000), torch.randn(1000)
    at_a, at_b = torch.empty(1000), torch.empty(1000)
    before = time.monotonic()
    lost = await ends(a.open(1, K(0, 0), x, at_a), b.open(0, K(0, 0), y, at_b))
    assert lost == [LossReason.LINK_DOWN] * 2
    assert time.monotonic() - before > 0.9
    await a.recorder.until(lambda: len(a.recorder.links) >= 3)  # redialled, once the door was knocked at in vain
    await b.recorder.until(lambda: len(b.recorder.links) >= 3)
    reasons = {a.recorder.links[1][1], b.recorder.links[1][1]}
    assert "nothing sent on the data socket was answered for 1 s" in reasons
    assert a.transport.traffic()[1].data_plane == b.transport.traffic()[0].data_plane == "grpc"
    assert a.recorder.dropped == ["unreachable"]
    assert await ends(a.open(1, K(1, 0), x, at_a), b.open(0, K(1, 0), y, at_b)) == [None, None]
    assert torch.equal(at_a, y)
    assert torch.equal(at_b, x)


@on_linux
async def test_a_sender_that_is_held_back_keeps_its_link(rig: Rig) -> None:
    """For three times the silence that is borne nothing is read, as the exchange is not opened there."""
    a, b = await pair(rig)
    x, at_b = torch.randn(BIG), torch.empty(BIG)
    sending = a.open(1, K(0, 0), x, None, atomic=False)
    await asyncio.sleep(3.0)
    assert not sending.outcome.done()
    held = asked(lane_of(a, 1)._socket)
    assert held is not None
    assert held.heard_ago > 0.5  # the window is closed
    assert (await ended(b.open(0, K(0, 0), None, at_b, atomic=False))).lost is None
    assert torch.equal(at_b, x)
    assert a.recorder.links == [(1, "up")]
