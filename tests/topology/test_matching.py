"""Misra-Gries on random graphs up to 200 peers."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topology import Matching, Topology, build, decompose, misra_gries
from topology.matching import _Coloring


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
    coloring = _Coloring(n, topology.max_degree + 1)
    for edge in topology.edges:
        coloring.add(*edge)
    for i in range(n):
        assert sorted(coloring.at[i]) == list(topology.neighbors(i))
        assert len(set(coloring.at[i].values())) == topology.degree(i)


@pytest.mark.parametrize(
    ("name", "n", "most"),
    [
        *(("ring", 8, 2), ("ring", 9, 3), ("star", 9, 8), ("complete", 8, 7), ("complete", 9, 9), ("complete", 64, 63)),
        *(("torus", 16, 4), ("torus", 64, 4), ("exponential", 16, 7), ("ring", 2, 1)),
    ],
)
def test_known_numbers_of_matchings(name: str, n: int, most: int) -> None:
    matchings = misra_gries(build(name, n))
    check(build(name, n), matchings)
    assert len(matchings) <= most


def test_a_fixed_decomposition_is_kept() -> None:
    fixed = (((0, 1),), ((1, 2),), ((2, 3),))
    assert decompose(Topology("path", 4, ((0, 1), (1, 2), (2, 3)), fixed)) == fixed


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.05, 1.0), st.integers(0, 10**6))
def test_bipartite_graphs_need_no_more_matchings_than_their_degree(a: int, b: int, p: float, seed: int) -> None:
    graph = nx.bipartite.random_graph(a, b, p, seed=seed)
    comb = {(i, a) for i in range(a)} | {(0, a + j) for j in range(b)}
    topology = Topology("bipartite", a + b, tuple(sorted({*graph.edges, *comb})))
    matchings = misra_gries(topology)
    check(topology, matchings)
    assert len(matchings) == topology.max_degree


def test_misra_and_gries_themselves_color_what_exchanges_can_not() -> None:
    """Odd cliques, and the Petersen graph: no max degree colours exist, so each needs exactly one more."""
    for graph in (nx.complete_graph(7), nx.petersen_graph()):
        topology = Topology("class 2", len(graph), tuple(sorted((min(e), max(e)) for e in graph.edges)))
        matchings = misra_gries(topology)
        check(topology, matchings)
        assert len(matchings) == topology.max_degree + 1
