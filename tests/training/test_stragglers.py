"""Specs are read or refused in one sentence; draws have the told means; pauses stop the work they should."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.training.stragglers import Pause, Slowness, StragglerError, TraceEnded, _trace, parse


def test_constant_factors_by_peer_range_and_list() -> None:
    stragglers = parse(["0=4x", "1,3-4=2x", "all=1.5x"], num_peers=6)
    factors = [stragglers.for_peer(i).factor(0) for i in range(6)]
    assert factors == [6.0, 3.0, 1.5, 3.0, 3.0, 1.5]
    assert [s.factor(9) for s in parse([], num_peers=2).peers] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("spec", "mean", "deviation", "least"),
    [
        ("all=exp:1.0", 2.0, 1.0, 1.0),
        ("all=exp:.5", 1.5, 0.5, 1.0),
        ("all=pareto:4", 4 / 3, 0.48, 1.0),
        ("all=shifted-exp:0.5,2", 2.5, 2.0, 0.5),
        ("all=chunk-exp:3", 3.0, 3.0, 0.0),
        ("all=bimodal:0.1,10", 1.9, 2.7, 1.0),
        ("all=jitter:0.5", 1.25, 0.15, 1.0),
    ],
)
def test_random_factors_have_the_told_mean_and_minimum(spec: str, mean: float, deviation: float, least: float) -> None:
    stragglers = parse([spec], num_peers=4, seed=1)
    factors = [s.factor(k) for s in stragglers.peers for k in range(5000)]
    assert min(factors) >= least
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
    assert one.for_peer(0).factor(3, chunk=1) == one.for_peer(0).factor(3, chunk=2), "one draw a round"
    each = parse(["0=chunk-exp:1"], 1).for_peer(0)
    assert each.per_chunk
    assert each.factor(3, chunk=1) != each.factor(3, chunk=2)
    twice = parse(["0=exp:1", "0=exp:1"], 1).for_peer(0)
    assert twice.factor(0) != parse(["0=exp:1"], 1).for_peer(0).factor(0) ** 2


def test_pause() -> None:
    slow = parse(["2=pause:30s@20s", "2=pause:500ms@1m"], num_peers=3).for_peer(2)
    assert slow.pauses == (Pause(20.0, 30.0), Pause(60.0, 0.5))
    assert [slow.finish(*work) for work in ((0, 20), (19, 2), (25, 1), (19, 12), (60.5, 1))] == [20, 51, 51, 61.5, 61.5]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=4), st.integers(0, 60), st.integers(1, 60))
def test_work_rests_exactly_during_pauses(pauses: list[tuple[int, int]], begin: int, seconds: int) -> None:
    slow = Slowness(pauses=tuple(Pause(float(b), float(n)) for b, n in pauses))
    end = slow.finish(begin, seconds)
    paused = {t for b, n in pauses for t in range(b, b + n)}
    assert sum(t not in paused for t in range(begin, int(end))) == seconds
    assert int(end) - 1 not in paused


@given(st.integers(0, 9), st.integers(1, 5), st.integers(6, 12), st.integers(0, 60), st.integers(1, 60))
def test_a_pause_may_come_again_and_again(first: int, length: int, period: int, begin: int, seconds: int) -> None:
    slow = parse([f"0=pause:{length}s@{first}s/{period}s"], 1).for_peer(0)
    end = slow.finish(begin, seconds)
    paused = {t for k in range(200) for t in range(first + k * period, first + k * period + length)}
    assert sum(t not in paused for t in range(begin, int(end))) == seconds
    assert int(end) - 1 not in paused


def test_a_spread_goes_evenly_from_the_first_peer_to_the_last() -> None:
    assert [s.factor(0) for s in parse(["0-3=spread:1-4"], 5).peers] == [1.0, 2.0, 3.0, 4.0, 1.0]
    assert parse(["2=spread:3-9"], 3).for_peer(2).factor(0) == 3.0


def test_a_trace_replaces_the_nominal_time_chunk_by_chunk_and_says_where_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "device.txt"
    file.write_text("# laptop\n0.5\n\n0.25  # warm\n")
    slow = parse([f"1=trace:{file}", "1=2x"], 2).for_peer(1)
    assert [slow.chunk_seconds(99.0, batch=0, chunk=c) for c in (0, 1)] == [1.0, 0.5]
    with pytest.raises(TraceEnded, match=r"device.txt, line 4: the trace ends after 2 chunks"):
        slow.chunk_seconds(99.0, batch=0, chunk=2)
    other = tmp_path / "bad.txt"
    for text, sentence in (("0.5\n-1\n", "line 2"), ("0.5\nfast\n", "not 'fast'"), ("# nothing\n", "has no chunk")):
        _trace.cache_clear()
        other.write_text(text)
        with pytest.raises(
            StragglerError, match=f"bad.txt, line .*{sentence}" if "line" not in sentence else f"bad.txt, {sentence}"
        ):
            parse([f"0=trace:{other}"], 1)
    with pytest.raises(StragglerError, match="No such file"):
        parse(["0=trace:/nowhere"], 1)


@pytest.mark.parametrize(
    "spec",
    [
        *("", "4x", "0", "0=", "9=4x", "2-1=4x", "x=4x", "-1=2x", "0,=2x"),
        *("0=4", "0=0x", "0=nanx", "0=exp:0", "0=exp:-1", "0=exp:1x", "0=gauss:1", "0=pareto:", "all=4x=2x"),
        *("0=pause:3s", "0=pause:3h@2s", "0=pause:3s@2s/3s", "0=bimodal:1.5,2", "0=spread:0-2", "0=shifted-exp:1"),
    ],
)
def test_bad_specs_are_told_in_one_sentence_with_an_example(spec: str) -> None:
    with pytest.raises(StragglerError) as caught:
        parse([spec], num_peers=3)
    message = str(caught.value)
    assert repr(spec) in message
    assert "'0=4x'" in message
    assert message.endswith(".")
