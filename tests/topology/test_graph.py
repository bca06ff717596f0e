"""Constructors and files."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topology import RANDOM_TOPOLOGIES, TOPOLOGIES, Edge, Matching, Topology, TopologyError, build

GRAPH_0 = [[(1, 5), (6, 7), (0, 4), (2, 3)], [(1, 7), (3, 6)], [(1, 0), (3, 7), (5, 6)], [(1, 2), (7, 0)], [(3, 1)]]


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(TOPOLOGIES)), st.integers(2, 80), st.integers(0, 5))
def test_every_constructor_makes_a_connected_simple_graph(name: str, n: int, seed: int) -> None:
    if name == "torus" and not any(n % a == 0 for a in range(2, int(n**0.5) + 1)):
        with pytest.raises(TopologyError, match="do not fill a grid"):
            build(name, n)
        return
    topology = build(name, n, seed=seed)
    graph = topology.as_networkx()
    assert nx.is_connected(graph)
    assert graph.number_of_nodes() == n
    assert graph.number_of_edges() == len(topology.edges)
    assert topology.edges == tuple(sorted(topology.edges))
    for i in range(n):
        assert topology.neighbors(i) == tuple(sorted(graph.neighbors(i)))
    laplacian = topology.laplacian()
    np.testing.assert_array_equal(laplacian, nx.laplacian_matrix(graph, nodelist=range(n)).toarray())
    assert topology == build(name, n, seed=seed)


@pytest.mark.parametrize(
    ("name", "n", "edges", "degree", "diameter"),
    [
        ("ring", 8, 8, 2, 4),
        ("ring", 2, 1, 1, 1),
        ("ring", 3, 3, 2, 1),
        ("torus", 16, 32, 4, 4),
        ("torus", 4, 4, 2, 2),
        ("torus", 6, 9, 3, 2),
        ("complete", 7, 21, 6, 1),
        ("star", 9, 8, 8, 2),
        ("exponential", 8, 20, 5, 2),
        ("random-regular", 20, 40, 4, None),
        ("random-regular", 2, 1, 1, 1),
        ("random-regular", 3, 3, 2, 1),
    ],
)
def test_known_shapes(name: str, n: int, edges: int, degree: int, diameter: int | None) -> None:
    topology = build(name, n)
    assert len(topology.edges) == edges
    assert topology.max_degree == degree
    assert topology.degree(0) == degree
    assert diameter is None or topology.diameter == diameter


def test_random_graphs_follow_the_seed_on_every_platform() -> None:
    for name in RANDOM_TOPOLOGIES:
        assert build(name, 30, seed=1).edges != build(name, 30, seed=2).edges
    for (name, n, seed), edges in GOLDEN.items():
        assert build(name, n, seed=seed, degree=3).edges == edges


GOLDEN = {
    ("random-regular", 8, 7): (
        *((0, 2), (0, 6), (0, 7), (1, 4), (1, 6), (1, 7), (2, 3), (2, 6), (3, 4), (3, 5), (4, 5), (5, 7)),
    ),
    ("erdos-renyi", 6, 1): ((0, 1), (0, 2), (0, 4), (1, 2), (1, 3), (1, 5), (2, 3), (2, 5)),
    ("geometric", 6, 1): ((0, 2), (0, 3), (0, 4), (1, 3), (2, 4), (3, 4), (3, 5)),
}


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 10**6))
def test_random_regular_graphs_are_regular(n: int, degree: int, seed: int) -> None:
    if not degree < n or n * degree % 2 or (degree == 1 and n > 2):
        with pytest.raises(TopologyError, match="random-regular"):
            build("random-regular", n, degree=degree, seed=seed)
        return
    topology = build("random-regular", n, degree=degree, seed=seed)
    assert {topology.degree(i) for i in range(n)} == {degree}


def test_random_graphs_have_the_density_they_are_asked_for() -> None:
    pairs = 60 * 59 / 2
    dense = [len(build("erdos-renyi", 60, seed=seed, probability=0.3).edges) / pairs for seed in range(20)]
    assert sum(dense) / 20 == pytest.approx(0.3, abs=0.02)
    assert len(build("erdos-renyi", 20, probability=1.0).edges) == 190
    assert len(build("geometric", 20, radius=1.42).edges) == 190


def test_large_graphs_are_built_by_default() -> None:
    for name in sorted(TOPOLOGIES):
        if name != "complete":
            assert build(name, 400, seed=1).num_peers == 400


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("rign", {}, "unknown topology 'rign'; did you mean ring?"),
        ("zzz", {}, "valid are ring, torus"),
        ("random-regular", {"degree": 9}, "--degree 9 must be between 1 and 7"),
        ("random-regular", {"degree": 1}, "never connected"),
        ("erdos-renyi", {"probability": 0.001}, "raise --probability"),
        ("geometric", {"radius": 0.001}, "raise --radius"),
        ("erdos-renyi", {"probability": 1.5}, "outside .0, 1."),
        ("erdos-renyi", {"probability": float("nan")}, "outside .0, 1."),
        ("geometric", {"radius": -1.0}, "must be above 0"),
        ("missing.json", {}, "No such file"),
        ("no/such/place", {}, "No such file"),
    ],
)
def test_what_can_not_be_built_is_said_in_one_sentence(name: str, options: dict[str, float], sentence: str) -> None:
    with pytest.raises(TopologyError, match=sentence) as error:
        build(name, 8, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_odd_degrees_need_an_even_number_of_peers() -> None:
    with pytest.raises(TopologyError, match="the product is odd"):
        build("random-regular", 7, degree=3)
    with pytest.raises(TopologyError, match="too few"):
        build("ring", 1)
    with pytest.raises(TopologyError, match="of how many peers"):
        build("ring", None)


@pytest.mark.parametrize(
    ("num_peers", "edges", "matchings", "sentence"),
    [
        (1, (), None, "1 peer is too few"),
        (3, ((0, 1), (2, 1)), None, "is not a pair i < j"),
        (3, ((0, 1), (1, 3)), None, "is not a pair i < j of peers 0 .. 2"),
        (3, ((1, 2), (0, 1)), None, "sort the edges"),
        (3, ((0, 1), (0, 1), (1, 2)), None, "is there twice"),
        (3, ((0, 1), (1, 2)), (((0, 1), (1, 2)),), "matching 0 has peer 1 twice"),
        (3, ((0, 1), (1, 2)), (((0, 1),),), "exactly the graph's edges"),
        (3, ((0, 1), (1, 2)), (((0, 1),), (), ((1, 2),)), "matching 1 is empty"),
    ],
)
def test_a_topology_can_not_be_made_wrong(
    num_peers: int, edges: tuple[Edge, ...], matchings: tuple[Matching, ...] | None, sentence: str
) -> None:
    with pytest.raises(TopologyError, match=sentence):
        Topology("hand-made", num_peers, edges, matchings)


def write(tmp_path: Path, content: object) -> str:
    path = tmp_path / "graph.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_a_file_is_a_list_of_edges_or_of_matchings(tmp_path: Path) -> None:
    plain = build(write(tmp_path, [[1, 0], [1, 2]]), None)
    assert (plain.num_peers, plain.edges, plain.matchings) == (3, ((0, 1), (1, 2)), None)
    assert build(write(tmp_path, GRAPH_0), 8).matchings == tuple(
        tuple(sorted((min(e), max(e)) for e in matching)) for matching in GRAPH_0
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not valid JSON"),
        ({"edges": []}, "expected a JSON list"),
        ([], "expected a JSON list"),
        ([[0, 1], [1]], r"\[1\] is not an edge"),
        ([[0, 1], [1, 1]], "not an edge"),
        ([[0, 1], [1, -2]], "not an edge"),
        ([[0, 1], [1, "2"]], "not an edge"),
        ([[0, 1], [1, True]], "not an edge"),
        ([[0, 1], [1, 0]], "is there twice"),
        ([[0, 1], [0, 2], [1, 2], [3, 4]], "disconnected, 2 of 5 peers .peer 3 among them."),
        ([[0, 1], [2, 3]], "disconnected, 2 edges can't connect 4 peers"),
        ([[0, 10**15]], "disconnected, 1 edges can't connect"),
        ("[" * 100_000, "not valid JSON"),
        ("[[0, " + "9" * 5000 + "]]", "not valid JSON"),
        ([[[0, 1]], []], "matching 1 is empty"),
        ([[]], "too few"),
        ([[0, 1], "x" * 500], r"xxx\.\.\. is not an edge"),
        ([[[0, 1], [1, 2]]], "matching 0 has peer 1 twice"),
        ([[0, 1], [1, 2], [2, 3]], "the file has 4 peers, not 3; use --peers 4"),
    ],
)
def test_a_bad_file_is_refused_with_its_repair(tmp_path: Path, content: object, sentence: str) -> None:
    with pytest.raises(TopologyError, match=sentence):
        build(write(tmp_path, content), 3 if content == [[0, 1], [1, 2], [2, 3]] else None)


def test_digests_tell_graphs_apart(tmp_path: Path) -> None:
    graph_0 = build(write(tmp_path, GRAPH_0), None)
    flat = Topology("flat", 8, graph_0.edges)
    assert len({graph_0.digest(), flat.digest(), build("ring", 8).digest(), build("ring", 9).digest()}) == 4
    assert build("ring", 8).digest() == Topology("other name", 8, build("ring", 8).edges).digest()
