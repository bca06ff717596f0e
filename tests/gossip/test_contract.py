"""The contract that every registered algorithm keeps. Adding an algorithm adds one row here, by itself."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from peer.gossip.algorithm import Algorithm, RoundBroken, ScheduleOptions
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.delivery import Delivery
from tests.gossip.conductor import Conductor
from topology import Schedule, build

N, D = 6, 11
#: Those without rounds have nothing that a conductor could play round by round; tests/sim/test_central.py has what they keep.
WITH_ROUNDS = [algorithm for algorithm in ALGORITHMS.values() if algorithm.has_rounds]
every_algorithm = pytest.mark.parametrize("algorithm", WITH_ROUNDS, ids=[algorithm.name for algorithm in WITH_ROUNDS])


def schedule_of(algorithm: type[Algorithm], n: int = N, topology: str | None = None, head: int = 0) -> Schedule:
    return algorithm.make_schedule(
        ScheduleOptions(
            topology=build(topology or ("star" if algorithm.has_head else "ring"), n),
            random_graph_every=0,
            degree=None,
            probability=None,
            radius=None,
            mixing="metropolis",
            budget=0.7,
            seed=5,
            head=head,
        )
    )


def params(seed: int = 1, n: int = N, d: int = D) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def no_gradient(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
    return torch.zeros_like(x), 4


def some_gradient(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
    samples = (k + i) % 5  # from nothing to a full batch
    noise = torch.randn(x.numel(), generator=torch.Generator().manual_seed(1000 * k + i))
    return samples * (x + noise), samples


def play_all(conductor: Conductor, rounds: int) -> None:
    for k in range(rounds):
        conductor.play(k, no_gradient)


@every_algorithm
def test_consensus_is_a_fixed_point(algorithm: type[Algorithm]) -> None:
    start = params()[0].expand(N, D)
    conductor = Conductor(algorithm, schedule_of(algorithm), start)
    for k in range(10):
        conductor.play(k, no_gradient)
    assert torch.allclose(conductor.params, start, atol=1e-5)


@every_algorithm
def test_the_mean_is_kept_without_gradients(algorithm: type[Algorithm]) -> None:
    conductor = Conductor(algorithm, schedule_of(algorithm), params())
    for k in range(20):
        conductor.play(k, no_gradient)
    if algorithm.has_head:
        assert all(torch.equal(row, params()[0]) for row in conductor.params), (
            "the head's model, whatever the others had"
        )
    else:
        assert torch.allclose(conductor.params.mean(0), params().mean(0), atol=1e-5)


@every_algorithm
@pytest.mark.parametrize("weighting", ["samples", "peers"])
@pytest.mark.parametrize("displaced", [False, True])
def test_at_consensus_the_mean_moves_by_the_weighted_mean_gradient(
    algorithm: type[Algorithm], weighting: str, displaced: bool
) -> None:
    start = params()[0].expand(N, D)
    conductor = Conductor(
        algorithm, schedule_of(algorithm), start, lr=0.5, batch_size=4, weighting=weighting, displaced=displaced
    )
    conductor.play(3, some_gradient)
    sums, counts = zip(*(some_gradient(3, i, start[i]) for i in range(N)), strict=True)
    means = [g / n if n else torch.zeros(D) for g, n in zip(sums, counts, strict=True)]
    if weighting == "peers":
        # a peer with nothing finished counts as a peer with a zero gradient, except in an all-reduce, which leaves it out
        divisor = sum(n > 0 for n in counts) if algorithm.sums_gradients else N
        expected = torch.stack(means).sum(0) / divisor
    else:
        # a displacement is in proportion to its samples already, so an all-reduce divides it by the number of peers
        whole = sum(counts) if algorithm.sums_gradients and not displaced else 4 * N
        expected = torch.stack(sums).sum(0) / whole
    assert torch.allclose(conductor.params.mean(0), start[0] - 0.5 * expected, atol=1e-5)


@every_algorithm
@pytest.mark.parametrize("displaced", [False, True])
def test_arrival_order_changes_no_bit(algorithm: type[Algorithm], displaced: bool) -> None:
    played = []
    for shuffle in (None, 1, 2):
        conductor = Conductor(algorithm, schedule_of(algorithm), params(), shuffle=shuffle, displaced=displaced)
        for k in range(8):
            conductor.play(k, some_gradient)
        played.append(conductor.params)
    assert torch.equal(played[0], played[1])
    assert torch.equal(played[0], played[2])


@every_algorithm
@pytest.mark.parametrize(("n", "displaced"), [(2, False), (3, False), (4, False), (7, False), (4, True)])
def test_any_number_of_peers_finds_the_minimum_of_quadratics(
    algorithm: type[Algorithm], n: int, displaced: bool
) -> None:
    targets = params(7, n)

    def gradient(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
        return 4 * (x - targets[i]), 4

    start = params(1, n)[0].expand(n, D)
    conductor = Conductor(algorithm, schedule_of(algorithm, n), start, lr=0.02, displaced=displaced)
    for k in range(800):
        conductor.play(k, gradient)
    assert torch.allclose(conductor.params.mean(0), targets.mean(0), atol=1e-2)
    assert (conductor.params - conductor.params.mean(0)).norm(dim=1).max() < 0.5


@every_algorithm
def test_survives_exactly_the_losses_it_declares(algorithm: type[Algorithm]) -> None:
    rng = random.Random(4)
    lost = {(k, i, j) for k in range(30) for i in range(N) for j in range(i + 1, N) if rng.random() < 0.3}
    conductor = Conductor(algorithm, schedule_of(algorithm), params(), lost=lambda k, i, j: (k, i, j) in lost)
    if algorithm.delivery is Delivery.EVERY_MESSAGE:
        with pytest.raises(RoundBroken) as broken:
            play_all(conductor, 30)
        assert broken.value.reason == "deadline"
        return
    edges_lost = sum(len(update.lost) for k in range(30) for update in conductor.play(k, no_gradient))
    assert edges_lost > 20
    if algorithm.has_head:
        assert torch.equal(conductor.params[0], params()[0])
    else:
        assert torch.allclose(conductor.params.mean(0), params().mean(0), atol=1e-5)


@every_algorithm
def test_the_learning_rate_clock_counts_samples(algorithm: type[Algorithm]) -> None:
    conductor = Conductor(algorithm, schedule_of(algorithm), params())
    for k in range(5):
        conductor.play(k, no_gradient)
    for peer in conductor.peers:
        assert peer.state.samples_clock == 5 * 4 * N
    for peer in conductor.peers[:1] if algorithm.has_head else conductor.peers:
        assert peer.state.optimizer.clock == [4 * N * (k + 1) for k in range(5)]  # type: ignore[attr-defined]


@every_algorithm
def test_a_displacement_is_the_step_and_the_algorithm_makes_none(algorithm: type[Algorithm]) -> None:
    conductor = Conductor(algorithm, schedule_of(algorithm), params(), displaced=True)
    for k in range(5):
        conductor.play(k, some_gradient)
    assert all(peer.state.optimizer.clock == [] for peer in conductor.peers)  # type: ignore[attr-defined]
    assert {type(peer.state.samples_clock) for peer in conductor.peers} == {int}


@every_algorithm
@pytest.mark.parametrize("displaced", [False, True])
def test_a_round_in_which_nobody_finished_anything_only_mixes(algorithm: type[Algorithm], displaced: bool) -> None:
    def nothing(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
        return torch.zeros_like(x), 0

    conductor = Conductor(algorithm, schedule_of(algorithm), params(), displaced=displaced)
    for k in range(5):
        conductor.play(k, nothing)
    assert torch.allclose(conductor.params.mean(0), params()[0] if algorithm.has_head else params().mean(0), atol=1e-5)
    assert all(peer.state.optimizer.clock == [] for peer in conductor.peers)  # type: ignore[attr-defined]
