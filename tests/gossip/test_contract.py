"""The contract that every registered algorithm keeps. Adding an algorithm adds one row here, by itself."""

from __future__ import annotations

import random
from collections import Counter
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from peer.config import validated
from peer.gossip.algorithm import Algorithm, RoundBroken, ScheduleOptions
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.algorithms.ring_all_reduce import RingAllReduce
from peer.gossip.delivery import Delivery
from tests.gossip.conductor import Conductor
from topology import Schedule, build

N, D = 6, 11


class RingOfShards(RingAllReduce):
    """Vectors here are small, and a ring passes them on whole. This is how it passes on large ones."""

    whole_bytes: ClassVar[int] = -1


#: Those without rounds have nothing that a conductor could play round by round; tests/sim/test_contract_without_rounds.py is theirs.
WITH_ROUNDS: list[type[Algorithm]] = [
    *(algorithm for algorithm in ALGORITHMS.values() if algorithm.has_rounds),
    RingOfShards,
]


def label(algorithm: type[Algorithm]) -> str:
    return "ring of shards" if algorithm is RingOfShards else algorithm.name


every_algorithm = pytest.mark.parametrize("algorithm", WITH_ROUNDS, ids=label)

#: With gradients, and with displacements where the algorithm takes them.
GIVEN = [(a, d) for a in WITH_ROUNDS for d in (False, True) if not (d and a.why_no_local_steps)]
however_given = pytest.mark.parametrize(
    ("algorithm", "displaced"), GIVEN, ids=[f"{label(a)} {'displacements' if d else 'gradients'}" for a, d in GIVEN]
)


def schedule_of(algorithm: type[Algorithm], n: int = N, topology: str | None = None, head: int = 0) -> Schedule:
    return algorithm.make_schedule(
        ScheduleOptions(
            topology=build(topology or validated({"algorithm": algorithm.name}).topology, n),
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


def in_the_hull(rows: Tensor, of: Tensor) -> bool:
    """Whether every entry of [n, d] lies between the least and the greatest of its column in `of` [m, d]."""
    return bool(((rows >= of.amin(0) - 1e-5) & (rows <= of.amax(0) + 1e-5)).all())


def assert_mixed_only(conductor: Conductor, *, loses: bool = False) -> None:
    """Rounds without a gradient, from `params()`, left what they must."""
    algorithm, start = type(conductor.peers[0]), params()
    if algorithm.has_head:
        followers = conductor.params[:1] if loses else conductor.params
        assert all(torch.equal(row, start[0]) for row in followers), "the head's model, whatever the others had"
    elif algorithm.keeps_mean:
        assert torch.allclose(conductor.params.mean(0), start.mean(0), atol=1e-5)
    else:
        assert in_the_hull(conductor.params, start)


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
def test_the_mean_is_kept_without_gradients_exactly_where_it_is_declared(algorithm: type[Algorithm]) -> None:
    conductor = Conductor(algorithm, schedule_of(algorithm), params())
    play_all(conductor, 20)
    assert torch.allclose(conductor.params.mean(0), params().mean(0), atol=1e-5) is algorithm.keeps_mean
    assert_mixed_only(conductor)


@however_given
@pytest.mark.parametrize("weighting", ["samples", "peers"])
def test_at_consensus_the_mean_moves_by_the_weighted_mean_gradient(
    algorithm: type[Algorithm], weighting: str, displaced: bool
) -> None:
    displaced = displaced or algorithm.steps_locally
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
    if algorithm.keeps_mean or algorithm.has_head:
        assert torch.allclose(conductor.params.mean(0), start[0] - 0.5 * expected, atol=1e-5)
        return
    divisors = [4 if weighting == "samples" else max(n, 1) for n in counts]
    alone = torch.stack([start[0] - 0.5 * g / n for g, n in zip(sums, divisors, strict=True)])
    assert in_the_hull(conductor.params, alone)


@however_given
def test_arrival_order_changes_no_bit(algorithm: type[Algorithm], displaced: bool) -> None:
    played = []
    for shuffle in (None, 1, 2):
        conductor = Conductor(algorithm, schedule_of(algorithm), params(), shuffle=shuffle, displaced=displaced)
        for k in range(8):
            conductor.play(k, some_gradient)
        played.append(conductor.params)
    assert torch.equal(played[0], played[1])
    assert torch.equal(played[0], played[2])


@pytest.mark.parametrize(
    ("algorithm", "n", "displaced"),
    [
        (algorithm, n, displaced)
        for algorithm, displaced in GIVEN
        for n in (2, 3, 4, 5)
        if (n == 4 if displaced else n == 3 or not algorithm.steps_locally)  # those play displacements either way
    ],
)
def test_any_number_of_peers_finds_the_minimum_of_quadratics(
    algorithm: type[Algorithm], n: int, displaced: bool
) -> None:
    targets = params(7, n)

    def gradient(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
        return 4 * (x - targets[i]), 4

    start = params(1, n)[0].expand(n, D)
    conductor = Conductor(algorithm, schedule_of(algorithm, n), start, lr=0.05, displaced=displaced)
    for k in range(160):
        conductor.play(k, gradient)
    if algorithm.keeps_mean or algorithm.has_head:
        assert torch.allclose(conductor.params.mean(0), targets.mean(0), atol=1e-2)
    else:
        assert in_the_hull(conductor.params, targets)
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
    assert_mixed_only(conductor, loses=True)


@every_algorithm
def test_the_learning_rate_clock_counts_samples(algorithm: type[Algorithm]) -> None:
    conductor = Conductor(algorithm, schedule_of(algorithm), params())
    for k in range(5):
        conductor.play(k, no_gradient)
    for peer in conductor.peers:
        assert peer.state.samples_clock == 5 * 4 * N
        steps = [] if algorithm.steps_locally else [4 * N * (k + 1) for k in range(5)]  # else they are the trainer's
        if algorithm.has_head and peer.state.peer:
            steps = []
        assert peer.state.optimizer.clock == steps  # type: ignore[attr-defined]


@pytest.mark.parametrize("algorithm", [a for a, displaced in GIVEN if displaced])
def test_a_displacement_is_the_step_and_the_algorithm_makes_none(algorithm: type[Algorithm]) -> None:
    conductor = Conductor(algorithm, schedule_of(algorithm), params(), displaced=True)
    for k in range(5):
        conductor.play(k, some_gradient)
    assert all(peer.state.optimizer.clock == [] for peer in conductor.peers)  # type: ignore[attr-defined]
    assert {type(peer.state.samples_clock) for peer in conductor.peers} == {int}


@however_given
def test_a_round_in_which_nobody_finished_anything_only_mixes(algorithm: type[Algorithm], displaced: bool) -> None:
    def nothing(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
        return torch.zeros_like(x), 0

    conductor = Conductor(algorithm, schedule_of(algorithm), params(), displaced=displaced)
    for k in range(5):
        conductor.play(k, nothing)
    assert_mixed_only(conductor)
    assert all(peer.state.optimizer.clock == [] for peer in conductor.peers)  # type: ignore[attr-defined]


@every_algorithm
def test_a_peer_that_sends_nan_costs_its_edges_and_moves_nobody(algorithm: type[Algorithm]) -> None:
    """All begin alike, and only that peer finds a gradient, which is NaN: from the second round on it sends what came of it."""
    bad = 2

    def gradient(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
        return torch.full_like(x, torch.nan if i == bad else 0.0), 4

    start = params()[0].expand(N, D)
    others = [i for i in range(N) if i != bad]
    schedule = schedule_of(algorithm)
    conductor = Conductor(algorithm, schedule, start)
    if algorithm.delivery is Delivery.EVERY_MESSAGE:
        with pytest.raises(RoundBroken) as broken:
            conductor.play(0, gradient)
        assert broken.value.reason == "corrupt"
        return
    reasons: Counter[str] = Counter()
    for k in range(8):
        updates = conductor.play(k, gradient)
        assert torch.allclose(conductor.params[others], start[others], atol=1e-5)
        for i in range(N):
            plan = schedule.plan(k, i)
            whole = set(plan.neighbors) if i == bad else {bad} & set(plan.neighbors)
            expected = (
                set() if algorithm.has_head and i else whole
            )  # a worker hears that its gradient did not count otherwise
            assert updates[i].lost.keys() == expected or (k == 0 and not updates[i].lost)
            reasons.update(updates[i].lost.values())
    assert reasons.keys() <= {"corrupt", "restarted"}
    assert reasons["corrupt"] >= 4
    if algorithm.has_head:
        assert torch.equal(conductor.params[bad], conductor.params[0]), "it has the head's model"
