"""What a link has heard of exchanges that are not open yet at this end: votes and aborts take another lane than frames."""

from __future__ import annotations

from typing import Final

from peer.transport.base import ExchangeKey, LossReason

MAX_EARLY: Final = 1024
"""Votes, and aborts, that are kept."""


class Early:
    """Bounded; what is refused changes nothing."""

    def __init__(self) -> None:
        self._votes: set[ExchangeKey] = set()
        self._aborts: dict[ExchangeKey, LossReason] = {}

    def vote(self, key: ExchangeKey) -> bool:
        """Keep it; whether there was room."""
        if len(self._votes) >= MAX_EARLY:
            return False
        self._votes.add(key)
        return True

    def abort(self, key: ExchangeKey, reason: LossReason) -> bool:
        """Keep it; whether there was room."""
        if len(self._aborts) >= MAX_EARLY:
            return False
        self._aborts[key] = reason
        return True

    def is_aborted(self, key: ExchangeKey) -> bool:
        return key in self._aborts

    def take(self, key: ExchangeKey) -> tuple[LossReason | None, bool]:
        """Why the exchange that is opened now was aborted, and whether it has the other's vote. Forgets all up to it."""
        kept = self._aborts.get(key), key in self._votes
        self.forget(before=ExchangeKey(key.round, key.phase + 1))
        return kept

    def forget(self, before: ExchangeKey) -> None:
        if self._votes:
            self._votes = {key for key in self._votes if key >= before}
        if self._aborts:
            self._aborts = {key: reason for key, reason in self._aborts.items() if key >= before}

    def clear(self) -> None:
        self._votes.clear()
        self._aborts.clear()
