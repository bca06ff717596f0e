"""Finds the peers of a running cluster, given the address of one: each names its neighbours, they name theirs.

A look asks everybody known at once, and whoever they name as soon as they do, so that silent peers cost one time-out, not one each. What
peers say of others is a claim: at most MOST_PEERS are asked, and who answers must be the peer, and of the run, that it was asked as.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from peer.cluster.table import Row
from peer.transport.client import PeerClient, PeerUnreachable
from peer.wire.gossip_pb2 import StatusReply

MOST_PEERS: Final = 1000
MOST_ADDRESSES: Final = 4
"""Of one peer: what its neighbours call it, and what the user did."""

AT_ONCE: Final = 64
"""Questions under way at a time."""

TIMEOUTS: Final = 5
"""A look lasts at most so many time-outs, whatever the peers do."""


@dataclass(slots=True)
class _Reached:
    """How a peer is asked: at the first of its addresses, until it does not answer there."""

    addresses: list[str]
    client: PeerClient

    async def try_next(self) -> None:
        if len(self.addresses) > 1:
            await self.client.close()
            self.addresses.append(self.addresses.pop(0))
            self.client = PeerClient(self.addresses[0])


class Crawl:
    """A cluster as its peers know it. rows: by peer, of all that were ever named. first: the first answer, which says what is run.
    Make it, use it and close it on one event loop."""

    def __init__(self, address: str, timeout: float) -> None:
        self.rows: dict[int, Row] = {}
        self.first: StatusReply | None = None
        self._timeout = timeout
        self._start = _Reached([address], PeerClient(address))
        self._reached: dict[int, _Reached] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._asked: set[int] = set()

    @property
    def answering(self) -> list[StatusReply]:
        """Of those that answered the last question, in the order of ids."""
        return [row.status for _, row in sorted(self.rows.items()) if row.answers and row.status is not None]

    async def look(self) -> None:
        """Ask all. Raises PeerUnreachable if the very first peer does not answer; later it is one of many."""
        if self.first is None:
            self.first = await self._start.client.status(timeout=self._timeout)
            self._reached[self.first.peer] = self._start
            self.rows[self.first.peer] = Row(self.first.peer)
        self._asked.clear()
        try:
            async with asyncio.timeout(TIMEOUTS * self._timeout), asyncio.TaskGroup() as group:
                for peer in list(self._reached):
                    self._ask(group, peer)
        except TimeoutError:
            pass  # who has not answered by now does not
        self._explain()

    async def close(self) -> None:
        await asyncio.gather(
            self._start.client.close(), *(reached.client.close() for reached in self._reached.values())
        )

    def _ask(self, group: asyncio.TaskGroup, peer: int) -> None:
        if peer not in self._asked:
            self._asked.add(peer)
            group.create_task(self._hear(group, peer), name=f"ask peer {peer}")

    async def _hear(self, group: asyncio.TaskGroup, peer: int) -> None:
        row, reached = self.rows[peer], self._reached[peer]
        row.answers = False  # until it does; the look may end before
        async with self._gate:
            try:
                reply = await reached.client.status(timeout=self._timeout)
            except PeerUnreachable:
                row.heard(None)
                await reached.try_next()
                return
        if not self._is(peer, reply):
            row.heard(None)
            row.about = "another peer answers there"
            return
        row.heard(reply)
        for neighbor in reply.neighbors:
            if self._know(neighbor.peer, neighbor.address):
                self._ask(group, neighbor.peer)

    def _is(self, peer: int, reply: StatusReply) -> bool:
        assert self.first is not None
        return (reply.peer, reply.run, reply.num_peers) == (peer, self.first.run, self.first.num_peers)

    def _know(self, peer: int, address: str) -> bool:
        """Whether that peer can be asked."""
        assert self.first is not None
        reached = self._reached.get(peer)
        if reached is None:
            if not address or peer >= self.first.num_peers or len(self._reached) >= MOST_PEERS:
                return False
            self._reached[peer] = _Reached([address], PeerClient(address))
            self.rows[peer] = Row(peer)
        elif address and address not in reached.addresses and len(reached.addresses) < MOST_ADDRESSES:
            reached.addresses.append(address)
        return True

    def _explain(self) -> None:
        """Who does not answer and has left, as its neighbours say, is not missing."""
        left = {n.peer for status in self.answering for n in status.neighbors if n.state == "left"}
        for peer, row in self.rows.items():
            if row.answers:
                row.about = "no answer"
            elif row.about in ("no answer", "left"):
                row.about = "left" if peer in left else "no answer"
