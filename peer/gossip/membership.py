"""Who is believed alive. Pure: what was heard is passed in.

alive -> suspect: missed a deadline, or its link is down. suspect -> alive: heard again. left: said goodbye, for good.
A suspect is not waited for, so a silent peer costs its edges once, not every round.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable


class PeerStatus(enum.StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    LEFT = "left"


class PeerDirectory:
    """State of every other peer as this one sees it."""

    def __init__(self, peers: Iterable[int]) -> None:
        self._status = dict.fromkeys(peers, PeerStatus.ALIVE)
        self._leaves_at: dict[int, int] = {}

    def heard(self, peer: int) -> bool:
        """Something came from that peer itself. Returns whether it had been a suspect."""
        if self._status.get(peer) is not PeerStatus.SUSPECT:
            return False
        self._status[peer] = PeerStatus.ALIVE
        return True

    def missed(self, peer: int) -> bool:
        """That peer missed a deadline or lost its link. Returns whether this is news."""
        if self._status.get(peer) is not PeerStatus.ALIVE:
            return False
        self._status[peer] = PeerStatus.SUSPECT
        return True

    def leave(self, peer: int, round: int) -> bool:
        """That peer takes part up to and excluding `round`. Returns whether this is news."""
        if peer not in self._status or peer in self._leaves_at:
            return False
        self._leaves_at[peer] = round
        self._status[peer] = PeerStatus.LEFT
        return True

    def takes_part(self, peer: int, round: int) -> tuple[bool, str]:
        """(is it worth exchanging with that peer in that round, the reason)."""
        status = self._status[peer]
        if status is PeerStatus.LEFT:
            if round < self._leaves_at[peer]:
                return True, "leaving"
            return False, "left"
        return status is PeerStatus.ALIVE, str(status)

    def has_left(self, peer: int) -> bool:
        return self._status.get(peer) is PeerStatus.LEFT

    def status(self, peer: int) -> PeerStatus:
        return self._status[peer]

    def living(self) -> set[int]:
        """Peers that are waited for."""
        return {peer for peer, status in self._status.items() if status is PeerStatus.ALIVE}
