"""What only data sockets have: a door, a token, a choice of planes, and memory that is given back in the middle of a frame."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
import torch
import uvloop

from peer.transport import door
from peer.transport.base import ExchangeKey, LossReason
from peer.transport.codec import FRAME_BYTES, HEADER_BYTES, column_sums
from peer.transport.direct import DirectLane, tune
from peer.transport.door import MAX_CALLERS, Door, knock
from peer.transport.emulated import SlowNetwork
from peer.transport.grpc import GrpcOptions, GrpcTransport
from peer.transport.handshake import DataPlane, agreed_plane
from peer.transport.lane import LaneClosed
from peer.transport.shared import Incoming, Outgoing
from peer.transport.sockets import SOCKET_BYTES, _kernel_limit
from peer.wire import gossip_pb2 as wire

from .caller import Caller, connected, framed, say_token
from .proxy import Proxy
from .rig import PATIENCE_SECONDS, Member, Recorder, Rig, StubService, ended, ends, identity
from .test_hostile import damaged

K = ExchangeKey
FRAME = FRAME_BYTES // 4  # floats


@pytest.fixture(params=["tcp", "unix"])
async def direct_rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made = Rig(request.param)
    yield made
    await made.stop()


async def goes_on(a: Member, b: Member, round: int) -> None:
    x, y = torch.randn(FRAME + 9), torch.randn(FRAME + 9)
    at_a, at_b = torch.empty(FRAME + 9), torch.empty(FRAME + 9)
    assert await ends(a.open(1, K(round, 0), x, at_a), b.open(0, K(round, 0), y, at_b)) == [None, None]
    assert torch.equal(at_a, y)
    assert torch.equal(at_b, x)


# -- the choice


@pytest.mark.parametrize(
    ("mine", "theirs", "agreed"),
    [
        ("grpc", "grpc", "grpc"),
        ("grpc", "auto", "grpc"),
        ("auto", "auto", "auto"),
        ("auto", "direct", "direct"),
        ("direct", "direct", "direct"),
        ("grpc", "direct", None),
    ],
)
def test_what_two_ends_agree_on(mine: str, theirs: str, agreed: str | None) -> None:
    assert agreed_plane(DataPlane(mine), DataPlane(theirs)) == agreed
    assert agreed_plane(DataPlane(theirs), DataPlane(mine)) == agreed


async def pair_of(rig: Rig, at_0: DataPlane, at_1: DataPlane) -> tuple[Member, Member]:
    a, b = await rig.start(identity(0), data_plane=at_0), await rig.start(identity(1), data_plane=at_1)
    a.transport.connect({1: b.address})
    return a, b


@pytest.mark.parametrize(("at_0", "at_1"), [("auto", "auto"), ("auto", "direct"), ("direct", "auto")])
async def test_auto_takes_a_socket_where_it_can(direct_rig: Rig, at_0: str, at_1: str) -> None:
    a, b = await pair_of(direct_rig, DataPlane(at_0), DataPlane(at_1))
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    assert [m.transport.traffic()[1 - i].data_plane for i, m in enumerate((a, b))] == [direct_rig.carrier] * 2
    await goes_on(a, b, 0)


@pytest.mark.parametrize(("at_0", "at_1"), [("auto", "grpc"), ("grpc", "auto")])
async def test_auto_takes_grpc_if_the_other_end_wants_it(direct_rig: Rig, at_0: str, at_1: str) -> None:
    a, b = await pair_of(direct_rig, DataPlane(at_0), DataPlane(at_1))
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    assert [m.transport.traffic()[1 - i].data_plane for i, m in enumerate((a, b))] == ["grpc", "grpc"]
    assert not a.recorder.dropped
    await goes_on(a, b, 0)


def shut(member: Member) -> None:
    """Nobody can reach its data sockets any more."""
    assert isinstance(member.transport, GrpcTransport)
    assert member.transport._door is not None
    member.transport._door.close()


async def test_auto_falls_back_to_grpc_if_the_door_can_not_be_reached(direct_rig: Rig) -> None:
    a = await direct_rig.start(identity(0), data_plane=DataPlane.AUTO)
    b = await direct_rig.start(identity(1), data_plane=DataPlane.AUTO)
    shut(b)
    a.transport.connect({1: b.address})
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    assert a.transport.traffic()[1].data_plane == "grpc"
    assert a.recorder.dropped == ["unreachable"]
    await goes_on(a, b, 0)


async def test_auto_falls_back_if_the_door_does_not_answer(direct_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(self: Door, caller: socket.socket) -> bool:
        await asyncio.sleep(PATIENCE_SECONDS)
        return False

    monkeypatch.setattr(Door, "_admit", silent)
    monkeypatch.setattr(door, "DIRECT_SECONDS", 0.05)
    a, b = await pair_of(direct_rig, DataPlane.AUTO, DataPlane.AUTO)
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    assert a.transport.traffic()[1].data_plane == "grpc"
    assert a.recorder.dropped == ["unreachable"]


async def test_direct_waits_for_a_door_that_can_be_reached(direct_rig: Rig) -> None:
    a, b = await direct_rig.start(identity(0)), await direct_rig.start(identity(1))
    shut(b)
    a.transport.connect({1: b.address})
    await a.recorder.until(lambda: len(a.recorder.dropped) >= 2)  # it tries again
    assert not a.transport.linked()
    assert not b.transport.linked()
    assert set(a.recorder.dropped) == {"unreachable"}


@pytest.mark.parametrize(("at_0", "at_1"), [("direct", "grpc"), ("grpc", "direct")])
async def test_direct_refuses_who_wants_grpc(direct_rig: Rig, at_0: str, at_1: str) -> None:
    a, b = await pair_of(direct_rig, DataPlane(at_0), DataPlane(at_1))
    await a.recorder.until(lambda: bool(a.recorder.refused))
    await b.recorder.until(lambda: bool(b.recorder.refused))
    assert a.recorder.refused[0] == (1, "data-plane", f"peer 1 has --data-plane {at_1}, this peer {at_0}")
    assert b.recorder.refused[0] == (0, "data-plane", f"peer 0 has --data-plane {at_0}, this peer {at_1}")
    assert not a.transport.linked()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_on_the_event_loop_of_the_product(kind: str) -> None:
    async def exchange() -> None:
        rig = Rig(kind)
        try:
            a, b = await rig.pair()
            assert a.transport.traffic()[1].data_plane == kind
            for round_ in range(3):
                await goes_on(a, b, round_)
        finally:
            await rig.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(exchange())


async def test_an_emulated_network_keeps_vectors_in_its_streams(grpc_rig: Rig) -> None:
    slow, service = SlowNetwork(latency=0.0001), StubService()
    auto, direct = (GrpcOptions(data_plane=plane) for plane in (DataPlane.AUTO, DataPlane.DIRECT))
    members = []
    for peer in (0, 1):
        transport = GrpcTransport(identity(peer), "127.0.0.1:0", service=service, options=auto, network=slow)
        recorder = Recorder()
        members.append(Member(transport, recorder, await transport.start(recorder)))
    grpc_rig.members += members
    a, b = members
    a.transport.connect({1: b.address})
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    assert a.transport.traffic()[1].data_plane == "grpc"
    await goes_on(a, b, 0)
    with pytest.raises(ValueError, match="emulated"):
        GrpcTransport(identity(0), "127.0.0.1:0", service=service, options=direct, network=slow)


# -- the door


@pytest.fixture
async def entrance(direct_rig: Rig) -> tuple[Member, wire.DirectOffer, str]:
    """A peer with a door, and an offer of it that nobody has a right to."""
    member = await direct_rig.start(identity(1))
    assert isinstance(member.transport, GrpcTransport)
    assert member.transport._door is not None
    offer = member.transport._door.expect(asyncio.get_running_loop().create_future())
    member.transport._door.withdraw(offer)
    return member, offer, direct_rig.carrier


async def is_cut(caller: socket.socket) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with contextlib.suppress(ConnectionError):
            assert await asyncio.get_running_loop().sock_recv(caller, 1) == b""
    caller.close()


async def test_the_door_is_where_it_was_told_to_be() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    door = Door(lambda reason: None)
    await door.open("127.0.0.1", port)
    assert door.expect(asyncio.get_running_loop().create_future()).port == port
    second = Door(lambda reason: None)
    with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
        await second.open("127.0.0.1", port)
    for opened in (door, second):
        opened.close()


async def test_a_bad_token_is_cut_and_counted(entrance: tuple[Member, wire.DirectOffer, str]) -> None:
    member, offer, kind = entrance
    for said in (offer.token, bytes(16)):
        caller = await connected(offer, kind)
        await say_token(caller, said)
        await is_cut(caller)
    caller = await connected(offer, kind)
    await asyncio.get_running_loop().sock_sendall(caller, b"GET / HTTP/1.1\r\n\r\n  ")
    await is_cut(caller)
    assert member.recorder.dropped == ["token"] * 3


async def test_a_token_opens_once(entrance: tuple[Member, wire.DirectOffer, str]) -> None:
    member, _, kind = entrance
    assert isinstance(member.transport, GrpcTransport)
    assert member.transport._door is not None
    arrived: asyncio.Future[DirectLane] = asyncio.get_running_loop().create_future()
    offer = member.transport._door.expect(arrived)
    lane = await knock(offer, "127.0.0.1", local=kind == "unix")
    theirs = await arrived
    assert lane.plane == theirs.plane == kind
    with pytest.raises(OSError, match="did not accept"):
        await knock(offer, "127.0.0.1", local=kind == "unix")
    assert set(member.recorder.dropped) == {"token"}
    lane.close()
    theirs.close()


async def test_who_could_not_wait_for_the_welcome_leaves_no_lane(
    entrance: tuple[Member, wire.DirectOffer, str],
) -> None:
    member, _, kind = entrance
    assert isinstance(member.transport, GrpcTransport)
    assert member.transport._door is not None
    arrived: asyncio.Future[DirectLane] = asyncio.get_running_loop().create_future()
    offer = member.transport._door.expect(arrived)
    caller = await connected(offer, kind)
    await say_token(caller, offer.token)
    assert await asyncio.get_running_loop().sock_recv(caller, 1) == b"\x01"
    caller.close()  # the dialling end has given up, and takes the stream
    while member.transport._door._callers:
        await asyncio.sleep(0.01)
    assert not arrived.done()
    assert member.recorder.dropped == ["silent"]


async def test_a_door_opens_again_where_it_was() -> None:
    first = Door(lambda reason: None)
    await first.open("127.0.0.1")
    arrived: asyncio.Future[DirectLane] = asyncio.get_running_loop().create_future()
    offer = first.expect(arrived)
    lane = await knock(offer, "127.0.0.1", local=False)
    (await arrived).close()  # this end first, so that its port is not free for a minute
    first.close()
    lane.close()
    second = Door(lambda reason: None)
    await second.open("127.0.0.1", offer.port)
    second.close()


async def test_who_says_no_token_in_time_is_cut(
    entrance: tuple[Member, wire.DirectOffer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    member, offer, kind = entrance
    monkeypatch.setattr(door, "DIRECT_SECONDS", 0.05)
    await is_cut(await connected(offer, kind))
    gone = await connected(offer, kind)
    gone.close()
    await member.recorder.until(lambda: len(member.recorder.dropped) == 2)
    assert member.recorder.dropped == ["silent"] * 2


async def test_a_byte_at_a_time_does_not_stretch_the_deadline(
    entrance: tuple[Member, wire.DirectOffer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is of the whole token: a caller that never stops saying it is cut all the same."""
    member, offer, kind = entrance
    monkeypatch.setattr(door, "DIRECT_SECONDS", 0.1)
    caller = await connected(offer, kind)
    with contextlib.suppress(ConnectionError):
        for byte in b"GRPD" + bytes(12):  # four bytes are missing in the end
            await asyncio.get_running_loop().sock_sendall(caller, bytes([byte]))
            await asyncio.sleep(0.02)
    await is_cut(caller)
    assert member.recorder.dropped == ["silent"]


async def test_a_crowd_at_the_door_is_bounded_and_shuts_nobody_out(
    direct_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "DIRECT_SECONDS", PATIENCE_SECONDS)
    a, b = await direct_rig.start(identity(0)), await direct_rig.start(identity(1))
    assert isinstance(b.transport, GrpcTransport)
    at = b.transport._door
    assert at is not None
    offer = at.expect(asyncio.get_running_loop().create_future())
    crowd = []
    while b.recorder.dropped.count("crowd") < 3 * MAX_CALLERS:
        crowd.append(await connected(offer, direct_rig.carrier))
        await asyncio.sleep(0)
    assert set(b.recorder.dropped) == {"crowd"}
    assert len(at._callers) <= MAX_CALLERS
    a.transport.connect({1: b.address})
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    await goes_on(a, b, 0)
    for caller in crowd:
        caller.close()


# -- the socket breaks


async def join(rig: Rig) -> tuple[Member, Caller]:
    victim = await rig.start(identity(1))
    caller = Caller(victim.address, rig.carrier)
    await caller.join()
    await victim.linked_to(0)
    return victim, caller


async def test_a_socket_that_breaks_in_mid_frame_takes_the_link_down(direct_rig: Rig) -> None:
    victim, caller = await join(direct_rig)
    handle = victim.open(0, K(0, 0), None, torch.empty(1000))
    assert caller.socket is not None
    await asyncio.get_running_loop().sock_sendall(caller.socket, framed(caller.frame(0, [1.0] * 1000))[:3000])
    await victim.recorder.until(lambda: bool(victim.recorder.heard))
    caller.socket.close()
    assert (await ended(handle)).lost is LossReason.LINK_DOWN
    await victim.recorder.until(lambda: len(victim.recorder.links) == 2)
    assert "data socket" in victim.recorder.links[1][1]
    await caller.leave()


async def test_a_damaged_header_takes_the_link_down(direct_rig: Rig) -> None:
    """Where the next frame begins can not be known any more; and a wrong key could stop the reader for ever."""
    victim, caller = await join(direct_rig)
    assert caller.socket is not None
    message = damaged(framed(caller.frame(0, [1.0] * 10)), 8 + 20)
    await asyncio.get_running_loop().sock_sendall(caller.socket, message)
    await victim.recorder.until(lambda: len(victim.recorder.links) == 2)
    assert victim.recorder.links[1] == (0, "the other end sent a damaged header")
    assert not victim.recorder.heard
    await caller.leave()


async def test_the_data_socket_ends_with_the_control_stream(direct_rig: Rig) -> None:
    """Silence is noticed there, by gRPC's keepalive; the data socket does not pass the proxy that is stalled."""
    a, b = await direct_rig.start(identity(0)), await direct_rig.start(identity(1))
    proxy = Proxy(b.address)
    a.transport.connect({1: await proxy.start()})
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    sockets = [socket_of(a, 1), socket_of(b, 0)]
    pending = [a.open(1, K(0, 0), None, torch.empty(9)), b.open(0, K(0, 0), None, torch.empty(9))]
    proxy.stall()
    assert await ends(*pending) == [LossReason.LINK_DOWN] * 2
    await a.recorder.until(lambda: len(a.recorder.links) == 2)
    await b.recorder.until(lambda: len(b.recorder.links) == 2)
    await a.transport.stop()
    await b.transport.stop()
    assert [one.fileno() for one in sockets] == [-1, -1]
    await proxy.stop()


def socket_of(member: Member, other: int) -> socket.socket:
    assert isinstance(member.transport, GrpcTransport)
    bulk = member.transport._links[other]._bulk
    assert isinstance(bulk, DirectLane)
    return bulk._socket


# -- memory


async def test_memory_is_free_at_once_in_the_middle_of_a_piece(direct_rig: Rig) -> None:
    """The rest of the piece may never come: nothing here waits for it with the vector in its hands."""
    victim, caller = await join(direct_rig)
    memory = np.zeros(1000, np.float32)
    kept = weakref.ref(memory)
    handle = victim.open(0, K(0, 0), None, torch.from_numpy(memory))
    assert caller.socket is not None
    await asyncio.get_running_loop().sock_sendall(caller.socket, framed(caller.frame(0, [1.0] * 1000))[:2000])
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not memory.any():
            await asyncio.sleep(0)
    handle.give_up()
    assert (await ended(handle)).lost is LossReason.DEADLINE
    del memory, handle
    gc.collect()
    assert kept() is None
    await caller.leave()


async def test_a_place_is_given_back_in_the_middle_of_a_piece(direct_rig: Rig) -> None:
    """Whatever trickles in afterwards is dropped, and the next exchange is found."""
    victim, caller = await join(direct_rig)
    inbox = torch.zeros(1000)
    handle = victim.open(0, K(0, 0), None, inbox)
    message = framed(caller.frame(0, [1.0] * 1000))
    assert caller.socket is not None
    say = asyncio.get_running_loop().sock_sendall
    await say(caller.socket, message[:2000])
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not inbox.any():
            await asyncio.sleep(0)
    handle.give_up()
    assert (await ended(handle)).lost is LossReason.DEADLINE
    inbox.zero_()
    for byte in message[2000:2100]:
        await say(caller.socket, bytes([byte]))
    await say(caller.socket, message[2100:])
    again = victim.open(0, K(1, 0), None, torch.empty(3), atomic=False)
    await caller.send(caller.frame(1, [1, 2, 3]))
    assert (await ended(again)).lost is None
    assert not inbox.any()
    assert victim.recorder.dropped == ["late"]
    await caller.leave()


def lanes(kind: str) -> tuple[DirectLane, DirectLane]:
    """Both ends of a data socket. shared: of a Unix socket beside shared memory."""
    if kind != "tcp":
        here, there = socket.socketpair(socket.AF_UNIX)
        ends = [here, there]
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            tune(listener)
            here = socket.create_connection(listener.getsockname())
            there, _ = listener.accept()
            ends = [here, there]
    for end in ends:
        end.setblocking(False)
        tune(end, "127.0.0.1")
    if kind != "shared":
        return DirectLane(ends[0]), DirectLane(ends[1])
    out = [Outgoing(), Outgoing()]
    into = [Incoming([os.dup(handle) for handle in one.handles]) for one in out]
    for one in out:
        one.handed_over()
    return DirectLane(ends[0], out[0], into[1]), DirectLane(ends[1], out[1], into[0])


@pytest.mark.parametrize("kind", ["tcp", "unix", "shared"])
async def test_a_vector_is_given_back_in_the_middle_of_a_frame(kind: str) -> None:
    """What the other end still gets is what the vector held."""
    here, there = lanes(kind)
    vector, head = bytearray(b"\x07" * (8 * SOCKET_BYTES)), bytes(HEADER_BYTES)
    writing = asyncio.create_task(here.write(head, memoryview(vector)[:FRAME_BYTES]))
    frames = 1
    while True:
        await asyncio.sleep(0)
        if not writing.done():
            break
        await writing
        frames += 1
        writing = asyncio.create_task(here.write(head, memoryview(vector)[:FRAME_BYTES]))
    here.let_go()
    vector[:] = bytes(len(vector))
    for _ in range(frames):
        arrival = await there.read()
        into = memoryview(bytearray(arrival.num_bytes - HEADER_BYTES))
        await there.fill(into)
        assert into.tobytes() == b"\x07" * FRAME_BYTES
    await writing
    here.close()
    with pytest.raises(LaneClosed):
        await there.read()
    there.close()


@pytest.mark.parametrize("kind", ["tcp", "unix", "shared"])
async def test_what_lies_in_a_socket_that_nobody_reads_is_bounded(kind: str) -> None:
    here, there = lanes(kind)
    piece, handed = memoryview(bytearray(64 * 1024)), 0

    async def push() -> None:
        nonlocal handed
        while True:
            await here.write(bytes(HEADER_BYTES), piece)
            handed += len(piece)

    pushing = asyncio.create_task(push())
    before = -1
    while handed > before:
        before = handed
        await asyncio.sleep(0.05)
    assert 0 < handed <= 16 * 1024 * 1024
    pushing.cancel()
    await asyncio.gather(pushing, return_exceptions=True)
    here.close()
    there.close()


async def test_vectors_of_any_size_take_no_memory_besides(direct_rig: Rig) -> None:
    a, b = await direct_rig.pair()
    size = 10 * FRAME
    vectors = [torch.ones(size) for _ in range(4)]
    await goes_on(a, b, 0)
    tracemalloc.start()
    try:
        handles = a.open(1, K(1, 0), vectors[0], vectors[1]), b.open(0, K(1, 0), vectors[2], vectors[3])
        assert await ends(*handles) == [None, None]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < FRAME_BYTES


# -- checksums


@pytest.mark.parametrize(
    "damage",
    [
        lambda piece: damaged(piece, 5000),
        lambda piece: damaged(piece, len(piece) - 1),
        lambda piece: piece[:4096] + bytes(4096) + piece[8192:],
        lambda piece: piece[4096:8192] + piece[:4096] + piece[8192:],
        lambda piece: piece[:8] + piece[16:24] + piece[8:16] + piece[24:],
        lambda piece: piece[8:-3] + piece[:8] + piece[-3:],
        lambda piece: piece + b"\0",
    ],
)
def test_column_sums_notice(damage: Callable[[bytes], bytes]) -> None:
    piece = torch.randn(4000).numpy().tobytes() + b"end"
    assert column_sums(memoryview(piece), 1) == column_sums(memoryview(piece), 1)
    assert column_sums(memoryview(damage(piece)), 1) != column_sums(memoryview(piece), 1)
    assert column_sums(memoryview(piece), 2) != column_sums(memoryview(piece), 1)


async def test_a_door_that_can_not_be_opened_is_missed_only_where_it_was_asked_for(
    direct_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def shut(self: Door, host: str, port: int = 0, *, local: bool = True) -> None:
        raise OSError("no file descriptors")

    monkeypatch.setattr(Door, "open", shut)
    a, b = (
        await direct_rig.start(identity(0), data_plane=DataPlane.AUTO),
        await direct_rig.start(identity(1), data_plane=DataPlane.AUTO),
    )
    a.transport.connect({1: b.address})
    await asyncio.gather(a.linked_to(1), b.linked_to(0))
    assert a.transport.traffic()[1].data_plane == "grpc"
    await goes_on(a, b, 0)
    with pytest.raises(OSError, match="descriptors"):
        await direct_rig.start(identity(0), data_plane=DataPlane.DIRECT)


@pytest.mark.parametrize(("host", "ours"), [("127.0.0.1", True), ("10.1.2.3", False)])
def test_between_machines_the_kernel_fits_the_window_to_the_path(host: str, ours: bool) -> None:
    """A socket whose buffer was set is never fitted again."""
    with socket.socket() as sock:
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        tune(sock, host)
        changed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) != before
    assert changed == (ours and _kernel_limit("rmem_max") >= SOCKET_BYTES)
