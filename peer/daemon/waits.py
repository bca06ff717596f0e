"""Whom the open round of a peer waits for, now: closed rounds say what they waited for when they end, which may be long after."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, Final, Self

from peer.gossip.digest import MAX_SHARES

#: Shorter waits are not told: every round has some.
TOLD_AFTER_SECONDS: Final = 1.0


class Waits:
    """As a context, it ends the wait that began within. Who waits pays two assignments; who wants to know asks.

    The wait is for others' words from the own quota on (of a peer that computes nothing, from the opening), then for their vectors and
    votes.
    """

    __slots__ = ("_now", "_since", "_whom")

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._since = 0.0
        self._whom: Callable[[], Collection[int]] | None = None

    def on(self, whom: Callable[[], Collection[int]]) -> Self:
        """From now on, unless it waits already. whom: still, whenever asked."""
        if self._whom is None:
            self._whom, self._since = whom, self._now()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._whom = None

    def told(self) -> dict[str, Any]:
        """The fields of a digest about it."""
        if self._whom is None or (seconds := self._now() - self._since) < TOLD_AFTER_SECONDS:
            return {}
        whom = tuple(sorted(self._whom())[:MAX_SHARES])
        return {"waits_for": whom, "waits_seconds": seconds} if whom else {}
