"""When a round ends: the closing policies.

A policy sees a `RoundView` (facts, no clock) and the time, and returns the reason to close, or None to go on. Sources: `first` is
Non-blocking SGD (He & Dube 2022, arXiv 2211.00889); `quorum` is STSyn's K-th finisher; `deadline` is DropCompute's time-out;
`barrier` is the classic blocking form and our baseline.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from peer.gossip.statistics import median_and_mad

#: One that is so many rounds behind a neighbour is not waited for by it any more, and catches up. One round is between a peer that
#: has finished its quota and a neighbour that still works on the round before.
LEFT_BEHIND = 2


class CloseReason(enum.StrEnum):
    """Why a round ended; logged and counted."""

    QUOTA = "quota"  # this peer finished its own quota of chunks
    WORD = "word"  # another peer's word that it closed the round; or the others have gone on without this one
    QUORUM = "quorum"  # that word from the asked fraction of the neighbours
    DEADLINE = "deadline"  # the round's time-out (closing policy `deadline`)
    BARRIER = "barrier"  # everybody's quota is done
    MISSED = "missed"  # the round's parameters did not come, so nothing was computed in it
    GRADIENT = "gradient"  # a gradient has come and is applied (the head of async-sgd)
    TIMEOUT = "timeout"  # the safety net: nobody said anything for `round_timeout` seconds


Tells: TypeAlias = Literal["quota", "close", "nothing"]


class RoundView(Protocol):
    """What a closing policy may look at. opened_at in the host's seconds. ahead: by how many rounds the furthest peer known is
    beyond this round: negative while nobody else is known to have closed it, 0 when somebody has, 1 when somebody has closed the
    next one too."""

    @property
    def opened_at(self) -> float: ...

    @property
    def own_done(self) -> bool: ...

    @property
    def ahead(self) -> int: ...

    def neighbors_ahead(self) -> int:
        """The same for the neighbours on the base graph alone."""

    def waits(self) -> bool:
        """Whether some other peer that is believed alive is not known to have closed this round."""

    def heard_neighbors(self) -> tuple[int, int]:
        """(living neighbours on the base graph that are known to have closed this round, all living neighbours)."""


class ClosingPolicy(Protocol):
    """needs_every_word: each peer's word matters, so all of them are flooded; else the first word for a round is enough. tells: when
    a peer says CLOSED: when its own quota is done, though its round may go on; only at the close; or never."""

    @property
    def needs_every_word(self) -> bool: ...

    @property
    def tells(self) -> Tells: ...

    def decide(self, view: RoundView, now: float) -> CloseReason | None:
        """The reason to close the round now, or None."""

    def wake_at(self, view: RoundView) -> float | None:
        """The time at which `decide` must be asked again even if nothing happens; None: never."""

    def observe(self, seconds: float) -> None:
        """Somebody closed a round that many seconds after it was opened here."""


@dataclass(slots=True)
class First:
    """Own quota done, or any peer's word: nobody ever waits for a straggler."""

    needs_every_word: bool = False
    tells: Tells = "quota"

    def decide(self, view: RoundView, now: float) -> CloseReason | None:
        if view.own_done:
            return CloseReason.QUOTA
        return CloseReason.WORD if view.ahead >= 0 else None

    def wake_at(self, view: RoundView) -> float | None:
        return None

    def observe(self, seconds: float) -> None:
        return None


@dataclass(slots=True)
class Barrier:
    """Own quota done, and everyone else's too: the blocking algorithms.

    Whoever has closed the next round was not waiting for this peer any more; then there is nothing to wait for here either.
    """

    needs_every_word: bool = True
    tells: Tells = "quota"

    def decide(self, view: RoundView, now: float) -> CloseReason | None:
        left_behind = view.ahead >= 1
        if view.own_done:
            return CloseReason.BARRIER if left_behind or not view.waits() else None
        return CloseReason.WORD if left_behind else None

    def wake_at(self, view: RoundView) -> float | None:
        return None

    def observe(self, seconds: float) -> None:
        return None


@dataclass(slots=True)
class Backups:
    """A barrier that does without some: the head's round ends when `needed` gradients are done, its own among them if it computes; a
    worker's when its own is done, or by the head's word (Chen et al. 2017, arXiv 1604.00981). For a star with the head in its middle."""

    needed: int
    is_head: bool
    needs_every_word: bool = True

    @property
    def tells(self) -> Tells:
        return "close" if self.is_head else "quota"  # the head's word ends the others' round

    def decide(self, view: RoundView, now: float) -> CloseReason | None:
        done, _ = view.heard_neighbors()
        if self.is_head:
            if view.own_done and not view.waits():
                return CloseReason.BARRIER
            return CloseReason.QUORUM if done + view.own_done >= self.needed else None
        if view.own_done:
            return CloseReason.QUOTA
        return CloseReason.WORD if done else None

    def wake_at(self, view: RoundView) -> float | None:
        return None

    def observe(self, seconds: float) -> None:
        return None


@dataclass(slots=True)
class OwnQuota:
    """Own quota done: for methods without rounds, where nobody hears of others' and nobody waits."""

    needs_every_word: bool = False
    tells: Tells = "nothing"

    def decide(self, view: RoundView, now: float) -> CloseReason | None:
        return CloseReason.QUOTA if view.own_done else None

    def wake_at(self, view: RoundView) -> float | None:
        return None

    def observe(self, seconds: float) -> None:
        return None


@dataclass(slots=True)
class Quorum:
    """Own quota done, or the word of a fraction q of the living neighbours (at least one): ceil(q * neighbours) words."""

    fraction: float
    needs_every_word: bool = True
    tells: Tells = "quota"

    def decide(self, view: RoundView, now: float) -> CloseReason | None:
        if view.own_done:
            return CloseReason.QUOTA
        heard, neighbors = view.heard_neighbors()
        if heard > 0 and heard >= self.fraction * neighbors - 1e-9:
            return CloseReason.QUORUM
        return CloseReason.WORD if view.neighbors_ahead() >= LEFT_BEHIND else None

    def wake_at(self, view: RoundView) -> float | None:
        return None

    def observe(self, seconds: float) -> None:
        return None


@dataclass(slots=True)
class Deadline:
    """Own quota done, or a time-out: `seconds` if given, else median + mads * MAD of the round times seen from all peers.

    Until `warm_up` round times have been seen the adaptive time-out is off, so the first rounds end by quota.
    """

    seconds: float | None
    mads: float = 4.0
    warm_up: int = 8
    needs_every_word: bool = True
    tells: Tells = "quota"
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def timeout(self) -> float | None:
        """Seconds a round may last, now."""
        if self.seconds is not None:
            return self.seconds
        if len(self._recent) < self.warm_up:
            return None
        median, mad = median_and_mad(self._recent)
        return median + self.mads * max(mad, 0.05 * median)

    def decide(self, view: RoundView, now: float) -> CloseReason | None:
        if view.own_done:
            return CloseReason.QUOTA
        wake_at = self.wake_at(view)
        if wake_at is not None and now >= wake_at:
            return CloseReason.DEADLINE
        return CloseReason.WORD if view.neighbors_ahead() >= LEFT_BEHIND else None

    def wake_at(self, view: RoundView) -> float | None:
        timeout = self.timeout()
        return None if timeout is None else view.opened_at + timeout

    def observe(self, seconds: float) -> None:
        self._recent.append(seconds)


class ClosedRounds:
    """The newest round that each other peer is known to have closed; one integer a peer, so it is bounded.

    A stamp is a claim, not a fact: one that lies more than `window` rounds ahead counts only as far as the window reaches, so
    that a lying or very late word can hurry a peer by no more than that.
    """

    __slots__ = (
        "_count",
        "_counted_round",
        "_firsts",
        "_newest",
        "_window",
        "furthest",
    )

    def __init__(self, window: int) -> None:
        self.furthest = -1
        self._window = window
        self._newest: dict[int, int] = {}
        self._firsts: list[tuple[int, int]] = []  # (round, who was the first known to have closed it), rising
        self._counted_round = 0
        self._count = 0

    def note(self, origin: int, round: int, own_round: int) -> tuple[bool, str]:
        """Take the word of `origin` that it closed `round`. Returns (did it tell anything new, why)."""
        furthest = own_round + self._window
        believed = round if round < furthest else furthest
        before = self._newest.get(origin, -1)
        if believed <= before:
            return False, "future" if believed < round else "known"
        self._newest[origin] = believed
        self._count += before < self._counted_round <= believed
        if believed > self.furthest:
            self.furthest = believed
            self._firsts.append((believed, origin))
        if round < own_round:
            return True, "stale"
        return True, "future" if believed < round else "new"

    def first(self, round: int) -> int | None:
        """The first other peer known to have closed this round, or a later one. Earlier rounds are not to be asked for any more."""
        firsts = self._firsts
        while firsts and firsts[0][0] < round:
            del firsts[0]
        return firsts[0][1] if firsts else None

    def closed(self, round: int) -> set[int]:
        """Peers that are known to have closed this round (or a later one, which comes to the same)."""
        return {origin for origin, newest in self._newest.items() if newest >= round}

    def count(self, round: int) -> int:
        """How many they are. Kept up to date word by word, for the round that is asked for."""
        if round != self._counted_round:
            self._counted_round, self._count = round, len(self.closed(round))
        return self._count

    def has_closed(self, origin: int, round: int) -> bool:
        return self._newest.get(origin, -1) >= round

    def newest(self) -> Mapping[int, int]:
        return self._newest


CLOSINGS = ("barrier", "first", "quorum", "deadline")


def make_closing(name: str, *, quorum: float = 0.5, seconds: float | None = None, mads: float = 4.0) -> ClosingPolicy:
    """The policy of that name (see CLOSINGS; `none` is for methods without rounds). Raises KeyError for any other name."""
    policies: dict[str, ClosingPolicy] = {
        "barrier": Barrier(),
        "first": First(),
        "quorum": Quorum(quorum),
        "deadline": Deadline(seconds, mads),
        "none": OwnQuota(),
    }
    return policies[name]
