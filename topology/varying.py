"""Topologies in which everybody talks to few others in each round, and to other ones in the next: who, and with what weight.

    base                   Base-(k+1) graph (base_graph.py): exact consensus of any number of peers, at most k neighbours a round
    one-peer-exponential   one neighbour a round, exact consensus of n = 2^t peers in t rounds (Ying et al. 2021, arXiv 2110.13363)
    equidyn                OU-EquiDyn: at most one neighbour a round, agreement at a rate that does not depend on n (Song et al. 2022,
                           arXiv 2210.07881)

A schedule's `base` is the union of all its rounds: control words flood over it, and its links are open all the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

from topology.base_graph import Weights, base_graph
from topology.graph import Matching, Topology, TopologyError, build, check_enough
from topology.randomness import stable_seed, stable_uniform
from topology.schedule import RoundPlan, Schedule, digest_of, make_plan


class VaryingSchedule(Schedule, Protocol):
    """A schedule that brings its weights along."""

    @property
    def name(self) -> str: ...

    @property
    def period(self) -> int | None:
        """Rounds after which everybody has the mean of all, exactly, and it begins again; None: it never is exact."""

    @property
    def contraction(self) -> float | None:
        """The factor by which the mean squared distance from the mean shrinks a round, in expectation, at worst; None with a period."""


def build_varying(name: str, num_peers: int, *, seed: int = 0, k: int | None = None) -> VaryingSchedule:
    """The schedule of that name in VARYING. k: of `base`, 1 if None. Raises TopologyError."""
    if k is not None and name != "base":
        raise TopologyError(f"--base-k: {name} has none; it is for --topology base")
    check_enough(name, num_peers)
    if name == "base":
        return PeriodicSchedule(name, num_peers, _frozen(base_graph(num_peers, 1 if k is None else k)))
    if name == "one-peer-exponential":
        return PeriodicSchedule(name, num_peers, _frozen(_one_peer_exponential(num_peers)))
    return EquiDynSchedule(num_peers, seed)


Rounds = tuple[tuple[tuple[int, int, float], ...], ...]


def _frozen(rounds: list[Weights]) -> Rounds:
    return tuple(tuple((i, j, w) for (i, j), w in sorted(weights.items())) for weights in rounds)


@dataclass(frozen=True)
class PeriodicSchedule:
    """A few graphs over and over: round k has the edges (i, j, weight) of rounds[k mod their number]."""

    name: str
    num_peers: int
    rounds: Rounds

    @property
    def period(self) -> int:
        return len(self.rounds)

    @property
    def contraction(self) -> None:
        return None

    @cached_property
    def _union(self) -> Topology:
        edges = {(i, j) for weights in self.rounds for i, j, _ in weights}
        return Topology(self.name, self.num_peers, tuple(sorted(edges)))

    @cached_property
    def _plans(self) -> list[list[RoundPlan]]:
        """By round of the period, then by peer."""
        plans = []
        for weights in self.rounds:
            rows: list[dict[int, float]] = [{} for _ in range(self.num_peers)]
            for i, j, w in weights:
                rows[i][j] = rows[j][i] = w
            plans.append([make_plan(0, peer, row) for peer, row in enumerate(rows)])
        return plans

    def plan(self, round: int, peer: int) -> RoundPlan:
        return self._plans[round % len(self.rounds)][peer]._replace(round=round)

    def base(self, round: int) -> Topology:
        return self._union

    def links(self, round: int, peer: int) -> tuple[int, ...]:
        return self._union.neighbors(peer)

    def digest(self) -> str:
        return digest_of("periodic", self.num_peers, self.rounds)


def _one_peer_exponential(num_peers: int) -> list[Weights]:
    """In round t peers i and i xor 2^t average. The paper's edges are directed, from i to i + 2^t; between two ends of an edge that
    count together or not at all this is the form that they can have, with the same neighbours a round, period and exactness."""
    if num_peers & (num_peers - 1):
        raise TopologyError(
            f"one-peer-exponential: {num_peers} is not a power of two, and for others it is not exact; use --topology base, which is for"
            " any number of peers"
        )
    hops = [1 << t for t in range(num_peers.bit_length() - 1)]
    return [{(i, i ^ hop): 0.5 for i in range(num_peers) if not i & hop} for hop in hops]


@dataclass(frozen=True)
class EquiDynSchedule:
    """OU-EquiDyn (Song, Li, Jin, Shi, Yan, Yin, Yuan 2022, arXiv 2210.07881) with eta = 1/2.

    In round k a shift u is drawn from a basis, and a start s; from s on, peer i is paired with i + u mod n if both are still free. Pairs
    mix with weight eta (n - 1) / n, so that E ||W x - mean||^2 <= (1 - 4/3 eta (1 - eta) (1 - rho)) ||x - mean||^2, rho the second
    eigenvalue of the basis' mean (`basis_rho`), for which O(log n) shifts are enough whatever n. Here they are 2 ceil(log2 n), the best
    of 16 draws; or all n - 1, and rho = 0, if that is fewer. `contraction` is the factor itself.
    """

    num_peers: int
    seed: int = 0

    @property
    def name(self) -> str:
        return "equidyn"

    @property
    def period(self) -> None:
        return None

    @cached_property
    def basis(self) -> tuple[int, ...]:
        """The shifts, ascending; they connect all peers."""
        n = self.num_peers
        size = 2 * math.ceil(math.log2(n))
        if size >= n - 1:
            return tuple(range(1, n))
        draws = [_draw(self.seed, n, size, attempt) for attempt in range(16)]
        return min(draws, key=lambda basis: round(basis_rho(n, basis), 6))

    @property
    def weight(self) -> float:
        return 0.5 * (self.num_peers - 1) / self.num_peers

    @cached_property
    def contraction(self) -> float:
        """lambda_max of E W'W without the mean: 1 - 4 w (1 - w) min_f mean_u (m_u / n) (1 - cos(2 pi f u / n)), m_u the pairs of a round
        with shift u. Every start is as likely as another, so that E W'W is circulant."""
        n, w = self.num_peers, self.weight
        share = {u: len(pairs_of_shift(n, u, 0)) / n for u in self.basis}
        slowest = min(
            sum(m * (1 - math.cos(2 * math.pi * f * u / n)) for u, m in share.items()) for f in range(1, n // 2 + 1)
        )
        return 1 - 4 * w * (1 - w) * slowest / len(self.basis)

    @cached_property
    def _union(self) -> Topology:
        n = self.num_peers
        edges = {(min(i, j), max(i, j)) for i in range(n) for u in self.basis if (j := (i + u) % n) != i}
        return Topology(self.name, n, tuple(sorted(edges)))

    def pairs(self, round: int) -> Matching:
        """Who talks in that round."""
        return _equidyn_round(self.num_peers, self.basis, self.seed, round)[0]

    def plan(self, round: int, peer: int) -> RoundPlan:
        partner = _equidyn_round(self.num_peers, self.basis, self.seed, round)[1].get(peer)
        return make_plan(round, peer, {} if partner is None else {partner: self.weight})

    def base(self, round: int) -> Topology:
        return self._union

    def links(self, round: int, peer: int) -> tuple[int, ...]:
        return self._union.neighbors(peer)

    def digest(self) -> str:
        return digest_of("equidyn", self.num_peers, self.basis, self.seed)


def basis_rho(n: int, basis: tuple[int, ...]) -> float:
    """The second eigenvalue of the mean of the basis' matrices, (n - 1) / n on the shift, both ways, and 1 / n on the peer itself:
    1 / n + (n - 1) / n max_f mean_u cos(2 pi f u / n). 0 for all n - 1 shifts; 1 for those that do not connect all peers."""
    cosines = (sum(math.cos(2 * math.pi * f * u / n) for u in basis) for f in range(1, n // 2 + 1))
    return (1 + (n - 1) * max(cosines) / len(basis)) / n


def _draw(seed: int, n: int, size: int, attempt: int) -> tuple[int, ...]:
    """So many different shifts out of 1 .. n - 1."""
    shifts = sorted(range(1, n), key=lambda u: stable_seed(seed, "equidyn basis", attempt, u))
    return tuple(sorted(shifts[:size]))


@lru_cache(maxsize=64)
def _equidyn_round(n: int, basis: tuple[int, ...], seed: int, round: int) -> tuple[Matching, Mapping[int, int]]:
    """(the pairs, each peer's partner). Remembered, because a simulator asks for all its peers."""
    u = basis[int(stable_uniform(seed, "equidyn shift", round) * len(basis))]
    pairs = pairs_of_shift(n, u, int(stable_uniform(seed, "equidyn start", round) * n))
    return pairs, {**dict(pairs), **{j: i for i, j in pairs}}


def pairs_of_shift(n: int, u: int, start: int) -> Matching:
    """From `start` on, i with i + u, if both are free."""
    free, pairs = [True] * n, []
    for i in (*range(start, n), *range(start)):
        j = (i + u) % n
        if free[i] and free[j]:
            free[i] = free[j] = False
            pairs.append((min(i, j), max(i, j)))
    return tuple(sorted(pairs))


@dataclass(frozen=True)
class RandomPairsSchedule:
    """Every round all peers fall into random pairs, each pair as likely as another, which average; of an odd number one rests."""

    num_peers: int
    seed: int = 0

    @cached_property
    def _union(self) -> Topology:
        return build("complete", self.num_peers)

    def plan(self, round: int, peer: int) -> RoundPlan:
        partner = _random_pairs(self.num_peers, self.seed, round).get(peer)
        return make_plan(round, peer, {} if partner is None else {partner: 0.5})

    def base(self, round: int) -> Topology:
        return self._union

    def links(self, round: int, peer: int) -> tuple[int, ...]:
        return self._union.neighbors(peer)

    def digest(self) -> str:
        return digest_of("random pairs", self.num_peers, self.seed)


@lru_cache(maxsize=64)
def _random_pairs(n: int, seed: int, round: int) -> Mapping[int, int]:
    """Each peer's partner. Remembered, because a simulator asks for all its peers."""
    order = sorted(range(n), key=lambda i: stable_seed(seed, "pairs", round, i))
    pairs = list(zip(order[::2], order[1::2], strict=False))
    return {**dict(pairs), **{j: i for i, j in pairs}}
