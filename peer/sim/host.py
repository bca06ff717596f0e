"""One peer in virtual time: carries out the effects of its score, as peer/daemon/player.py does with threads and gRPC."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from peer.accounts.ledger import Ledger
from peer.gossip.algorithm import Algorithm, RoundBroken, Score, Update
from peer.gossip.closing import ClosingPolicy
from peer.gossip.delivery import DeadlineBounds, NeighborDeadlines
from peer.gossip.effects import (
    Accumulate,
    Accumulated,
    Answer,
    Effect,
    Either,
    Exchange,
    Gather,
    Inbox,
    Meanwhile,
    Reply,
    delivered,
    make_all,
)
from peer.gossip.round import RoundReport, Timing, advance
from peer.gossip.words import Word
from peer.sim.accumulating import Accumulating
from peer.sim.device import Device
from peer.sim.exchanges import HAVE, VOTE, Key, UnderWay
from peer.sim.gathering import Gathering
from peer.sim.world import World
from peer.training.accumulator import InFlight
from topology import RoundPlan


class SimPeer(Accumulating):
    """See the head of this file."""

    __slots__ = (
        *("_began", "_both", "_bounds", "_deadlines", "_early", "_exchanging", "_gathering", "_gathers_too"),
        *("_gives_up_at", "_in_either", "_linked_to", "_links", "_peers", "_plan", "_plans", "_score"),
        *("_to_gather", "_unwanted", "bytes_received", "bytes_sent", "ended_at", "ledger", "under_way"),
    )

    def __init__(
        self,
        peer: int,
        world: World,
        algorithm: Algorithm,
        device: Device,
        closing: ClosingPolicy,
        *,
        in_flight: InFlight,
        round_timeout: float,
        bounds: DeadlineBounds,
    ) -> None:
        super().__init__(peer, world, algorithm, device, closing, in_flight, round_timeout)
        self.ended_at = 0.0
        self.ledger = Ledger(device.quota_chunks)
        self.bytes_sent = self.bytes_received = 0
        self._links = world.links
        self._peers = world.peers
        self._plans = world.schedule.plan
        self._linked_to = world.links_of(peer)
        self._bounds = bounds
        self._deadlines = NeighborDeadlines(bounds)
        self.under_way: UnderWay | None = None
        self._gathering = Gathering(self, world.agenda, self._linked_to)
        self._early: dict[Key, dict[int, Tensor]] = {}
        # payloads of this round from peers that were suspects when it was opened
        self._unwanted: list[tuple[int, Key]] = []
        self._score: Score
        self._plan: RoundPlan
        self._both = False
        self._in_either = self._gathers_too = False  # an `Either` is under way; the score waits for it now
        self._to_gather: Gather | None = None  # once the round is closed
        self._gives_up_at = math.inf
        self._began = self._exchanging = 0.0

    # rounds

    def begin(self) -> None:
        """Open the next round."""
        if self.gone:
            return
        self._plan = plan = self._plans(self.round, self.peer)
        self.talk.round = self.round
        if self.algorithm.has_rounds:
            self._gathering.advance(self.round)
        self._score = self.algorithm.round(plan)
        self._began = self._agenda.now
        self._computing = self._accumulating = self._exchanging = 0.0
        self._go_on(None)

    def _go_on(self, answer: Answer | None) -> None:
        try:
            step = advance(self._score, answer)
        except RoundBroken as error:
            if self._done is not None:
                self.device.revoke(self._done.num_samples)
            self._world.broken(self, error)
            return
        if isinstance(step, Update):
            self._end(step)
        else:
            self._carry_out(step)

    def _carry_out(self, effect: Effect) -> None:
        self._both = False
        if isinstance(effect, Accumulate):
            self.under_way = None
            self._accumulate(effect)
        elif isinstance(effect, Exchange):
            self._closed_at = self._agenda.now
            self._open(effect)
            self._settle(at_once=False)
        elif isinstance(effect, Gather):
            self._gathering.open(self.round, effect)
            self._gathering.wait(effect)
        elif isinstance(effect, Reply):
            self._gathering.reply(effect)
        elif isinstance(effect, Either):
            self._wait_for_either(effect)
        else:
            self._both, self._done = True, None
            if isinstance(effect.exchange, Gather):
                self._gathering.open(self.round, effect.exchange)
            else:
                self._open(effect.exchange)
            self._to_gather = effect.exchange if isinstance(effect.exchange, Gather) else None
            self._accumulate(effect.accumulate)

    def _wait_for_either(self, effect: Either) -> None:
        self._to_gather, self._gathers_too = effect.gather, True
        self._gathering.open(self.round, effect.gather)
        self._gathering.wait(effect.gather)
        if self.talk.is_open:
            self._decide()
        else:
            self._in_either = True
            self._accumulate(Accumulate())

    def _end(self, update: Update) -> None:
        if update.dropped:
            self.device.revoke(update.dropped, "dropped")
        now, began, plan = self._agenda.now, self._began, self._plan
        timing = Timing(began, now - began, self._computing, self._accumulating, self._exchanging, 0.0)
        report = RoundReport.of(plan, update, self.talk, timing)
        self.ledger.add(report)
        self.under_way = None
        self.round += 1
        while self._unwanted:
            self.refuse(*self._unwanted.pop(), "stale")
        if not self._world.round_ended(self, report):
            return
        if plan.neighbors:
            self.begin()
        else:  # nothing of a local step has to wait, so one could call the next without end
            self._at(now, self.begin)

    def leave(self) -> None:
        """Say goodbye and take part in nothing more."""
        self.talk.say_leaving(self.round)
        self.vanish(goodbye=True)

    def vanish(self, *, goodbye: bool = False) -> None:
        """Gone; without a goodbye nobody is told."""
        self.gone = True
        self.ended_at = self._agenda.now
        self.device.stop(self._agenda.now)
        self._early.clear()
        if goodbye:
            self._gathering.leave()

    def _is_away(self) -> bool:
        return self._in_either and not self._gathers_too

    def _closed(self, done: Accumulated) -> None:
        if self._in_either:
            self._in_either = self._gathers_too = False
            self._go_on(Meanwhile(done, self._gathering.stop_waiting()))
        elif not self._both:
            self._go_on(done)
        elif self._to_gather is not None:
            self._gathering.wait(self._to_gather)
        else:
            self._settle()

    # exchange

    def _open(self, effect: Exchange) -> None:
        key = (self.round, effect.phase)
        under_way = self.under_way = UnderWay(key, effect)
        early = self._early.pop(key, None) if self._early else None
        under_way.expect(self.talk, self._linked_to)
        self._send(effect, key, under_way.lost)
        if early:
            for j, vector in early.items():
                if j in under_way.waiting:
                    self._take(j, vector)
                else:
                    self._unwanted.append((j, key))

    def _send(self, effect: Exchange, key: Key, lost: Mapping[int, str]) -> None:
        make_all(effect)
        for j, vector in effect.send.items():
            if j in lost:
                continue
            # An atomic edge's vector can't change before the edge is decided; others may be overwritten as soon as they are sent.
            self.push(j, key, vector if effect.atomic else vector.clone())

    def push(self, to: int, key: Key, vector: Tensor) -> None:
        num_bytes = self._world.vector_bytes(vector)
        self.bytes_sent += num_bytes
        arrives = self._links.vector(self.peer, to, num_bytes, self._agenda.now)
        self._at(arrives, self._peers[to].arrived, self.peer, key, vector, num_bytes)

    def arrived(self, sender: int, key: Key, vector: Tensor, num_bytes: int) -> None:
        """A payload is here."""
        if sender not in self._linked_to:
            return
        if self.gone:
            self.refuse(sender, key, "left")
            return
        self.bytes_received += num_bytes
        if self.talk.payload(sender, key[0], self._agenda.now) is not None and self.talk.is_open:
            self._decide()
        if self.algorithm.answers_to(sender):
            self._gathering.request(sender, key, vector)
            return
        under_way = self.under_way
        if under_way is not None and under_way.key == key:
            if sender in under_way.waiting:
                self._take(sender, vector)
                if not under_way.waiting:
                    self._settle()
            elif sender in under_way.lost:
                self._unwanted.append((sender, key))
        elif key >= (self.round, 0) and (under_way is None or under_way.key < key):
            self._early.setdefault(key, {})[sender] = vector
        else:
            self.refuse(sender, key, "stale")

    def refuse(self, sender: int, key: Key, why: str) -> None:
        """This end is past that exchange; the sender hears of it."""
        tells = self._agenda.now + self._links.latency(self.peer, sender)
        self._at(tells, self._peers[sender].lost_edge, self.peer, key, why)

    def _take(self, sender: int, vector: Tensor) -> None:
        """The vector of an open exchange is here: keep it, and vote."""
        under_way, now = self.under_way, self._agenda.now
        assert under_way is not None
        if not under_way.effect.atomic:
            under_way.vectors[sender] = vector
            under_way.arrives(sender, HAVE, now)
            return
        if self._peers[sender].algorithm.answers_to(
            self.peer
        ):  # it has this peer's vector, and its vote came with the answer
            under_way.vectors[sender] = vector
            under_way.arrives(sender, HAVE | VOTE, now)
            voted = now + self._links.latency(self.peer, sender)
            self._at(voted, self._peers[sender].committed, self.peer, under_way.key)
            return
        theirs = self._peers[sender].under_way
        if theirs is None or theirs.key != under_way.key or self.peer not in theirs.waiting:
            under_way.lose(sender, "stale" if theirs is None or theirs.key > under_way.key else "declined", now)
            return
        under_way.vectors[sender] = theirs.kept(vector)
        under_way.arrives(sender, HAVE, now)
        voted = now + self._links.latency(self.peer, sender)
        if theirs.arrives(self.peer, VOTE, voted) and not theirs.waiting:
            self._peers[sender]._settle()

    def committed(self, other: int, key: Key) -> None:
        """The other end has the answer."""
        if not self.gone:
            self._gathering.committed(other, key)

    def lost_edge(self, other: int, key: Key, why: str) -> None:
        """The other end gave an edge up, or its link is down."""
        if self.algorithm.answers_to(other):
            self._gathering.lose(other, why)
        under_way = self.under_way
        if self.gone or under_way is None or under_way.key != key or other not in under_way.waiting:
            return
        under_way.lose(other, why, self._agenda.now)
        self._settle()

    def _settle(self, *, at_once: bool = True) -> None:
        """After the close: go on when every edge is decided, and see that it is before long. at_once: without an event where no time
        passes; not so where the next phase may find everything there already, and the phase after it, and so on without end."""
        under_way = self.under_way
        if under_way is None or self.talk.is_open or (self._both and self._done is None):
            return
        now = self._agenda.now
        if not under_way.waiting:
            if under_way.until > now or self._links.instant or not at_once:
                self._at(max(under_way.until, now), self._finish, under_way)
            else:
                self._finish(under_way)
            return
        typical = self.ledger.typical_round_seconds
        gives_up = min(self._closed_at + self.patience(j, typical) for j in under_way.waiting)
        if gives_up < self._gives_up_at:
            self._gives_up_at = gives_up
            self._at(gives_up, self._give_up, gives_up)

    def patience(self, peer: int, typical: float) -> float:
        if self.algorithm.is_patient_with(peer):
            return max(self._bounds.most, self._round_timeout)
        return self._deadlines.seconds(peer, typical)

    def _give_up(self, when: float) -> None:
        """Whoever is late by now. One such event at a time is under way, so what it is about is looked up here."""
        if when != self._gives_up_at or self.gone:
            return
        self._gives_up_at = math.inf
        under_way = self.under_way
        if under_way is None or not under_way.waiting or self.talk.is_open or (self._both and self._done is None):
            return
        now, typical = self._agenda.now, self.ledger.typical_round_seconds
        for j in [j for j in under_way.waiting if now >= self._closed_at + self.patience(j, typical)]:
            under_way.lose(j, "deadline", now)
            self.talk.missed(j)
            tells = now + self._links.latency(self.peer, j)
            self._at(tells, self._peers[j].lost_edge, self.peer, under_way.key, "declined")
        self._settle()

    def _finish(self, under_way: UnderWay) -> None:
        if self.gone or under_way is not self.under_way:
            return
        for j in under_way.vectors:
            if not self.algorithm.is_patient_with(j):
                self.observe(j, under_way.ends[j] - self._closed_at)
        inbox = Inbox(under_way.vectors, under_way.lost)
        if under_way.effect.take or under_way.effect.into:
            inbox = delivered(under_way.effect, inbox.vectors, inbox.lost)
        self.gathered(inbox, self._closed_at)

    def observe(self, peer: int, waited: float) -> None:
        self._deadlines.observe(peer, waited if waited > 0.0 else 0.0)

    # what a gathering asks

    def may_go_on(self) -> bool:
        """Whether nothing but a gathering is waited for."""
        if self._in_either:
            return not self.gone
        return not (self.gone or self.talk.is_open or (self._both and self._done is None))

    def gathered(self, inbox: Inbox, since: float) -> None:
        """What a gathering waited for since then is there."""
        if self._gathers_too:
            self._gathers_too = False
            self._go_on(Meanwhile(None, inbox))
            return
        if not self._in_either:  # else it hides behind the computation
            self._exchanging += self._agenda.now - since
        done, self._done = self._done, None
        self._go_on((done, inbox) if self._both and done is not None else inbox)

    # words and links

    def _tell(self, to: int, word: Word) -> bool:
        if self.gone or to not in self._linked_to:
            return False
        self._at(self._links.word(self.peer, to, self._agenda.now), self._peers[to].heard, self.peer, word)
        return True

    def heard(self, sender: int, word: Word) -> None:
        """A control word is here."""
        if self.gone or sender not in self._linked_to:
            return
        stirs, _ = self.talk.hear(sender, word, self._agenda.now)
        if stirs and self.algorithm.answers_to(word.origin):
            self._gathering.leave_out_who_left()
        if stirs and self.talk.is_open:
            self._decide()

    def link_up(self, other: int) -> None:
        if not self.gone:
            self.talk.link_up(other)

    def link_down(self, other: int) -> None:
        """Its edges are lost at once."""
        if self.gone:
            return
        self.talk.link_down(other)
        if self.algorithm.answers_to(other):
            self._gathering.lose(other, "link_down")
        elif self.under_way is not None:
            self.lost_edge(other, self.under_way.key, "link_down")
        if self.talk.is_open:
            self._decide()
