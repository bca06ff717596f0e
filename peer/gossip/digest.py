"""What every peer may know of the whole cluster: digests, passed on from neighbour to neighbour. Pure: time is an argument.

A peer says a digest of itself now and then. Whoever holds a newer one of some origin than before passes it on: not at once, but when
its host asks (`news_for`), a few times a second, so that what a link carries is bounded however many digests come in. The greatest
stamp of an origin wins. An origin that hears of itself a stamp that is not behind its own (it started again, or somebody lied) goes
on above it, unless it is above MAX_OWN_STAMP: then whoever believed the lie hears nothing new of that origin. No clocks are compared: a
digest carries its age, to which every holder adds the time for which it has held it.

Nothing here changes how a round goes: digests are for people.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

#: Seconds between two digests of one peer, while the cluster is small.
SAY_SECONDS = 1.0
#: Digests that pass a link each way in a second at most, on average: with more peers each speaks less often.
DIGESTS_A_SECOND = 32
#: Digests in one message.
MAX_IN_MESSAGE = 32
#: Entries of `lost_links`, and of `waited_for`, `closed_by` and `waits_for`.
MAX_LOST_LINKS = 64
MAX_SHARES = 8
#: Stamps are below.
MAX_STAMP = 1 << 62
#: No greater one is taken over for oneself, so that there is always a greater one that nobody refuses.
MAX_OWN_STAMP = MAX_STAMP // 2
MAX_COUNT = 1 << 53
MAX_AGE_SECONDS = 1e7
_NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Digest(NamedTuple):
    """What a peer said of itself; fields as in proto/grapevine/v1/gossip.proto. state: a value of the wire's State.
    closed_rounds: by the value of a CloseReason. waited_for, closed_by: share by peer. waits_for: of the open round."""

    origin: int
    stamp: int = 0
    age_seconds: float = 0.0
    state: int = 0
    round: int = 0
    seconds: float = 0.0
    samples: int = 0
    samples_per_second: float = 0.0
    train_loss: float = math.nan
    neighbor_distance: float = 0.0
    computing: float = 0.0
    waiting: float = 0.0
    exchanging: float = 0.0
    mixing: float = 0.0
    finished_fraction: float = 0.0
    max_staleness: int = 0
    closed_rounds: Mapping[str, int] = _NOTHING
    lost_links: tuple[int, ...] = ()
    waited_for: Mapping[int, float] = _NOTHING
    closed_by: Mapping[int, float] = _NOTHING
    waits_for: tuple[int, ...] = ()
    waits_seconds: float = 0.0


class Held(NamedTuple):
    """A digest, and when its origin said it, on the holder's clock."""

    digest: Digest
    said_at: float


def say_every(num_peers: int) -> float:
    """Seconds between two digests of one peer: max(SAY_SECONDS, n / DIGESTS_A_SECOND)."""
    return max(SAY_SECONDS, num_peers / DIGESTS_A_SECOND)


def nonsense(digest: Digest, num_peers: int) -> str | None:
    """The field that no honest peer would send so, or None. The loss may be anything: it is what diverges first."""
    shares = (digest.computing, digest.waiting, digest.exchanging, digest.mixing, digest.finished_fraction)
    counts = (digest.round, digest.samples, digest.max_staleness, *digest.closed_rounds.values())
    named = (*digest.lost_links, *digest.waited_for, *digest.closed_by, *digest.waits_for)
    seconds = (digest.seconds, digest.samples_per_second, digest.waits_seconds)
    checks = {
        "origin": 0 <= digest.origin < num_peers,
        "stamp": 0 <= digest.stamp < MAX_STAMP,
        "age_seconds": 0 <= digest.age_seconds <= MAX_AGE_SECONDS,
        "seconds": all(0 <= number <= MAX_COUNT for number in seconds),
        "counts": all(0 <= count <= MAX_COUNT for count in counts),
        "shares": all(0 <= share <= 1 for share in (*shares, *digest.waited_for.values(), *digest.closed_by.values())),
        "peers": all(0 <= peer < num_peers for peer in named),
        "lengths": len(digest.lost_links) <= MAX_LOST_LINKS
        and max(len(digest.waited_for), len(digest.closed_by), len(digest.waits_for)) <= MAX_SHARES,
    }
    return next((field for field, sound in checks.items() if not sound), None)


class DigestBook:
    """The newest digest of each peer that this peer has heard of, and what its neighbours have yet to be told.

    neighbors(peer): who hears that peer's digests from itself, if nothing is broken; nobody, if that is not known. Holds at most one
    digest of each peer, and as many names for each link.
    first_stamp: should be above those of this peer's last life, such as a wall clock in milliseconds; nothing breaks if it is not.
    """

    __slots__ = ("_aged", "_aged_at", "_held", "_neighbors", "_num_peers", "_peer", "_stamp", "_untold")

    def __init__(
        self, peer: int, num_peers: int, neighbors: Callable[[int], Collection[int]], first_stamp: int = 0
    ) -> None:
        self._peer = peer
        self._num_peers = num_peers
        self._neighbors = neighbors
        self._stamp = first_stamp
        self._held: dict[int, Held] = {}
        self._aged: dict[int, Digest] = {}  # as they are told at one moment
        self._aged_at = math.nan
        self._untold: dict[int, dict[int, None]] = {}  # link -> origins, in the order of the news

    @property
    def held(self) -> Mapping[int, Held]:
        """By origin; this peer's own is there once it has said one."""
        return self._held

    def say(self, digest: Digest, now: float) -> Digest:
        """Say this of oneself, under the next stamp; returns it with that stamp."""
        self._stamp += 1
        said = digest._replace(origin=self._peer, stamp=self._stamp, age_seconds=0.0)
        self._take(said, now, sender=self._peer)
        return said

    def hear(self, sender: int, digests: Iterable[Digest], now: float) -> list[tuple[Digest | None, Digest]]:
        """Digests from a linked peer, all of them sound. Returns those that were news, each with what was held before."""
        news: list[tuple[Digest | None, Digest]] = []
        for digest in digests:
            if digest.origin == self._peer:
                if digest.stamp <= MAX_OWN_STAMP:
                    self._stamp = max(self._stamp, digest.stamp)  # the next is above it
                continue
            before = self._held.get(digest.origin)
            if before is None or digest.stamp > before.digest.stamp:
                news.append((before.digest if before is not None else None, digest))
                self._take(digest, now, sender)
            if before is not None and digest.stamp >= before.digest.stamp:
                self._untold.get(sender, {}).pop(digest.origin, None)
        return news

    def news_for(self, neighbor: int, now: float) -> list[Digest]:
        """What that neighbour is to be told now, the oldest news first, with its age; `told` it once it was sent. All neighbours are told
        the same objects at the same moment."""
        if now != self._aged_at:
            self._aged.clear()
            self._aged_at = now
        return [self._as_of(origin, now) for origin in islice(self._untold.get(neighbor, ()), MAX_IN_MESSAGE)]

    def _as_of(self, origin: int, now: float) -> Digest:
        digest, said_at = self._held[origin]
        aged = self._aged.get(origin)
        if aged is None or aged.stamp != digest.stamp:
            age = min(max(now - said_at, 0.0), MAX_AGE_SECONDS)
            aged = self._aged[origin] = digest._replace(age_seconds=age)
        return aged

    def told(self, neighbor: int, digests: Iterable[Digest]) -> None:
        """These are on their way to it."""
        untold = self._untold.get(neighbor, {})
        for digest in digests:
            if self._held[digest.origin].digest.stamp == digest.stamp:
                untold.pop(digest.origin, None)

    def link_up(self, neighbor: int) -> None:
        """It is told all there is, also what is held of itself: it may have started again."""
        self._untold[neighbor] = dict.fromkeys(self._held)

    def link_down(self, neighbor: int) -> None:
        self._untold.pop(neighbor, None)

    def _take(self, digest: Digest, now: float, sender: int) -> None:
        self._held[digest.origin] = Held(digest, now - digest.age_seconds)
        listeners = self._neighbors(digest.origin) if digest.origin != self._peer else ()
        # who has it, or hears it from the origin itself
        passed_over = {sender, digest.origin, *set(listeners).difference(digest.lost_links)}
        for link, untold in self._untold.items():
            if link in passed_over:
                continue
            untold.pop(digest.origin, None)
            untold[digest.origin] = None
