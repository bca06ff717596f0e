"""What a peer's next digest says of its recent rounds, and the curve that never grows."""

from __future__ import annotations

import itertools
import math

import pytest

from peer.accounts.exchanges import Exchanges
from peer.accounts.ledger import Ledger
from peer.accounts.pulse import OVERDUE_ROUNDS, Curve, Point, Pulse, point
from peer.gossip.digest import MAX_SHARES
from peer.gossip.round import RoundReport, Timing


def report(round: int, seconds: float = 1.0, chunks: int = 8) -> RoundReport:
    """Half of it computing, a quarter waiting for the close, an eighth exchanging, a sixteenth mixing."""
    timing = Timing(round * seconds, seconds, seconds / 2, 0.75 * seconds, seconds / 8, seconds / 16)
    return RoundReport(
        0,
        round,
        "quota",
        round % 2,
        (1,) if round < 2 else (),
        chunks,
        2 * chunks,
        4.0 * chunks,
        (0,) * chunks,
        2,
        2,
        {},
        0.5,
        (),
        timing,
    )


def test_recent_rounds_become_shares_and_totals_stay_totals() -> None:
    pulse, ledger = Pulse(quota=8), Ledger(8)
    before = pulse.digest(3, ledger, Exchanges(), 0.0)
    assert (before.origin, before.round, before.computing) == (3, 0, 0.0)
    assert math.isnan(before.train_loss)
    for round, chunks in enumerate((8, 2)):
        done = report(round, chunks=chunks)
        ledger.add(done)
        pulse.add(done)
    exchanges = Exchanges()
    exchanges.over(1, 0.25)
    exchanges.over(4, 0.5)
    told = pulse.digest(3, ledger, exchanges, 2.0)
    assert (told.computing, told.waiting, told.exchanging, told.mixing) == (0.5, 0.25, 0.125, 0.0625)
    assert told.finished_fraction == 10 / 16
    assert told.samples_per_second == 10.0
    assert told.waited_for == {1: 0.375, 4: 0.25}, "a quarter of both rounds for a word, and the exchanges"
    assert told.closed_by == {0: 0.5, 1: 0.5}
    assert (told.round, told.samples, told.train_loss, told.closed_rounds) == (2, 20, 2.0, {"quota": 2})
    assert pulse.digest(3, ledger, exchanges, 4.0) == told, (
        "no round has finished since: the last ones are still the recent ones"
    )
    pulse.add(report(2, chunks=4))
    told = pulse.digest(3, ledger, exchanges, 3.0)
    assert (told.finished_fraction, told.closed_by, told.waited_for) == (0.5, {0: 1.0}, {})


def test_in_a_standstill_rates_fall_until_a_round_ends() -> None:
    pulse, ledger, exchanges = Pulse(quota=8), Ledger(8), Exchanges(waited={1: 0.25})
    ledger.add(report(0))
    pulse.add(report(0))
    before = pulse.digest(0, ledger, exchanges, 1.0)
    assert pulse.digest(0, ledger, exchanges, 1.0 + OVERDUE_ROUNDS) == before, "a long round is no standstill"
    told = pulse.digest(0, ledger, exchanges, 10.0)
    assert told.samples_per_second == pytest.approx(before.samples_per_second / 10)
    assert (told.computing, told.waiting) == pytest.approx((0.05, 0.025))
    assert told.waited_for == pytest.approx({1: before.waited_for[1] / 10})
    assert (told.samples, told.finished_fraction, told.closed_by) == (16, 1.0, {0: 1.0})
    ledger.add(report(9))
    pulse.add(report(9))
    assert pulse.digest(0, ledger, exchanges, 10.0).computing == 0.5


def test_only_the_greatest_shares_are_told() -> None:
    pulse = Pulse(8)
    pulse.add(report(2))
    exchanges = Exchanges(waited={peer: peer / 1000 for peer in range(100)})
    told = pulse.digest(0, Ledger(8), exchanges, 3.0).waited_for
    assert list(told) == list(range(99, 99 - MAX_SHARES, -1))
    assert told[99] == pytest.approx(0.099)


def test_a_point_leaves_out_what_diverged() -> None:
    assert point(1.0, 0.5, [math.nan, math.inf]) is None
    assert point(1.0, math.nan, [0.25, math.nan, 0.75])[:4] == (1.0, 0.5, 0.25, 0.75)  # type: ignore[index]


def test_a_curve_spans_the_run_in_a_bounded_number_of_points() -> None:
    curve = Curve(capacity=16)
    for second in range(1000):
        curve.add(Point(float(second), 1.0, 1.0, 1.0, 1.0))
        assert len(curve.points) < 16
    times = [at.seconds for at in curve.points]
    assert times[0] == 0.0
    assert times[-1] > 850
    assert len({b - a for a, b in itertools.pairwise(times)}) == 1, "evenly spaced"
