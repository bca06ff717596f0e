"""What one peer knows of the whole cluster, for people: digests heard and said, the event log, the loss curve. Training reads none of it.

All of it runs on the event loop: a timer, four times a second, tells the neighbours what is news to them; once a second, or less often
in a big cluster, the peer says a digest of itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence

from peer.accounts.chronicle import Chronicle, Event
from peer.accounts.pulse import Curve, Point, Pulse, point
from peer.assembly import in_effect
from peer.config import Config
from peer.gossip.digest import MAX_LOST_LINKS, Digest, DigestBook, Held, say_every
from peer.gossip.membership import PeerDirectory
from peer.gossip.round import RoundReport
from peer.transport.base import Transport
from peer.transport.states import state_name
from topology import Schedule

#: Between two tellings of what is news.
TELL_SECONDS = 0.25
#: Losses that were heard of longer ago than so many intervals are not in the curve, nor are those of peers that are lost or left.
FORGET_AFTER = 5.0


class Watch:
    """Also what a page is made of (peer/web/picture.py). describe: this peer's digest of now, without its links; its round is that of
    the graph that digests travel on."""

    def __init__(self, peer: int, config: Config, schedule: Schedule, describe: Callable[[], Digest]) -> None:
        self.peer = peer
        self.num_peers = config.peers
        self.every = say_every(config.peers)
        told = in_effect(config)
        self.about: Mapping[str, str] = {
            name: str(getattr(told, name)) for name in ("run", "algorithm", "topology", "closing", "task", "wire_dtype")
        }
        self.pulse = Pulse(config.round_chunks)
        self._describe = describe
        self._schedule = schedule
        self._changes = config.random_graph_every > 0
        self._chronicle = Chronicle(peer)
        self._curve = Curve()
        self._latest: Point | None = None
        self._book = DigestBook(peer, config.peers, self._first_hand, first_stamp=int(time.time() * 1000))
        self._loop = asyncio.get_running_loop()
        self._linked: set[int] = set()
        self._were_linked: set[int] = set()
        self._transport: Transport | None = None
        self._directory: PeerDirectory | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._say_at = 0.0
        self._round = 0

    # life

    def start(self, transport: Transport, directory: PeerDirectory) -> None:
        """Speak from now on."""
        self._transport, self._directory = transport, directory
        self._tick()

    def stop(self) -> None:
        """Speak no more; how this peer ended is there for the pages that are still open."""
        if self._timer is not None:
            self._timer.cancel()
        self._say(self.now())

    def now(self) -> float:
        return self._loop.time()

    # what happens

    def round(self, report: RoundReport) -> None:
        self.pulse.add(report)
        for other, why in report.lost.items():
            if why not in ("suspect", "left", "link_down"):  # of these it was told when they became so
                self._note("edge", other, f"an exchange with peer {other} was lost: {why.replace('_', ' ')}")

    def link_up(self, other: int) -> None:
        if other in self._were_linked:
            self._note("back", other, f"peer {self.peer} has its link to peer {other} again")
        self._linked.add(other)
        self._were_linked.add(other)
        self._book.link_up(other)

    def link_down(self, other: int, reason: str, *, hangs_up: bool) -> None:
        self._linked.discard(other)
        self._book.link_down(other)
        if not hangs_up and self.membership(other) != "left":
            self._note("lost", other, f"peer {self.peer} lost its link to peer {other}: {reason}")

    def left(self, other: int) -> None:
        self._note("left", other, f"peer {other} said goodbye")

    def silent(self, other: int) -> None:
        self._note("lost", other, f"peer {self.peer} goes on without peer {other}, which is silent")

    def unlinked(self, other: int) -> None:
        """An exchange was to be had with a peer to which there never was a link."""
        self._were_linked.add(other)
        self._note("lost", other, f"peer {self.peer} has no link to peer {other}")

    def refused(self, sentence: str) -> None:
        self._note("refused", None, f"refused: {sentence}")

    def heard(self, sender: int, digests: Sequence[Digest]) -> None:
        at = time.time()
        for before, digest in self._book.hear(sender, digests, self.now()):
            self._chronicle.digest(before, digest, state_name(digest.state), at)

    # what a page is made of

    @property
    def held(self) -> Mapping[int, Held]:
        return self._book.held

    @property
    def events(self) -> Sequence[Event]:
        return self._chronicle.events

    @property
    def curve(self) -> Sequence[Point]:
        return self._curve.points

    @property
    def latest(self) -> Point | None:
        return self._latest

    def edges(self) -> Sequence[tuple[int, int]]:
        return self._schedule.base(self._round).edges

    def membership(self, peer: int) -> str:
        return str(self._directory.status(peer)) if self._directory is not None else "alive"

    # what this peer says

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TELL_SECONDS, self._tick)
        now = self.now()
        if now >= self._say_at:
            self._say_at = now + self.every
            self._say(now)
        assert self._transport is not None
        for other in self._schedule.base(self._round).neighbors(self.peer):
            news = self._book.news_for(other, now)
            if news and self._transport.tell_digests(other, news):
                self._book.told(other, news)

    def _say(self, now: float) -> None:
        digest, at = self._describe(), time.time()
        self._round = digest.round
        before = self._book.held.get(self.peer)
        said = self._book.say(digest._replace(lost_links=self._lost_links()), now)
        self._chronicle.digest(before.digest if before is not None else None, said, state_name(said.state), at)
        gone = {j for j in self.held if self.membership(j) == "left"}
        self._chronicle.silence(self.held, gone, self.every, now, at)
        known = (
            held.digest.train_loss
            for j, held in self.held.items()
            if now - held.said_at < FORGET_AFTER * self.every and self.membership(j) == "alive"
        )
        own = said.train_loss
        latest = point(said.seconds, own if math.isfinite(own) else math.nan, known)
        if latest is not None and (self._latest is None or latest.seconds > self._latest.seconds):
            self._latest = latest
            self._curve.add(latest)

    def _lost_links(self) -> tuple[int, ...]:
        """Neighbours of now to which there was a link and is none, or which are believed lost. Who said goodbye is not lost."""
        neighbors = self._schedule.base(self._round).neighbors(self.peer)
        states = {j: self.membership(j) for j in neighbors if j in self._were_linked}
        lost = [j for j, state in states.items() if state == "suspect" or (state == "alive" and j not in self._linked)]
        return tuple(lost[:MAX_LOST_LINKS])

    def _first_hand(self, peer: int) -> Sequence[int]:
        """With random graphs two peers may be at different ones."""
        return () if self._changes else self._schedule.base(0).neighbors(peer)

    def _note(self, kind: str, other: int | None, text: str) -> None:
        self._chronicle.note(kind, other, text, time.time())
