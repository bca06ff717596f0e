"""MATCHA's optimum against the reference numbers and brute force."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from tests.topology.test_graph import GRAPH_0
from topology import (
    TOPOLOGIES,
    AlternatingSchedule,
    FixedSchedule,
    MatchaSchedule,
    Topology,
    TopologyError,
    build,
    decompose,
    learn,
    matcha,
    periodic_rho,
    solutions,
    solve,
)
from topology.central_path import activation_probabilities
from topology.graph import Matrix, laplacian
from topology.matcha import mixing_parameter

MATCHINGS = tuple(tuple(sorted((min(e), max(e)) for e in m)) for m in GRAPH_0)
graph_0 = Topology("graph 0", 8, tuple(sorted(e for m in MATCHINGS for e in m)), MATCHINGS)
ring_8 = build("ring", 8)


@pytest.mark.parametrize(
    ("budget", "lambda2", "alpha", "rho"),
    [
        (0.1, 0.112240, 0.56207, 0.93679),
        (0.3, 0.336721, 0.51480, 0.77652),
        (0.5, 0.561202, 0.39643, 0.64398),
        (0.7, 0.663253, 0.34093, 0.60096),
        (0.9, 0.668546, 0.30581, 0.63406),
        (1.0, 0.670023, 0.285714, 0.653777),
    ],
)
def test_graph_0(budget: float, lambda2: float, alpha: float, rho: float) -> None:
    plan = solve(graph_0, budget)
    assert (plan.lambda2, plan.alpha, plan.rho) == pytest.approx((lambda2, alpha, rho), abs=1e-4)
    assert sum(plan.activation_probabilities) <= budget * 5 + 1e-9
    assert all(0 <= p <= 1 for p in plan.activation_probabilities)


@pytest.mark.parametrize(
    ("budget", "lambda2", "alpha", "rho"), [(0.5, 0.292893, 0.60737, 0.78391), (1.0, 0.585786, 0.436130, 0.554311)]
)
def test_ring_8(budget: float, lambda2: float, alpha: float, rho: float) -> None:
    plan = solve(ring_8, budget)
    assert (plan.lambda2, plan.alpha, plan.rho) == pytest.approx((lambda2, alpha, rho), abs=1e-4)


def test_matcha_beats_periodic_on_irregular_graphs_and_loses_on_the_ring() -> None:
    for budget in (0.1, 0.3, 0.5):
        assert solve(graph_0, budget).rho < periodic_rho(graph_0, budget)
        assert solve(ring_8, budget).rho > periodic_rho(ring_8, budget)
    assert periodic_rho(ring_8, 1.0) == pytest.approx(solve(ring_8, 1.0).rho, abs=1e-6)


@pytest.mark.parametrize("topology", [graph_0, ring_8, build("geometric", 7, seed=2)])
def test_rho_is_the_expected_contraction(topology: Topology) -> None:
    """rho = ||E[W'W] - J||_2, the expectation taken over all 2^M patterns of active matchings."""
    plan = solve(topology, 0.6)
    n, num = topology.num_peers, len(plan.matchings)
    laplacians = [laplacian(n, m) for m in plan.matchings]
    expected = np.zeros((n, n))
    for pattern in itertools.product((0, 1), repeat=num):
        w = np.eye(n) - plan.alpha * sum((b * m for b, m in zip(pattern, laplacians, strict=True)), np.zeros((n, n)))
        chance = np.prod([p if b else 1 - p for b, p in zip(pattern, plan.activation_probabilities, strict=True)])
        expected += chance * (w.T @ w)
    assert np.linalg.norm(expected - np.full((n, n), 1 / n), 2) == pytest.approx(plan.rho, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(TOPOLOGIES)), st.integers(4, 10), st.floats(0.02, 0.98), st.integers(0, 99))
def test_no_other_probabilities_are_better(name: str, n: int, budget: float, seed: int) -> None:
    """Against a bound from another method, which holds for every p within the budget."""
    assume(name != "torus" or any(n % a == 0 for a in range(2, int(n**0.5) + 1)))
    plan = solve(build(name, n, seed=seed), budget)
    p = np.array(plan.activation_probabilities)
    assert p.sum() <= budget * len(p) + 1e-9
    assert 0 <= p.min() <= p.max() <= 1
    bound = upper_bound(np.stack([laplacian(n, m) for m in plan.matchings]), budget)
    assert plan.lambda2 == pytest.approx(bound, rel=1e-4)
    assert plan.lambda2 <= bound * (1 + 1e-9)


def upper_bound(laplacians: Matrix, budget: float) -> float:
    """Kelley's cutting planes: lambda_2(p) <= v' L(p) v for every unit v orthogonal to 1, so the linear program over some v bounds
    it from above; each round adds the eigenvectors at the program's own solution, and the diagonals between the lowest two."""
    num, n, _ = laplacians.shape
    p, best, cuts = np.full(num, budget), 0.0, np.empty((0, num))
    while True:
        lifted = (
            np.tensordot(p, laplacians, 1) + 4.0
        )  # the constant vector becomes the last one, also if p connects nothing
        values, vectors = np.linalg.eigh(lifted)
        best, low = max(best, float(values[0])), vectors[:, : min(n - 1, 3)]
        mixed = [(low[:, 0] + low[:, 1]) / 2**0.5, (low[:, 0] - low[:, 1]) / 2**0.5]
        fresh = np.array([np.einsum("a,jab,b->j", v, laplacians, v) for v in [*low.T, *mixed]])
        cuts = np.vstack([cuts, fresh])
        rows = np.vstack([np.hstack([-cuts, np.ones((len(cuts), 1))]), [*np.ones(num), 0]])
        limits = [*np.zeros(len(cuts)), budget * num]
        found = linprog([*np.zeros(num), -1], A_ub=rows, b_ub=limits, bounds=[(0, 1)] * num + [(None, None)])
        assert found.x is not None
        p, bound = found.x[:-1], float(found.x[-1])
        if bound - best < 5e-5 * bound or len(cuts) > 2000:
            return bound


@pytest.mark.parametrize("name", ["random-regular", "erdos-renyi", "exponential", "geometric"])
@pytest.mark.parametrize("budget", [0.1, 0.7, 0.9])
def test_other_arithmetic_finds_the_same_probabilities(name: str, budget: float) -> None:
    """Peers renumbered: every sum is taken in another order, as on another machine. p must agree far beyond the digits it keeps."""
    matchings = decompose(build(name, 24, seed=5))
    p = activation_probabilities(24, matchings, budget)
    for seed in range(2):
        new = [int(i) for i in np.random.default_rng(seed).permutation(24)]
        renamed = tuple(tuple((new[i], new[j]) for i, j in matching) for matching in matchings)
        np.testing.assert_allclose(activation_probabilities(24, renamed, budget), p, rtol=0, atol=1e-9)


def test_matchings_that_are_alike_get_equal_probabilities() -> None:
    for name, n in (("torus", 16), ("complete", 8), ("star", 9), ("ring", 12)):
        p = solve(build(name, n), 0.3).activation_probabilities
        assert p == (0.3,) * len(p)


def test_alpha_has_the_least_rho() -> None:
    p = np.array([0.9, 0.4, 0.6, 0.2, 0.8])
    each = np.stack([laplacian(8, m) for m in MATCHINGS])
    mean, spread = np.tensordot(p, each, 1), np.tensordot(p * (1 - p), each, 1)
    alpha, rho = mixing_parameter(mean, spread)
    assert alpha == float(f"{alpha:.6g}")
    others = []
    for other in np.linspace(0, 2 * alpha, 201):
        matrix = np.eye(8) - 1 / 8 - 2 * other * mean + other**2 * (mean @ mean + 2 * spread)
        others.append(np.linalg.eigvalsh(matrix)[-1])
    assert rho <= min(others) + 1e-9


@pytest.mark.parametrize("budget", [1e-9, 1e-4, 0.05, 1 / 3, 0.999999])
def test_every_budget_is_kept_to_the_last_digit(budget: float) -> None:
    for topology in (graph_0, ring_8, build("ring", 2), build("erdos-renyi", 12, seed=1)):
        plan = solve(topology, budget)
        assert sum(plan.activation_probabilities) <= budget * len(plan.matchings) * (1 + 1e-12)
        assert sum(plan.activation_probabilities) >= 0.99 * budget * len(plan.matchings)
        assert plan.lambda2 > 0
        assert plan.rho < 1


@pytest.mark.parametrize(
    ("name", "n"), [("random-regular", 64), ("erdos-renyi", 64), ("complete", 64), ("geometric", 64), ("torus", 256)]
)
def test_large_graphs_are_planned(name: str, n: int) -> None:
    topology = build(name, n)
    uniform = 0.5 * float(np.linalg.eigvalsh(topology.laplacian())[1])
    plan = solve(topology, 0.5)
    assert plan.lambda2 >= uniform * (1 - 1e-5)
    assert 0 < plan.rho < 1


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.0001, float("nan")])
def test_a_budget_outside_its_range_is_refused(budget: float) -> None:
    with pytest.raises(TopologyError, match=r"outside \(0, 1\]"):
        solve(ring_8, budget)
    with pytest.raises(TopologyError, match=r"outside \(0, 1\]"):
        periodic_rho(ring_8, budget)


@pytest.mark.parametrize("copies", [1, 3])
def test_what_another_process_found_is_taken_to_the_last_bit_and_not_looked_for(
    monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    graphs = [build("geometric", 9, seed=copy) for copy in range(copies)]

    def schedule(budget: float = 0.4) -> AlternatingSchedule:
        return AlternatingSchedule(tuple(MatchaSchedule(graph, budget) for graph in graphs))

    there = schedule()
    found = pickle.loads(pickle.dumps(solutions(there)))
    assert len(found) == copies
    monkeypatch.setattr(matcha, "_learned", {})
    monkeypatch.delattr(matcha, "activation_probabilities")
    solve.cache_clear()
    with pytest.raises(NameError):
        schedule()
    learn(found)
    here = schedule()
    assert here.digest() == there.digest()
    assert solutions(here) == solutions(there)
    assert [here.plan(k, 4) for k in range(20)] == [there.plan(k, 4) for k in range(20)]
    with pytest.raises(NameError):
        schedule(0.5)  # of another budget
    assert solutions(FixedSchedule(graphs[0])) == {}
    solve.cache_clear()
