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
    """At most max degree + 1 matchings that are disjoint and cover all edges; a function of the graph only.

    Edges are coloured in their order; a colour that is free on both ends is taken at once, else a fan is rotated and a path inverted.
    """
    coloring = _Coloring(topology.num_peers, topology.max_degree + 1)
    for edge in topology.edges:
        coloring.add(*edge)
    by_color: dict[int, list[Edge]] = {}
    for i, j in topology.edges:
        by_color.setdefault(coloring.at[i][j], []).append((i, j))
    ordered = sorted(by_color.values(), key=lambda edges: (-len(edges), edges))
    return tuple(tuple(sorted(edges)) for edges in ordered)


class _Coloring:
    """at[i][j]: colour of edge (i, j). used[i][c]: the other end of i's edge of colour c."""

    def __init__(self, num_peers: int, num_colors: int) -> None:
        self.at: list[dict[int, int]] = [{} for _ in range(num_peers)]
        self._used: list[dict[int, int]] = [{} for _ in range(num_peers)]
        self._num_colors = num_colors

    def add(self, u: int, v: int) -> None:
        """Colour one more edge: Misra and Gries' step, with the shortcut for a colour that is free on both ends."""
        common = next((c for c in range(self._num_colors) if c not in self._used[u] and c not in self._used[v]), None)
        if common is not None:
            self._paint(u, v, common)
            return
        fan = self._maximal_fan(u, v)
        c, d = self._free(u), self._free(fan[-1])
        self._invert_path(u, c, d)
        end = next(k for k in range(len(fan)) if d not in self._used[fan[k]] and self._is_fan(u, fan[: k + 1]))
        self._rotate(u, fan[: end + 1])
        self._paint(u, fan[end], d)

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
        path, at, color = [u], u, d
        while (following := self._used[at].get(color)) is not None:
            path.append(following)
            at, color = following, c if color == d else d
        edges = list(itertools.pairwise(path))
        colors = [self.at[a][b] for a, b in edges]
        for a, b in edges:
            self._erase(a, b)
        for (a, b), color in zip(edges, colors, strict=True):
            self._paint(a, b, c if color == d else d)

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
