"""Misra-Gries on random graphs up to 200 peers."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topology import Matching, Topology, build, decompose, misra_gries


def check(topology: Topology, matchings: tuple[Matching, ...]) -> None:
    assert sorted(edge for matching in matchings for edge in matching) == list(topology.edges)
    for matching in matchings:
        ends = [peer for edge in matching for peer in edge]
        assert len(ends) == len(set(ends))
    assert len(matchings) <= topology.max_degree + 1


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.floats(0.01, 1.0), st.integers(0, 10**6))
def test_matchings_are_disjoint_cover_all_edges_and_are_few(n: int, p: float, seed: int) -> None:
    p = min(p, 3000 / n**2 + 0.02)
    graph = nx.gnp_random_graph(n, p, seed=seed)
    edges = {*graph.edges, *((i, i + 1) for i in range(n - 1))}
    topology = Topology("random", n, tuple(sorted(edges)))
    check(topology, misra_gries(topology))


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 9), st.data())
def test_small_dense_graphs_need_fans_and_paths(n: int, data: st.DataObject) -> None:
    path = [(i, i + 1) for i in range(n - 1)]
    more = data.draw(st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] < e[1])))
    topology = Topology("small", n, tuple(sorted({*path, *more})))
    check(topology, misra_gries(topology))


@pytest.mark.parametrize(
    ("name", "n", "most"), [("ring", 8, 2), ("ring", 9, 3), ("star", 9, 8), ("complete", 8, 8), ("torus", 16, 5)]
)
def test_known_numbers_of_matchings(name: str, n: int, most: int) -> None:
    matchings = misra_gries(build(name, n))
    check(build(name, n), matchings)
    assert len(matchings) <= most


def test_a_fixed_decomposition_is_kept() -> None:
    fixed = (((0, 1),), ((1, 2),), ((2, 3),))
    assert decompose(Topology("path", 4, ((0, 1), (1, 2), (2, 3)), fixed)) == fixed
