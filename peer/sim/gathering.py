"""The head's side of exchanges in virtual time: vectors of peers that wait for an answer, as in peer/daemon/gathering.py."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from peer.accounts.ledger import Ledger
from peer.gossip.effects import Gather, Inbox, Reply
from peer.gossip.talk import Talk
from peer.sim.events import Agenda
from peer.sim.exchanges import Key


class Host(Protocol):
    """What a gathering asks of its peer."""

    talk: Talk
    ledger: Ledger

    def may_go_on(self) -> bool: ...

    def gathered(self, inbox: Inbox, since: float) -> None: ...

    def push(self, to: int, key: Key, vector: Tensor) -> None: ...

    def refuse(self, sender: int, key: Key, why: str) -> None: ...

    def patience(self, peer: int, typical: float) -> float: ...

    def observe(self, peer: int, waited: float) -> None: ...


class Gathering:
    """linked: peers to which links are up."""

    def __init__(self, host: Host, agenda: Agenda, linked: set[int]) -> None:
        self._host = host
        self._agenda = agenda
        self._linked = linked
        self._keys: dict[int, Key] = {}  # of the newest exchange with a peer
        self._expected: set[int] = set()
        self._arrived: dict[int, Tensor] = {}  # in the order of arrival, not replied to
        self._late: set[int] = set()  # replied to, and their own vector is still to come
        self._early: dict[int, tuple[Key, Tensor]] = {}
        self._atomic: set[int] = set()  # whose exchange is
        self._any_round = False
        self._round = 0
        self._new: list[tuple[int, float]] = []
        self._lost: dict[int, str] = {}
        self._waited_for: Gather | Reply | None = None
        self._since = 0.0
        self._gives_up_at = math.inf

    def advance(self, round: int) -> None:
        """What was sent for rounds before this one is over."""
        for peer, (key, _) in list(self._early.items()):
            if key < (round, 0):
                del self._early[peer]
                self._host.refuse(peer, key, "stale")

    def open(self, round: int, effect: Gather) -> None:
        """Expect a vector of each peer that none is expected of yet."""
        talk, self._any_round, self._round = self._host.talk, effect.any_round, round
        for peer in sorted(effect.receive):
            if peer in self._expected or peer in self._arrived:
                continue
            if effect.atomic:
                self._atomic.add(peer)
            if effect.any_round:
                if peer in self._early:
                    self._keys[peer], self._arrived[peer] = self._early.pop(peer)
                continue
            stamp = effect.stamps.get(peer, round)
            takes_part, why = talk.directory.takes_part(peer, stamp)
            if not takes_part or peer not in self._linked:
                self._lost[peer] = why if not takes_part else "link_down"
                continue
            self._keys[peer] = stamp, 0
            self._expected.add(peer)
            if peer in self._early:
                self.request(peer, *self._early.pop(peer))

    def wait(self, effect: Gather | Reply) -> None:
        """The peer has nothing else to wait for."""
        self._waited_for, self._since = effect, self._agenda.now
        self._look()

    def reply(self, effect: Reply) -> None:
        """Answers go out; peers that are lost by now are left out."""
        for peer, vector in effect.send.items():
            if peer in self._expected:
                self._expected.discard(peer)
                self._late.add(peer)
            elif self._arrived.pop(peer, None) is None:
                continue
            elif peer in self._atomic:
                self._late.add(peer)
            self._host.push(peer, self._keys[peer], vector.clone())
        self.wait(effect)

    def request(self, peer: int, key: Key, vector: Tensor) -> None:
        """A vector is here."""
        if self._any_round:
            self._early[peer] = (
                key,
                vector.clone(),
            )  # the sender's own, which stays as it is only until the exchange is over
            if isinstance(self._waited_for, Gather):
                self.open(self._round, self._waited_for)
            self._look()
            return
        newest = self._keys.get(peer, (-1, 0))
        if key > newest:
            self._early[peer] = key, vector
        elif key == newest and peer in self._expected:
            self._expected.discard(peer)
            self._arrived[peer] = vector
            self._new.append((peer, self._agenda.now))
        elif key == newest and peer in self._late:
            self._late.discard(peer)
        else:
            self._host.refuse(peer, key, "stale")
        self._look()

    def committed(self, peer: int, key: Key) -> None:
        """It has the answer, and its vote is here."""
        if self._keys[peer] == key:
            self._late.discard(peer)
        self._look()

    def stop_waiting(self) -> Inbox:
        """The peer goes on for another reason. Who was lost meanwhile."""
        self._waited_for = None
        lost, self._lost = self._lost, {}
        return Inbox({}, lost)

    def lose(self, peer: int, why: str) -> None:
        """It sends nothing more, and gets no answer."""
        self._early.pop(peer, None)
        if peer in self._expected or peer in self._arrived or peer in self._late:
            self._lost[peer] = why
        self._expected.discard(peer)
        self._late.discard(peer)
        self._arrived.pop(peer, None)
        self._look()

    def leave(self) -> None:
        """This peer answers nobody any more. Who asked without being expected hears of it."""
        if self._any_round:
            waiting = {peer: self._keys[peer] for peer in self._arrived}
            for peer, key in (waiting | {peer: key for peer, (key, _) in self._early.items()}).items():
                self._host.refuse(peer, key, "left")

    def leave_out_who_left(self) -> None:
        """Who said goodbye sends nothing more."""
        directory = self._host.talk.directory
        for peer in sorted(self._expected):
            if directory.has_left(peer) and not directory.takes_part(peer, self._keys[peer][0])[0]:
                self.lose(peer, "left")

    def _look(self) -> None:
        """Go on, by an event, if what is there is enough now; else see that it is before long."""
        waited_for = self._waited_for
        if waited_for is None or not self._host.may_go_on():
            return
        if isinstance(waited_for, Gather) and waited_for.any_round and len(self._arrived) < (waited_for.enough or 0):
            return
        missing = self._missing(waited_for)
        if not missing:
            self._agenda.at(self._agenda.now, self._go_on, waited_for)
            return
        gives_up = self._since + min(self._patience(missing))
        if gives_up < self._gives_up_at:
            self._gives_up_at = gives_up
            self._agenda.at(gives_up, self._give_up, gives_up)

    def _missing(self, waited_for: Gather | Reply) -> list[int]:
        """Who is still waited for."""
        if isinstance(waited_for, Reply):
            return sorted(self._late) if waited_for.waits else []
        enough = waited_for.enough is not None and len(self._arrived) >= waited_for.enough
        return [] if enough else sorted(self._expected)

    def _patience(self, peers: list[int]) -> list[float]:
        typical = self._host.ledger.typical_round_seconds
        return [self._host.patience(peer, typical) for peer in peers]

    def _give_up(self, when: float) -> None:
        """Whoever is late by now. One such event at a time is under way, so what it is about is looked up here."""
        if when != self._gives_up_at:
            return
        self._gives_up_at = math.inf
        waited_for = self._waited_for
        if waited_for is None or not self._host.may_go_on():
            return
        missing = self._missing(waited_for)
        for peer, patience in zip(missing, self._patience(missing), strict=True):
            if self._agenda.now >= self._since + patience:
                self._host.talk.missed(peer)
                self._host.refuse(peer, self._keys[peer], "declined")
                self.lose(peer, "deadline")
        self._look()

    def _go_on(self, waited_for: Gather | Reply) -> None:
        if waited_for is not self._waited_for or not self._host.may_go_on():
            return
        self._waited_for = None
        for peer, when in self._new:
            self._host.observe(peer, when - self._since)
        self._new.clear()
        lost, self._lost = self._lost, {}
        vectors = dict(self._arrived) if isinstance(waited_for, Gather) else {}
        self._host.gathered(Inbox(vectors, lost), self._since)
