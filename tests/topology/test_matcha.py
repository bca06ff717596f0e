"""MATCHA's optimum against the reference numbers and brute force."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from tests.topology.test_graph import GRAPH_0
from topology import Topology, TopologyError, build, periodic_rho, solve
from topology.graph import laplacian

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


def test_no_other_probabilities_are_better() -> None:
    plan = solve(graph_0, 0.4)
    laplacians = np.stack([laplacian(8, m) for m in MATCHINGS])
    for seed in range(300):
        p = np.random.default_rng(seed).dirichlet(np.ones(5)) * 2.0
        if p.max() <= 1:
            assert np.linalg.eigvalsh(np.tensordot(p, laplacians, 1))[1] <= plan.lambda2 + 1e-5


def test_sixty_four_peers_are_planned_while_one_waits() -> None:
    began = time.process_time()
    for name in ("random-regular", "erdos-renyi", "complete", "geometric", "star"):
        plan = solve(build(name, 64), 0.5)
        assert 0 < plan.rho < 1
    assert time.process_time() - began < 60, "the solver must not blow up; the figures are in topology/README.md"


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.0001, float("nan")])
def test_a_budget_outside_its_range_is_refused(budget: float) -> None:
    with pytest.raises(TopologyError, match=r"outside \(0, 1\]"):
        solve(ring_8, budget)
