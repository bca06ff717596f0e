"""What a peer hears and says beside its exchanges: READY, CLOSED and LEAVING words, links, and who is alive.

All methods run on the event loop and return at once. The decisions are made by pure parts (`Flood`, `PeerDirectory`); this class
connects them to the transport and wakes whoever waits (`stirred`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from peer.gossip.closing import ClosingPolicy, RoundView
from peer.gossip.flooding import Flood
from peer.gossip.membership import PeerDirectory
from peer.metrics import PeerMetrics
from peer.transport.base import Transport, Word, WordKind
from topology import Schedule

log = logging.getLogger("grapevine.conversation")


class Conversation:
    """The `Listener` of a peer's transport."""

    def __init__(
        self,
        peer: int,
        schedule: Schedule,
        closing: ClosingPolicy,
        transport: Transport,
        metrics: PeerMetrics,
        *,
        payload_means_closed: bool,
    ) -> None:
        others = [j for j in range(schedule.num_peers) if j != peer]
        self.peer = peer
        self.round = 0
        self.directory = PeerDirectory(others)
        self.stirred = asyncio.Event()
        self.refusals: list[tuple[int | None, str, str]] = []
        self.opened_at: float | None = None
        self._flood = Flood(peer, schedule.num_peers, every_word=closing.needs_every_word)
        self._leaving: dict[int, int] = {}
        self._schedule = schedule
        self._closing = closing
        self._transport = transport
        self._metrics = metrics
        self._payload_means_closed = payload_means_closed
        self._now: Callable[[], float] = asyncio.get_running_loop().time

    # what this peer says

    def say_ready(self) -> None:
        self._flood.note_ready(self.peer)
        self._pass_on(Word(WordKind.READY, self.peer), sender=self.peer)
        self.stirred.set()

    def say_closed(self, round: int) -> None:
        """Own word that this peer closed (with `barrier`: finished its quota of) the round."""
        if self.opened_at is not None:
            self._closing.observe(self._now() - self.opened_at)
        goes_on, _ = self._flood.note_closed(self.peer, round, self.round)
        if goes_on:
            self._pass_on(Word(WordKind.CLOSED, self.peer, round), sender=self.peer)

    def say_leaving(self, round: int) -> None:
        """Goodbye: this peer takes part up to and excluding `round`."""
        for j in self._transport.linked():
            self._transport.tell(j, Word(WordKind.LEAVING, self.peer, round))

    # what this peer knows

    def everybody_ready(self) -> bool:
        return self._flood.everybody_ready()

    def missing(self) -> list[int]:
        return self._flood.missing()

    def view(self, own_done: bool, opened_at: float) -> RoundView:
        """What the closing policy may look at in the current round."""
        living = self.directory.living()
        return RoundView(
            opened_at=opened_at,
            own_done=own_done,
            closed=self._flood.closed.closed(self.round) - {self.peer},
            neighbors=living.intersection(self._neighbors()),
            living=living,
        )

    # what this peer hears: the Listener of the transport

    def on_word(self, peer: int, word: Word) -> None:
        if not self._flood.knows(word.origin):
            self.on_dropped(peer, "bad_origin")
            return
        self._heard(peer)
        if word.origin == self.peer:
            return  # a replay, or a lie: nobody knows more of this peer than itself
        if word.kind is WordKind.CLOSED:
            self._closed(word, sender=peer)
            return
        if word.kind is WordKind.READY:
            news = self._flood.note_ready(word.origin)
        else:
            news = self.directory.leave(word.origin, word.round)
            self._leaving.setdefault(word.origin, word.round)
        if news:
            log.info("peer %d: %s from peer %d", self.peer, word.kind.name, word.origin)
            self._pass_on(word, sender=peer)
            self.stirred.set()

    def on_link_up(self, peer: int) -> None:
        self._heard(peer)
        for origin in sorted(self._flood.ready):
            self._transport.tell(peer, Word(WordKind.READY, origin))
        for origin, round in self._leaving.items():
            self._transport.tell(peer, Word(WordKind.LEAVING, origin, round))
        for origin, round in self._flood.closed.newest().items():
            self._transport.tell(peer, Word(WordKind.CLOSED, origin, round))
        self.stirred.set()

    def on_link_down(self, peer: int, reason: str) -> None:
        if self.directory.missed(peer):
            log.warning("peer %d lost its link to peer %d: %s", self.peer, peer, reason)
        self.stirred.set()

    def on_refused(self, peer: int | None, field: str, sentence: str) -> None:
        self._metrics.refused(field)
        if len(self.refusals) < 100:
            self.refusals.append((peer, field, sentence))
        self.stirred.set()

    def on_dropped(self, peer: int | None, reason: str) -> None:
        self._metrics.dropped(reason)

    def on_heard(self, peer: int, round: int) -> None:
        self._heard(peer)
        implied = round if self._payload_means_closed else round - 1
        if implied >= self.round:
            self._closed(Word(WordKind.CLOSED, peer, implied), sender=peer)

    def _heard(self, peer: int) -> None:
        if self.directory.heard(peer):
            log.warning("peer %d hears from peer %d again", self.peer, peer)

    def _closed(self, word: Word, sender: int) -> None:
        goes_on, why = self._flood.note_closed(word.origin, word.round, self.round)
        self._metrics.word(why)
        if why == "new" and word.round == self.round and self.opened_at is not None:
            self._closing.observe(self._now() - self.opened_at)
        if why == "new":
            self._heard(word.origin)  # it lives, though it may be no neighbour
        if goes_on:
            self._pass_on(word, sender)
        self.stirred.set()

    def _pass_on(self, word: Word, sender: int) -> None:
        for j in self._flood.recipients(self._neighbors(), word.origin, sender):
            self._transport.tell(j, word)

    def _neighbors(self) -> tuple[int, ...]:
        return self._schedule.base(self.round).neighbors(self.peer)
