"""Synchronous SGD with a head is one machine (lecture 24, algorithm 1); backup workers are dropped (Chen et al. 2017, arXiv 1604.00981)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from peer.gossip.algorithm import Central, RoundBroken
from peer.gossip.algorithms.sync_sgd import SyncSGD
from tests.gossip.conductor import Conductor
from tests.gossip.test_contract import no_gradient, params, schedule_of
from tests.gossip.test_papers import pick

LR, D = 0.05, 7


def drawn(k: int, n: int, counts: list[int]) -> dict[int, tuple[Tensor, int]]:
    return {i: (torch.randn(D, generator=torch.Generator().manual_seed(100 * k + i)), counts[i]) for i in range(n)}


@pytest.mark.parametrize(("n", "head", "computes"), [(2, 0, True), (5, 3, True), (5, 0, False), (8, 7, False)])
@pytest.mark.parametrize("weighting", ["samples", "peers"])
def test_the_step_is_that_of_one_machine(n: int, head: int, computes: bool, weighting: str) -> None:
    """x <- x - lr sum G / sum n, or the mean of the means, whatever the counts; all peers end with the head's bits."""
    conductor = Conductor(
        SyncSGD,
        schedule_of(SyncSGD, n, head=head),
        params(d=D)[0].expand(n, D),
        lr=LR,
        weighting=weighting,
        central=Central(head, computes),
        shuffle=1,
    )
    x = conductor.params[0].double()
    for k in range(10):
        gradients = drawn(k, n, [(k * i) % 4 for i in range(n)])
        used = [(g.double(), count) for i, (g, count) in gradients.items() if count and (computes or i != head)]
        if used and weighting == "samples":
            x = x - LR * torch.stack([g for g, _ in used]).sum(0) / sum(count for _, count in used)
        elif used:
            x = x - LR * torch.stack([g / count for g, count in used]).mean(0)
        conductor.play(k, partial(pick, gradients))
        assert all(torch.equal(row, conductor.params[head]) for row in conductor.params)
    assert torch.allclose(conductor.params[0].double(), x, atol=1e-6)


@pytest.mark.parametrize("computes", [True, False])
@pytest.mark.parametrize("shuffle", [1, 2, 3])
def test_the_first_m_gradients_are_the_step_and_the_rest_is_dropped_and_told(computes: bool, shuffle: int) -> None:
    """Every round two peers are late and have a part of their batch. The others' mean is the step, each peer knows its own fate."""
    n, backups, batch = 6, 2, 4
    conductor = Conductor(
        SyncSGD,
        schedule_of(SyncSGD, n),
        torch.zeros(n, D),
        lr=LR,
        batch_size=batch,
        weighting="samples",
        central=Central(0, computes, backups),
        shuffle=shuffle,
    )
    x = torch.zeros(D, dtype=torch.float64)
    for k in range(12):
        late = {1 + k % 5, 1 + (k + 2) % 5}
        counts = [(k + i) % batch if i in late else batch for i in range(n)]
        gradients = drawn(k, n, counts)
        on_time = [i for i in range(n) if i not in late and (computes or i)]
        x = x - LR * sum((gradients[i][0].double() for i in on_time), torch.zeros(D)) / (batch * len(on_time))
        updates = conductor.play(k, partial(pick, gradients))
        assert torch.allclose(conductor.params[3].double(), x, atol=1e-6)
        for i, update in enumerate(updates):
            assert update.dropped == (counts[i] if i in late else 0)
            assert update.accumulated.num_samples == (batch if i in on_time else 0)


def test_of_more_gradients_than_are_needed_the_last_are_dropped() -> None:
    n, batch = 5, 2
    conductor = Conductor(
        SyncSGD,
        schedule_of(SyncSGD, n),
        torch.zeros(n, D),
        batch_size=batch,
        weighting="samples",
        central=Central(0, False, 1),
        shuffle=4,
    )
    dropped = []
    for k in range(20):
        updates = conductor.play(k, partial(pick, drawn(k, n, [batch] * n)))
        assert sum(update.accumulated.num_samples for update in updates) == 3 * batch
        assert sum(update.dropped for update in updates) == batch
        dropped += [i for i, update in enumerate(updates) if update.dropped]
    assert len(set(dropped)) > 1


def test_a_worker_that_missed_the_parameters_computes_nothing_and_is_back_a_round_later() -> None:
    asked: list[tuple[int, int]] = []

    def gradient(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
        asked.append((k, i))
        return 4 * (x + 1), 4

    conductor = Conductor(
        SyncSGD, schedule_of(SyncSGD, 3), torch.zeros(3, D), lost=lambda k, i, j: (k, i, j) == (1, 0, 2), batch_size=4
    )
    updates = [conductor.play(k, gradient) for k in range(5)]
    assert updates[1][2].lost == {0: "declined"}
    assert updates[1][0].lost == {2: "deadline"}
    assert updates[1][2].dropped == 4
    assert updates[2][2].accumulated.close_reason == "missed"
    assert (2, 2) not in asked
    assert (3, 2) in asked
    assert all(torch.equal(row, conductor.params[0]) for row in conductor.params)


@pytest.mark.parametrize(("computes", "survives"), [(True, True), (False, False)])
def test_a_head_without_workers_goes_on_only_if_it_computes(computes: bool, survives: bool) -> None:
    conductor = Conductor(
        SyncSGD, schedule_of(SyncSGD, 3), torch.zeros(3, D), lost=lambda k, i, j: True, central=Central(0, computes)
    )
    if survives:
        assert conductor.play(0, no_gradient)[0].num_received == 0
        return
    with pytest.raises(RoundBroken) as broken:
        conductor.play(0, no_gradient)
    assert broken.value.needs == "a worker"


def test_a_worker_that_loses_its_head_is_broken() -> None:
    conductor = Conductor(
        SyncSGD, schedule_of(SyncSGD, 3), torch.zeros(3, D), deaf=lambda k, i, j: i == 1, central=Central(0)
    )
    conductor.peers[1].is_patient_with = lambda peer: False  # type: ignore[method-assign]
    with pytest.raises(RoundBroken) as broken:
        conductor.play(0, no_gradient)
    assert (broken.value.peer, broken.value.reason, broken.value.needs) == (0, "deadline", "its head")
