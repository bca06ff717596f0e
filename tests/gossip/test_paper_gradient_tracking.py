"""Gradient tracking (DIGing, arXiv 1607.03218): its rule, its law whatever is lost, and the optimum before which D-PSGD stalls."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from peer.gossip.algorithms.dpsgd import DPSGD
from peer.gossip.algorithms.gradient_tracking import PATIENCE, GradientTracking
from tests.gossip.conductor import Conductor
from tests.gossip.test_contract import params, schedule_of, some_gradient
from tests.gossip.test_paper_qg_dsgdm import distances
from tests.gossip.test_papers import LR, QUADRATICS, TARGETS, D, N, mixing_matrix, quadratic
from topology import VARYING, build_varying


def broken_law(conductor: Conductor, who: range | list[int] = range(N)) -> float:
    """|sum_i y_i - sum_i g_i|, the largest entry, over these peers."""
    total = torch.zeros(conductor.params.shape[1], dtype=torch.float64)
    for i in who:
        peer = conductor.peers[i]
        assert isinstance(peer, GradientTracking)
        total += peer.tracker.double() - peer.gradient.double()
    return float(total.abs().max())


def made(topology: str = "ring", **options: object) -> Conductor:
    varies = topology in VARYING
    schedule = build_varying(topology, N) if varies else schedule_of(GradientTracking, N, topology)
    return Conductor(GradientTracking, schedule, params(n=N, d=D), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("topology", ["ring", "star"])
def test_the_rule_is_the_papers(topology: str) -> None:
    """X <- W X - lr Y, Y <- W Y + G(k) - G(k-1), in float64."""
    schedule = schedule_of(GradientTracking, N, topology)
    start = np.random.default_rng(0).normal(size=(N, D))
    conductor = Conductor(GradientTracking, schedule, torch.tensor(start, dtype=torch.float32), lr=LR / 4)
    x = start.astype(np.float32).astype(np.float64)
    y, g, w = np.zeros((N, D)), np.zeros((N, D)), mixing_matrix(schedule, 0)
    for k in range(60):
        gradient = np.stack([a.T @ (a @ (row - c)) for a, row, c in zip(QUADRATICS, x, TARGETS, strict=True)])
        y, g = w @ y + gradient - g, gradient
        x = w @ x - LR / 4 * y
        conductor.play(k, quadratic)
        np.testing.assert_allclose(conductor.params.numpy(), x, rtol=1e-3, atol=1e-4)


def test_with_a_constant_step_it_reaches_the_optimum_before_which_dpsgd_stalls() -> None:
    lr, rounds = 0.02, 200
    ours, theirs = distances(GradientTracking, lr, rounds), distances(DPSGD, lr, rounds)
    assert ours[-1] < 1e-3
    assert theirs[-1] > 0.1
    assert theirs[-1] == pytest.approx(theirs[rounds // 2], rel=1e-3), "it does not get nearer"


@pytest.mark.parametrize("topology", ["ring", "base", "equidyn"])
def test_the_sum_of_the_trackers_is_that_of_the_gradients_whatever_is_lost(topology: str) -> None:
    rng = random.Random(2)
    lost = {(k, i, j) for k in range(60) for i in range(N) for j in range(N) if rng.random() < 0.3}
    conductor = made(topology, lr=0.01, lost=lambda k, i, j: (k, i, j) in lost)
    for k in range(60):
        conductor.play(k, some_gradient)  # some finish nothing
        assert broken_law(conductor) < 1e-4
    assert all(peer.tracker.abs().max() > 0.1 for peer in conductor.peers)  # type: ignore[attr-defined]


def test_an_edge_that_one_end_alone_believes_in_breaks_the_law_until_the_ends_meet_again() -> None:
    conductor = made(lr=0.01, deaf=lambda k, i, j: (k, i, j) == (5, 2, 3))
    lost = []
    for k in range(10):
        updates = conductor.play(k, some_gradient)
        lost.append({(i, j): why for i, update in enumerate(updates) for j, why in update.lost.items()})
        assert (broken_law(conductor) < 1e-4) is (k != 5)
    assert lost[5] == {(2, 3): "deadline"}
    assert lost[6] == {(2, 3): "restarted", (3, 2): "restarted"}
    assert not any(lost[7:])


def test_the_living_reach_their_own_optimum_when_a_peer_has_died() -> None:
    alive = [i for i in range(N) if i != 3]
    conductor = made(lr=0.02, lost=lambda k, i, j: k >= 50 and 3 in (i, j))
    for k in range(350):
        conductor.play(k, quadratic)
        if k == 50:
            assert broken_law(conductor, alive) > 0.1, "the dead took something along"
        if k == 50 + PATIENCE:
            assert broken_law(conductor, alive) < 1e-4
    squares = [QUADRATICS[i].T @ QUADRATICS[i] for i in alive]
    optimum = np.linalg.solve(sum(squares), sum(s @ TARGETS[i] for s, i in zip(squares, alive, strict=True)))
    for i in alive:
        np.testing.assert_allclose(conductor.params[i].numpy(), optimum, atol=5e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_peer_that_is_not_finite_infects_nobody(value: float) -> None:
    conductor = made(lr=0.01)
    for k in range(3):
        conductor.play(k, some_gradient)
    broken = conductor.peers[2]
    assert isinstance(broken, GradientTracking)
    broken.tracker[1] = value
    reasons = {why for k in range(3, 12) for update in conductor.play(k, some_gradient) for why in update.lost.values()}
    assert reasons == {"corrupt"}
    others = [i for i in range(N) if i != 2]
    assert torch.isfinite(conductor.params[others]).all()
    assert broken_law(conductor, others) < 1e-4


def test_buffers_are_mixed_and_move_as_in_dpsgd() -> None:
    """The last two of the entries are float buffers, of which nothing is tracked."""
    ends = []
    for algorithm in (GradientTracking, DPSGD):
        conductor = Conductor(algorithm, schedule_of(algorithm, N), params(n=N, d=D), lr=0.05, num_params=D - 2)
        for k in range(30):
            conductor.play(k, some_gradient)
        ends.append(conductor.params)
    torch.testing.assert_close(ends[0][:, -2:], ends[1][:, -2:], rtol=1e-5, atol=1e-6)
    assert (ends[0][:, :-2] - ends[1][:, :-2]).abs().max() > 0.01
