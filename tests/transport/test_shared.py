"""Memory that two peers of one machine share: what goes through it, who waits for whom, what is refused, and that nothing is left."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from typing import Any

import pytest

from peer.transport import shared
from peer.transport.codec import FRAME_BYTES, HEADER_BYTES
from peer.transport.direct import SLOT_FROM, DirectLane
from peer.transport.lane import LaneClosed
from peer.transport.shared import NUM_SLOTS, SEGMENT_BYTES, Incoming, Outgoing

from .caller import framed
from .rig import PATIENCE_SECONDS, Rig
from .test_direct import goes_on, join, lanes

HEAD = bytes(HEADER_BYTES)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig("unix")
    yield made
    await made.stop()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How many pieces were put into slots."""
    pieces: list[int] = []
    put = Outgoing.put

    def counting(self: Outgoing, piece: memoryview) -> None:
        pieces.append(len(piece))
        put(self, piece)

    monkeypatch.setattr(Outgoing, "put", counting)
    yield pieces


async def test_large_pieces_go_through_slots_and_small_ones_through_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = lanes("shared")
    with counted(monkeypatch) as pieces:
        for size in (SLOT_FROM - 1, SLOT_FROM, FRAME_BYTES, 5):
            piece = os.urandom(size)
            writing = asyncio.create_task(here.write(HEAD, memoryview(piece)))
            arrival = await there.read()
            assert arrival.num_bytes == HEADER_BYTES + size
            into = memoryview(bytearray(size))
            await there.fill(into)
            await writing
            assert into.tobytes() == piece
    assert pieces == [SLOT_FROM, FRAME_BYTES]
    here.close()
    there.close()


async def test_two_peers_of_one_machine_share_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as pieces:
        a, b = await rig.pair()
        for round_ in range(3):
            await goes_on(a, b, round_)
    assert pieces == [FRAME_BYTES] * 6  # the nine floats after it are too small


async def test_nothing_is_left_when_a_link_ends(rig: Rig) -> None:
    """Of the segments' memory and of file descriptors."""
    a, b = await rig.pair()
    await goes_on(a, b, 0)
    bulk = [a.transport._links[1]._bulk, b.transport._links[0]._bulk]  # type: ignore[attr-defined]
    before = open_files()
    for lane in bulk:
        assert isinstance(lane, DirectLane)
        lane.close("a test")
        lane.close("again")
    assert before - open_files() == 2 * (1 + 2 + 2)  # its socket; a socket and the map's handle, both ways
    for lane in bulk:
        assert lane._outgoing is not None
        assert lane._outgoing._map.closed


@pytest.mark.parametrize("where", ["nowhere", "not here", "not handed over", "not there"])
async def test_where_no_memory_can_be_shared_the_socket_takes_all(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def forbidden(name: str, flags: int = 0) -> int:
        raise PermissionError("memfd_create")

    def refused(handles: list[int]) -> Incoming:
        for handle in handles:
            os.close(handle)
        raise OSError("no address space")

    if where == "nowhere":
        monkeypatch.setattr(os, "memfd_create", forbidden)
    elif where == "not here":
        monkeypatch.delattr(os, "memfd_create")
    elif where == "not handed over":
        monkeypatch.setattr(socket, "send_fds", lambda *arguments: forbidden("send_fds"))
    else:
        monkeypatch.setattr(shared, "Incoming", refused)
    with counted(monkeypatch) as pieces:
        a, b = await rig.pair()
        for round_ in range(3):
            await goes_on(a, b, round_)
    assert pieces == []


async def test_a_writer_waits_for_a_free_slot_and_no_longer_than_the_lane() -> None:
    here, there = lanes("shared")
    piece = memoryview(bytearray(b"\x05" * FRAME_BYTES))
    for _ in range(NUM_SLOTS):
        await asyncio.wait_for(here.write(HEAD, piece), PATIENCE_SECONDS)
    third = asyncio.create_task(here.write(HEAD, piece))
    await asyncio.sleep(0.05)
    assert not third.done()
    await there.read()
    await there.skip()
    await asyncio.wait_for(third, PATIENCE_SECONDS)
    fourth = asyncio.create_task(here.write(HEAD, piece))
    await asyncio.sleep(0.05)
    assert not fourth.done()
    here.close("over")
    with pytest.raises(LaneClosed, match="over"):
        await asyncio.wait_for(fourth, PATIENCE_SECONDS)
    with pytest.raises(LaneClosed, match="over"):
        await here.write(HEAD, piece)
    there.close()


async def test_a_vector_is_given_back_while_it_waits_for_a_slot() -> None:
    here, there = lanes("shared")
    vector = bytearray(b"\x07" * FRAME_BYTES)
    for _ in range(NUM_SLOTS):
        await here.write(HEAD, memoryview(vector))
    waiting = asyncio.create_task(here.write(HEAD, memoryview(vector)))
    await asyncio.sleep(0.05)
    here.let_go()
    vector[:] = bytes(FRAME_BYTES)
    for _ in range(NUM_SLOTS + 1):
        await asyncio.wait_for(there.read(), PATIENCE_SECONDS)
        into = memoryview(bytearray(FRAME_BYTES))
        await there.fill(into)
        assert into.tobytes() == b"\x07" * FRAME_BYTES
    await waiting
    here.close()
    there.close()


async def test_a_piece_in_a_slot_that_there_is_not_takes_the_link_down(rig: Rig) -> None:
    victim, caller = await join(rig)
    assert caller.socket is not None
    message = framed(caller.frame(0, [1.0] * 10), in_slot=True)
    await asyncio.get_running_loop().sock_sendall(caller.socket, message)
    await victim.recorder.until(lambda: len(victim.recorder.links) == 2)
    assert victim.recorder.links[1] == (0, "the other end says that a piece is in shared memory, and there is none")
    await caller.leave()


async def test_a_length_above_a_slot_ends_the_lane() -> None:
    here, there = lanes("shared")
    here._socket.sendall((1 << 31 | HEADER_BYTES + FRAME_BYTES + 1).to_bytes(4, "little") + bytes(4))
    with pytest.raises(LaneClosed, match="above the limit"):
        await there.read()
    here.close()
    there.close()


def one_socket() -> int:
    here, there = socket.socketpair()
    there.close()
    return here.detach()


def sealed(size: int) -> int:
    memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return memory


def unsealed() -> list[int]:
    memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, SEGMENT_BYTES)
    return [memory, one_socket()]


def short() -> list[int]:
    return [sealed(mmap.PAGESIZE), one_socket()]


def no_socket() -> list[int]:
    return [sealed(SEGMENT_BYTES), os.eventfd(0)]


@pytest.mark.parametrize(
    "handles",
    [
        unsealed,
        short,
        no_socket,
        lambda: list(os.pipe()),
        lambda: [one_socket()],
        lambda: [one_socket(), one_socket()],
    ],
)
def test_what_is_no_sealed_segment_is_refused(handles: Callable[[], list[int]]) -> None:
    """A segment that its owner could shrink would end the reader by a signal."""
    before = open_files()
    with pytest.raises(OSError, match=r"segment|Invalid argument|non-socket"):
        Incoming(handles())
    assert open_files() == before


def test_a_segment_can_not_be_shrunk() -> None:
    out = Outgoing()
    with pytest.raises(PermissionError):
        os.ftruncate(out.handles[0], 0)
    out.close()


@pytest.mark.parametrize("blocks", [True, False])
def test_whatever_the_other_end_does_to_its_socket_nobody_waits_for_it(blocks: bool) -> None:
    """Its flags are its own; a socket that is full, and one that says nothing."""
    out = Outgoing()
    there = socket.socket(fileno=os.dup(out.handles[1]))
    there.setblocking(blocks)
    out.freed.setblocking(blocks)
    assert not out.is_free()
    into = Incoming([os.dup(handle) for handle in out.handles])
    assert out.is_free()
    for _ in range(100_000):  # more than it holds
        into.take(None)
    into.close()
    there.close()
    out.close()


async def test_who_shares_memory_no_more_ends_the_lane() -> None:
    here, there = lanes("shared")
    piece = memoryview(bytearray(FRAME_BYTES))
    for _ in range(NUM_SLOTS):
        await here.write(HEAD, piece)
    waiting = asyncio.create_task(here.write(HEAD, piece))
    await asyncio.sleep(0.05)
    assert there._incoming is not None
    there._incoming.close()
    with pytest.raises(LaneClosed, match="shares memory no more"):
        await asyncio.wait_for(waiting, PATIENCE_SECONDS)
    there._incoming = None
    here.close()
    there.close()
