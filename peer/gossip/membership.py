"""Who is believed alive. Pure: what was heard is passed in.

alive -> suspect: missed a deadline, its link is down, or a neighbour of it said LOST. suspect -> alive: heard again, or a word that
it closed a round which it could not have closed when it was lost. left: said goodbye, for good. A suspect is not waited for, so a
silent peer costs its edges once, not every round. That a deadline was missed is this peer's own belief; that a peer is lost is told to
everybody, also when it was a suspect here before.
"""

from __future__ import annotations

import enum


class PeerStatus(enum.StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    LEFT = "left"


class PeerDirectory:
    """State of every other peer as `peer` sees it. Only what differs from alive is stored.

    suspects: with the first round that they are not known to have closed. leaving: who said goodbye, with the first round in which it
    does not take part. said_lost: of suspects that this peer said or passed on LOST of, the newest round in such a word. All are to be
    read only; as long as the first two are empty, everybody is alive.
    """

    __slots__ = (
        "_num_peers",
        "_peer",
        "leaving",
        "said_lost",
        "suspects",
    )

    def __init__(self, peer: int, num_peers: int) -> None:
        self._peer = peer
        self._num_peers = num_peers
        self.suspects: dict[int, int] = {}
        self.leaving: dict[int, int] = {}
        self.said_lost: dict[int, int] = {}

    def heard(self, peer: int) -> bool:
        """Something came from that peer itself. Returns whether it had been a suspect."""
        self.said_lost.pop(peer, None)
        return self.suspects.pop(peer, None) is not None

    def closed(self, peer: int, round: int) -> bool:
        """Word came that it closed that round. Returns whether it had been a suspect and this is news of its life."""
        return peer in self.suspects and round >= self.suspects[peer] and self.heard(peer)

    def missed(self, peer: int, not_closed: int) -> bool:
        """That peer missed a deadline here before it was known to close round `not_closed`. Returns whether this is news."""
        if peer in self.leaving or not self._is_other(peer) or not_closed <= self.suspects.get(peer, -1):
            return False
        self.suspects[peer] = not_closed
        return True

    def lost(self, peer: int, not_closed: int) -> bool:
        """Its link is down, or somebody said LOST, before it was known to close round `not_closed`. Returns whether everybody is to be
        told: a suspect of a missed deadline is one of this peer alone."""
        self.missed(peer, not_closed)
        if peer not in self.suspects or not_closed <= self.said_lost.get(peer, -1):
            return False
        self.said_lost[peer] = not_closed
        return True

    def leave(self, peer: int, round: int) -> bool:
        """That peer takes part up to and excluding `round`. Returns whether this is news."""
        if peer in self.leaving or not self._is_other(peer):
            return False
        self.leaving[peer] = round
        self.heard(peer)
        return True

    def takes_part(self, peer: int, round: int) -> tuple[bool, str]:
        """(is it worth exchanging with that peer in that round, the reason)."""
        status = self.status(peer)
        if status is PeerStatus.LEFT:
            if round < self.leaving[peer]:
                return True, "leaving"
            return False, "left"
        return status is PeerStatus.ALIVE, str(status)

    def has_left(self, peer: int) -> bool:
        return peer in self.leaving

    def status(self, peer: int) -> PeerStatus:
        if peer in self.leaving:
            return PeerStatus.LEFT
        return PeerStatus.SUSPECT if peer in self.suspects else PeerStatus.ALIVE

    def is_alive(self, peer: int) -> bool:
        return peer not in self.suspects and peer not in self.leaving

    @property
    def num_living(self) -> int:
        """Other peers that are waited for."""
        return self._num_peers - 1 - len(self.suspects) - len(self.leaving)

    def living(self) -> set[int]:
        """Other peers that are waited for."""
        return set(range(self._num_peers)) - {self._peer} - self.suspects.keys() - self.leaving.keys()

    def _is_other(self, peer: int) -> bool:
        return 0 <= peer < self._num_peers and peer != self._peer
