"""The papers' own formulas as oracles, in float64 matrices or in one process."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.algorithms.dpsgd import DPSGD
from peer.gossip.algorithms.matcha import Matcha
from peer.gossip.algorithms.ring_all_reduce import RingAllReduce
from tests.gossip.conductor import Conductor
from tests.gossip.test_contract import no_gradient, schedule_of
from topology import Schedule, build_varying

N, D, LR = 8, 5, 0.05
GENERATOR = np.random.default_rng(3)
QUADRATICS = GENERATOR.normal(size=(N, D, D))
TARGETS = GENERATOR.normal(size=(N, D))


def quadratic(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
    """4 samples of 0.5 ||A_i (x - c_i)||^2."""
    a = torch.tensor(QUADRATICS[i], dtype=torch.float32)
    return 4 * (a.T @ (a @ (x - torch.tensor(TARGETS[i], dtype=torch.float32)))), 4


def pick(gradients: dict[int, tuple[Tensor, int]], k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
    return gradients[i]


def mixing_matrix(schedule: Schedule, k: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """W(k) [n, n] put together from what each peer plans for itself."""
    matrix = np.zeros((N, N))
    for i in range(N):
        plan = schedule.plan(k, i)
        matrix[i, i] = plan.self_weight
        for j, w in zip(plan.neighbors, plan.weights, strict=True):
            matrix[i, j] = w
    return matrix


@pytest.mark.parametrize(
    ("algorithm", "topology"), [(DPSGD, "exponential"), (DPSGD, "ring"), (Matcha, "complete"), (Matcha, "ring")]
)
def test_gossip_is_the_matrix_recursion(algorithm: type[DPSGD] | type[Matcha], topology: str) -> None:
    """X <- W(k) X - lr * grad F(X) (Lian et al. 2017 algorithm 1; Wang et al. 2019 eq. 2)."""
    schedule = schedule_of(algorithm, N, topology)
    start = np.random.default_rng(0).normal(size=(N, D))
    conductor = Conductor(algorithm, schedule, torch.tensor(start, dtype=torch.float32), lr=LR)
    x = start.astype(np.float32).astype(np.float64)
    for k in range(50):
        gradient = np.stack([QUADRATICS[i].T @ (QUADRATICS[i] @ (x[i] - TARGETS[i])) for i in range(N)])
        x = mixing_matrix(schedule, k) @ x - LR * gradient
        conductor.play(k, quadratic)
    np.testing.assert_allclose(conductor.params.numpy(), x, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
@pytest.mark.parametrize("d", [1, 2, 7, 1000])
def test_ring_all_reduce_is_one_machine_and_bit_equal(n: int, d: int) -> None:
    """x <- x - lr * sum G / sum n, whatever the counts; d may be smaller than the number of shards."""
    start = torch.randn(d, generator=torch.Generator().manual_seed(d))
    conductor = Conductor(RingAllReduce, schedule_of(RingAllReduce, n), start.expand(n, d), lr=LR, weighting="samples")
    x = start.double()
    for k in range(10):
        gradients = {
            i: (torch.randn(d, generator=torch.Generator().manual_seed(100 * k + i)), (k * i) % 7) for i in range(n)
        }
        total = sum(count for _, count in gradients.values())
        if total:
            x = x - LR * sum((g.double() for g, _ in gradients.values()), torch.zeros(d).double()) / total
        updates = conductor.play(k, partial(pick, gradients))
        assert len(updates) == n
    assert all(torch.equal(row, conductor.params[0]) for row in conductor.params)
    assert torch.allclose(conductor.params[0].double(), x, atol=1e-5)


def test_matcha_without_an_active_edge_is_a_local_step() -> None:
    schedule = schedule_of(Matcha, N)
    silent = [(k, i) for k in range(200) for i in range(N) if not schedule.plan(k, i).neighbors]
    assert silent
    round, peer = silent[0]
    conductor = Conductor(Matcha, schedule, torch.randn(N, D), lr=LR)
    before = conductor.params[peer]
    conductor.play(round, quadratic)
    gradient, samples = quadratic(round, peer, before)
    assert torch.allclose(conductor.params[peer], before - LR * gradient / samples, atol=1e-6)


def test_every_algorithm_is_registered_under_its_own_name() -> None:
    assert {name: cls.name for name, cls in ALGORITHMS.items()} == {name: name for name in ALGORITHMS}


@pytest.mark.parametrize(("name", "n"), [("base", 5), ("base", 6), ("base", 12), ("one-peer-exponential", 8)])
def test_finite_time_consensus_is_that_of_the_vectors(name: str, n: int) -> None:
    """After the period of the schedule all peers have the mean, up to float32 (Takezawa et al. 2023; Ying et al. 2021)."""
    schedule = build_varying(name, n)
    assert schedule.period is not None
    start = torch.randn(n, D, generator=torch.Generator().manual_seed(n))
    conductor = Conductor(DPSGD, schedule, start)
    for k in range(schedule.period):
        conductor.play(2 * schedule.period + k, no_gradient)
    assert torch.allclose(conductor.params, start.mean(0).expand(n, D), atol=1e-6)


@pytest.mark.parametrize("wire", ["fp16", "int8", "top-k:0.5"])
def test_every_format_agrees_where_edges_change(wire: str) -> None:
    start = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    conductor = Conductor(DPSGD, build_varying("base", 6), start, wire=wire)
    for k in range(120):
        conductor.play(k, no_gradient)
    mean = start.mean(0)
    assert torch.allclose(conductor.params.mean(0), mean, atol=1e-6)
    assert float((conductor.params - mean).norm() / (start - mean).norm()) < 1e-3
