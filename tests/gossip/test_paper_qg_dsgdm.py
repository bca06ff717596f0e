"""QG-DSGDm (Lin et al. 2021, arXiv 2102.04761): its rule, and what it is for: momentum that bears heterogeneous data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from peer.gossip.algorithm import Algorithm
from peer.gossip.algorithms.dpsgd import DPSGD
from peer.gossip.algorithms.qg_dsgdm import QGDSGDm
from tests.gossip.conductor import Conductor, PlainSGD
from tests.gossip.test_contract import schedule_of
from tests.gossip.test_papers import LR, QUADRATICS, TARGETS, D, N, mixing_matrix, quadratic

#: Where the gradients of all peers add up to 0.
OPTIMUM = np.linalg.solve(
    sum(a.T @ a for a in QUADRATICS), sum(a.T @ a @ c for a, c in zip(QUADRATICS, TARGETS, strict=True))
)


class LocalMomentum(PlainSGD):
    """v <- 0.9 v + g; x <- x - lr v: each peer its own, as torch.optim.SGD(momentum=0.9) has it."""

    def step(self, gradient: Tensor, samples_clock: int, scale: float = 1.0) -> None:
        self._velocity = getattr(self, "_velocity", torch.zeros_like(gradient)) * 0.9 + gradient * scale
        super().step(self._velocity, samples_clock)


def distances(algorithm: type[Algorithm], lr: float, rounds: int, optimizer: type[PlainSGD] = PlainSGD) -> list[float]:
    """Root mean square distance of the peers to the optimum, round by round, from equal starts on a ring."""
    conductor = Conductor(algorithm, schedule_of(algorithm, N), torch.zeros(N, D), lr=lr)
    for peer in conductor.peers:
        peer.state.optimizer = optimizer(peer.state.params, lr)
    seen = []
    for k in range(rounds):
        conductor.play(k, quadratic)
        seen.append(float(np.sqrt(((conductor.params.numpy() - OPTIMUM) ** 2).sum(1).mean())))
    return seen


@pytest.mark.parametrize("topology", ["ring", "star"])
def test_the_rule_is_the_papers(topology: str) -> None:
    """Algorithm 1 in float64, with its difference of models over eta taken as written."""
    schedule = schedule_of(QGDSGDm, N, topology)
    start = np.random.default_rng(0).normal(size=(N, D))
    conductor = Conductor(QGDSGDm, schedule, torch.tensor(start, dtype=torch.float32), lr=LR)
    x = start.astype(np.float32).astype(np.float64)
    m_hat, w = np.zeros((N, D)), mixing_matrix(schedule, 0)
    for k in range(60):
        gradient = np.stack([a.T @ (a @ (row - c)) for a, row, c in zip(QUADRATICS, x, TARGETS, strict=True)])
        mixed = w @ (x - LR * (0.9 * m_hat + gradient))
        m_hat = 0.9 * m_hat + 0.1 * (x - mixed) / LR
        x = mixed
        conductor.play(k, quadratic)
        np.testing.assert_allclose(conductor.params.numpy(), x, rtol=1e-3, atol=1e-4)


def test_on_heterogeneous_objectives_it_beats_local_momentum_and_is_faster_than_none() -> None:
    """At one learning rate: local momentum multiplies every peer's pull to its own optimum by 1 / (1 - beta); quasi-global momentum does
    not, and is still momentum."""
    lr, rounds = 0.005, 120
    ours, local, none = (
        distances(QGDSGDm, lr, rounds),
        distances(DPSGD, lr, rounds, LocalMomentum),
        distances(DPSGD, lr, rounds),
    )
    assert ours[-1] < 0.3 * local[-1]
    reached = 1.2 * min(none)
    assert next(k for k, d in enumerate(ours) if d < reached) < 0.5 * next(k for k, d in enumerate(none) if d < reached)


def test_without_work_a_peer_makes_no_step_but_its_momentum_follows_its_model() -> None:
    conductor = Conductor(QGDSGDm, schedule_of(QGDSGDm, N), torch.randn(N, D))
    before = conductor.params
    conductor.play(0, lambda k, i, x: (torch.zeros(D), 0))
    for i, peer in enumerate(conductor.peers):
        assert isinstance(peer, QGDSGDm)
        assert isinstance(peer.state.optimizer, PlainSGD)
        assert peer.state.optimizer.clock == []
        torch.testing.assert_close(peer.momentum, 0.1 * (before[i] - peer.state.params) / 0.1, rtol=1e-4, atol=1e-5)


def test_a_learning_rate_of_nothing_only_mixes() -> None:
    """As where a schedule warms up from 0."""
    conductor = Conductor(QGDSGDm, schedule_of(QGDSGDm, N), torch.randn(N, D), lr=0.0)
    before = conductor.params
    conductor.play(0, quadratic)
    w = torch.tensor(mixing_matrix(conductor.schedule, 0)).float()
    torch.testing.assert_close(conductor.params, w @ before)
