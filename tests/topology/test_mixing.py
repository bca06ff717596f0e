"""Mixing matrices against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.topology.test_graph import GRAPH_0
from topology import MIXINGS, MixingMatrix, Topology, TopologyError, best_constant, build, metropolis, metropolis_row

graph_0 = Topology("graph 0", 8, tuple(sorted((min(e), max(e)) for m in GRAPH_0 for e in m)))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["ring", "star", "complete", "exponential", "erdos-renyi", "geometric"]), st.integers(3, 40))
def test_weights_are_symmetric_doubly_stochastic_and_on_edges_only(name: str, n: int) -> None:
    topology = build(name, n)
    for matrix in (metropolis(topology), best_constant(topology)):
        np.testing.assert_allclose(matrix.weights.sum(0), 1, atol=1e-9)
        np.testing.assert_allclose(matrix.weights, matrix.weights.T)
        for i in range(n):
            assert tuple(matrix.row(i)) == topology.neighbors(i)
            assert matrix.self_weight(i) + sum(matrix.row(i).values()) == pytest.approx(1)
        assert 0 < matrix.spectral_gap <= 1 + 1e-9
    assert (metropolis(topology).weights >= -1e-12).all()


@pytest.mark.parametrize(("n", "eigenvalue"), [(8, 0.804738), (16, 0.949253), (32, 0.987190)])
def test_the_ring_has_its_known_gap(n: int, eigenvalue: float) -> None:
    matrix = metropolis(build("ring", n))
    assert matrix.second_eigenvalue == pytest.approx(eigenvalue, abs=1e-6)
    assert matrix.second_eigenvalue == pytest.approx(1 / 3 + 2 / 3 * math.cos(2 * math.pi / n))


def test_the_complete_graph_agrees_in_one_round() -> None:
    assert metropolis(build("complete", 9)).spectral_gap == pytest.approx(1)
    assert best_constant(build("complete", 9)).spectral_gap == pytest.approx(1)


def test_best_constant_weights_may_be_negative() -> None:
    assert best_constant(graph_0).self_weight(1) == pytest.approx(-0.429, abs=5e-4)
    assert best_constant(graph_0).second_eigenvalue <= metropolis(graph_0).second_eigenvalue + 1e-9


def test_the_second_eigenvalue_counts_the_most_negative_one_too() -> None:
    assert MixingMatrix(np.array([[-0.5, 1.5], [1.5, -0.5]])).second_eigenvalue == pytest.approx(2)
    assert MixingMatrix(np.array([[0.0, 1.0], [1.0, 0.0]])).spectral_gap == pytest.approx(0)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([[0.5, 0.5], [0.4, 0.6]], "symmetric"),
        ([[0.5, 0.5 + 1e-7], [0.5 + 1e-7, 0.5]], "sum to 1"),
        ([[0.5, float("nan")], [0.5, 0.5]], "symmetric"),
        ([[0.5, 0.5]], "square"),
        ([1.0], "square"),
    ],
)
def test_what_is_no_mixing_matrix_is_refused(weights: list[object], sentence: str) -> None:
    with pytest.raises(TopologyError, match=sentence):
        MixingMatrix(np.array(weights))


def test_a_mixing_matrix_is_a_read_only_copy() -> None:
    mine = np.full((2, 2), 0.5)
    matrix = MixingMatrix(mine)
    mine[0, 0] = 7
    assert matrix.self_weight(0) == 0.5
    with pytest.raises(ValueError, match="read-only"):
        matrix.weights[0, 0] = 7


def test_a_row_needs_no_matrix() -> None:
    topology = build("geometric", 30, seed=3)
    matrix = metropolis(topology)
    assert all(metropolis_row(topology, i) == matrix.row(i) for i in range(30))
    assert set(MIXINGS) == {"metropolis", "best-constant"}
