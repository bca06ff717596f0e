"""Methods with an outer step: the papers' listings, and what they are with its options at nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from peer.gossip.algorithm import NO_OUTER_STEP, Outer
from peer.gossip.algorithms.diloco import DiLoCo
from peer.gossip.algorithms.noloco import NoLoCo
from peer.gossip.algorithms.ring_all_reduce import RingAllReduce
from peer.gossip.algorithms.slowmo import SlowMo
from peer.gossip.outer_round import OuterAlgorithm
from tests.gossip.conductor import Conductor, Gradients
from tests.gossip.test_contract import no_gradient, params, schedule_of, some_gradient
from topology import RandomPairsSchedule

N, D, LR = 6, 37, 0.1


def fixed(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
    """A full batch, whose gradient does not depend on x."""
    return 4 * torch.randn(x.numel(), generator=torch.Generator().manual_seed(100 * k + i)), 4


def displacement(k: int, n: int = N, d: int = D) -> NDArray[np.float64]:
    """[n, d] of round k with `fixed` gradients."""
    rows = [fixed(k, i, torch.zeros(d))[0] / 4 for i in range(n)]
    return -LR * torch.stack(rows).double().numpy()


def ring(
    algorithm: type[OuterAlgorithm] | type[RingAllReduce], outer: Outer, weighting: str = "samples", **more: int
) -> Conductor:
    start = params(1, 1, D).expand(N, D)
    return Conductor(
        algorithm,
        schedule_of(algorithm, N),
        start,
        lr=LR,
        weighting=weighting,
        displaced=True,
        outer=outer,
        num_params=more.get("num_params"),
    )


@pytest.mark.parametrize("algorithm", [SlowMo, DiLoCo])
@pytest.mark.parametrize("gradients", [fixed, some_gradient])
def test_without_momentum_and_with_learning_rate_one_it_is_local_sgd_bit_for_bit(
    algorithm: type[OuterAlgorithm], gradients: Gradients
) -> None:
    mine, theirs = ring(algorithm, NO_OUTER_STEP), ring(RingAllReduce, NO_OUTER_STEP)
    for k in range(10):
        mine.play(k, gradients)
        theirs.play(k, gradients)
    assert torch.equal(mine.params, theirs.params)
    assert [p.state.samples_clock for p in mine.peers] == [p.state.samples_clock for p in theirs.peers]


def test_slowmo_is_the_listing_of_its_paper() -> None:
    """Algorithm 1 of Wang et al. 2020 in float64, with a learning rate that changes: gamma_t = 0.1 / (1 + samples / 60)."""

    def factor(samples: int) -> float:
        return 1.0 / (1.0 + samples / 60.0)

    outer = Outer(lr=0.8, momentum=0.6)
    conductor = ring(SlowMo, outer)
    for peer in conductor.peers:
        peer.state.learning_rate_factor = factor
    x, u = conductor.params[0].double().numpy(), np.zeros(D)
    for k in range(12):
        gamma = LR * factor(4 * N * k)
        u = outer.momentum * u - displacement(k).mean(0) / gamma
        x = x - outer.lr * gamma * u
        conductor.play(k, fixed)
        np.testing.assert_allclose(conductor.params[0].numpy(), x, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(row, conductor.params[0]) for row in conductor.params)


def test_dilocos_outer_step_is_torchs_nesterov() -> None:
    outer = Outer(lr=0.7, momentum=0.9)
    conductor = ring(DiLoCo, outer)
    x = torch.nn.Parameter(conductor.params[0].double())
    optimizer = torch.optim.SGD([x], lr=outer.lr, momentum=outer.momentum, nesterov=True)
    for k in range(12):
        x.grad = torch.from_numpy(-displacement(k).mean(0))
        optimizer.step()
        conductor.play(k, fixed)
        torch.testing.assert_close(conductor.params[0].double(), x.detach(), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(row, conductor.params[0]) for row in conductor.params)


@pytest.mark.parametrize("algorithm", [SlowMo, DiLoCo])
def test_of_peers_that_finished_nothing_the_mean_knows_nothing(algorithm: type[OuterAlgorithm]) -> None:
    """`peers`: D is the mean over those that finished something; and where nobody did, momentum moves nothing."""

    def half(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
        return fixed(k, i, x) if i < N // 2 and k == 0 else (torch.zeros_like(x), 0)

    conductor = ring(algorithm, Outer(1.0, 0.5), weighting="peers")
    before = conductor.params[0].double().numpy()
    conductor.play(0, half)
    expected = displacement(0)[: N // 2].mean(0) * (1.5 if algorithm is DiLoCo else 1.0)
    np.testing.assert_allclose(conductor.params[0].numpy(), before + expected, rtol=1e-5, atol=1e-6)
    then = conductor.params
    conductor.play(1, half)
    assert torch.equal(conductor.params, then)


@pytest.mark.parametrize("algorithm", [SlowMo, DiLoCo, NoLoCo])
def test_float_buffers_are_averaged_and_get_no_momentum(algorithm: type[OuterAlgorithm] | type[NoLoCo]) -> None:
    p = 20
    schedule = schedule_of(algorithm, 2)
    conductor = Conductor(algorithm, schedule, params(1, 2, D), lr=LR, outer=Outer(0.5, 0.9), num_params=p)
    if algorithm is not NoLoCo:  # they begin alike on a ring
        for peer in conductor.peers:
            peer.state.params.copy_(params(1, 2, D)[0])
    buffers = conductor.params[:, p:].double().numpy()
    for k in range(5):
        buffers = buffers.mean(0) + displacement(k, 2).mean(0)[p:] + np.zeros((2, 1))
        conductor.play(k, fixed)
    np.testing.assert_allclose(conductor.params[:, p:].numpy(), buffers, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [2, 5, 6])
def test_noloco_is_the_listing_of_its_paper(n: int) -> None:
    """delta <- alpha delta + beta mean D - gamma (x - mean x), x <- x + delta, in float64, means over the pair of the round."""
    outer, gamma = Outer(lr=0.7, momentum=0.5), 0.8
    schedule = RandomPairsSchedule(n, seed=5)
    conductor = Conductor(NoLoCo, schedule, params(3, n, D), lr=LR, outer=outer, consensus_step=gamma)
    x, delta = params(3, n, D).double().numpy(), np.zeros((n, D))
    for k in range(12):
        w = np.eye(n)
        for i in range(n):
            for j in schedule.plan(k, i).neighbors:
                w[i, i] = w[i, j] = 0.5
        delta = outer.momentum * delta + outer.lr * w @ displacement(k, n) - gamma * (x - w @ x)
        x = x + delta
        conductor.play(k, fixed)
    np.testing.assert_allclose(conductor.params.numpy(), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lost_phase", [0, 1])
def test_noloco_keeps_the_mean_if_half_of_an_exchange_is_lost(lost_phase: int) -> None:
    calls: Counter[tuple[int, int, int]] = Counter()

    def lost(k: int, i: int, j: int) -> bool:
        calls[k, i, j] += 1  # both ends ask, in each of two phases
        return (k + i) % 3 == 0 and (calls[k, i, j] > 2) == bool(lost_phase)

    outer = Outer(0.7, 0.5)
    conductor = Conductor(NoLoCo, schedule_of(NoLoCo, N), params(1, N, D), lr=LR, outer=outer, lost=lost)
    mean, delta = params(1, N, D).double().numpy().mean(0), np.zeros(D)
    num_lost = 0
    for k in range(20):
        delta = outer.momentum * delta + outer.lr * displacement(k).mean(0)
        mean = mean + delta
        for update in conductor.play(k, fixed):
            num_lost += len(update.lost)
            assert len(update.lost) + update.num_received == 1
    np.testing.assert_allclose(conductor.params.mean(0).numpy(), mean, rtol=1e-4, atol=1e-5)
    assert num_lost > 10


def pulled(n: int) -> float:
    """q with E[I - P] = q I on deviations from the mean, P the pair's mean: a pair has one direction in which it is apart, so the trace
    is the number of pairs, and all n - 1 directions are alike."""
    return (n // 2) / (n - 1)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8])
def test_what_a_round_of_pairs_takes_of_a_deviation(n: int) -> None:
    schedule, rounds = RandomPairsSchedule(n, seed=3), 4000
    taken = np.zeros((n, n))
    for k in range(rounds):
        for i in range(n):
            for j in schedule.plan(k, i).neighbors:
                taken[i, i] += 0.5 / rounds
                taken[i, j] -= 0.5 / rounds
    np.testing.assert_allclose(taken, pulled(n) * (np.eye(n) - 1 / n), atol=0.03)


def second_moments(alpha: float, gamma: float, n: int) -> float:
    """Spectral radius of the map of (E||x||^2, E<x, delta>, E||delta||^2) of the deviations from the mean in a round without D. With
    P the pair's mean, delta' = alpha delta - gamma (I - P) x; (I - P)^2 = I - P, and its expectation is q I."""
    a, g, q = alpha, gamma, pulled(n)
    new_delta = np.array([g * g * q, -2 * a * g * q, a * a])
    cross = np.array([-g * q, a, 0.0])
    x = np.array([1.0, 0.0, 0.0]) + 2 * cross + new_delta
    return float(np.abs(np.linalg.eigvals(np.stack([x, cross + new_delta, new_delta]))).max())


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8, 63, 64])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.7, 0.75, 0.9])
def test_what_is_refused_of_noloco_is_what_diverges(n: int, alpha: float) -> None:
    for gamma in np.linspace(0.02, 2.5, 125):
        refused = NoLoCo.why_not_outer(Outer(0.7, alpha), float(gamma), n) is not None
        radius = second_moments(alpha, float(gamma), n)
        assert refused == (radius >= 1) or abs(radius - 1) < 1e-6
    assert NoLoCo.why_not_outer(Outer(0.7, 0.5), 1.0, n) is None, "the defaults are fine"


def squared_distances(n: int, alpha: float, gamma: float, rounds: int) -> list[float]:
    """From the mean of all peers, summed, before each round without D and after the last."""
    conductor = Conductor(
        NoLoCo, schedule_of(NoLoCo, n), params(4, n, 400), outer=Outer(0.7, alpha), consensus_step=gamma
    )
    apart = [float((conductor.params - conductor.params.mean(0)).square().sum())]
    for k in range(rounds):
        conductor.play(k, no_gradient)
        apart.append(float((conductor.params - conductor.params.mean(0)).square().sum()))
    return apart


@pytest.mark.parametrize("n", [7, 16])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.5, 1.0), (0.5, 0.3), (0.0, 1.0), (0.7, 0.5)])
def test_pairs_of_noloco_come_together_at_the_rate_of_the_second_moments(alpha: float, gamma: float, n: int) -> None:
    apart = squared_distances(n, alpha, gamma, 60)
    rate = (apart[30] / apart[0]) ** (1 / 30)
    assert rate < second_moments(alpha, gamma, n) + 0.06
    assert apart[-1] < 1e-3 * apart[0]


@pytest.mark.parametrize(("n", "alpha"), [(5, 0.75), (7, 0.8)])
def test_where_one_of_an_odd_number_rests_noloco_diverges_earlier_and_is_refused(n: int, alpha: float) -> None:
    assert NoLoCo.why_not_outer(Outer(0.7, alpha), 1.0, n) is not None
    most = 2 * (1 - alpha**2)
    assert NoLoCo.why_not_outer(Outer(0.7, alpha), most - 0.01, n) is None
    apart = squared_distances(n, alpha, 1.0, 300)
    assert max(apart[200:]) > 10 * apart[0]
    assert max(squared_distances(n, alpha, 0.6 * most, 300)[200:]) < 1e-3 * apart[0]


def test_nolocos_variance_between_peers_is_bounded_and_in_proportion_to_the_squared_learning_rate() -> None:
    """Theorem of Kolehmainen et al. 2025: the variance of the slow weights is proportional to the square of the inner learning rate."""

    def noisy(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
        noise = torch.randn(x.numel(), generator=torch.Generator().manual_seed(1000 * k + i))
        return 4 * (0.2 * x + noise), 4

    variance = {}
    for lr in (0.05, 0.1, 0.2):
        start = params(1, 1, 60).expand(8, 60)
        conductor = Conductor(NoLoCo, schedule_of(NoLoCo, 8), start, lr=lr, outer=Outer(0.7, 0.5))
        seen = []
        for k in range(160):
            conductor.play(k, noisy)
            seen.append(float((conductor.params - conductor.params.mean(0)).square().mean()))
        variance[lr] = np.mean(seen[40:])
        assert max(seen[100:]) < 3 * np.mean(seen[40:100]), "it does not grow"
    assert variance[0.1] / variance[0.05] == pytest.approx(4, rel=0.1)
    assert variance[0.2] / variance[0.1] == pytest.approx(4, rel=0.1)
