"""Topologies with other edges in each round: what their papers promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from topology import RandomPairsSchedule, Schedule, TopologyError, build_varying
from topology.base_graph import base_graph
from topology.varying import EquiDynSchedule, PeriodicSchedule, basis_rho, pairs_of_shift

ALGORITHMS = Path(__file__).parents[2] / "docs" / "algorithms.md"
Matrix = NDArray[np.float64]


def matrix(schedule: Schedule, k: int) -> Matrix:
    """W(k) [n, n], put together from what each peer plans for itself."""
    w = np.zeros((schedule.num_peers, schedule.num_peers))
    for i in range(schedule.num_peers):
        plan = schedule.plan(k, i)
        w[i, i] = plan.self_weight
        w[i, list(plan.neighbors)] = plan.weights
    return w


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_a_base_graph_is_exact_for_every_number_of_peers(k: int) -> None:
    """Theorem 1 of Takezawa et al. 2023: the product of the rounds is 11'/n; nobody has more than k neighbours in one of them; and it
    takes at most 2 log_{k+1}(n) + 2 rounds."""
    for n in range(k + 1, 65):
        product = np.eye(n)
        rounds = base_graph(n, k)
        assert len(rounds) <= 2 * np.log(n) / np.log(k + 1) + 2
        for weights in rounds:
            w = np.zeros((n, n))
            for (i, j), weight in weights.items():
                assert 0 <= i < j < n
                w[i, j] = w[j, i] = weight
            assert np.count_nonzero(w, axis=1).max() <= k
            own = 1 - w.sum(1)
            assert own.min() > -1e-12, "the weights of a peer are no more than 1"
            product = (w + np.diag(own)) @ product
        np.testing.assert_allclose(product, 1 / n, rtol=0, atol=1e-12)


def test_base_graphs_take_as_many_rounds_as_the_paper_says() -> None:
    assert {n: len(base_graph(n, 1)) for n in (5, 6, 7, 8, 10, 12, 16, 25)} == {
        **{5: 5, 6: 4, 7: 5, 8: 3, 10: 6, 12: 5, 16: 4, 25: 9}
    }
    assert len(base_graph(9, 2)) == 2
    assert [len(base_graph(n, n - 1)) for n in range(2, 12)] == [1] * 10, "all at once"


def test_the_base_2_graph_of_five_peers() -> None:
    """Figure 3 of Takezawa et al. 2023: 5 = 4 + 1; two rounds among the four, the fifth takes 4/5 of one of them, two rounds more."""
    schedule = build_varying("base", 5)
    assert isinstance(schedule, PeriodicSchedule)
    assert schedule.rounds == (
        ((0, 1, 0.5), (2, 3, 0.5)),
        ((0, 2, 0.5), (1, 3, 0.5)),
        ((0, 1, 0.5), (3, 4, 0.8)),
        ((0, 1, 0.5), (2, 3, 0.5)),
        ((0, 2, 0.5), (1, 3, 0.5)),
    )
    assert schedule.base(3).edges == ((0, 1), (0, 2), (1, 3), (2, 3), (3, 4))


@pytest.mark.parametrize("t", range(1, 7))
def test_the_one_peer_exponential_graph_is_exact_after_log_n_rounds_from_anywhere(t: int) -> None:
    """Theorem 2 of Ying et al. 2021: any t rounds in a row average 2^t peers, as the matrices commute."""
    schedule = build_varying("one-peer-exponential", 2**t)
    assert schedule.period == t
    for begin in range(t):
        product = np.eye(2**t)
        for k in range(begin, begin + t):
            product = matrix(schedule, k) @ product
        np.testing.assert_allclose(product, 2.0**-t, rtol=0, atol=1e-15)
    assert all(len(schedule.plan(k, 0).neighbors) == 1 for k in range(t))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9, 13, 16, 20])
def test_equidyn_contracts_as_its_paper_says(n: int) -> None:
    """E W'W over all shifts of the basis and all starts: its second eigenvalue is `contraction`, which the bound of Song et al. 2022
    for OU-EquiDyn, 1 - 4/3 eta (1 - eta) (1 - rho), is never below."""
    schedule = EquiDynSchedule(n, seed=3)
    mean = np.zeros((n, n))
    for u in schedule.basis:
        for start in range(n):
            w = np.eye(n)
            for i, j in pairs_of_shift(n, u, start):
                w[i, j] = w[j, i] = schedule.weight
                w[i, i] = w[j, j] = 1 - schedule.weight
            mean += w @ w / (n * len(schedule.basis))
    second = np.linalg.eigvalsh(mean - 1 / n)[-1]
    assert schedule.contraction == pytest.approx(second, abs=1e-9)
    assert second <= 1 - (1 - basis_rho(n, schedule.basis)) / 3 + 1e-9


def test_equidyns_rate_hardly_depends_on_the_number_of_peers() -> None:
    """Song et al. 2022: O(1) with O(log n) shifts. A ring's is 1 - O(1 / n^2), one-peer exponential's 1 - O(1 / log n)."""
    rates = {n: EquiDynSchedule(n, seed=1) for n in (8, 16, 64, 256, 1024)}
    assert max(schedule.contraction for schedule in rates.values()) < 0.75
    for n, schedule in rates.items():
        assert schedule.base(0).max_degree <= 2 * len(schedule.basis) <= 4 * np.ceil(np.log2(n))


def test_the_factors_that_the_documents_name() -> None:
    factors = {n: f"{EquiDynSchedule(n, seed=0).contraction:.2f}" for n in (2, 8, 64, 256)}
    assert factors == {2: "0.25", 8: "0.55", 64: "0.67", 256: "0.72"}
    row = next(line for line in ALGORITHMS.read_text().splitlines() if line.startswith("| `equidyn` | 0 or 1"))
    assert "times 0.25 (N = 2), 0.55 (8), 0.67 (64), 0.72 (256) a round" in row


def test_equidyn_reaches_that_rate() -> None:
    schedule = EquiDynSchedule(16, seed=0)
    x = np.random.default_rng(0).normal(size=(16, 400))
    x -= x.mean(0)
    first = np.square(x).sum()
    for k in range(40):
        x = matrix(schedule, k) @ x
    assert np.abs(x.mean(0)).max() < 1e-14, "the mean is kept"
    assert 0.3 < (np.square(x).sum() / first) ** (1 / 40) < schedule.contraction


def test_shifts_and_starts_of_equidyn_come_as_often_as_each_other() -> None:
    schedule = EquiDynSchedule(4, seed=5)
    counts: dict[object, int] = {}
    for k in range(6000):
        counts[schedule.pairs(k)] = counts.get(schedule.pairs(k), 0) + 1
    both = {((0, 1), (2, 3)), ((0, 3), (1, 2)), ((0, 2), (1, 3))}
    assert set(counts) == both, "of four peers all are paired whatever the start"
    assert all(abs(count / 6000 - 1 / 3) < 0.03 for count in counts.values())


@pytest.mark.parametrize("n", [2, 5, 6, 9])
def test_random_pairs_are_matchings_of_all_peers_each_as_likely(n: int) -> None:
    schedule = RandomPairsSchedule(n, seed=2)
    met = np.zeros((n, n))
    for k in range(3000):
        partners = [schedule.plan(k, i).neighbors for i in range(n)]
        assert sum(len(p) for p in partners) == n - n % 2
        for i, partner in enumerate(partners):
            for j in partner:
                assert partners[j] == (i,)
                assert j != i
                met[i, j] += 1
    expected = (n - n % 2) / n / (n - 1)
    off_diagonal = met[~np.eye(n, dtype=bool)] / 3000
    assert np.abs(off_diagonal - expected).max() < 0.05


@pytest.mark.parametrize(
    ("name", "n", "k", "sentence"),
    [
        ("base", 1, None, "1 peer is too few"),
        ("base", 4, 4, "--base-k: 4 is not between 1 and 3"),
        ("base", 4, 0, "--base-k: 0 is not between 1 and 3"),
        ("equidyn", 4, 2, "--base-k: equidyn has none"),
        ("one-peer-exponential", 6, None, "not a power of two, .* use --topology base"),
    ],
)
def test_what_cannot_be_is_refused(name: str, n: int, k: int | None, sentence: str) -> None:
    with pytest.raises(TopologyError, match=sentence):
        build_varying(name, n, k=k)
