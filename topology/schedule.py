"""Who talks to whom in round k, with what weight: pure functions of (seed, round), equal on every peer and platform."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

from topology.graph import RANDOM_TOPOLOGIES, Topology, TopologyError, build
from topology.matcha import MatchaPlan, Solutions, solve
from topology.mixing import MIXINGS, MixingMatrix, metropolis_row
from topology.randomness import stable_seed, stable_uniform


class RoundPlan(NamedTuple):
    """One peer's part in one round: x_i <- self_weight x_i + sum_j weights_j x_j over its neighbors j (sorted) of this round.

    Of methods without rounds: instead: who takes the place of a neighbor that takes part in nothing, the first first. asked_by: who may
    choose this peer, at any time.
    """

    round: int
    peer: int
    neighbors: tuple[int, ...]
    weights: tuple[float, ...]
    self_weight: float
    active_matchings: tuple[int, ...] = ()
    instead: tuple[int, ...] = ()
    asked_by: tuple[int, ...] = ()


class Schedule(Protocol):
    """j is in plan(k, i).neighbors if and only if i is in plan(k, j).neighbors, with the same weight."""

    @property
    def num_peers(self) -> int: ...

    def plan(self, round: int, peer: int) -> RoundPlan: ...

    def base(self, round: int) -> Topology:
        """The graph over which control words flood."""

    def links(self, round: int, peer: int) -> tuple[int, ...]:
        """Peers with which a connection should be open in that round."""

    def digest(self) -> str:
        """Equal on two peers if and only if they follow the same schedule."""


def digest_of(*facts: object) -> str:
    """Equal if and only if all facts are (up to a collision of 64 bits)."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def make_plan(round: int, peer: int, weights: dict[int, float], active: tuple[int, ...] = ()) -> RoundPlan:
    """weights: by neighbour; the rest is the peer's own."""
    neighbors = tuple(sorted(weights))
    values = tuple(weights[j] for j in neighbors)
    return RoundPlan(round, peer, neighbors, values, 1.0 - sum(values), active)


@dataclass(frozen=True)
class FixedSchedule:
    """The same graph and weights in every round. mixing: a name in MIXINGS."""

    topology: Topology
    mixing: str = "metropolis"

    def __post_init__(self) -> None:
        if self.mixing not in MIXINGS:
            raise TopologyError(f"--mixing: unknown mixing {self.mixing!r}; valid are {', '.join(MIXINGS)}")

    @property
    def num_peers(self) -> int:
        return self.topology.num_peers

    @cached_property
    def _matrix(self) -> MixingMatrix:
        return MIXINGS[self.mixing](self.topology)

    @cached_property
    def _first(self) -> dict[int, RoundPlan]:
        """By peer: its plan of round 0, once asked for. A peer needs its own only, so the matrix is not built for Metropolis."""
        return {}

    def plan(self, round: int, peer: int) -> RoundPlan:
        first = self._first.get(peer)
        if first is None:
            local = self.mixing == "metropolis"
            row = metropolis_row(self.topology, peer) if local else self._matrix.row(peer)
            first = self._first[peer] = make_plan(0, peer, dict(row))
        return RoundPlan(round, peer, first.neighbors, first.weights, first.self_weight)

    def base(self, round: int) -> Topology:
        return self.topology

    def links(self, round: int, peer: int) -> tuple[int, ...]:
        return self.topology.neighbors(peer)

    def digest(self) -> str:
        return digest_of("fixed", self.topology.digest(), self.mixing)


@dataclass(frozen=True)
class RandomGraphSchedule:
    """A new random graph from the shared seed every `every` rounds, with Metropolis weights.

    Links to the next graph's neighbours are asked for one graph ahead, so that they are open when it begins.
    """

    name: str
    num_peers: int
    every: int
    seed: int
    degree: int | None = None
    probability: float | None = None
    radius: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise TopologyError(f"--random-graph-every: {self.every} is not a number of rounds; use 1 or more")
        if self.name not in RANDOM_TOPOLOGIES:
            raise TopologyError(
                f"--random-graph-every: {self.name} is the same graph every time; use --topology {', '.join(sorted(RANDOM_TOPOLOGIES))}"
            )

    def graph(self, number: int) -> Topology:
        """Graph number `number`."""
        return _random_graph(self, number)

    def plan(self, round: int, peer: int) -> RoundPlan:
        return make_plan(round, peer, dict(metropolis_row(self.base(round), peer)))

    def base(self, round: int) -> Topology:
        return self.graph(round // self.every)

    def links(self, round: int, peer: int) -> tuple[int, ...]:
        number = round // self.every
        return tuple(sorted({*self.graph(number).neighbors(peer), *self.graph(number + 1).neighbors(peer)}))

    def digest(self) -> str:
        options = (self.degree, self.probability, self.radius, self.seed)
        return digest_of("random", self.name, self.num_peers, self.every, *options, self.graph(0).digest())


@lru_cache(maxsize=8)
def _random_graph(schedule: RandomGraphSchedule, number: int) -> Topology:
    return build(
        schedule.name,
        schedule.num_peers,
        seed=stable_seed(schedule.seed, "random graph", number),
        degree=schedule.degree,
        probability=schedule.probability,
        radius=schedule.radius,
    )


@dataclass(frozen=True)
class MatchaSchedule:
    """B_j(k) ~ Bernoulli(p_j) from the shared seed; W(k) = I - alpha sum_j B_j(k) L_j. Raises TopologyError on a bad budget."""

    topology: Topology
    budget: float
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.solution

    @property
    def num_peers(self) -> int:
        return self.topology.num_peers

    @cached_property
    def solution(self) -> MatchaPlan:
        return solve(self.topology, self.budget)

    @cached_property
    def _partner(self) -> list[dict[int, int]]:
        """By matching: each peer's partner in it."""
        return [{**dict(matching), **{j: i for i, j in matching}} for matching in self.solution.matchings]

    def active(self, round: int) -> tuple[int, ...]:
        """Indices of the matchings that talk in that round."""
        return _active(self.seed, round, self.solution.activation_probabilities)

    def plan(self, round: int, peer: int) -> RoundPlan:
        active = self.active(round)
        partners = [self._partner[j][peer] for j in active if peer in self._partner[j]]
        return make_plan(round, peer, dict.fromkeys(partners, self.solution.alpha), active)

    def base(self, round: int) -> Topology:
        return self.topology

    def links(self, round: int, peer: int) -> tuple[int, ...]:
        return self.topology.neighbors(peer)

    def digest(self) -> str:
        solution = self.solution
        facts = (solution.matchings, solution.activation_probabilities, solution.alpha)
        return digest_of("matcha", self.topology.digest(), *facts, self.seed)


@dataclass(frozen=True)
class AlternatingSchedule:
    """Round k follows schedule k mod R of R over the same peers. Links to the neighbours in all of them are open all the time."""

    schedules: tuple[Schedule, ...]

    @property
    def num_peers(self) -> int:
        return self.schedules[0].num_peers

    def _of(self, round: int) -> Schedule:
        return self.schedules[round % len(self.schedules)]

    def plan(self, round: int, peer: int) -> RoundPlan:
        return self._of(round).plan(round, peer)

    def base(self, round: int) -> Topology:
        return self._of(round).base(round)

    @cached_property
    def _links(self) -> dict[int, tuple[int, ...]]:
        return {}

    def links(self, round: int, peer: int) -> tuple[int, ...]:
        found = self._links.get(peer)
        if found is None:
            everybody = {j for schedule in self.schedules for j in schedule.links(0, peer)}
            found = self._links[peer] = tuple(sorted(everybody))
        return found

    def digest(self) -> str:
        return digest_of("alternating", [schedule.digest() for schedule in self.schedules])


def solutions(schedule: Schedule) -> Solutions:
    """What had to be computed for it, of MATCHA's graphs; empty for all others."""
    if isinstance(schedule, AlternatingSchedule):
        return {graph: plan for each in schedule.schedules for graph, plan in solutions(each).items()}
    return {schedule.topology.digest(): schedule.solution} if isinstance(schedule, MatchaSchedule) else {}


@lru_cache(maxsize=64)
def _active(seed: int, round: int, probabilities: tuple[float, ...]) -> tuple[int, ...]:
    """Remembered, because a simulator asks for all its peers."""
    return tuple(j for j, p in enumerate(probabilities) if stable_uniform(seed, "matcha", round, j) < p)


@dataclass(frozen=True)
class PairSchedule:
    """For methods without rounds: in its round k peer i averages with a random neighbour of higher id, if it has one, which does not choose
    but answers. Who waits for an answer waits for a higher id, so waiting never goes in a circle, whatever the graph."""

    topology: Topology
    seed: int

    @property
    def num_peers(self) -> int:
        return self.topology.num_peers

    def plan(self, round: int, peer: int) -> RoundPlan:
        neighbors = self.topology.neighbors(peer)
        lower, higher = tuple(j for j in neighbors if j < peer), [j for j in neighbors if j > peer]
        if not higher:
            return RoundPlan(round, peer, (), (), 1.0, asked_by=lower)
        chosen = higher.pop(int(stable_uniform(self.seed, "pair", peer, round) * len(higher)))
        higher.sort(key=lambda j: stable_uniform(self.seed, "instead", peer, round, j))
        return RoundPlan(round, peer, (chosen,), (0.5,), 0.5, instead=tuple(higher), asked_by=lower)

    def base(self, round: int) -> Topology:
        return self.topology

    def links(self, round: int, peer: int) -> tuple[int, ...]:
        return self.topology.neighbors(peer)

    def digest(self) -> str:
        return digest_of("pairs", self.topology.digest(), self.seed)
