"""Injected delays: peers that are slow on purpose, so that algorithms can be compared on one machine.

A spec is `peers=effect`. Peers: `all`, or numbers and ranges such as `0`, `1,2`, `0-3`. Effects on the time of a chunk:

    4x           always 4 times as long
    exp:1.0      times 1 + Exp(mean 1.0), one draw per peer and round
    pareto:2     times Pareto(shape 2, minimum 1), one draw per peer and round; mean a / (a - 1) for a > 1
    pause:30s@20s   nothing is computed for 30 s, from 20 s after the run's start (units ms, s, m)

Several effects on one peer multiply; pauses add up. Draws depend on (seed, peer, round) only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from topology.randomness import stable_uniform

_UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0}
_TIME = r"(\d+\.?\d*|\.\d+)(ms|s|m|)"
_EXAMPLE = "write for instance '0=4x', 'all=exp:1.0', '1,3-5=pareto:2' or '2=pause:30s@20s'"


class StragglerError(ValueError):
    """A spec that says nothing; the message is one sentence with an example."""


@dataclass(frozen=True, slots=True)
class Slowness:
    """How much slower one peer is, and when.

    constant: factor of every chunk. exponentials: means; paretos: shapes, each one draw per round.
    pauses: (begin, end) in seconds since the run's start.
    """

    seed: int = 0
    peer: int = 0
    constant: float = 1.0
    exponentials: tuple[float, ...] = ()
    paretos: tuple[float, ...] = ()
    pauses: tuple[tuple[float, float], ...] = ()

    def factor(self, round: int) -> float:
        """How many times its nominal time a chunk of this round takes."""
        factor = self.constant
        for which, mean in enumerate(self.exponentials):
            factor *= 1.0 - mean * math.log1p(-self._uniform("exp", round, which))
        for which, shape in enumerate(self.paretos):
            factor *= (1.0 - self._uniform("pareto", round, which)) ** (-1.0 / shape)
        return factor

    def pause_until(self, now: float) -> float:
        """The end of the pause if `now` lies in one, else `now`; seconds since the run's start."""
        for begin, end in sorted(self.pauses):
            if begin <= now < end:
                now = end
        return now

    def finish(self, begin: float, seconds: float) -> float:
        """When work of so many seconds ends that begins at `begin`, if it rests during the pauses."""
        now = self.pause_until(begin)
        for pause, _ in sorted(self.pauses):
            if now < pause < now + seconds:
                seconds -= pause - now
                now = self.pause_until(pause)
        return now + seconds

    def _uniform(self, kind: str, round: int, which: int) -> float:
        return stable_uniform(self.seed, f"straggler-{kind}", self.peer, round, which)


@dataclass(frozen=True, slots=True)
class Stragglers:
    """The slowness of every peer."""

    peers: tuple[Slowness, ...]

    def for_peer(self, peer: int) -> Slowness:
        return self.peers[peer]


def parse(specs: Sequence[str], num_peers: int, seed: int = 0) -> Stragglers:
    """The delays that the specs describe, for peers 0 .. num_peers-1. Raises StragglerError."""
    peers = [Slowness(seed, peer) for peer in range(num_peers)]
    for spec in specs:
        target, _, effect = spec.replace(" ", "").partition("=")
        for peer in _targets(spec, target, num_peers):
            peers[peer] = _slowed(peers[peer], spec, effect)
    return Stragglers(tuple(peers))


def _targets(spec: str, target: str, num_peers: int) -> list[int]:
    if target == "all":
        return list(range(num_peers))
    peers: set[int] = set()
    for part in target.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part, re.ASCII)
        if not found:
            raise StragglerError(f"straggler {spec!r} names no peers before '='; {_EXAMPLE}.")
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last or last >= num_peers:
            raise StragglerError(f"straggler {spec!r}: {part} is not within peers 0 to {num_peers - 1}; {_EXAMPLE}.")
        peers.update(range(first, last + 1))
    return sorted(peers)


def _slowed(peer: Slowness, spec: str, effect: str) -> Slowness:
    if pause := re.fullmatch(rf"pause:{_TIME}@{_TIME}", effect, re.ASCII):
        length, begin = float(pause[1]) * _UNITS[pause[2]], float(pause[3]) * _UNITS[pause[4]]
        return replace(peer, pauses=(*peer.pauses, (begin, begin + length)))
    found = re.fullmatch(r"(?:(exp|pareto):)?(\d+\.?\d*|\.\d+)(x?)", effect, re.ASCII)
    if not found or bool(found[1]) == bool(found[3]):
        raise StragglerError(f"straggler {spec!r} has no known effect after '='; {_EXAMPLE}.")
    number = float(found[2])
    if not 0 < number < math.inf:
        raise StragglerError(f"straggler {spec!r}: {found[2]} must be above 0; {_EXAMPLE}.")
    if found[1] == "exp":
        return replace(peer, exponentials=(*peer.exponentials, number))
    if found[1] == "pareto":
        return replace(peer, paretos=(*peer.paretos, number))
    return replace(peer, constant=peer.constant * number)
