"""A cluster is found from any of its peers, over real gRPC; whoever answers wrongly, late or never harms nothing."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

import pytest
from rich.console import Console

from peer.cli.top import show_top
from peer.cluster.crawl import Crawl
from peer.transport.base import Listener
from peer.transport.client import PeerUnreachable
from peer.transport.grpc import GrpcTransport
from peer.wire.gossip_pb2 import Neighbor, State, StatusReply
from tests.transport.rig import Recorder, StubService, identity

TIMEOUT = 5.0
NOBODY = "127.0.0.1:1"


class Cluster:
    """Peers that do nothing but answer, each naming its neighbours of a ring."""

    def __init__(self, num_peers: int) -> None:
        self.num_peers = num_peers
        self.addresses: dict[int, str] = {}
        self.services: dict[int, StubService] = {}
        self._transports: dict[int, GrpcTransport] = {}

    async def start(self, peer: int, listen: str = "127.0.0.1:0", **values: object) -> None:
        reply = StatusReply(peer=peer, num_peers=self.num_peers, run="run", state=State.STATE_TRAINING, seconds=1.0)
        reply.algorithm, reply.topology, reply.task, reply.round = "dpsgd", "ring", "digits", 10 + peer
        for name, value in values.items():
            setattr(reply, name, value)
        self.services[peer] = StubService(reply)
        transport = GrpcTransport(identity(peer, self.num_peers), listen, service=self.services[peer])
        listener: Listener = Recorder()
        self.addresses[peer] = await transport.start(listener)
        self._transports[peer] = transport

    def introduce(self) -> None:
        for peer, service in self.services.items():
            around = sorted({(peer - 1) % self.num_peers, (peer + 1) % self.num_peers} - {peer})
            del service.reply.neighbors[:]
            service.reply.neighbors.extend(
                Neighbor(peer=j, address=self.addresses.get(j, NOBODY), state="alive") for j in around
            )

    async def stop(self, *peers: int) -> None:
        for peer in peers or list(self._transports):
            await self._transports.pop(peer).stop()


@asynccontextmanager
async def cluster(num_peers: int, started: Iterable[int] | None = None) -> AsyncIterator[Cluster]:
    made = Cluster(num_peers)
    try:
        for peer in started if started is not None else range(num_peers):
            await made.start(peer)
        made.introduce()
        yield made
    finally:
        await made.stop()


@asynccontextmanager
async def crawl(address: str, timeout: float = TIMEOUT) -> AsyncIterator[Crawl]:
    made = Crawl(address, timeout)
    try:
        yield made
    finally:
        await made.close()


def who(found: Crawl) -> list[int]:
    return [status.peer for status in found.answering]


async def test_all_are_found_from_any_of_them() -> None:
    async with cluster(7) as peers:
        for start in (0, 3):
            async with crawl(peers.addresses[start]) as found:
                await found.look()
                assert who(found) == list(range(7))
                assert [row.status.round for row in found.rows.values() if row.status] == [
                    10 + peer for peer in found.rows
                ]


async def test_who_dies_is_missed_and_who_comes_back_or_appears_is_found() -> None:
    async with cluster(5, started=[0, 1, 2, 4]) as peers, crawl(peers.addresses[0]) as found:
        await found.look()
        assert who(found) == [0, 1, 2, 4]
        assert (found.rows[3].status, found.rows[3].about) == (None, "no answer")
        address = peers.addresses[0]
        await peers.stop(0)  # the one that was named on the command line
        await found.look()
        assert who(found) == [1, 2, 4]
        assert found.rows[0].status is not None
        await peers.start(0, address, pid=9)
        await peers.start(3)
        peers.introduce()  # at another address than before, which was nobody's
        async with asyncio.timeout(20):
            while who(found) != [0, 1, 2, 3, 4]:
                await found.look()
        assert found.rows[0].status is not None
        assert found.rows[0].status.pid == 9


async def test_who_has_left_is_not_missed() -> None:
    async with cluster(3) as peers, crawl(peers.addresses[0]) as found:
        await peers.stop(2)
        for service in (peers.services[0], peers.services[1]):
            next(n for n in service.reply.neighbors if n.peer == 2).state = "left"
        await found.look()
        assert found.rows[2].about == "left"


async def test_another_peer_at_a_known_address_is_not_taken_for_the_one_that_was_there() -> None:
    async with cluster(3) as peers, crawl(peers.addresses[0]) as found:
        await found.look()
        for wrong in ({"run": "another"}, {"peer": 0}, {"num_peers": 4}):
            right = {name: getattr(peers.services[1].reply, name) for name in wrong}
            for name, value in wrong.items():
                setattr(peers.services[1].reply, name, value)
            await found.look()
            assert who(found) == [0, 2]
            assert found.rows[1].about == "another peer answers there"
            for name, value in right.items():
                setattr(peers.services[1].reply, name, value)
        await found.look()
        assert who(found) == [0, 1, 2]


async def test_what_a_peer_says_of_others_is_bounded_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.cluster.crawl.MOST_PEERS", 20)
    async with cluster(1000, started=[0]) as peers, crawl(peers.addresses[0], 0.5) as found:
        reply = peers.services[0].reply
        del reply.neighbors[:]
        strange = ["", "no address", "a:b:c", "\x1b[31m:1", "x" * 10_000, "[::1]:0", NOBODY]
        reply.neighbors.extend(Neighbor(peer=1 + i, address=address) for i, address in enumerate(strange))
        reply.neighbors.extend(Neighbor(peer=peer, address=NOBODY) for peer in (0, 1000, 2**32 - 1))
        reply.neighbors.extend(Neighbor(peer=100 + i, address=NOBODY) for i in range(100))
        async with asyncio.timeout(20):
            await found.look()
        assert who(found) == [0]
        assert len(found.rows) == 20
        assert max(found.rows) < 1000


async def test_a_look_ends_in_time_whatever_the_peers_do() -> None:
    """They accept connections, and that is all."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with cluster(200, started=[0]) as peers, crawl(peers.addresses[0], 0.2) as found:
            reply = peers.services[0].reply
            del reply.neighbors[:]
            reply.neighbors.extend(Neighbor(peer=i, address=f"127.0.0.1:{port}") for i in range(1, 200))
            loop = asyncio.get_running_loop()
            began = loop.time()
            await found.look()
            assert loop.time() - began < 10.0, "five time-outs of 0.2 s, and the machine may be slow"
            assert who(found) == [0]


async def test_the_first_must_answer() -> None:
    async with crawl(NOBODY, 1.0) as found:
        with pytest.raises(PeerUnreachable, match=f"no peer answers at {NOBODY}"):
            await found.look()


# grapevine top


class Screen:
    """A terminal of a test, or a pipe."""

    def __init__(self, *, terminal: bool = True) -> None:
        self._file = io.StringIO()
        self.console = Console(file=self._file, force_terminal=terminal, width=100, height=20, color_system=None)

    def text(self) -> str:
        return self._file.getvalue()

    async def until(self, condition: Callable[[str], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition(self.text()):
                await asyncio.sleep(0.02)


def top(address: str, console: Console, *, once: bool = False, timeout: float = TIMEOUT) -> asyncio.Task[None]:
    return asyncio.create_task(show_top(address, console, once=once, every=0.05, timeout=timeout))


@pytest.mark.parametrize("terminal", [True, False])
async def test_one_table(terminal: bool) -> None:
    screen = Screen(terminal=terminal)
    async with cluster(3) as peers:
        peers.services[0].reply.run = peers.services[1].reply.run = peers.services[2].reply.run = "a\x1b[31mb"
        await top(peers.addresses[1], screen.console, once=True)
    lines = screen.text().splitlines()
    assert lines[0] == "run 'a?[31mb': 3 peers, dpsgd on a ring, task digits"
    assert "round 10 to 12" in lines[1]
    assert "3 of 3 peers answer" in lines[1]
    assert [text.split()[0] for text in lines[3:6]] == ["0", "1", "2"]
    assert "\x1b" not in screen.text()
    assert lines[-1].endswith("since the start")


@pytest.mark.parametrize("terminal", [True, False])
async def test_it_goes_on_until_it_is_interrupted(terminal: bool) -> None:
    screen = Screen(terminal=terminal)
    async with cluster(3) as peers:
        watching = top(peers.addresses[0], screen.console)
        await screen.until(lambda text: "3 of 3 peers answer" in text)
        await peers.stop(0)
        await screen.until(lambda text: "2 of 3 peers answer" in text)
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(10):
            await watching
    last = screen.text().splitlines()
    if terminal:
        assert last[-4].split()[:2] == ["0", "10"], "the last table stays on the screen"
        assert "no answer" in last[-4]
    else:
        assert all("peers answer" in text for text in last)


async def test_a_cluster_that_is_gone_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a failure: whether one peer was killed before the others finished, or all are out of reach, can't be told."""
    monkeypatch.setattr("peer.cli.top.GONE_SECONDS", 0.1)
    screen = Screen()
    async with cluster(2) as peers:
        peers.services[1].reply.state = State.STATE_FINISHED
        watching = top(peers.addresses[0], screen.console)
        await screen.until(lambda text: "2 of 2 peers answer" in text)
        await peers.stop()
        async with asyncio.timeout(20):
            await watching
    last = screen.text().splitlines()[-1]
    assert last == "no peer has answered for 0.1 s: the run is over, or out of reach"


async def test_an_interrupt_ends_it_before_the_first_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        watching = top(f"127.0.0.1:{silent.getsockname()[1]}", Screen().console, timeout=30.0)
        silent.settimeout(20)
        caller, _ = await asyncio.to_thread(silent.accept)  # it has been called, so it waits for the answer
        with suppress(OSError), caller:
            os.kill(os.getpid(), signal.SIGINT)
            async with asyncio.timeout(10):
                await watching
