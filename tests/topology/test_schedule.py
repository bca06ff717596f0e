"""Schedules: equal on both ends of an edge, on every peer and platform."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.topology.test_matcha import graph_0
from topology import (
    AlternatingSchedule,
    FixedSchedule,
    MatchaSchedule,
    RandomGraphSchedule,
    RandomPairsSchedule,
    RoundPlan,
    Schedule,
    TopologyError,
    build,
    build_varying,
    stable_seed,
    stable_uniform,
)
from topology.graph import laplacian
from topology.varying import EquiDynSchedule

SCHEDULES: list[Schedule] = [
    FixedSchedule(build("torus", 12)),
    FixedSchedule(graph_0, "best-constant"),
    MatchaSchedule(graph_0, 0.5, seed=3),
    RandomGraphSchedule("random-regular", 10, every=3, seed=4),
    RandomGraphSchedule("erdos-renyi", 9, every=1, seed=4, probability=0.5),
    AlternatingSchedule(tuple(FixedSchedule(build("star", 9).relabelled(seed)) for seed in (1, 2, 3))),
    AlternatingSchedule((MatchaSchedule(graph_0, 0.5, seed=3), MatchaSchedule(graph_0.relabelled(1), 0.5, seed=3))),
    build_varying("base", 14, k=3),
    build_varying("base", 14),
    build_varying("one-peer-exponential", 8),
    build_varying("equidyn", 19, seed=4),
    build_varying("equidyn", 19, seed=5),
    RandomPairsSchedule(7, seed=4),
    RandomPairsSchedule(7, seed=5),
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(0, 10**9))
def test_both_ends_of_an_edge_plan_alike(schedule: Schedule, round: int) -> None:
    plans = [schedule.plan(round, i) for i in range(schedule.num_peers)]
    for i, plan in enumerate(plans):
        assert plan.self_weight + sum(plan.weights) == pytest.approx(1)
        assert plan.neighbors == tuple(sorted(plan.neighbors))
        assert set(plan.neighbors) <= set(schedule.links(round, i))
        assert set(plan.neighbors) <= set(schedule.base(round).neighbors(i))
        assert plan.active_matchings == plans[0].active_matchings
        for j, w in zip(plan.neighbors, plan.weights, strict=True):
            assert dict(zip(plans[j].neighbors, plans[j].weights, strict=True))[i] == w


def test_random_numbers_are_the_same_everywhere() -> None:
    assert stable_uniform(0, "matcha", 0, 0) == GOLDEN_UNIFORM
    assert stable_seed(1, "graph", 2) == GOLDEN_SEED
    draws = [stable_uniform(5, "x", k) for k in range(4000)]
    assert all(0 <= u < 1 for u in draws)
    assert sum(draws) / 4000 == pytest.approx(0.5, abs=0.02)


def test_golden_schedule_of_graph_0() -> None:
    schedule = MatchaSchedule(graph_0, 0.5, seed=0)
    assert [schedule.active(k) for k in range(8)] == GOLDEN_ACTIVE


def test_golden_rounds_of_equidyn_and_of_random_pairs() -> None:
    schedule = EquiDynSchedule(12, seed=3)
    assert schedule.basis == GOLDEN_BASIS
    assert schedule.pairs(7) == GOLDEN_PAIRS
    assert [RandomPairsSchedule(7, seed=4).plan(2, i).neighbors for i in range(7)] == GOLDEN_PARTNERS


GOLDEN_BASIS = (1, 2, 3, 4, 5, 7, 9, 11)
GOLDEN_PAIRS = ((0, 9), (1, 10), (2, 5), (3, 6), (4, 7), (8, 11))
GOLDEN_PARTNERS: list[tuple[int, ...]] = [(1,), (0,), (), (6,), (5,), (4,), (3,)]
GOLDEN_THIRD_GRAPH = ((0, 2), (0, 3), (0, 5), (1, 2), (1, 3), (1, 4), (2, 4), (3, 5), (4, 5))
GOLDEN_UNIFORM = 0.48693242692573235
GOLDEN_SEED = 7593473038940462950
GOLDEN_ACTIVE: list[tuple[int, ...]] = [(0, 3), (0, 2), (0, 2, 3), (0, 3), (0,), (0, 3), (0,), (0, 2, 3)]


def test_matchings_talk_as_often_as_planned() -> None:
    schedule = MatchaSchedule(graph_0, 0.5, seed=9)
    counts = [0] * 5
    for k in range(3000):
        for j in schedule.active(k):
            counts[j] += 1
    for count, p in zip(counts, schedule.solution.activation_probabilities, strict=True):
        assert count / 3000 == pytest.approx(p, abs=0.03)


def test_random_graphs_change_every_r_rounds_and_links_are_there_ahead() -> None:
    schedule = RandomGraphSchedule("random-regular", 10, every=3, seed=4)
    assert schedule.base(0) == schedule.base(2)
    assert schedule.base(2).edges != schedule.base(3).edges
    for i in range(10):
        assert set(schedule.base(3).neighbors(i)) <= set(schedule.links(2, i))


def test_digests_cover_everything_that_matters() -> None:
    digests = [
        FixedSchedule(graph_0).digest(),
        FixedSchedule(graph_0, "best-constant").digest(),
        MatchaSchedule(graph_0, 0.5, 1).digest(),
        MatchaSchedule(graph_0, 0.5, 2).digest(),
        MatchaSchedule(graph_0, 0.6, 1).digest(),
        *(schedule.digest() for schedule in SCHEDULES[3:]),
    ]
    assert len(set(digests)) == len(digests)
    assert MatchaSchedule(graph_0, 0.5, 1).digest() == digests[2]


def test_random_graphs_that_begin_alike_still_differ_in_their_digest() -> None:
    """Three peers have few graphs: the digest must cover the seed and the options, not only the first graphs."""
    schedules = [RandomGraphSchedule("random-regular", 3, every=2, seed=seed) for seed in range(4)]
    schedules.append(RandomGraphSchedule("random-regular", 3, every=2, seed=0, degree=2))
    assert len({schedule.base(0) for schedule in schedules}) == 1
    assert len({schedule.digest() for schedule in schedules}) == len(schedules)


def test_random_graph_number_two_is_the_same_everywhere() -> None:
    schedule = RandomGraphSchedule("random-regular", 6, every=5, seed=1, degree=3)
    assert schedule.base(10).edges == GOLDEN_THIRD_GRAPH
    plan = schedule.plan(14, 0)
    assert plan.neighbors == schedule.base(10).neighbors(0)
    assert plan.weights == (0.25, 0.25, 0.25)


def test_a_matcha_round_is_the_mixing_matrix_of_its_active_matchings() -> None:
    schedule = MatchaSchedule(graph_0, 0.5, seed=3)
    plan = schedule.solution
    for k in range(20):
        expected = np.eye(8) - plan.alpha * sum(laplacian(8, plan.matchings[j]) for j in schedule.active(k))
        for i in range(8):
            mine = schedule.plan(k, i)
            row = np.zeros(8)
            row[list(mine.neighbors)] = mine.weights
            row[i] = mine.self_weight
            np.testing.assert_allclose(row, expected[i], atol=1e-12)


def test_a_round_without_an_active_edge_is_a_local_step() -> None:
    schedule = MatchaSchedule(build("ring", 6), 0.05, seed=0)
    quiet = next(k for k in range(100) if not schedule.active(k))
    assert schedule.plan(quiet, 2) == RoundPlan(quiet, 2, (), (), 1.0, ())


def test_a_plan_depends_on_its_arguments_only() -> None:
    """Asked in another order, by another instance: the same plans."""
    for schedule in SCHEDULES:
        there = {(k, i): schedule.plan(k, i) for k in range(30) for i in range(schedule.num_peers)}
        again = replace(schedule)  # type: ignore[type-var]
        back = {(k, i): again.plan(k, i) for k, i in reversed(there)}
        assert there == back


def test_only_random_topologies_can_be_drawn_again() -> None:
    with pytest.raises(TopologyError, match="ring is the same graph every time"):
        RandomGraphSchedule("ring", 8, every=5, seed=0)
    with pytest.raises(TopologyError, match="use 1 or more"):
        RandomGraphSchedule("geometric", 8, every=0, seed=0)
    with pytest.raises(TopologyError, match="outside"):
        MatchaSchedule(graph_0, 1.5)
    with pytest.raises(TopologyError, match="valid are metropolis, best-constant"):
        FixedSchedule(graph_0, "metropole")


def test_a_relabelled_graph_is_the_same_graph_with_other_peers_in_its_places() -> None:
    copy = graph_0.relabelled(1)
    assert copy.edges != graph_0.edges
    assert sorted(map(copy.degree, range(8))) == sorted(map(graph_0.degree, range(8)))
    assert np.linalg.eigvalsh(copy.laplacian()) == pytest.approx(np.linalg.eigvalsh(graph_0.laplacian()), abs=1e-9)
    assert copy == graph_0.relabelled(1)
    assert copy != graph_0.relabelled(2)


def test_alternating_schedules_take_turns_and_keep_all_links_open() -> None:
    copies = [FixedSchedule(build("ring", 8).relabelled(seed)) for seed in (1, 2, 3)]
    schedule = AlternatingSchedule(tuple(copies))
    for k in range(7):
        assert schedule.plan(k, 3) == copies[k % 3].plan(k, 3)
        assert schedule.base(k) is copies[k % 3].topology
        assert set(schedule.links(k, 3)) == {j for copy in copies for j in copy.topology.neighbors(3)}
    assert schedule.digest() != AlternatingSchedule(tuple(reversed(copies))).digest()
