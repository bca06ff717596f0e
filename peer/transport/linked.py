"""What all transports share: one living link per peer, and the mark before which everything is over."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from abc import abstractmethod
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from peer.gossip.digest import Digest
from peer.transport.base import (
    Arrived,
    ExchangeHandle,
    ExchangeKey,
    Identity,
    Lent,
    Listener,
    LossReason,
    Outcome,
    Traffic,
    Transport,
    Word,
)
from peer.transport.channel import FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS
from peer.transport.codec import column_sums, unchecked
from peer.transport.digests import Encoder
from peer.transport.emulated import SlowLane, SlowNetwork
from peer.transport.exchange import Exchange, byte_view
from peer.transport.handshake import (
    DataPlane,
    Greeting,
    Refusal,
    Refused,
    Session,
    agreed_plane,
    check_hello,
    check_planes,
    check_protocol,
    shake_hands,
)
from peer.transport.lane import BulkLane, Lane, MessageBulk
from peer.transport.link import Link
from peer.transport.machine import both_here, machine_name
from peer.wire import gossip_pb2 as wire

PROBE_SECONDS: Final = 1.0
"""How long a link that another caller wants to replace has for an answer to a ping."""

FLUSH_SECONDS: Final = 0.3
"""How long `stop` waits for the last control words to be written, and for an answer to them."""

READ_SECONDS: Final = 2.0
"""How long `stop` waits for an end that may not have read yet what it needs, or why it is refused."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The handle of an exchange that never began."""

    outcome: asyncio.Future[Outcome]

    def made(self, num_bytes: int) -> None:
        """Nobody waits for it."""

    def reply(self, send: Tensor) -> None:
        """Nobody waits for it."""

    def give_up(self, reason: LossReason = LossReason.DEADLINE) -> None:
        """Nothing is under way."""


class LinkedTransport(Transport):
    """A transport made of links. network: makes them slow (emulated.py). data_plane: what is said in the hello; an
    emulated network is in the messages of streams, so with one AUTO means GRPC, and DIRECT is a ValueError. A carrier says
    how to listen (`start`) and how to make one attempt to dial (`_attempt`)."""

    def __init__(
        self,
        identity: Identity,
        *,
        commit_grace_seconds: float = 1.0,
        network: SlowNetwork | None = None,
        data_plane: DataPlane = DataPlane.GRPC,
    ) -> None:
        if network is not None and data_plane is DataPlane.DIRECT:
            raise ValueError("an emulated network slows gRPC streams, not data sockets")
        self.identity = identity
        self._slow = network
        self._data_plane = data_plane if network is None else DataPlane.GRPC
        self._commit_grace_seconds = commit_grace_seconds
        self._incarnation = secrets.randbits(64)
        self._listener: Listener | None = None
        self._links: dict[int, Link] = {}
        self._traffic: dict[int, Traffic] = {}
        self._mark = ExchangeKey(0, 0)
        self._wanted: dict[int, str] = {}
        self._dials: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing: set[asyncio.Future[None]] = set()  # handshakes in which the other end may not have heard why
        self._encoder = Encoder()

    @abstractmethod
    async def _attempt(self, peer: int, address: str) -> bool:
        """Dial once and, if all goes well, run the link to its end. Returns whether it was up. Must not raise for
        what a peer or the network does."""

    # -- Transport

    def connect(self, addresses: Mapping[int, str]) -> None:
        if self._listener is None:
            raise RuntimeError("connect before start")
        for peer, address in addresses.items():
            if peer <= self.identity.peer or self._wanted.get(peer) == address:
                continue  # the lower id dials
            self._wanted[peer] = address
            if (old := self._dials.pop(peer, None)) is not None:
                old.cancel()
            self._dials[peer] = self._spawn(self._dial(peer, address), f"dial {peer}")

    def linked(self) -> Collection[int]:
        return self._links.keys()

    def tell(self, peer: int, word: Word) -> bool:
        link = self._links.get(peer)
        return link is not None and link.tell(word)

    def tell_digests(self, peer: int, digests: Sequence[Digest]) -> bool:
        link = self._links.get(peer)
        return link is not None and link.tell_digests(digests, self._encoder)

    def trace(self, peer: int, key: ExchangeKey, traceparent: str) -> None:
        if (link := self._links.get(peer)) is not None:
            link.trace(key, traceparent)

    def exchange(
        self,
        peer: int,
        key: ExchangeKey,
        send: Tensor | None,
        receive: Tensor | None,
        *,
        atomic: bool,
        arrived: Arrived | None = None,
        lent: Lent | None = None,
        making: bool = False,
        replies: bool = False,
    ) -> ExchangeHandle:
        link = self._links.get(peer)
        if link is not None:
            return link.open(
                Exchange(
                    link,
                    peer,
                    key,
                    send,
                    receive,
                    atomic=atomic,
                    arrived=arrived,
                    lent=lent,
                    making=making,
                    replies=replies,
                )
            )
        for tensor in (send, receive):
            if tensor is not None:
                byte_view(tensor)  # the same ValueError, linked or not
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        outcome.set_result(Outcome(peer, LossReason.LINK_DOWN, 0.0))
        return Lost(outcome)

    def advance(self, key: ExchangeKey) -> None:
        self._mark = max(self._mark, key)
        for link in list(self._links.values()):
            link.advance(self._mark)

    def traffic(self) -> Mapping[int, Traffic]:
        return self._traffic

    async def goodbye(self) -> None:
        await asyncio.gather(*(link.goodbye() for link in self._links.values() if link.owes))

    async def stop(self) -> None:
        """Says the last words, closes links, ends every task."""
        links = list(self._links.values())
        await asyncio.gather(*map(self._part, links))
        if self._refusing:
            await asyncio.wait(self._refusing, timeout=READ_SECONDS)
        for link in links:
            self._take_down(link, "stopped")
        for task in self._dials.values():
            task.cancel()
        self._dials.clear()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    async def _part(self, link: Link) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_SECONDS if link.owes else FLUSH_SECONDS):
                await link.goodbye()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await link.hang_up()

    # -- links

    async def _agree(
        self,
        lane: Lane,
        expected_peer: int | None,
        token: int,
        offer: Callable[[Greeting], wire.DirectOffer | None] = lambda theirs: None,
        *,
        loopback: bool = False,
    ) -> Session | None:
        """Shake hands with `token` as ours; the session, or None if either end refused (then the listener was told).
        loopback: that is how the lane comes here. Raises `LaneClosed`."""
        machine = machine_name(self.identity.run) if loopback else b""
        mine = Greeting(self.identity, token, self._incarnation, data_plane=self._data_plane, machine=machine)

        async def check(theirs: Greeting) -> Refusal | None:
            refusal = check_protocol(mine, theirs) or check_hello(self.identity, theirs.identity, expected_peer)
            refusal = refusal or check_planes(mine, theirs)
            return refusal if refusal is not None else await self._check_duplicate(theirs)

        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def told(refused: Refused) -> None:
            self._refusing.add(over)
            known = refused.peer is not None and refused.peer < self.identity.num_peers
            self._told.on_refused(refused.peer if known else None, refused.refusal.field, refused.refusal.sentence)

        try:
            answer = await shake_hands(lane, mine, check, told, offer)
        finally:
            self._refusing.discard(over)
            over.set_result(None)
        if answer is None:
            return None
        plane = agreed_plane(self._data_plane, answer.data_plane)
        assert plane is not None, "checked"
        peer = answer.identity.peer
        return Session(
            peer,
            self.identity.num_peers,
            tag_out=answer.session,
            tag_in=mine.session,
            incarnation=answer.incarnation,
            grace_seconds=self._commit_grace_seconds,
            data_plane=plane,
            offer=answer.offer,
            here=both_here(machine, answer.machine),
        )

    async def _check_duplicate(self, theirs: Greeting) -> Refusal | None:
        """A peer that dials again, or started again, replaces its old link. Another process with its id does only when
        the old link is dead: does not answer a ping."""
        peer = theirs.identity.peer
        link = self._links.get(peer)
        if link is None or link.session.incarnation == theirs.incarnation or not await link.alive(PROBE_SECONDS):
            return None
        return Refusal(
            "duplicate", f"peer {peer} is linked already to peer {self.identity.peer}, by another living process"
        )

    def _framed(self, session: Session, lane: Lane, plane: str) -> BulkLane:
        """The bulk lane that a stream of messages makes."""
        lane = lane if self._slow is None else SlowLane(lane, self._slow, bulk=True)
        return MessageBulk(lane, plane, unchecked if session.here else column_sums)

    async def _run_link(
        self,
        session: Session,
        control: Lane,
        bulk: BulkLane,
        over: asyncio.Future[None] | None = None,
        words: Lane | None = None,
    ) -> None:
        """From up to down; the listener hears of both, and of the end of an older link to that peer before. `over`:
        done when the carrier drops the bulk lane, which a read that is under way need not notice. words: what control messages are
        said on in place of `control`, on which they are heard as well."""
        peer = session.peer
        if self._slow is not None:
            control = SlowLane(control, self._slow, bulk=False)
        if (old := self._links.get(peer)) is not None:
            self._take_down(old, "replaced by a newer link")
        traffic = self._traffic.setdefault(peer, Traffic())
        traffic.data_plane = bulk.plane
        link = self._links[peer] = Link(session, control, bulk, self._told, traffic, self._mark, words)
        if over is not None:
            over.add_done_callback(lambda _: link.close("the carrier ended the stream"))
        try:
            self._told.on_link_up(peer)
            await link.run()
        finally:
            self._take_down(link, "closed")

    def _take_down(self, link: Link, reason: str) -> None:
        link.close(reason)
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._told.on_link_down(link.peer, link.down.result())

    @property
    def _told(self) -> Listener:
        assert self._listener is not None, "not started"
        return self._listener

    # -- tasks

    async def _dial(self, peer: int, address: str) -> None:
        delay = FIRST_BACKOFF_SECONDS
        while True:
            was_up = await self._attempt(peer, address)
            delay = FIRST_BACKOFF_SECONDS if was_up else min(2 * delay, LAST_BACKOFF_SECONDS)
            await asyncio.sleep(delay)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that this transport owns: `stop` waits for it, and if it breaks the loop's exception handler hears
        of it."""
        task = asyncio.get_running_loop().create_task(work, name=f"{name} of peer {self.identity.peer}")
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (broken := task.exception()) is not None:
            message = {"message": f"{task.get_name()} broke", "exception": broken, "task": task}
            task.get_loop().call_exception_handler(message)
