"""Which chunk counts where: the three modes by example, and that no sample is ever lost or counted twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.training.accumulator import Accumulator, InFlight, Samples, Verdict
from peer.training.chunk import Chunk


def _chunk(value: float = 1.0, samples: int = 2, *, finite: bool = True) -> Chunk:
    return Chunk(torch.full((3,), value), samples, value * samples, finite)


def _run(accumulator: Accumulator, value: float = 1.0, samples: int = 2, *, finite: bool = True) -> Verdict:
    accumulator.start_chunk(samples)
    return accumulator.finish(_chunk(value, samples, finite=finite))


def test_a_round_sums_its_chunks_and_is_done_at_its_quota() -> None:
    accumulator = Accumulator(3, quota_chunks=2, in_flight=InFlight.CARRY)
    accumulator.open(0)
    assert _run(accumulator, 1.0, 2) is Verdict.COUNTED
    assert not accumulator.quota_done
    _run(accumulator, 4.0, 3)
    assert accumulator.quota_done
    done = accumulator.close(0, "quota")
    assert done.grad_sum.tolist() == [5, 5, 5]
    assert (done.num_samples, done.num_chunks, done.loss_sum) == (5, 2, 14.0)
    assert (done.staleness, done.close_reason) == ((0, 0), "quota")
    assert not accumulator.quota_done


def test_carried_chunk_counts_in_the_next_round_with_staleness_and_quota() -> None:
    accumulator = Accumulator(3, 2, InFlight.CARRY)
    accumulator.open(0)
    accumulator.start_chunk(2)
    assert accumulator.close(0, "first").num_samples == 0
    assert accumulator.in_flight
    assert not accumulator.outlived
    accumulator.open(1)
    assert accumulator.staleness == 1
    assert accumulator.finish(_chunk(5.0)) is Verdict.COUNTED
    _run(accumulator, 1.0)
    assert accumulator.quota_done
    done = accumulator.close(1, "quota")
    assert done.staleness == (1, 0)
    assert done.grad_sum.tolist() == [6, 6, 6]


def test_a_chunk_that_finishes_between_rounds_or_rounds_later_is_as_stale_as_the_round_it_is_applied_in() -> None:
    accumulator = Accumulator(3, 2, InFlight.CARRY)
    accumulator.open(0)
    accumulator.start_chunk(2)
    accumulator.close(0, "first")
    assert accumulator.staleness == 1
    accumulator.finish(_chunk())
    accumulator.open(7)  # caught up with the others meanwhile
    accumulator.start_chunk(2)
    assert accumulator.close(7, "first").staleness == (7,)
    accumulator.open(8)
    assert accumulator.close(8, "first").num_chunks == 0
    accumulator.open(9)
    accumulator.finish(_chunk())
    assert accumulator.close(9, "first").staleness == (2,)


def test_redo_drops_the_chunk_of_a_closed_round() -> None:
    accumulator = Accumulator(3, 2, InFlight.REDO)
    accumulator.open(0)
    accumulator.start_chunk(2)
    assert not accumulator.outlived
    accumulator.close(0, "first")
    assert accumulator.outlived
    accumulator.open(1)
    assert accumulator.finish(_chunk(9.0)) is Verdict.REDO
    _run(accumulator, 1.0)
    done = accumulator.close(1, "first")
    assert done.grad_sum.tolist() == [1, 1, 1]
    assert done.staleness == (0,)
    assert accumulator.samples == Samples(started=4, applied=2, redone=2)


def test_drain_refuses_to_close_over_a_chunk() -> None:
    accumulator = Accumulator(3, 2, InFlight.DRAIN)
    accumulator.open(0)
    accumulator.start_chunk(2)
    with pytest.raises(RuntimeError, match="in flight"):
        accumulator.close(0, "first")
    accumulator.finish(_chunk())
    assert accumulator.close(0, "first").num_samples == 2


def test_chunks_that_are_not_finite_are_dropped_and_counted() -> None:
    accumulator = Accumulator(3, 2, InFlight.CARRY)
    accumulator.open(0)
    for row in (1, 2):
        assert _run(accumulator, float("nan"), finite=False) is Verdict.NONFINITE
        assert accumulator.nonfinite_in_a_row == row
    _run(accumulator, 1.0)
    assert accumulator.nonfinite_in_a_row == 0
    done = accumulator.close(0, "first")
    assert done.grad_sum.tolist() == [1, 1, 1]
    assert accumulator.samples == Samples(started=6, applied=2, nonfinite=4)


def test_what_was_handed_out_stays_until_the_next_close() -> None:
    accumulator = Accumulator(3, 2, InFlight.CARRY)
    accumulator.open(0)
    _run(accumulator, 3.0)
    first = accumulator.close(0, "first")
    accumulator.open(1)
    _run(accumulator, 4.0)
    assert first.grad_sum.tolist() == [3, 3, 3]
    assert accumulator.close(1, "first").grad_sum.tolist() == [4, 4, 4]
    accumulator.open(2)
    assert accumulator.close(2, "first").grad_sum.tolist() == [0, 0, 0]


def test_a_host_that_breaks_the_order_is_told() -> None:
    accumulator = Accumulator(3, 2, InFlight.CARRY)
    with pytest.raises(RuntimeError, match="start only in an open round"):
        accumulator.start_chunk(1)
    with pytest.raises(RuntimeError, match="not started"):
        accumulator.finish(_chunk())
    accumulator.open(3)
    for broken in (lambda: accumulator.open(4), lambda: accumulator.close(2, "late")):
        with pytest.raises(RuntimeError, match="cannot"):
            broken()
    accumulator.close(3, "first")
    with pytest.raises(RuntimeError, match="cannot open"):
        accumulator.open(3)
    with pytest.raises(ValueError, match="at least 1 chunk"):
        Accumulator(3, 0, InFlight.CARRY)


def _balance(accumulator: Accumulator) -> int:
    samples = accumulator.samples
    ended = samples.applied + samples.redone + samples.nonfinite + samples.abandoned
    return ended + accumulator.pending_samples + accumulator.in_flight_samples


class _RandomHost:
    """Plays any legal order of events; every sample has gradient 1 in all three entries."""

    def __init__(self, mode: InFlight) -> None:
        self.accumulator = Accumulator(3, 3, mode)
        self.round = -1
        self.applied = 0.0
        self.read = 0

    def play(self, event: str, size: int) -> None:
        accumulator = self.accumulator
        if event == "open" and not accumulator.is_open:
            self.round += size
            accumulator.open(self.round)
        elif event == "start" and accumulator.is_open and not accumulator.in_flight:
            accumulator.start_chunk(size)
            self.read = self.round
        elif event in ("finish", "nonfinite") and accumulator.in_flight:
            self._finish(finite=event == "finish")
        elif event == "close" and accumulator.is_open:
            if accumulator.mode is InFlight.DRAIN and accumulator.in_flight:
                self._finish(finite=True)
            done = accumulator.close(self.round, "random")
            self.applied += done.num_samples
            assert done.grad_sum.tolist() == [float(done.num_samples)] * 3
            assert done.num_chunks == len(done.staleness)
            if accumulator.mode is not InFlight.CARRY:
                assert set(done.staleness) <= {0}
            assert all(s >= 0 for s in done.staleness)

    def _finish(self, *, finite: bool) -> None:
        size, outlived = self.accumulator.in_flight_samples, self.accumulator.outlived
        gradient = torch.full((3,), float(size) if finite else float("nan"))
        verdict = self.accumulator.finish(Chunk(gradient, size, float(size), finite))
        expected = Verdict.COUNTED if finite else Verdict.NONFINITE
        assert verdict is (Verdict.REDO if outlived else expected)


EVENTS = st.lists(st.tuples(st.sampled_from(["open", "start", "finish", "nonfinite", "close"]), st.integers(1, 5)))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(InFlight), EVENTS)
def test_every_sample_has_one_fate_in_any_order_of_events(mode: InFlight, events: list[tuple[str, int]]) -> None:
    host = _RandomHost(mode)
    for event, size in events:
        host.play(event, size)
        assert _balance(host.accumulator) == host.accumulator.samples.started
    host.accumulator.abandon()
    samples = host.accumulator.samples
    assert host.accumulator.pending_samples == host.accumulator.in_flight_samples == 0
    assert samples.started == samples.applied + samples.redone + samples.nonfinite + samples.abandoned
    assert samples.applied == host.applied
