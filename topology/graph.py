"""Who is connected with whom: undirected simple graphs on peers 0 .. n-1.

A constructor is a function of the number of peers, and for the random ones of a seed; `build` finds it by name, or reads a file.
Legend: n peers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from topology import random_graphs
from topology.randomness import stable_uniform
from topology.suggestion import nearest

if TYPE_CHECKING:
    import networkx as nx

Edge = tuple[int, int]
Matching = tuple[Edge, ...]
Matrix = NDArray[np.float64]
ATTEMPTS = 200


class TopologyError(ValueError):
    """A topology, or a schedule on it, that can't be: one sentence that names the repair."""


def check_enough(name: str, num_peers: int) -> None:
    """Raises TopologyError if there is nobody to talk to."""
    if num_peers < 2:
        raise TopologyError(f"{name}: {num_peers} peer{'s' * (num_peers != 1)} is too few; a topology needs at least 2")


@dataclass(frozen=True)
class Topology:
    """A connected undirected graph. edges: sorted pairs i < j. matchings: set if the source fixed the decomposition.

    Raises TopologyError if an edge is out of range, doubled, out of order or a loop, if the graph is not connected, or if the
    matchings are not disjoint or not the graph's edges.
    """

    name: str
    num_peers: int
    edges: tuple[Edge, ...]
    matchings: tuple[Matching, ...] | None = None

    def __post_init__(self) -> None:
        check_enough(self.name, self.num_peers)
        for i, j in self.edges:
            if not 0 <= i < j < self.num_peers:
                raise TopologyError(
                    f"{self.name}: edge [{i}, {j}] is not a pair i < j of peers 0 .. {self.num_peers - 1}"
                )
        for before, after in itertools.pairwise(self.edges):
            if before == after:
                raise TopologyError(f"{self.name}: edge {list(after)} is there twice; name it once")
            if before > after:
                raise TopologyError(f"{self.name}: edge {list(after)} comes after {list(before)}; sort the edges")
        self._check_connected()
        if self.matchings is not None:
            self._check_matchings(self.matchings)

    def _check_connected(self) -> None:
        if len(self.edges) < self.num_peers - 1:  # before anything of size n is allocated: ids may come from a file
            raise TopologyError(
                f"{self.name}: the graph is disconnected, {len(self.edges)} edges can't connect {self.num_peers} peers; number the"
                " peers from 0 without gaps and add edges between the parts"
            )
        reached = _reachable(self._neighbors)
        if apart := self.num_peers - len(reached):
            lost = next(peer for peer in range(self.num_peers) if peer not in reached)
            raise TopologyError(
                f"{self.name}: the graph is disconnected, {apart} of {self.num_peers} peers (peer {lost} among them) can't be reached"
                " from peer 0; add an edge between the parts"
            )

    def _check_matchings(self, matchings: tuple[Matching, ...]) -> None:
        for index, matching in enumerate(matchings):
            if not matching:
                raise TopologyError(f"{self.name}: matching {index} is empty; leave it out")
            seen: set[int] = set()
            for edge in matching:
                if twice := seen.intersection(edge):
                    raise TopologyError(
                        f"{self.name}: matching {index} has peer {min(twice)} twice; a matching is a set of disjoint edges"
                    )
                seen.update(edge)
        if sorted(itertools.chain.from_iterable(matchings)) != list(self.edges):
            raise TopologyError(
                f"{self.name}: the matchings are not made of exactly the graph's edges; name each edge once"
            )

    @cached_property
    def _neighbors(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(sorted(row)) for row in _adjacency(self.num_peers, self.edges))

    def neighbors(self, peer: int) -> tuple[int, ...]:
        """Neighbours of a peer, sorted."""
        return self._neighbors[peer]

    def degree(self, peer: int) -> int:
        return len(self._neighbors[peer])

    @property
    def max_degree(self) -> int:
        return max(map(len, self._neighbors))

    def laplacian(self) -> Matrix:
        """L = D - A, [n, n]."""
        return laplacian(self.num_peers, self.edges)

    @cached_property
    def diameter(self) -> int:
        """Longest shortest path, in hops."""
        import networkx as nx

        return int(nx.diameter(self.as_networkx()))

    def as_networkx(self) -> nx.Graph[int]:
        import networkx as nx  # here, as it takes a sixth of a second, which every command would wait for

        graph: nx.Graph[int] = nx.Graph()
        graph.add_nodes_from(range(self.num_peers))
        graph.add_edges_from(self.edges)
        return graph

    def relabelled(self, seed: int) -> Topology:
        """The same graph with its places dealt to the peers anew, by that seed. A decomposition that came with it comes along."""
        ids = sorted(range(self.num_peers), key=lambda peer: stable_uniform(seed, "relabelled", peer))

        def moved(edges: Iterable[Edge]) -> tuple[Edge, ...]:
            return tuple(sorted((min(ids[i], ids[j]), max(ids[i], ids[j])) for i, j in edges))

        matchings = None if self.matchings is None else tuple(map(moved, self.matchings))
        return Topology(self.name, self.num_peers, moved(self.edges), matchings)

    def digest(self) -> str:
        """Equal on two peers if and only if they have the same graph (and fixed matchings)."""
        return hashlib.sha256(json.dumps([self.num_peers, self.edges, self.matchings]).encode()).hexdigest()[:16]


def _adjacency(num_peers: int, edges: Iterable[Edge]) -> list[list[int]]:
    lists: list[list[int]] = [[] for _ in range(num_peers)]
    for i, j in edges:
        lists[i].append(j)
        lists[j].append(i)
    return lists


def _reachable(neighbors: Sequence[Sequence[int]]) -> set[int]:
    """The peers that a walk from peer 0 can reach."""
    reached, frontier = {0}, [0]
    while frontier:
        fresh = set(neighbors[frontier.pop()]) - reached
        reached |= fresh
        frontier += fresh
    return reached


def laplacian(num_peers: int, edges: Iterable[Edge]) -> Matrix:
    """L = D - A of some edges on n peers, [n, n]."""
    matrix = np.zeros((num_peers, num_peers))
    for i, j in edges:
        matrix[i, j] -= 1
        matrix[j, i] -= 1
        matrix[i, i] += 1
        matrix[j, j] += 1
    return matrix


@dataclass(frozen=True)
class RandomOptions:
    """Knobs of the random constructors; None: a default that is surely (or, for erdos-renyi and geometric, very likely) connected."""

    seed: int = 0
    degree: int | None = None
    probability: float | None = None
    radius: float | None = None


Constructor = Callable[[int, RandomOptions], Iterable[Edge]]


def _ring(n: int, _: RandomOptions) -> Iterable[Edge]:
    return {_sorted(i, (i + 1) % n) for i in range(n)} if n > 1 else set()


def _torus(n: int, _: RandomOptions) -> Iterable[Edge]:
    """a x b with a as near to sqrt(n) as n allows; wrapped in both directions."""
    rows = max((a for a in range(2, math.isqrt(n) + 1) if n % a == 0), default=0)
    if rows == 0:
        raise TopologyError(
            f"torus: {n} peers do not fill a grid of at least 2 x 2; use a number like {4 * max(1, round(n / 4))}, or a ring"
        )
    columns = n // rows
    edges = set()
    for r in range(rows):
        for c in range(columns):
            edges.add(_sorted(r * columns + c, r * columns + (c + 1) % columns))
            edges.add(_sorted(r * columns + c, (r + 1) % rows * columns + c))
    return edges


def _complete(n: int, _: RandomOptions) -> Iterable[Edge]:
    return ((i, j) for i in range(n) for j in range(i + 1, n))


def _star(n: int, _: RandomOptions) -> Iterable[Edge]:
    return ((0, j) for j in range(1, n))


def star(topology: Topology, head: int, asked_by: str) -> Topology:
    """The star with its middle at `head`, where the one asked for has that name or these edges. Raises TopologyError for others."""
    n = topology.num_peers
    if not 0 <= head < n:
        raise TopologyError(f"--head: there is no peer {head} among {n}; ids go from 0 to {n - 1}")
    made = Topology("star", n, tuple(sorted(_sorted(head, j) for j in range(n) if j != head)))
    if topology.name != "star" and topology.edges != made.edges:
        raise TopologyError(
            f"{asked_by} has a head, peer {head}, that talks to every other peer and to whom alone they talk: use --topology star, "
            f"not {topology.name}"
        )
    return made


def _exponential(n: int, _: RandomOptions) -> Iterable[Edge]:
    """i and i + 2^t mod n, made undirected (Ying et al. 2021, arXiv 2110.13363)."""
    hops = [2**t for t in range(max(1, math.ceil(math.log2(n))))] if n > 1 else []
    return {_sorted(i, (i + hop) % n) for i in range(n) for hop in hops if hop % n}


def _random_regular(n: int, options: RandomOptions) -> Iterable[Edge]:
    degree = options.degree
    if degree is None:
        degree = min(4, n - 1)
        degree -= (n * degree) % 2
    if not 1 <= degree < n:
        raise TopologyError(f"random-regular: --degree {degree} must be between 1 and {n - 1} for {n} peers")
    if n * degree % 2:
        raise TopologyError(
            f"random-regular: {n} peers can't all have degree {degree}, the product is odd; use --degree {degree + 1}"
        )
    if degree == 1 and n > 2:
        raise TopologyError(
            f"random-regular: with --degree 1 the graph of {n} peers is never connected; use at least 2"
        )
    return _until_connected(
        n, options.seed, lambda draw: random_graphs.random_regular(n, degree, draw), "raise --degree"
    )


def _erdos_renyi(n: int, options: RandomOptions) -> Iterable[Edge]:
    """Each edge with the given probability; default 2 ln(n) / n, twice the threshold of connectivity."""
    p = options.probability if options.probability is not None else min(1.0, 2 * math.log(n) / n)
    if not 0 < p <= 1:
        raise TopologyError(f"erdos-renyi: --probability {p:g} is outside (0, 1]; 1 is the complete graph")
    return _until_connected(n, options.seed, lambda draw: random_graphs.erdos_renyi(n, p, draw), "raise --probability")


def _geometric(n: int, options: RandomOptions) -> Iterable[Edge]:
    """Points in the unit square, joined when nearer than the radius; default sqrt(2 ln(n) / (pi n)) + 0.05, above the threshold."""
    radius = options.radius if options.radius is not None else math.sqrt(2 * math.log(n) / (math.pi * n)) + 0.05
    if not radius > 0:
        raise TopologyError(f"geometric: --radius {radius:g} must be above 0; from 1.42 on it is the complete graph")
    return _until_connected(n, options.seed, lambda draw: random_graphs.geometric(n, radius, draw), "raise --radius")


def _until_connected(n: int, seed: int, draw: Callable[[Random], set[Edge] | None], repair: str) -> Iterable[Edge]:
    """The first graph that is connected; attempt after attempt each has a generator of its own."""
    for attempt in range(ATTEMPTS):
        edges = draw(random_graphs.generator(seed, attempt))
        if edges is not None and len(_reachable(_adjacency(n, edges))) == n:
            return edges
    raise TopologyError(f"none of {ATTEMPTS} random graphs of {n} peers was connected; {repair}")


def _sorted(i: int, j: int) -> Edge:
    return (i, j) if i < j else (j, i)


TOPOLOGIES: Mapping[str, Constructor] = {
    "ring": _ring,
    "torus": _torus,
    "complete": _complete,
    "star": _star,
    "exponential": _exponential,
    "random-regular": _random_regular,
    "erdos-renyi": _erdos_renyi,
    "geometric": _geometric,
}
RANDOM_TOPOLOGIES = frozenset({"random-regular", "erdos-renyi", "geometric"})
#: What `--topology` takes beside these, from varying.py: other edges in each round.
VARYING: Final = ("base", "one-peer-exponential", "equidyn")


def build(
    name: str,
    num_peers: int | None,
    *,
    seed: int = 0,
    degree: int | None = None,
    probability: float | None = None,
    radius: float | None = None,
) -> Topology:
    """The topology of that name, or of that JSON file. num_peers may be None for a file. Raises TopologyError."""
    if name in TOPOLOGIES:
        if num_peers is None:
            raise TopologyError(f"{name}: of how many peers? name them with --peers")
        check_enough(name, num_peers)
        options = RandomOptions(seed, degree, probability, radius)
        return Topology(name, num_peers, tuple(sorted(TOPOLOGIES[name](num_peers, options))))
    if name.endswith(".json") or "/" in name or os.sep in name or Path(name).is_file():
        return from_file(Path(name), num_peers)
    hint = nearest(name, (*TOPOLOGIES, *VARYING))
    raise TopologyError(f"--topology: unknown topology {name!r}; {hint} (a JSON file of edges is fine too)")


def from_file(path: Path, num_peers: int | None = None) -> Topology:
    """A JSON list of edges [i, j], or a list of such lists, which fixes the decomposition into matchings. Raises TopologyError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TopologyError(f"{path}: {error.strerror}; give a JSON file of edges") from None
    except (ValueError, RecursionError) as error:
        raise TopologyError(f"{path}: not valid JSON: {error}; give a list of edges [i, j]") from None
    if not isinstance(content, list) or not content:
        raise TopologyError(f"{path}: expected a JSON list of edges [i, j], or a list of such lists")
    fixed = all(map(_is_group, content))
    groups = [[_edge(path, entry) for entry in group] for group in (content if fixed else [content])]
    edges = sorted(itertools.chain.from_iterable(groups))
    found = max((j for _, j in edges), default=-1) + 1
    if num_peers is not None and num_peers != found:
        raise TopologyError(f"{path}: the file has {found} peers, not {num_peers}; use --peers {found}")
    matchings = tuple(tuple(sorted(group)) for group in groups) if fixed else None
    return Topology(path.stem, found, tuple(edges), matchings)


def _is_group(entry: object) -> bool:
    return isinstance(entry, list) and all(isinstance(edge, list) for edge in entry)


def _edge(path: Path, entry: object) -> Edge:
    match entry:
        case [int(i), int(j)] if i != j and min(i, j) >= 0 and not isinstance(i, bool) and not isinstance(j, bool):
            return _sorted(i, j)
    text = json.dumps(entry)
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    raise TopologyError(f"{path}: {shown} is not an edge [i, j] of two different peers")
