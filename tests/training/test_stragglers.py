"""Specs are read or refused in one sentence; draws have the told means; pauses stop the work they should."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.training.stragglers import Slowness, StragglerError, parse


def test_constant_factors_by_peer_range_and_list() -> None:
    stragglers = parse(["0=4x", "1,3-4=2x", "all=1.5x"], num_peers=6)
    factors = [stragglers.for_peer(i).factor(0) for i in range(6)]
    assert factors == [6.0, 3.0, 1.5, 3.0, 3.0, 1.5]
    assert [s.factor(9) for s in parse([], num_peers=2).peers] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("spec", "mean", "deviation"), [("all=exp:1.0", 2.0, 1.0), ("all=exp:.5", 1.5, 0.5), ("all=pareto:4", 4 / 3, 0.48)]
)
def test_random_factors_have_the_told_mean_and_are_at_least_one(spec: str, mean: float, deviation: float) -> None:
    stragglers = parse([spec], num_peers=4, seed=1)
    factors = [s.factor(k) for s in stragglers.peers for k in range(5000)]
    assert min(factors) >= 1
    assert sum(factors) / len(factors) == pytest.approx(mean, abs=5 * deviation / math.sqrt(len(factors)))


def test_draws_depend_on_seed_peer_and_round_only() -> None:
    one, again, other = (parse(["all=exp:1", "all=pareto:2"], 2, seed) for seed in (1, 1, 2))
    assert one.for_peer(0).factor(3) == again.for_peer(0).factor(3)
    values = {
        one.for_peer(0).factor(3),
        one.for_peer(0).factor(4),
        one.for_peer(1).factor(3),
        other.for_peer(0).factor(3),
    }
    assert len(values) == 4
    twice = parse(["0=exp:1", "0=exp:1"], 1).for_peer(0)
    assert twice.factor(0) != parse(["0=exp:1"], 1).for_peer(0).factor(0) ** 2


def test_pause() -> None:
    slow = parse(["2=pause:30s@20s", "2=pause:500ms@1m"], num_peers=3).for_peer(2)
    assert slow.pauses == ((20.0, 50.0), (60.0, 60.5))
    assert [slow.pause_until(t) for t in (0, 19.9, 20, 49.9, 50, 60.1)] == [0, 19.9, 50, 50, 50, 60.5]
    assert [slow.finish(*work) for work in ((0, 20), (19, 2), (25, 1), (19, 12), (60.5, 1))] == [20, 51, 51, 61.5, 61.5]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=4), st.integers(0, 60), st.integers(1, 60))
def test_work_rests_exactly_during_pauses(pauses: list[tuple[int, int]], begin: int, seconds: int) -> None:
    slow = Slowness(pauses=tuple((float(b), float(b + n)) for b, n in pauses))
    end = slow.finish(begin, seconds)
    paused = {t for b, n in pauses for t in range(b, b + n)}
    assert sum(t not in paused for t in range(begin, int(end))) == seconds
    assert int(end) - 1 not in paused


@pytest.mark.parametrize(
    "spec",
    [
        *("", "4x", "0", "0=", "9=4x", "2-1=4x", "x=4x", "-1=2x", "0,=2x"),
        *("0=4", "0=0x", "0=nanx", "0=exp:0", "0=exp:-1", "0=exp:1x", "0=gauss:1", "0=pareto:", "all=4x=2x"),
        *("0=pause:3s", "0=pause:3h@2s"),
    ],
)
def test_bad_specs_are_told_in_one_sentence_with_an_example(spec: str) -> None:
    with pytest.raises(StragglerError) as caught:
        parse([spec], num_peers=3)
    message = str(caught.value)
    assert repr(spec) in message
    assert "'0=4x'" in message
    assert message.endswith(".")
