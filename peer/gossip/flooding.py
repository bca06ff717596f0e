"""Flooding of control words over the base graph: what is news, and to whom it goes on. Pure.

Every word is stamped with its origin and round. READY and LEAVING are flooded once per origin, LOST once per (origin, round); CLOSED
once per (origin, round) when the closing policy needs every word, else once per round, because the first one has said it all.
"""

from __future__ import annotations

from collections.abc import Collection

from peer.gossip.closing import ClosedRounds


class Flood:
    """What one peer knows from words, and which of them it passes on."""

    __slots__ = (
        "_every_word",
        "_newest_passed_on",
        "_num_peers",
        "_peer",
        "closed",
        "own_closed",
        "ready",
    )

    def __init__(self, peer: int, num_peers: int, *, every_word: bool, window: int | None = None) -> None:
        self.ready: set[int] = set()
        self.closed = ClosedRounds(window if window is not None else 16 + num_peers)
        self.own_closed = -1  # the newest round of which this peer itself said that it closed it
        self._peer = peer
        self._num_peers = num_peers
        self._every_word = every_word
        self._newest_passed_on = -1

    def knows(self, origin: int) -> bool:
        return 0 <= origin < self._num_peers

    def note_ready(self, origin: int) -> bool:
        """Whether the word is news and goes on."""
        if origin in self.ready:
            return False
        self.ready.add(origin)
        return True

    def everybody_ready(self) -> bool:
        return len(self.ready) == self._num_peers

    def missing(self) -> list[int]:
        """Peers that have not said READY."""
        return [i for i in range(self._num_peers) if i not in self.ready]

    def say_closed(self, round: int) -> bool:
        """Own word. Whether it is told to the neighbours."""
        if round <= self.own_closed:
            return False
        self.own_closed = round
        return self._goes_on(round)

    def note_closed(self, origin: int, round: int, own_round: int) -> tuple[bool, str]:
        """(whether the word goes on, what it was: new, known, stale or future)."""
        news, why = self.closed.note(origin, round, own_round)
        if not news:
            return False, why
        if why == "future":
            return False, why  # beyond what can be: believed as far as the window, not passed on
        if round <= self._newest_passed_on and not self._every_word:
            return False, why
        return self._goes_on(round), why

    def recipients(self, neighbors: Collection[int], origin: int, sender: int) -> list[int]:
        """Neighbours to whom a word goes on: all but the one it came from and the one it is about."""
        return [j for j in neighbors if j != origin and j != sender]

    def _goes_on(self, round: int) -> bool:
        if self._every_word:
            return True
        goes_on = round > self._newest_passed_on
        self._newest_passed_on = max(self._newest_passed_on, round)
        return goes_on
