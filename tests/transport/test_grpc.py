"""What only the gRPC carrier has: observers, health, reflection, and a network that can be cut."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from peer.transport.base import ExchangeKey
from peer.transport.client import PeerClient, PeerUnreachable
from peer.transport.grpc import GrpcOptions, GrpcTransport
from peer.transport.service import PACKAGE_SERVICE
from peer.wire import gossip_pb2 as wire

from .proxy import Proxy
from .rig import Recorder, Rig, StubService, ended, ends, identity

REPLY = wire.StatusReply(peer=1, run="run", state=wire.STATE_TRAINING, round=7, rounds_by_reason={"first": 7})


@pytest.fixture
async def observed() -> AsyncIterator[tuple[GrpcTransport, str]]:
    service = StubService(REPLY, torch.arange(700_000.0), round=7)
    transport = GrpcTransport(identity(1), "127.0.0.1:0", service=service, options=GrpcOptions(reflection=True))
    address = await transport.start(Recorder())
    yield transport, address
    await transport.stop()


async def test_status_and_snapshot(observed: tuple[GrpcTransport, str]) -> None:
    client = PeerClient(observed[1])
    assert await client.status() == REPLY
    out = torch.empty(700_000)
    assert await client.snapshot(out) == 7
    assert torch.equal(out, torch.arange(700_000.0))
    with pytest.raises(PeerUnreachable, match="does not fit: size"):
        await client.snapshot(torch.empty(3))
    await client.close()


async def test_nobody_there_is_one_sentence() -> None:
    client = PeerClient("127.0.0.1:9")
    with pytest.raises(PeerUnreachable, match=r"^no peer answers at 127\.0\.0\.1:9$"):
        await client.status()
    with pytest.raises(PeerUnreachable, match="no peer answers"):
        await client.snapshot(torch.empty(3), timeout=1.0)
    await client.close()


async def test_health_follows_serving(observed: tuple[GrpcTransport, str]) -> None:
    transport, address = observed
    states = health_pb2.HealthCheckResponse
    async with grpc.aio.insecure_channel(address) as channel:
        ask = health_pb2_grpc.HealthStub(channel).Check
        for name in ("", PACKAGE_SERVICE):
            assert (await ask(health_pb2.HealthCheckRequest(service=name))).status == states.SERVING
        transport.set_serving(False)
        assert (await ask(health_pb2.HealthCheckRequest(service=PACKAGE_SERVICE))).status == states.NOT_SERVING


async def test_reflection_names_the_service(observed: tuple[GrpcTransport, str]) -> None:
    async with grpc.aio.insecure_channel(observed[1]) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {service.name for service in (await call.read()).list_services_response.service}
        call.cancel()
    assert PACKAGE_SERVICE in names


async def test_a_cut_network_heals(grpc_rig: Rig) -> None:
    a, b = await grpc_rig.start(identity(0)), await grpc_rig.start(identity(1))
    proxy = Proxy(b.address)
    a.transport.connect({1: await proxy.start()})
    await a.linked_to(1)
    await b.linked_to(0)
    pending = a.open(1, ExchangeKey(0, 0), torch.ones(9), torch.empty(9))
    proxy.cut()
    assert (await ended(pending)).lost == "link_down"
    await b.recorder.until(lambda: len(b.recorder.links) == 2)
    proxy.heal()
    await a.recorder.until(lambda: len(a.recorder.links) == 3)
    await b.recorder.until(lambda: len(b.recorder.links) == 3)
    x, at_a, at_b = torch.ones(9), torch.empty(9), torch.empty(9)
    assert await ends(a.open(1, ExchangeKey(1, 0), x, at_a), b.open(0, ExchangeKey(1, 0), x, at_b)) == [None, None]
    await proxy.stop()


async def test_a_restarted_peer_replaces_a_link_that_fell_silent(grpc_rig: Rig) -> None:
    a, b = await grpc_rig.start(identity(0)), await grpc_rig.start(identity(1))
    proxy = Proxy(b.address)
    a.transport.connect({1: await proxy.start()})
    await b.linked_to(0)
    proxy.stall()
    again = await grpc_rig.start(identity(0))
    again.transport.connect({1: b.address})
    await again.linked_to(1)
    await b.recorder.until(lambda: len(b.recorder.links) == 3)
    assert b.recorder.links == [(0, "up"), (0, "replaced by a newer link"), (0, "up")]
    await proxy.stop()


async def test_a_silent_link_is_noticed_by_keepalive(grpc_rig: Rig) -> None:
    a, b = await grpc_rig.start(identity(0)), await grpc_rig.start(identity(1))
    proxy = Proxy(b.address)
    a.transport.connect({1: await proxy.start()})
    await a.linked_to(1)
    proxy.stall()
    await a.recorder.until(lambda: len(a.recorder.links) == 2)
    await b.recorder.until(lambda: len(b.recorder.links) == 2)
    proxy.heal()
    await a.recorder.until(lambda: len(a.recorder.links) == 3)
    await proxy.stop()
