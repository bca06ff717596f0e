"""What the page is told: the whole cluster as this peer knows it, as JSON. A fold over digests; nothing here changes anything."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from peer.accounts.chronicle import Event
from peer.accounts.pulse import Point
from peer.gossip.digest import Digest, Held
from peer.transport.states import state_name

MAX_PEERS: Final = 256
"""Peers in a picture: this one, its neighbours, then by their ids; the page says how many there are."""

MAX_EDGES: Final = 2048
"""Edges in a picture; of a graph with more, none are drawn."""

RECENT_EVENTS: Final = 20
"""Events in an update; who misses more than these has a gap in the log."""

OLD_AFTER: Final = 3.0
"""Knowledge is old when its age is above so many intervals of digests."""


class Watched(Protocol):
    """What a picture is made of. every: seconds between two digests of a peer. about: what is fixed for the run."""

    @property
    def peer(self) -> int: ...

    @property
    def num_peers(self) -> int: ...

    @property
    def every(self) -> float: ...

    @property
    def about(self) -> Mapping[str, str]: ...

    @property
    def held(self) -> Mapping[int, Held]: ...

    @property
    def events(self) -> Sequence[Event]: ...

    @property
    def curve(self) -> Sequence[Point]: ...

    @property
    def latest(self) -> Point | None: ...

    def now(self) -> float:
        """On the clock of `held`."""

    def edges(self) -> Sequence[tuple[int, int]]:
        """Of the graph of now."""

    def membership(self, peer: int) -> str:
        """alive, suspect or left."""


def whole(watched: Watched) -> str:
    """All there is: what a browser is told when it comes, and `/state`."""
    about = {
        **watched.about,
        "peer": watched.peer,
        "num_peers": watched.num_peers,
        "old_after": OLD_AFTER * watched.every,
    }
    curve = [*watched.curve, *([watched.latest] if watched.latest is not None else [])]
    picture = _now(watched, watched.events)
    return _line({"about": about, **picture, "curve": [list(map(_number, point)) for point in curve]})


def update(watched: Watched) -> str:
    """What has changed since a moment ago, and all that is small: losing one harms nothing."""
    events = list(watched.events)[-RECENT_EVENTS:]
    latest = watched.latest
    return _line({**_now(watched, events), "point": None if latest is None else list(map(_number, latest))})


def _now(watched: Watched, events: Iterable[Event]) -> dict[str, Any]:
    now, held = watched.now(), watched.held
    edges = watched.edges()
    shown = _shown(watched, edges)
    reasons: Counter[str] = Counter()
    for digest, _ in held.values():
        reasons.update(digest.closed_rounds)
    return {
        "at": round(time.time(), 3),
        "peers": [_row(watched, held[i], now) if i in held else _unheard(watched, i) for i in shown],
        "edges": [edge for edge in edges if edge[0] in shown and edge[1] in shown] if len(edges) <= MAX_EDGES else [],
        "reasons": dict(reasons),
        "events": [
            {"id": e.id, "number": e.number, "at": round(e.at, 3), "kind": e.kind, "text": e.text, "times": e.times}
            for e in events
        ],
    }


def _shown(watched: Watched, edges: Sequence[tuple[int, int]]) -> dict[int, None]:
    """Ids in order."""
    if watched.num_peers <= MAX_PEERS:
        return dict.fromkeys(range(watched.num_peers))
    near = {watched.peer, *(i + j - watched.peer for i, j in edges if watched.peer in (i, j))}
    rest = (i for i in range(watched.num_peers) if i not in near)
    chosen = [*sorted(near), *(i for i, _ in zip(rest, range(MAX_PEERS), strict=False))][:MAX_PEERS]
    return dict.fromkeys(sorted(chosen))


def _unheard(watched: Watched, peer: int) -> dict[str, Any]:
    return {"peer": peer, "age": None, "membership": watched.membership(peer)}


def _row(watched: Watched, held: Held, now: float) -> dict[str, Any]:
    digest, age = held.digest, max(now - held.said_at, 0.0)
    if digest.origin == watched.peer:  # it knows itself as of now
        if digest.waits_for:
            digest = digest._replace(waits_seconds=digest.waits_seconds + age)
        age = 0.0
    return {
        "peer": digest.origin,
        "age": _number(age),
        "membership": watched.membership(digest.origin),
        "state": state_name(digest.state),
        **{name: _number(getattr(digest, name)) for name in _PLAIN},
        "closed_rounds": dict(digest.closed_rounds),
        "lost_links": list(digest.lost_links),
        "waited_for": _pairs(digest.waited_for),
        "closed_by": _pairs(digest.closed_by),
        "waits_for": list(digest.waits_for),
    }


def _pairs(shares: Mapping[int, float]) -> list[list[float | None]]:
    return [[peer, _number(share)] for peer, share in shares.items()]


def _number(value: float) -> float | None:
    """Six digits are enough for a picture; JSON has no NaN and no infinity."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _line(picture: Mapping[str, Any]) -> str:
    return json.dumps(picture, separators=(",", ":"), allow_nan=False)


_ODD: Final = {
    *("origin", "stamp", "age_seconds", "state"),
    *("closed_rounds", "lost_links", "waited_for", "closed_by", "waits_for"),
}
_PLAIN: Final = tuple(name for name in Digest._fields if name not in _ODD)
