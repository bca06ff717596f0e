"""The control lane as a socket: messages whole and in order, bounded both ways, and an end that is told."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from peer.transport.base import ExchangeKey, Traffic, Word, WordKind
from peer.transport.grpc import GrpcTransport
from peer.transport.handshake import MAX_CONTROL_BYTES
from peer.transport.lane import LaneClosed
from peer.transport.link import Link
from peer.transport.outbox import Outbox
from peer.transport.silence import SILENCE_SECONDS
from peer.transport.wordline import MOST_WAITING, WordLine
from peer.wire import gossip_pb2 as wire

from .proxy import Proxy
from .rig import PATIENCE_SECONDS, Member, Rig, identity

K = ExchangeKey


@pytest.fixture
async def ends() -> AsyncIterator[tuple[WordLine, socket.socket]]:
    """A line, and what is at its other end."""
    here, there = socket.socketpair()
    for sock in (here, there):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    line = WordLine(here)
    yield line, there
    line.close()
    there.close()


def framed(message: bytes) -> bytes:
    return struct.pack("<I", len(message)) + message


async def soon(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize("size", [1, 3, 7, 10_000])
async def test_messages_come_whole_and_in_order_however_they_are_cut(
    ends: tuple[WordLine, socket.socket], size: int
) -> None:
    line, there = ends
    sent = [bytes([number]) * length for number, length in enumerate((0, 1, 4, 700, 0, 3))]
    stream = b"".join(map(framed, sent))

    async def say() -> None:
        for at in range(0, len(stream), size):
            await asyncio.get_running_loop().sock_sendall(there, stream[at : at + size])

    async with asyncio.timeout(PATIENCE_SECONDS):
        saying = asyncio.create_task(say())
        assert [await line.read() for _ in sent] == sent
        await saying


async def test_what_was_said_before_the_end_is_heard(ends: tuple[WordLine, socket.socket]) -> None:
    line, there = ends
    there.sendall(framed(b"last") + framed(b"words"))
    there.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert [await line.read(), await line.read()] == [b"last", b"words"]
        with pytest.raises(LaneClosed, match="closed the socket of words"):
            await line.read()


async def test_a_message_above_the_limit_ends_the_line(ends: tuple[WordLine, socket.socket]) -> None:
    line, there = ends
    there.sendall(framed(b"good") + struct.pack("<I", MAX_CONTROL_BYTES + 1))
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await line.read() == b"good"
        with pytest.raises(LaneClosed, match="above the limit") as ended:
            await line.read()
    assert ended.value.refused == "oversized"


async def test_nothing_is_read_ahead_of_a_reader_that_does_not_come(ends: tuple[WordLine, socket.socket]) -> None:
    line, there = ends
    message, said = framed(bytes(1000)), 0

    async def say() -> None:
        nonlocal said
        while True:
            await asyncio.get_running_loop().sock_sendall(there, message)
            said += 1

    saying = asyncio.create_task(say())
    await soon(lambda: len(line._messages) >= MOST_WAITING)
    before = -1
    while before != said:
        before = said
        for _ in range(100):
            await asyncio.sleep(0)
    held = len(line._messages)
    assert MOST_WAITING <= held <= MOST_WAITING + 64 * 1024 // len(message)
    async with asyncio.timeout(PATIENCE_SECONDS):
        for _ in range(3 * held):  # and it goes on when the reader does
            assert len(await line.read()) == 1000
    saying.cancel()


async def test_a_message_waits_for_an_end_that_does_not_read(ends: tuple[WordLine, socket.socket]) -> None:
    line, there = ends
    written = 0
    while not line.full:
        line.hand_over(bytes([written % 251]) * 500)
        written += 1
    waits = asyncio.create_task(line.write(b"later"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waits.done()
    came = bytearray()
    expected = b"".join(framed(bytes([number % 251]) * 500) for number in range(written)) + framed(b"later")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(came) < len(expected):
            came += await asyncio.get_running_loop().sock_recv(there, 4096)
        await waits
    assert came == expected


async def test_closing_wakes_who_waits(ends: tuple[WordLine, socket.socket]) -> None:
    line, _ = ends
    while not line.full:
        line.hand_over(bytes(500))
    waiting = [asyncio.create_task(line.read()), asyncio.create_task(line.write(b"later"))]
    await asyncio.sleep(0)
    line.close("it is over")
    async with asyncio.timeout(PATIENCE_SECONDS):
        for one in waiting:
            with pytest.raises(LaneClosed, match="it is over"):
                await one


async def test_an_outbox_stays_in_order_when_the_line_is_full(ends: tuple[WordLine, socket.socket]) -> None:
    line, there = ends
    down = asyncio.get_running_loop().create_future()
    overflows: list[str] = []
    outbox = Outbox(line, down, Traffic(), overflows.append)
    writing = asyncio.create_task(outbox.run())
    for nonce in range(1500):
        outbox.put(wire.ControlMessage(ping=wire.Ping(nonce=nonce + 1)))
    assert len(outbox) > 0
    at_the_end = WordLine(there)
    async with asyncio.timeout(PATIENCE_SECONDS):
        heard = [wire.ControlMessage.FromString(await at_the_end.read()).ping.nonce for _ in range(1500)]
        await outbox.empty()
    assert heard == list(range(1, 1501))
    assert not overflows
    writing.cancel()
    at_the_end.close()


# -- links


@pytest.fixture(params=["tcp", "unix"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made = Rig(request.param)
    yield made
    await made.stop()


def link_of(member: Member, other: int) -> Link:
    assert isinstance(member.transport, GrpcTransport)
    return member.transport._links[other]


async def linked(rig: Rig) -> tuple[Member, Member]:
    a, b = await rig.start(identity(0)), await rig.start(identity(1))
    a.transport.connect({1: b.address})
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    return a, b


async def test_words_take_the_socket_and_none_the_stream(rig: Rig) -> None:
    a, b = await linked(rig)
    lines = [link_of(a, 1)._control, link_of(b, 0)._control]
    assert all(isinstance(line, WordLine) for line in lines)
    heard_before = [len(a.recorder.words), len(b.recorder.words)]
    for round in range(50):
        assert a.transport.tell(1, Word(WordKind.CLOSED, 0, round))
        assert b.transport.tell(0, Word(WordKind.CLOSED, 1, round))
    assert not any(link_of(member, other)._words for member, other in ((a, 1), (b, 0)))  # all are on their way
    await a.recorder.until(lambda: len(a.recorder.words) >= heard_before[0] + 50)
    await b.recorder.until(lambda: len(b.recorder.words) >= heard_before[1] + 50)
    assert [word.round for _, word in b.recorder.words[-50:]] == list(range(50))
    sockets = [line._socket for line in lines if isinstance(line, WordLine)]
    await a.transport.stop()
    await b.transport.stop()
    assert [one.fileno() for one in sockets] == [-1, -1]


async def test_a_line_that_breaks_takes_the_link_down_and_another_comes(rig: Rig) -> None:
    a, b = await linked(rig)
    line = link_of(a, 1)._control
    assert isinstance(line, WordLine)
    line._socket.shutdown(socket.SHUT_RDWR)
    await a.recorder.until(lambda: len(a.recorder.links) >= 3)
    assert "socket of words" in a.recorder.links[1][1]
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    assert isinstance(link_of(a, 1)._control, WordLine)


async def test_the_line_ends_with_the_stream(rig: Rig) -> None:
    """Silence is noticed on the stream, by gRPC's keepalive."""
    a, b = await rig.start(identity(0)), await rig.start(identity(1))
    proxy = Proxy(b.address)
    a.transport.connect({1: await proxy.start()})
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    lines = [link_of(a, 1)._control, link_of(b, 0)._control]
    assert all(isinstance(line, WordLine) for line in lines)
    proxy.stall()
    await a.recorder.until(lambda: len(a.recorder.links) == 2)
    await b.recorder.until(lambda: len(b.recorder.links) == 2)
    await a.transport.stop()
    await b.transport.stop()
    assert [line._socket.fileno() for line in lines if isinstance(line, WordLine)] == [-1, -1]
    await proxy.stop()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_tcp_tells_of_silence_though_pings_are_under_way(family: socket.AddressFamily) -> None:
    """With bytes that are not answered the kernel sends no keepalive, and tries for a quarter of an hour."""
    line = WordLine(sock := socket.socket(family))
    sock.setblocking(False)
    if family == socket.AF_INET:
        seconds = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000
        assert seconds == SILENCE_SECONDS
    line.close()
