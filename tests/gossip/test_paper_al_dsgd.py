"""AL-DSGD (He, Wang, Choromanska 2024, arXiv 2405.11389): its rule, and its claim: the worst peer does better."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from peer.gossip.algorithm import Algorithm, Score, Update
from peer.gossip.algorithms.al_dsgd import ALDSGD, NUM_GRAPHS, ALMatcha
from peer.gossip.algorithms.dpsgd import DPSGD
from peer.gossip.effects import Answer, Exchange
from tests.gossip.conductor import Conductor
from tests.gossip.test_contract import no_gradient, params, schedule_of
from tests.gossip.test_papers import LR, QUADRATICS, TARGETS, D, N, mixing_matrix, quadratic
from topology import RoundPlan

CURVATURE = torch.linspace(0.2, 1.0, 10)


@pytest.mark.parametrize("algorithm", [ALDSGD, ALMatcha])
@pytest.mark.parametrize("topology", ["star", "random-regular"])
def test_the_rule_is_the_papers(algorithm: type[ALDSGD], topology: str) -> None:
    """The average, the leaders' weights and the two corrective forces one after the other, in float64."""
    schedule = schedule_of(algorithm, N, topology)
    start = np.random.default_rng(0).normal(size=(N, D))
    conductor = Conductor(algorithm, schedule, torch.tensor(start, dtype=torch.float32), lr=LR)
    x, loss = start.astype(np.float32).astype(np.float64), np.full(N, np.nan)
    leaders = set()
    for k in range(30):
        half = x - LR * np.stack([a.T @ (a @ (row - c)) for a, row, c in zip(QUADRATICS, x, TARGETS, strict=True)])
        seen = np.array([1.0 + (5 * i + 3 * k) % 7 for i in range(N)])  # what the conductor says
        loss = seen if k == 0 else 0.9 * loss + 0.1 * seen
        w = mixing_matrix(schedule, k)
        x = half.copy()
        for i in range(N):
            plan = schedule.plan(k, i)
            if not plan.neighbors:
                continue
            degree = {j: len(schedule.plan(k, j).neighbors) for j in (i, *plan.neighbors)}
            best = min(degree, key=lambda j: (loss[j], j != i, j))
            hub = min(degree, key=lambda j: (-degree[j], j != i, j))
            leaders.add((best == i, hub == i))
            y = w[i] @ half
            y = (1 - 0.3 - 0.1) * y + 0.3 * half[best] + 0.1 * half[hub]
            x[i] = y - 0.2 * (y - half[best]) - 0.2 * (y - half[hub])
        conductor.play(k, quadratic)
        np.testing.assert_allclose(conductor.params.numpy(), x, rtol=1e-3, atol=1e-4)
    assert {(True, True), (False, True)} <= leaders
    assert topology != "star" or (False, False) in leaders


def noisy(seed: int, k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
    """4 samples of 0.5 x'Hx, the same objective at every peer, with noise of deviation 1 in their mean gradient."""
    generator = torch.Generator().manual_seed(1_000_000 * seed + 1000 * k + i)
    return 4 * (CURVATURE * x + torch.randn(10, generator=generator)), 4


def worst_loss(algorithm: type[Algorithm], topology: str, seed: int) -> float:
    """Of the peer that is worst in its round, the mean of rounds 50 to 120; peers know their losses with noise."""
    conductor = Conductor(
        algorithm,
        schedule_of(algorithm, 8, topology),
        torch.full((8, 10), 3.0),
        lr=0.1,
        losses=lambda k, i, x: float(0.5 * (CURVATURE * x * x).sum()) + 0.5 * math.sin(12.9 * i + 78.2 * k),
    )
    worst = []
    for k in range(120):
        conductor.play(k, lambda k, i, x: noisy(seed, k, i, x))
        worst.append(float((0.5 * CURVATURE * conductor.params.square()).sum(1).max()))
    return sum(worst[50:]) / 70


@pytest.mark.parametrize("topology", ["ring", "star"])
def test_on_alike_data_the_worst_peer_is_better_than_that_of_dpsgd(topology: str) -> None:
    assert worst_loss(ALDSGD, topology, seed=0) < 0.9 * worst_loss(DPSGD, topology, seed=0)


@pytest.mark.parametrize("algorithm", [ALDSGD, ALMatcha])
def test_graphs_alternate_so_that_a_peer_hears_of_more_others(algorithm: type[ALDSGD]) -> None:
    schedule = schedule_of(algorithm, 8, "star")
    hubs = {max(range(8), key=schedule.base(k).degree) for k in range(NUM_GRAPHS)}
    assert len(hubs) > 1
    assert schedule.base(0) == schedule.base(NUM_GRAPHS)
    assert {j for k in range(NUM_GRAPHS) for j in schedule.base(k).neighbors(3)} <= set(schedule.links(0, 3))


class Liar(ALDSGD):
    """Peer 0 sends this header."""

    header = (1.0, 2.0)

    def round(self, plan: RoundPlan) -> Score:
        score = super().round(plan)
        answer: Answer | None = None
        while True:
            try:
                step = score.send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                return cast(Update, end.value)
            if isinstance(step, Exchange) and plan.peer == 0:
                self._header.copy_(torch.tensor(self.header))
            answer = yield step


@pytest.mark.parametrize("header", [(math.nan, 1.0), (-math.inf, 1.0), (0.1, 0.0), (0.1, 99.0), (0.1, math.nan)])
def test_a_header_that_makes_no_sense_costs_the_edge_on_both_ends(
    header: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Liar, "header", header)
    start = params(n=4)
    conductor = Conductor(Liar, schedule_of(ALDSGD, 4), start)
    updates = conductor.play(0, no_gradient)
    assert [dict(update.lost) for update in updates] == [
        {1: "corrupt", 3: "corrupt"},
        {0: "corrupt"},
        {},
        {0: "corrupt"},
    ]
    assert torch.equal(conductor.params[0], start[0]), "with nobody to average with it stays where it is"
    assert not torch.equal(conductor.params[1], start[1]), "its other edge counts"


@pytest.mark.parametrize("loss", [1e30, math.inf])
def test_who_has_a_great_loss_or_none_yet_is_heard(loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Liar, "header", (loss, 2.0))
    updates = Conductor(Liar, schedule_of(ALDSGD, 4), params(n=4)).play(0, no_gradient)
    assert [(dict(update.lost), update.num_received) for update in updates] == [({}, 2)] * 4
