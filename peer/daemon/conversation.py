"""The `Listener` of a peer's transport: connects it to the pure protocol (`Talk`), and wakes whoever waits (`stirred`).

All methods run on the event loop and return at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from peer.daemon.counts import PeerMetrics
from peer.daemon.watch import Watch
from peer.gossip.closing import CloseReason, ClosingPolicy
from peer.gossip.digest import Digest
from peer.gossip.membership import PeerDirectory
from peer.gossip.talk import Talk
from peer.logs import event
from peer.transport.base import ExchangeKey, LossReason, Transport, Word, WordKind
from topology import Schedule

if TYPE_CHECKING:
    from peer.daemon.spans import PeerSpans

log = logging.getLogger("grapevine.conversation")


class Conversation:
    """What a peer hears and says beside its exchanges: words, links, and who is alive."""

    def __init__(
        self,
        peer: int,
        schedule: Schedule,
        closing: ClosingPolicy,
        transport: Transport,
        metrics: PeerMetrics,
        watch: Watch,
        *,
        payload_means_closed: bool,
        round_timeout: float,
        idle: Collection[int] = (),
    ) -> None:
        self.peer = peer
        self.stirred = asyncio.Event()
        self.asked: dict[int, int] | None = None  # who began to send, and of which round; None: nobody wants to know
        self.refusals: list[tuple[int | None, str, str]] = []
        self.spans: PeerSpans | None = None
        self.needed: Callable[[int], str] = lambda peer: ""  # what a peer is called without which this one can't go on
        self._talk = Talk(
            peer,
            schedule,
            closing,
            transport.tell,
            payload_means_closed=payload_means_closed,
            round_timeout=round_timeout,
            idle=idle,
        )
        self._metrics = metrics
        self._watch = watch
        self._hangs_up = False
        self._met: set[int] = set()  # to whom there was a link, or was told that there is none
        self._now: Callable[[], float] = asyncio.get_running_loop().time

    @property
    def round(self) -> int:
        """The round this peer is in, counted from 0."""
        return self._talk.round

    @round.setter
    def round(self, round: int) -> None:
        self._talk.round = round

    @property
    def talk(self) -> Talk:
        """To be read only."""
        return self._talk

    @property
    def directory(self) -> PeerDirectory:
        return self._talk.directory

    # what this peer says

    def say_ready(self) -> None:
        self._talk.say_ready()
        self.stirred.set()

    def say_leaving(self, round: int) -> None:
        """Goodbye: this peer takes part up to and excluding `round`."""
        self._talk.say_leaving(round)

    def say_last_words(self) -> None:
        """Goodbye, and from now on it is this peer that hangs up: nobody is lost by it."""
        self.say_leaving(self.round)
        self._hangs_up = True

    # what this peer knows

    def everybody_ready(self) -> bool:
        return self._talk.flood.everybody_ready()

    def missing(self) -> list[int]:
        return self._talk.flood.missing()

    def open(self) -> float:
        """Chunks of the current round start now; returns the time."""
        now = self._now()
        self._talk.open(now)
        return now

    def decide(self, own_done: bool | None) -> tuple[CloseReason | None, float]:
        """(why the open round ends now, or None; when to ask again at the latest)."""
        return self._talk.decide(own_done, self._now())

    def lost(self, peer: int, reason: LossReason) -> None:
        """An exchange with that peer was lost. That a link went down is told by itself, once; so is, here, that there never was one."""
        if reason is LossReason.DEADLINE:
            self.missed(peer)
        elif reason is LossReason.LINK_DOWN and peer not in self._met:
            self._met.add(peer)
            log.warning("peer %d has no link to peer %d", self.peer, peer, extra=event("no-link", neighbor=peer))
            self._watch.unlinked(peer)

    def missed(self, peer: int) -> None:
        """That peer missed the deadline of an exchange."""
        if self._talk.missed(peer):
            silent = event("neighbor-silent", neighbor=peer, round=self.round)
            goes_on = (
                f"can't go on without {called}" if (called := self.needed(peer)) else f"goes on without peer {peer}"
            )
            log.warning("peer %d %s, which is silent", self.peer, goes_on, extra=silent)
            self._watch.silent(peer)

    # what this peer hears: the Listener of the transport

    def on_word(self, peer: int, word: Word) -> None:
        stirs, why = self._talk.hear(peer, word, self._now())
        if why == "bad_origin":
            self.on_dropped(peer, why)
        elif word.kind is WordKind.CLOSED:
            self._metrics.word(why)
        elif stirs:
            heard = event("word", kind=word.kind.name.lower(), origin=word.origin, round=word.round)
            log.info("peer %d: %s from peer %d", self.peer, word.kind.name, word.origin, extra=heard)
            if word.kind is WordKind.LEAVING:
                self._watch.left(word.origin)
        if stirs:
            self.stirred.set()

    def on_link_up(self, peer: int) -> None:
        self._met.add(peer)
        self._watch.link_up(peer)
        if self._talk.link_up(peer):
            log.warning("peer %d has a link to peer %d again", self.peer, peer, extra=event("link-back", neighbor=peer))
        self.stirred.set()

    def on_link_down(self, peer: int, reason: str) -> None:
        if self.asked:
            self.asked.pop(peer, None)  # what it asked is gone with the link
        self._watch.link_down(peer, reason, hangs_up=self._hangs_up)
        if not self._hangs_up:
            # at info level it went on without that peer already
            level = logging.WARNING if self._talk.link_down(peer) else logging.INFO
            lost = event("link-lost", neighbor=peer, reason=reason)
            called = self.needed(peer) or f"peer {peer}"
            log.log(level, "peer %d lost its link to %s: %s", self.peer, called, reason, extra=lost)
        self.stirred.set()

    def on_refused(self, peer: int | None, field: str, sentence: str) -> None:
        self._metrics.refused(field)
        self._watch.refused(sentence)
        if len(self.refusals) < 100:
            self.refusals.append((peer, field, sentence))
        self.stirred.set()

    def on_dropped(self, peer: int | None, reason: str) -> None:
        self._metrics.dropped(reason)

    def on_heard(self, peer: int, round: int) -> None:
        if self.asked is not None:
            self.asked[peer] = round
            self.stirred.set()
        why = self._talk.payload(peer, round, self._now())
        if why is not None:
            self._metrics.word(why)
            self.stirred.set()

    def on_trace(self, peer: int, key: ExchangeKey, traceparent: str) -> None:
        if self.spans is not None:
            self.spans.heard(peer, key, traceparent)

    def on_digests(self, peer: int, digests: Sequence[Digest]) -> None:
        self._watch.heard(peer, digests)
