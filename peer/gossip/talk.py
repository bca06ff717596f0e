"""What one peer hears and says beside its exchanges, and when its round ends. Pure: no clock, no network, no thread.

A host calls it with what happened and the time, and gives it `tell` to speak to a neighbour. The daemon does so over gRPC and the
simulator in virtual time; there is no second implementation of the protocol.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from peer.gossip.closing import CloseReason, ClosingPolicy
from peer.gossip.flooding import Flood
from peer.gossip.membership import PeerDirectory
from peer.gossip.words import Word, WordKind
from topology import Schedule

#: A neighbour that says it closed a round so far back has missed what was said since, and is told again.
STALE_ROUNDS = 2

#: Seconds after which a suspect is asked again that would not be heard otherwise: the first pause, and the longest; they double.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


class Talk:
    """Words, links and the end of the round of one peer; also the `RoundView` of its closing policy.

    Of the round that was closed last: closed_by, the first peer known here to have closed it; waited_for, on whose word this peer's own
    done quota had to wait, which under a barrier is the one that came last.

    tell(peer, word): queue a word to a linked neighbour. payload_means_closed: a payload of round k says that its sender closed
    round k (else only k - 1). round_timeout: seconds after which a round ends whatever happens. idle: peers that compute nothing, for which
    nobody waits.

    Where peers tell nothing of their rounds, nobody hears that a suspect lives. One whose link is up is asked again after a pause.
    """

    __slots__ = (
        "_announced",
        "_back",
        "_closed_it_first",
        "_closing",
        "_idle",
        "_last_news",
        "_pauses",
        "_payload_means_closed",
        "_round_timeout",
        "_schedule",
        "_tell",
        "closed_by",
        "directory",
        "flood",
        "is_open",
        "linked",
        "opened_at",
        "own_done",
        "peer",
        "round",
        "waited_for",
    )

    def __init__(
        self,
        peer: int,
        schedule: Schedule,
        closing: ClosingPolicy,
        tell: Callable[[int, Word], object],
        *,
        payload_means_closed: bool,
        round_timeout: float,
        idle: Collection[int] = (),
    ) -> None:
        self.peer = peer
        self.round = 0
        self.opened_at = 0.0
        self.own_done = False
        self.is_open = False
        self.closed_by = peer
        self.waited_for: tuple[int, ...] = ()
        self.directory = PeerDirectory(peer, schedule.num_peers)
        self.linked: set[int] = set()
        self.flood = Flood(peer, schedule.num_peers, every_word=closing.needs_every_word)
        self._schedule = schedule
        self._closing = closing
        self._tell = tell
        self._payload_means_closed = payload_means_closed
        self._round_timeout = round_timeout
        self._announced = False
        self._closed_it_first = False
        self._last_news = peer
        self._idle = frozenset(idle)
        self._back: set[int] = set()  # with a link again, after LOST was said of them; nobody else knows yet
        self._pauses: dict[int, tuple[float, float]] = {}  # of suspects: (when it is over, how long it is)

    # the round

    def open(self, now: float) -> None:
        """Chunks of the current round start now."""
        self.opened_at, self.is_open, self._announced, self._closed_it_first = now, True, False, False

    def decide(self, own_done: bool | None, now: float) -> tuple[CloseReason | None, float]:
        """(why the open round ends now, or None; the time at which to ask again even if nothing happens). Says CLOSED when this
        peer is the one to say it. Ask again whenever a method below returns True, and when the own quota is done. own_done: None of a
        peer that computes nothing, whose quota is done when everybody else has closed the round."""
        if own_done is None:
            own_done = not self.waits()
        if self._closing.tells == "nothing" and self.directory.suspects:
            self._ask_again(now)
        self.own_done = own_done
        has_waited = self._announced
        if own_done and not has_waited and self._closing.tells == "quota":
            self._say_closed(now)
        reason = self._closing.decide(self, now)
        came_last: tuple[int, ...] = (self._last_news,)
        if reason is None:
            give_up_at = self.opened_at + self._round_timeout
            if now < give_up_at:
                wake_at = self._closing.wake_at(self)
                return None, give_up_at if wake_at is None else min(wake_at, give_up_at)
            reason = CloseReason.TIMEOUT
            came_last = tuple(sorted(self.silent())) if self._closing.tells != "nothing" else ()
            for silent in came_last:
                self.directory.missed(silent, self.round)
        if not self._announced and reason is not CloseReason.WORD and self._closing.tells != "nothing":
            self._say_closed(now)
        self.is_open = False
        first = self.flood.closed.first(self.round)
        self.closed_by = self.peer if first is None or self._closed_it_first else first
        self.waited_for = came_last if has_waited else ()
        return reason, now

    # the RoundView

    @property
    def ahead(self) -> int:
        return self.flood.closed.furthest - self.round

    def neighbors_ahead(self) -> int:
        newest = self.flood.closed.newest()
        return max((newest.get(j, -1) for j in self._neighbors(self.round)), default=-1) - self.round

    def waits(self) -> bool:
        away = self.directory.suspects or self.directory.leaving
        if self._idle or away or self.flood.closed.count(self.round) >= self.directory.num_living:
            return bool(self.silent())
        return True

    def heard_neighbors(self) -> tuple[int, int]:
        living = [j for j in self._neighbors(self.round) if self.directory.is_alive(j)]
        return sum(self.flood.closed.has_closed(j, self.round) for j in living), len(living)

    def silent(self) -> set[int]:
        """Who is waited for: alive, computing, not known to have closed this round, and able to tell. A word comes over living peers
        only, so that behind the dead, or beyond a cut, nobody can be heard."""
        silent = self.directory.living() - self.flood.closed.closed(self.round) - self._idle
        return (
            silent & self._reachable()
            if silent and self.directory.num_living < self._schedule.num_peers - 1
            else silent
        )

    def _reachable(self) -> set[int]:
        """Whose word may come: over this peer's links, and then over the edges of the living."""
        graph, seen = self._schedule.base(self.round), {self.peer}
        border = [j for j in graph.neighbors(self.peer) if j in self.linked and self.directory.is_alive(j)]
        seen.update(border)
        while border:
            border = [j for i in border for j in graph.neighbors(i) if j not in seen and self.directory.is_alive(j)]
            seen.update(border)
        return seen

    # what this peer says

    def say_ready(self) -> None:
        self.flood.note_ready(self.peer)
        self._pass_on(Word(WordKind.READY, self.peer), sender=self.peer)

    def say_leaving(self, round: int) -> None:
        """Goodbye: this peer takes part up to and excluding `round`."""
        for j in sorted(self.linked):
            self._tell(j, Word(WordKind.LEAVING, self.peer, round))

    def _say_closed(self, now: float) -> None:
        self._announced = True
        self._closed_it_first = self.ahead < 0
        self._closing.observe(now - self.opened_at)
        if self.flood.say_closed(self.round):
            self._pass_on(Word(WordKind.CLOSED, self.peer, self.round), sender=self.peer)

    # what this peer hears; each returns whether it may change a decision

    def hear(self, sender: int, word: Word, now: float) -> tuple[bool, str]:
        """A word from a linked peer. Returns (may it change a decision, what it was: new, known, stale, future, own, bad_origin)."""
        kind, origin, round = word
        was_away = False
        if origin != sender and not self.flood.knows(origin):  # who has a link is known
            return False, "bad_origin"
        if self.directory.suspects:
            self.directory.heard(sender)
        if origin == self.peer:
            return False, "own"  # a replay, or a lie: nobody knows more of this peer than itself
        if kind is WordKind.CLOSED:
            if origin == sender and round + STALE_ROUNDS < self.round:
                self._tell_newest(sender)
            why = self._closed(word, sender, now)
            return why == "new" or why == "future", why
        if kind is WordKind.READY:
            news = self.flood.note_ready(origin)
        elif kind is WordKind.LEAVING:
            news = self.directory.leave(origin, round)
        else:
            was_away = origin in self.directory.suspects
            news = self._believes_lost(word) and self.directory.lost(origin, round)
        if news:
            if not was_away:
                self._last_news = origin
            self._pass_on(word, sender)
            if kind is not WordKind.READY:
                self._lose_the_unheard()
        return news, "new" if news else "known"

    def payload(self, sender: int, round: int, now: float) -> str | None:
        """A payload of that round began to come from a peer; what that told of closed rounds, None if nothing."""
        if self.directory.suspects:
            self.directory.heard(sender)
        if self._pauses:
            self._pauses.pop(sender, None)
        implied = round if self._payload_means_closed else round - 1
        if implied < self.round:
            return None
        return self._closed(Word(WordKind.CLOSED, sender, implied), sender, now)

    def link_up(self, peer: int) -> bool:
        """Returns whether that peer had been a suspect."""
        self.linked.add(peer)
        self._pauses.pop(peer, None)
        if peer in self.directory.said_lost:
            self._back.add(peer)
        back = self.directory.heard(peer)
        for origin in sorted(self.flood.ready):
            self._tell(peer, Word(WordKind.READY, origin))
        for origin, round in self.directory.leaving.items():
            self._tell(peer, Word(WordKind.LEAVING, origin, round))
        self._tell_newest(peer)
        for origin, round in self.directory.said_lost.items():  # a missed deadline is for this peer alone
            self._tell(peer, Word(WordKind.LOST, origin, round))
        return back

    def link_down(self, peer: int) -> bool:
        """Everybody is told, unless all know. Returns whether that peer is a suspect since now."""
        self.linked.discard(peer)
        went_on_without = peer in self.directory.suspects
        self._say_lost(peer)
        self._lose_the_unheard()
        since_now = not went_on_without and peer in self.directory.suspects
        if since_now:
            self._last_news = peer
        return since_now

    def missed(self, peer: int) -> bool:
        """That peer missed a deadline. Returns whether this is news."""
        if not self.directory.missed(peer, self.flood.closed.newest().get(peer, -1) + 1):
            return False
        self._last_news = peer
        return True

    def _ask_again(self, now: float) -> None:
        for suspect in self.directory.suspects.keys() & self.linked:
            over_at, pause = self._pauses.get(suspect, (math.inf, FIRST_PAUSE / 2))
            if now >= over_at:
                self.directory.heard(suspect)
                self._pauses[suspect] = math.inf, pause
            elif over_at == math.inf:
                pause = min(2 * pause, LONGEST_PAUSE)
                self._pauses[suspect] = now + pause, pause

    def _believes_lost(self, word: Word) -> bool:
        """Whoever has a link to that peer, or has heard of it since, knows better."""
        return word.origin not in self.linked and not self.flood.closed.has_closed(word.origin, word.round)

    def _lose_the_unheard(self) -> None:
        """A neighbour without a link was alive because others told of it. When none of them is left, it is lost, and who is on this side
        of the cut is told, as nobody else could know that this edge leads nowhere."""
        without = [j for j in self._neighbors(self.round) if j not in self.linked and self.directory.is_alive(j)]
        if not without:
            return
        for j in sorted(set(without) - self._reachable()):
            self._say_lost(j)

    def _say_lost(self, peer: int) -> None:
        lost = Word(WordKind.LOST, peer, self.flood.closed.newest().get(peer, -1) + 1)
        if self.directory.lost(peer, lost.round):
            self._back.discard(peer)
            self._pass_on(lost, sender=self.peer)

    def _closed(self, word: Word, sender: int, now: float) -> str:
        goes_on, why = self.flood.note_closed(word.origin, word.round, self.round)
        if why == "new":
            self._last_news = word.origin
            if word.round == self.round and self.is_open:
                self._closing.observe(now - self.opened_at)
        revived = False
        if why in ("new", "stale"):
            if self._back and word.origin in self._back:
                self._back.discard(word.origin)
                goes_on = True  # who was told that it is lost is told that it lives, whoever closed this round first
            if self.directory.suspects and self.directory.closed(word.origin, word.round):
                goes_on = revived = True  # it lives, though it may be no neighbour
        if goes_on:
            self._pass_on(word, sender)
        if revived:
            self._lose_the_unheard()  # the word may be the last that came through a peer that is gone
        return why

    def _tell_newest(self, peer: int) -> None:
        if self.flood.own_closed >= 0:
            self._tell(peer, Word(WordKind.CLOSED, self.peer, self.flood.own_closed))
        for origin, round in self.flood.closed.newest().items():
            if origin != peer:
                self._tell(peer, Word(WordKind.CLOSED, origin, round))

    def _pass_on(self, word: Word, sender: int) -> None:
        # All peers pass a CLOSED word on over one and the same graph, or it might miss somebody while the graph changes. A LOST goes where
        # any CLOSED may have gone before that it corrects, and behind it.
        neighbors: Collection[int]
        if word.kind is WordKind.LOST:
            neighbors = sorted(self.linked)
        else:
            neighbors = self._neighbors(word.round if word.kind is WordKind.CLOSED else self.round)
        for j in self.flood.recipients(neighbors, word.origin, sender):
            self._tell(j, word)

    def _neighbors(self, round: int) -> tuple[int, ...]:
        return self._schedule.base(round).neighbors(self.peer)
