"""Who asks, watches and reads the schema of a real peer, in crowds and without end: no peer is kept out, and no health check."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from docker.health import check
from peer.transport import callers, observers
from peer.transport.base import ExchangeKey
from peer.transport.callers import CALLS_AT_ONCE, Callers
from peer.transport.client import PeerClient, PeerUnreachable
from peer.transport.grpc import MAX_SNAPSHOTS, GrpcOptions, GrpcTransport
from peer.transport.observers import QUESTIONS_AT_ONCE
from peer.transport.service import PACKAGE_SERVICE

from .http2 import Reluctant
from .rig import Member, Recorder, Rig, StubService, ends, identity

OPTIONS = (("grpc.use_local_subchannel_pool", 1),)
STREAMS = 1100
"""More than gRPC has places for in a cluster of two; of 1000 that wait it takes all, above that it may refuse some itself."""

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"


@pytest.fixture
async def victim(grpc_rig: Rig) -> Member:
    recorder = Recorder()
    transport = GrpcTransport(identity(1), "127.0.0.1:0", service=StubService(), options=GrpcOptions(reflection=True))
    member = Member(transport, recorder, await transport.start(recorder))
    grpc_rig.members.append(member)
    return member


@pytest.fixture
async def channel(victim: Member) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(victim.address, options=OPTIONS) as made:
        yield made


async def health_check(address: str) -> str:
    """What compose's health check says: "" if the peer serves."""
    host, _, port = address.rpartition(":")
    return await asyncio.to_thread(check, host, int(port))


async def a_peer_links_and_exchanges(rig: Rig, victim: Member) -> None:
    peer = await rig.start(identity(0))
    peer.transport.connect({1: victim.address})
    await asyncio.gather(peer.linked_to(1), victim.linked_to(0))
    x, inbox, other = torch.ones(9), torch.empty(9), torch.empty(9)
    key = ExchangeKey(0, 0)
    assert await ends(peer.open(1, key, x, inbox), victim.open(0, key, x, other)) == [None, None]
    assert torch.equal(inbox, x)


def watch(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=PACKAGE_SERVICE))


def read_schema(channel: grpc.aio.Channel) -> Any:
    return reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()


def ask_without_a_question(channel: grpc.aio.Channel) -> Any:
    return channel.stream_unary(f"/{PACKAGE_SERVICE}/Status")()


@pytest.mark.parametrize(
    ("opened", "allowed"),
    [(watch, CALLS_AT_ONCE), (read_schema, CALLS_AT_ONCE), (ask_without_a_question, QUESTIONS_AT_ONCE)],
)
async def test_a_thousand_streams_shut_out_no_peer_and_no_health_check(
    grpc_rig: Rig,
    victim: Member,
    channel: grpc.aio.Channel,
    opened: Callable[[grpc.aio.Channel], Any],
    allowed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observers, "ASK_SECONDS", 60.0)  # nobody's time is up
    codes: Counter[grpc.StatusCode] = Counter()
    enough = asyncio.Event()

    async def open_one() -> None:
        codes[await opened(channel).code()] += 1
        if codes.total() >= STREAMS - allowed:
            enough.set()

    async def open_again_and_again() -> None:
        await open_one()
        while True:
            await open_one()

    async with asyncio.timeout(30):
        crowd = [asyncio.create_task(open_one() if n % 50 else open_again_and_again()) for n in range(STREAMS)]
        await enough.wait()
        assert await health_check(victim.address) == ""
        await a_peer_links_and_exchanges(grpc_rig, victim)
        assert await health_check(victim.address) == ""
        observer = PeerClient(victim.address)
        await observer.status(timeout=5.0)
        await observer.close()
    for task in crowd:
        task.cancel()
    await asyncio.wait(crowd)
    assert set(codes) <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}  # by gRPC itself
    assert set(victim.recorder.dropped) == {"crowd"}
    assert victim.recorder.dropped.count("crowd") >= codes[grpc.StatusCode.RESOURCE_EXHAUSTED] >= 1000 - allowed


async def test_a_crowd_of_watching_connections_is_bounded_and_shuts_out_no_newcomer(
    victim: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "MAX_CALLERS", 3)
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for _ in range(5):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(victim.address, options=OPTIONS))
            calls.append(watch(channel))
            await calls[-1].read()
        async with asyncio.timeout(10):
            codes = [await call.code() for call in calls[:2]]
        assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert victim.recorder.dropped == ["crowd", "crowd"]
        assert not any(call.done() for call in calls[2:])


async def test_who_watches_may_do_so_for_longer_than_a_question_takes(
    victim: Member, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observers, "ASK_SECONDS", 0.2)
    watching = watch(channel)
    before = await watching.read()
    async with asyncio.timeout(10):
        silent: Any = channel.stream_stream(CHECK)()  # began later, and its time is up
        assert await silent.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        victim.transport.set_serving(False)  # type: ignore[attr-defined]
        after = await watching.read()
    assert before != after
    assert victim.recorder.dropped == ["silent"]


async def test_who_asks_and_says_not_what_is_cut(
    victim: Member, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observers, "ASK_SECONDS", 0.05)
    paths = (CHECK, WATCH, f"/{PACKAGE_SERVICE}/Status", f"/{PACKAGE_SERVICE}/Snapshot")
    for path in paths:
        async with asyncio.timeout(10):
            assert await channel.stream_stream(path)().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert victim.recorder.dropped == ["silent"] * len(paths)


async def test_who_reads_no_answer_has_no_more_calls_than_a_connection_may(
    victim: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is up, but gRPC keeps a call for as long as its end is not read: it goes on counting."""
    monkeypatch.setattr(observers, "ASK_SECONDS", 0.02)
    dropped = victim.recorder.dropped
    reluctant = Reluctant()
    await reluctant.connect(victim.address)

    async def one_more() -> None:
        before = len(dropped)
        reluctant.call(CHECK)
        await victim.recorder.until(lambda: len(dropped) > before)

    async with asyncio.timeout(60):
        while "crowd" not in dropped:
            await one_more()
    assert dropped[:-1] == ["silent"] * (len(dropped) - 1)
    assert len(dropped) > QUESTIONS_AT_ONCE  # more where a call's time was up before there was an answer
    await reluctant.leave()


async def test_who_watches_and_reads_nothing_holds_up_neither_others_nor_the_end(
    victim: Member, channel: grpc.aio.Channel
) -> None:
    reluctant = Reluctant()
    await reluctant.connect(victim.address)
    reluctant.call(WATCH)
    states = health_pb2.HealthCheckResponse
    other = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    async with asyncio.timeout(10):
        assert (await other.read()).status == states.SERVING
        await victim.transport.stop()
        assert (await other.read()).status == states.NOT_SERVING
    await reluctant.leave()


async def test_health_of_what_is_not_there(channel: grpc.aio.Channel) -> None:
    stub, other = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service="other")
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await stub.Check(other)
    call: Any = stub.Watch(other)
    assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    call.cancel()


async def test_who_asks_and_hangs_up_is_told_so(channel: grpc.aio.Channel) -> None:
    call: Any = channel.stream_unary(f"/{PACKAGE_SERVICE}/Status")()
    await call.done_writing()
    async with asyncio.timeout(10):
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_caller_whose_time_is_up_when_its_place_is_needed_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(callers, "MAX_CALLERS", 1)
    refused: list[str] = []
    waiting = Callers(refused.append)

    async def slow() -> None:
        async with asyncio.timeout(0) as patience:
            with waiting.waiting(patience):
                while not patience.expired():  # it is told, and has not gone yet
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0)
                with waiting.waiting(asyncio.timeout(None)):
                    raise asyncio.CancelledError

    with pytest.raises(TimeoutError):
        await slow()
    assert refused == ["silent"]


async def test_a_snapshot_that_is_not_read_keeps_nobody_from_others(
    grpc_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peer.transport.grpc.SNAPSHOT_WRITE_SECONDS", 0.05)
    transport = GrpcTransport(identity(1), "127.0.0.1:0", service=StubService(vector=torch.ones(9)))
    member = Member(transport, Recorder(), await transport.start(Recorder()))
    grpc_rig.members.append(member)
    reluctant = Reluctant()
    await reluctant.connect(member.address)
    for _ in range(MAX_SNAPSHOTS):
        reluctant.call(f"/{PACKAGE_SERVICE}/Snapshot")
    observer, vector = PeerClient(member.address), torch.empty(9)
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(PeerUnreachable):  # not while they have their time
                await observer.snapshot(vector, timeout=5.0)
                break
    assert torch.equal(vector, torch.ones(9))
    await observer.close()
    await reluctant.leave()
