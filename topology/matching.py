"""Decomposition of a graph into matchings: sets of disjoint edges that can talk at the same time.

Misra & Gries 1992, "A constructive proof of Vizing's theorem": a proper edge colouring with at most max degree + 1 colours.
"""

from __future__ import annotations

import itertools

from topology.graph import Edge, Matching, Topology


def decompose(topology: Topology) -> tuple[Matching, ...]:
    """The matchings that the topology's source fixed, or those of Misra and Gries."""
    return topology.matchings if topology.matchings is not None else misra_gries(topology)


def misra_gries(topology: Topology) -> tuple[Matching, ...]:
    """At most max degree + 1 matchings that are disjoint and cover all edges, the largest first; a function of the graph only.

    Max degree colours are tried first, in two orders of the edges: enough for every bipartite graph (König 1916) and every complete
    graph of an even number of peers, and for most others. If an edge gets stuck, Misra and Gries' fans do it with one colour more.
    """
    coloring = _with_max_degree_colors(topology)
    if coloring is None:
        coloring = _Coloring(topology.num_peers, topology.max_degree + 1)
        for edge in topology.edges:
            coloring.add(*edge)
    by_color: dict[int, list[Edge]] = {}
    for i, j in topology.edges:
        by_color.setdefault(coloring.at[i][j], []).append((i, j))
    ordered = sorted(by_color.values(), key=lambda edges: (-len(edges), edges))
    return tuple(tuple(sorted(edges)) for edges in ordered)


def _with_max_degree_colors(topology: Topology) -> _Coloring | None:
    """The best that is possible, if exchanging two colours along a path is all it takes."""
    last = topology.num_peers - 1

    def in_a_circle(edge: Edge) -> tuple[int, Edge]:
        """The rounds of a tournament: the last peer in the middle, the others around it."""
        i, j = edge
        return ((i + j) % last if j < last else 2 * i % last), edge

    for edges in (topology.edges, sorted(topology.edges, key=in_a_circle)):
        coloring = _Coloring(topology.num_peers, topology.max_degree)
        if all(coloring.add_by_exchange(*edge) for edge in edges):
            return coloring
    return None


class _Coloring:
    """at[i][j]: colour of edge (i, j). _used[i][c]: the other end of i's edge of colour c."""

    def __init__(self, num_peers: int, num_colors: int) -> None:
        self.at: list[dict[int, int]] = [{} for _ in range(num_peers)]
        self._used: list[dict[int, int]] = [{} for _ in range(num_peers)]
        self._num_colors = num_colors

    def add(self, u: int, v: int) -> None:
        """Colour one more edge: Misra and Gries' step, with the shortcut for a colour that is free on both ends."""
        if self._add_by_common_color(u, v):
            return
        fan = self._maximal_fan(u, v)
        c, d = self._free(u), self._free(fan[-1])
        self._invert_path(u, c, d)
        end = next(k for k in range(len(fan)) if d not in self._used[fan[k]] and self._is_fan(u, fan[: k + 1]))
        self._rotate(u, fan[: end + 1])
        self._paint(u, fan[end], d)

    def add_by_exchange(self, u: int, v: int) -> bool:
        """Colour one more edge, if need be after exchanging c (free on u) and d (free on v) along the path of both from u (Kempe
        1879). False, and nothing is changed, if each such path ends at v."""
        if self._add_by_common_color(u, v):
            return True
        for c in self._all_free(u):
            for d in self._all_free(v):
                if self._path(u, c, d)[-1] != v:
                    self._invert_path(u, c, d)
                    self._paint(u, v, d)
                    return True
        return False

    def _add_by_common_color(self, u: int, v: int) -> bool:
        common = next((c for c in self._all_free(u) if c not in self._used[v]), None)
        if common is not None:
            self._paint(u, v, common)
        return common is not None

    def _all_free(self, u: int) -> list[int]:
        return [c for c in range(self._num_colors) if c not in self._used[u]]

    def _free(self, u: int) -> int:
        return next(c for c in range(self._num_colors) if c not in self._used[u])

    def _maximal_fan(self, u: int, v: int) -> list[int]:
        """[v = f0, f1, ...]: the colour of (u, f_{k+1}) is free on f_k; can't be longer."""
        fan, left = [v], dict.fromkeys(self.at[u])
        while (following := next((w for w in left if self.at[u][w] not in self._used[fan[-1]]), None)) is not None:
            fan.append(following)
            del left[following]
        return fan

    def _is_fan(self, u: int, fan: list[int]) -> bool:
        return all(self.at[u][fan[k + 1]] not in self._used[fan[k]] for k in range(len(fan) - 1))

    def _invert_path(self, u: int, c: int, d: int) -> None:
        """Swap colours c and d along the maximal path from u that begins with d (c is free on u)."""
        path = self._path(u, c, d)
        edges = list(itertools.pairwise(path))
        colors = [self.at[a][b] for a, b in edges]
        for a, b in edges:
            self._erase(a, b)
        for (a, b), color in zip(edges, colors, strict=True):
            self._paint(a, b, c if color == d else d)

    def _path(self, u: int, c: int, d: int) -> list[int]:
        """The peers along the maximal path from u whose edges have the colours d, c, d, ... (c is free on u)."""
        path, color = [u], d
        while (following := self._used[path[-1]].get(color)) is not None:
            path.append(following)
            color = c if color == d else d
        return path

    def _rotate(self, u: int, fan: list[int]) -> None:
        """Give (u, f_k) the colour of (u, f_{k+1}); the last one becomes free."""
        colors = [self.at[u][w] for w in fan[1:]]
        for w in fan[1:]:
            self._erase(u, w)
        for w, color in zip(fan, colors, strict=False):
            self._paint(u, w, color)

    def _paint(self, u: int, v: int, color: int) -> None:
        self.at[u][v] = self.at[v][u] = color
        self._used[u][color], self._used[v][color] = v, u

    def _erase(self, u: int, v: int) -> None:
        color = self.at[u].pop(v)
        del self.at[v][u], self._used[u][color], self._used[v][color]
