"""Who is believed alive. Pure: what was heard is passed in.

alive -> suspect: missed a deadline, its link is down, or a neighbour of it said LOST. suspect -> alive: heard again, or a word that
it closed a round which it could not have closed when it was lost. left: said goodbye, for good. A suspect is not waited for, so a
silent peer costs its edges once, not every round.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class PeerStatus(enum.StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    LEFT = "left"


class PeerDirectory:
    """State of every other peer as `peer` sees it. Only what differs from alive is stored."""

    __slots__ = (
        "_leaves_at",
        "_lost_at",
        "_num_peers",
        "_peer",
    )

    def __init__(self, peer: int, num_peers: int) -> None:
        self._peer = peer
        self._num_peers = num_peers
        self._lost_at: dict[int, int] = {}  # suspects: the first round that they are not known to have closed
        self._leaves_at: dict[int, int] = {}

    def heard(self, peer: int) -> bool:
        """Something came from that peer itself. Returns whether it had been a suspect."""
        return self._lost_at.pop(peer, None) is not None

    def closed(self, peer: int, round: int) -> bool:
        """Word came that it closed that round. Returns whether it had been a suspect and this is news of its life."""
        return peer in self._lost_at and round >= self._lost_at[peer] and self.heard(peer)

    def missed(self, peer: int, not_closed: int) -> bool:
        """That peer missed a deadline, lost its link, or is said to be lost, before it was known to close round `not_closed`.
        Returns whether this is news."""
        if peer in self._leaves_at or not self._is_other(peer) or not_closed <= self._lost_at.get(peer, -1):
            return False
        self._lost_at[peer] = not_closed
        return True

    def leave(self, peer: int, round: int) -> bool:
        """That peer takes part up to and excluding `round`. Returns whether this is news."""
        if peer in self._leaves_at or not self._is_other(peer):
            return False
        self._leaves_at[peer] = round
        self._lost_at.pop(peer, None)
        return True

    def takes_part(self, peer: int, round: int) -> tuple[bool, str]:
        """(is it worth exchanging with that peer in that round, the reason)."""
        status = self.status(peer)
        if status is PeerStatus.LEFT:
            if round < self._leaves_at[peer]:
                return True, "leaving"
            return False, "left"
        return status is PeerStatus.ALIVE, str(status)

    def has_left(self, peer: int) -> bool:
        return peer in self._leaves_at

    def status(self, peer: int) -> PeerStatus:
        if peer in self._leaves_at:
            return PeerStatus.LEFT
        return PeerStatus.SUSPECT if peer in self._lost_at else PeerStatus.ALIVE

    def is_alive(self, peer: int) -> bool:
        return peer not in self._lost_at and peer not in self._leaves_at

    @property
    def num_living(self) -> int:
        """Other peers that are waited for."""
        return self._num_peers - 1 - len(self._lost_at) - len(self._leaves_at)

    def living(self) -> set[int]:
        """Other peers that are waited for."""
        return set(range(self._num_peers)) - {self._peer} - self._lost_at.keys() - self._leaves_at.keys()

    @property
    def suspects(self) -> Mapping[int, int]:
        """Suspects, with the first round that they are not known to have closed."""
        return self._lost_at

    @property
    def leaving(self) -> Mapping[int, int]:
        """Who said goodbye, with the first round in which it does not take part."""
        return self._leaves_at

    def _is_other(self, peer: int) -> bool:
        return 0 <= peer < self._num_peers and peer != self._peer
