"""A caller that speaks gRPC well and everything else badly, against a real peer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import struct
import weakref
import zlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import torch

from peer.transport import callers, linked
from peer.transport import grpc as carrier
from peer.transport.base import ExchangeKey, LossReason
from peer.transport.callers import CALLS_AT_ONCE
from peer.transport.channel import TAKEN_BYTES
from peer.transport.client import PeerClient
from peer.transport.codec import HEADER_BYTES, Check
from peer.transport.exchange import as_tensor
from peer.transport.link import MAX_MALFORMED
from peer.wire import gossip_pb2 as wire

from .caller import CHECKS, LANE_OPTIONS, Caller
from .rig import Member, Rig, ended, identity


@pytest.fixture(params=["grpc", "tcp", "unix"])
async def socket_rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made = Rig(request.param)
    yield made
    await made.stop()


@pytest.fixture
async def victim(socket_rig: Rig) -> Member:
    return await socket_rig.start(identity(1))


@pytest.fixture
async def caller(socket_rig: Rig, victim: Member) -> AsyncIterator[Caller]:
    made = Caller(victim.address, socket_rig.carrier)
    await made.join()
    await victim.linked_to(0)
    yield made
    await made.leave()


def damaged(message: bytes, at: int) -> bytes:
    copy = bytearray(message)
    copy[at] ^= 1
    return bytes(copy)


def with_dtype(message: bytes, dtype: int, check: Check) -> bytes:
    """The same frame with another dtype and a checksum that is right."""
    copy = bytearray(message)
    copy[6] = dtype
    at = HEADER_BYTES - 4
    copy[at:HEADER_BYTES] = struct.pack("<I", check(memoryview(message)[HEADER_BYTES:], zlib.crc32(copy[:at])))
    return bytes(copy)


def hostile(caller: Caller, kind: str) -> list[bytes]:
    good, first = caller.frame(0, [1, 2, 3, 4]), caller.frame(0, [1, 2], total=16)
    return {
        "checksum": [damaged(good, len(good) - 1)],
        "dtype": [with_dtype(good, 2, CHECKS[caller.kind])],  # another one
        "dtype unknown": [with_dtype(good, 9, CHECKS[caller.kind])],
        "size": [caller.frame(0, [1, 2, 3])],
        "order": [caller.frame(0, [3, 4], total=16, offset=8), first],
        "duplicate": [first, first],
        "length": [good[:-3]],
    }[kind]


@pytest.mark.parametrize("kind", ["checksum", "dtype", "dtype unknown", "size", "order", "duplicate", "length"])
async def test_a_bad_payload_costs_its_exchange_only(victim: Member, caller: Caller, kind: str) -> None:
    if kind == "checksum" and caller.kind == "unix":
        pytest.skip("what goes through this machine's memory only is not summed")
    inbox = torch.full((4,), 7.0)
    handle = victim.open(0, ExchangeKey(0, 0), None, inbox)
    for message in hostile(caller, kind):
        await caller.send(message)
    assert (await ended(handle)).lost is LossReason.CORRUPT
    while (answer := await caller.hear()).WhichOneof("body") != "abort":
        pass
    assert answer.abort.reason == wire.ABORT_REASON_CORRUPT
    assert victim.recorder.dropped[0] == ("order" if kind == "duplicate" else kind.split()[0])
    await the_next_exchange_goes_on(victim, caller)


async def the_next_exchange_goes_on(victim: Member, caller: Caller) -> None:
    inbox = torch.empty(3)
    handle = victim.open(0, ExchangeKey(1, 0), None, inbox)
    await caller.send(caller.frame(1, [1, 2, 3]))
    await caller.say(wire.ControlMessage(vote=wire.Vote(round=1)))
    assert (await ended(handle)).lost is None
    assert inbox.tolist() == [1, 2, 3]


async def test_noise_and_wrong_tags_touch_nothing(victim: Member, caller: Caller) -> None:
    caller.tag ^= 1
    stranger = caller.frame(0, [1, 2, 3])
    caller.tag ^= 1
    handle = victim.open(0, ExchangeKey(0, 0), None, torch.empty(3))
    for message in (b"", b"noise", stranger, bytes(100)):
        await caller.send(message)
    await caller.control.write(b"\xff\xff\xff")
    await caller.say(wire.ControlMessage(word=wire.Word(kind=wire.WORD_KIND_READY, origin=99)))
    await caller.say(wire.ControlMessage(word=wire.Word(origin=1)))
    await victim.recorder.until(lambda: len(victim.recorder.dropped) == 7)
    reasons = ["control", "magic", "tag", "truncated", "truncated", "word", "word"]
    assert sorted(victim.recorder.dropped) == reasons
    assert not handle.outcome.done()
    assert not victim.recorder.words
    await the_next_exchange_goes_on(victim, caller)


async def test_only_whole_elements_that_are_what_was_sent_are_lent(victim: Member, caller: Caller) -> None:
    inbox, lent, told = torch.zeros(8), list[list[float]](), list[int]()
    handle = victim.transport.exchange(
        0,
        ExchangeKey(0, 0),
        None,
        inbox,
        atomic=False,
        arrived=told.append,
        lent=lambda piece: lent.append(as_tensor(piece, torch.float32).tolist()),
    )
    payload = np.arange(1, 9, dtype="<f4").tobytes()
    for start, end in ((0, 3), (3, 8), (8, 16), (16, 22), (22, 24)):
        await caller.send(caller.piece(0, payload, start, end))
    last = caller.piece(0, payload, 24, 32)
    await caller.send(last if caller.kind == "unix" else damaged(last, len(last) - 1))
    outcome = await ended(handle)
    whole = caller.kind == "unix"
    assert outcome.lost == (None if whole else LossReason.CORRUPT)
    assert told == [3, 8, 16, 22, 24, 32][: 5 + whole]
    assert lent == ([[3, 4]] if caller.kind == "grpc" else [])
    assert inbox[:6].tolist() == [1, 2, *([0, 0] if lent else [3, 4]), 5, 6]


async def test_a_bad_payload_that_comes_early_is_remembered(victim: Member, caller: Caller) -> None:
    good = caller.frame(0, [1, 2, 3])
    bad, why = (damaged(good, len(good) - 1), "checksum") if caller.kind == "grpc" else (good[:-3], "length")
    await caller.send(bad)  # a data socket's piece stays in the socket until there is a place for it
    await victim.recorder.until(lambda: victim.recorder.dropped == [why])
    assert (await ended(victim.open(0, ExchangeKey(0, 0), None, torch.empty(3)))).lost is LossReason.CORRUPT
    await the_next_exchange_goes_on(victim, caller)


async def test_notices_of_the_far_future_are_bounded(victim: Member, caller: Caller) -> None:
    for round_ in range(10**9, 10**9 + 1024 + MAX_MALFORMED):
        await caller.say(wire.ControlMessage(abort=wire.Abort(round=round_)))
    await victim.recorder.until(lambda: len(victim.recorder.links) == 2)
    assert victim.recorder.links[1] == (0, f"{MAX_MALFORMED} malformed messages, the last one: early")


async def test_too_much_noise_closes_the_link(victim: Member, caller: Caller) -> None:
    for _ in range(MAX_MALFORMED):
        await caller.send(b"noise")
    await victim.recorder.until(lambda: len(victim.recorder.links) == 2)
    assert victim.recorder.dropped == ["truncated"] * MAX_MALFORMED


async def test_a_message_above_the_limit_is_counted_and_costs_no_more_than_the_link(
    victim: Member, caller: Caller
) -> None:
    with contextlib.suppress(ConnectionError):  # a data socket is cut while this is under way
        await caller.send(caller.frame(0, [1.0] * 750_000))
    if caller.kind == "grpc":  # what is longer than a frame, but not much, costs no link
        await victim.recorder.until(lambda: victim.recorder.dropped == ["length"])
        await caller.send(bytes(TAKEN_BYTES + 1))
    await victim.recorder.until(lambda: len(victim.recorder.links) == 2)
    assert victim.recorder.dropped == (["length"] if caller.kind == "grpc" else ["oversized"])
    again = Caller(victim.address, caller.kind)
    await again.join()
    await victim.recorder.until(lambda: len(victim.recorder.links) == 3)
    await again.leave()


async def test_the_dialling_end_counts_what_grpc_refused_for_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.transport.channel.MAX_MESSAGE_BYTES", -1)  # of what is sent
    rig = Rig("grpc")
    try:
        a, b = await rig.pair()  # a dials
        monkeypatch.setattr("peer.transport.link.encode_head", lambda *_: bytes(TAKEN_BYTES))
        b.open(0, ExchangeKey(0, 0), torch.ones(4), None, atomic=False)
        await a.recorder.until(lambda: "oversized" in a.recorder.dropped)
    finally:
        await rig.stop()


async def test_who_does_not_say_hello_is_refused(victim: Member) -> None:
    async with grpc.aio.insecure_channel(victim.address) as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(carrier.CONTROL)()
        await call.write(b"garbage")
        await victim.recorder.until(lambda: bool(victim.recorder.refused))
        assert victim.recorder.refused == [(None, "hello", "the caller did not begin with a hello")]
        exchange: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(carrier.EXCHANGE)()
        async with asyncio.timeout(5):
            assert await exchange.code() is grpc.StatusCode.PERMISSION_DENIED
    assert victim.recorder.dropped == ["token"]


async def test_who_says_nothing_is_cut(victim: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "HELLO_SECONDS", 0.05)
    async with grpc.aio.insecure_channel(victim.address) as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(carrier.CONTROL)()
        async with asyncio.timeout(5):
            assert isinstance(await call.read(), bytes)  # its hello
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not victim.transport.linked()
    assert victim.recorder.dropped == ["silent"]


def goodbye(**said: Any) -> wire.ControlMessage:
    return wire.ControlMessage(goodbye=wire.Goodbye(**said))


async def test_a_goodbye_of_frames_that_never_come_is_not_answered_and_costs_nothing(
    victim: Member, caller: Caller
) -> None:
    await caller.say(goodbye(frames=2**64 - 1))
    await caller.say(goodbye(answer=True))
    await the_next_exchange_goes_on(victim, caller)
    await caller.say(goodbye(frames=1))
    while (heard := await caller.hear()).WhichOneof("body") != "goodbye":
        pass
    assert heard.goodbye.answer
    assert victim.recorder.dropped == []


@pytest.mark.parametrize("answers", ["nothing", "who goes too", "before it is asked"])
async def test_who_stops_waits_for_no_answer_longer_than_it_says(
    victim: Member, caller: Caller, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    """The vector that it sent is read by nobody: as the other end is silent, or says so itself."""
    monkeypatch.setattr(linked, "READ_SECONDS", 0.2 if answers == "nothing" else 60.0)
    if answers == "before it is asked":
        await caller.say(goodbye(answer=True))
        await caller.say(wire.ControlMessage(word=wire.Word(kind=wire.WORD_KIND_READY, origin=0)))
        await victim.recorder.until(lambda: len(victim.recorder.words) == 1)
    sent = victim.open(0, ExchangeKey(0, 0), torch.ones(3), None, atomic=False)
    assert (await ended(sent)).lost is None
    stopping = asyncio.create_task(victim.transport.stop())
    if answers == "who goes too":
        await caller.say(goodbye(frames=2**64 - 1))
    async with asyncio.timeout(10):
        await stopping


async def test_one_byte_at_a_time_costs_the_exchange_and_keeps_nothing(victim: Member, caller: Caller) -> None:
    """A sender so slow that the round gives it up: what it sent is free at once, and what it still sends is late."""
    memory = np.empty(1000, np.float32)
    kept = weakref.ref(memory)
    handle = victim.open(0, ExchangeKey(0, 0), None, torch.from_numpy(memory))
    payload = bytes(4000)
    for at in range(3):
        await caller.send(caller.piece(0, payload, at, at + 1))
    await victim.recorder.until(lambda: victim.transport.traffic()[0].bytes_received > 0)
    assert not handle.outcome.done()
    handle.give_up()
    assert (await ended(handle)).lost is LossReason.DEADLINE
    del memory, handle
    gc.collect()
    assert kept() is None, "a lost exchange still holds the vector it was to fill"
    await caller.send(caller.piece(0, payload, 3, 4))
    await caller.send(caller.piece(0, payload, 4, 5))
    await victim.recorder.until(lambda: victim.recorder.dropped.count("late") >= 2)  # one of the first three may be too
    assert victim.transport.traffic()[0].late_payloads == 1
    await the_next_exchange_goes_on(victim, caller)


async def test_a_thousand_streams_are_refused_and_counted_and_shut_nobody_out(
    socket_rig: Rig, victim: Member, caller: Caller
) -> None:
    """Who says nothing waits to be cut, as many as a connection may have; its link goes on, others come and are answered."""
    open_control: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = caller.channel.stream_stream(carrier.CONTROL)
    calls = [open_control() for _ in range(1000)]
    refused: asyncio.Queue[grpc.StatusCode] = asyncio.Queue()

    async def watch(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        refused.put_nowait(await call.code())

    watching = [asyncio.create_task(watch(call)) for call in calls]
    async with asyncio.timeout(20):
        codes = [await refused.get() for _ in range(1000 - CALLS_AT_ONCE)]
    assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert victim.recorder.dropped.count("crowd") == len(codes)
    await the_next_exchange_goes_on(victim, caller)
    observer = PeerClient(victim.address)
    await observer.status(timeout=5.0)
    await observer.close()
    for call in calls:
        call.cancel()
    await asyncio.gather(*watching)


async def test_one_connection_may_carry_more_peers_than_calls_that_have_not_agreed() -> None:
    """As through a proxy."""
    num_callers = CALLS_AT_ONCE + 3
    rig = Rig("grpc")
    victim = await rig.start(identity(num_callers, num_callers + 1))
    callers_of_it = [Caller(victim.address, me=identity(i, num_callers + 1)) for i in range(num_callers)]
    for one in callers_of_it[1:]:
        await one.channel.close()
        one.channel = callers_of_it[0].channel
    for one in callers_of_it:
        async with asyncio.timeout(10):
            await one.join()
    await victim.recorder.until(lambda: len(victim.transport.linked()) == num_callers)
    assert not victim.recorder.dropped
    await callers_of_it[0].channel.close()
    await rig.stop()


async def test_a_crowd_of_connections_is_bounded_and_shuts_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "MAX_CALLERS", 8)
    monkeypatch.setattr(carrier, "HELLO_SECONDS", 60.0)  # nobody's time is up
    rig = Rig("grpc")
    victim = await rig.start(identity(1))
    channels = [grpc.aio.insecure_channel(victim.address, options=LANE_OPTIONS) for _ in range(4)]
    calls: list[grpc.aio.StreamStreamCall[bytes, bytes]] = []
    for channel in channels:
        open_control: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(carrier.CONTROL)
        calls += [open_control() for _ in range(CALLS_AT_ONCE)]
    await victim.recorder.until(lambda: victim.recorder.dropped.count("crowd") == len(calls) - 8)
    assert set(victim.recorder.dropped) == {"crowd"}
    peer = await rig.start(identity(0))
    peer.transport.connect({1: victim.address})
    await asyncio.gather(peer.linked_to(1), victim.linked_to(0))
    for channel in channels:
        await channel.close()
    await rig.stop()
