"""Random graphs that a seed fixes for ever: the same on every platform and with every version of every library.

They use nothing of Python's generator but `random()` itself, the one method whose sequence Python promises to keep (networkx draws
with methods that have changed between versions), and only arithmetic that IEEE 754 defines to the last bit.
"""

from __future__ import annotations

from random import Random

from topology.randomness import stable_seed

Edges = set[tuple[int, int]]


def generator(seed: int, attempt: int) -> Random:
    """A generator for one attempt to draw a graph."""
    return Random(stable_seed(seed, "graph", attempt))


def erdos_renyi(num_peers: int, probability: float, draw: Random) -> Edges:
    """G(n, p): each pair with the given probability (Gilbert 1959)."""
    return {(i, j) for i in range(num_peers) for j in range(i + 1, num_peers) if draw.random() < probability}


def geometric(num_peers: int, radius: float, draw: Random) -> Edges:
    """Uniform points in the unit square, joined where their distance is at most the radius (Gilbert 1961)."""
    points = [(draw.random(), draw.random()) for _ in range(num_peers)]
    reach = radius * radius
    return {
        (i, j)
        for i, (x, y) in enumerate(points)
        for j in range(i + 1, num_peers)
        if (points[j][0] - x) * (points[j][0] - x) + (points[j][1] - y) * (points[j][1] - y) <= reach
    }


def random_regular(num_peers: int, degree: int, draw: Random) -> Edges | None:
    """Nearly uniform among the graphs in which every peer has that degree; None where the pairing got stuck.

    Pairs the peers' loose ends at random and puts unsuitable pairs (loops, doubled edges) back into the hat (Steger & Wormald 1999).
    """
    edges: Edges = set()
    loose = [peer for peer in range(num_peers) for _ in range(degree)]
    while loose:
        _shuffle(loose, draw)
        left: list[int] = []
        for i, j in zip(loose[::2], loose[1::2], strict=True):
            edge = (min(i, j), max(i, j))
            if i == j or edge in edges:
                left += edge
            else:
                edges.add(edge)
        if len(left) == len(loose) and not _any_suitable(set(left), edges):
            return None
        loose = left
    return edges


def _any_suitable(peers: set[int], edges: Edges) -> bool:
    return any((i, j) not in edges for i in peers for j in peers if i < j)


def _shuffle(items: list[int], draw: Random) -> None:
    """Fisher & Yates, from `random()` only."""
    for last in range(len(items) - 1, 0, -1):
        other = int(draw.random() * (last + 1))
        items[last], items[other] = items[other], items[last]
