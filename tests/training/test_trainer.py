"""The trainer thread: which parameters, which round, which samples; never a timed assertion on the real clock."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from peer.gossip.effects import Accumulated
from peer.training.accumulator import Accumulator, InFlight, Verdict
from peer.training.data import SampleStream
from peer.training.stragglers import Draw, Pause, Slowness
from peer.training.task import Task
from peer.training.trainer import ChunkEvent, Clock, Trainer
from tests.training.clocks import ManualClock, SkippingClock
from tests.training.counting import NUM_SAMPLES, Counting, counting_computer

CHUNK = 2


def _stream() -> SampleStream:
    return SampleStream(np.arange(NUM_SAMPLES), seed=0, peer=0, chunk_samples=CHUNK)


@dataclass
class Rig:
    """A trainer and its host: in round k all parameters are k."""

    mode: InFlight
    clock: Clock | None = None
    chunk_seconds: float = 0.0
    slowness: Slowness = field(default_factory=Slowness)
    quota: int = 3
    task: Task = field(default_factory=Counting)
    params: Tensor = field(default_factory=lambda: torch.zeros(NUM_SAMPLES))
    events: queue.Queue[ChunkEvent] = field(default_factory=queue.Queue)
    lock: threading.Lock = field(default_factory=threading.Lock)
    applied: Tensor = field(default_factory=lambda: torch.zeros(NUM_SAMPLES))
    num_applied: int = 0

    def __post_init__(self) -> None:
        accumulator = Accumulator(NUM_SAMPLES, self.quota, self.mode)
        self.trainer = Trainer(
            counting_computer(self.task), _stream(), accumulator, self.slowness, self.chunk_seconds, self.events.put, self.clock
        )  # fmt: skip
        self.trainer.start()

    def open(self, round: int) -> None:
        with self.lock:
            self.params.fill_(float(round))
        self.trainer.open(round, self.params, self.lock)

    def close(self, round: int) -> Accumulated:
        done = self.trainer.close(round, "test")
        with self.lock:
            self.params.fill_(float("nan"))  # whoever reads the parameters of a closed round is found out
        read = [round - staleness for staleness in done.staleness]
        assert done.loss_sum == CHUNK * sum(read)
        assert done.grad_sum.sum() == done.num_samples == CHUNK * done.num_chunks
        self.applied += done.grad_sum
        self.num_applied += done.num_samples
        return done

    def event(self) -> ChunkEvent:
        return self.events.get(timeout=30)


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(*arguments: object, **settings: object) -> Rig:
        made.append(Rig(*arguments, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        assert each.trainer.stop(timeout=30)
    assert not [t for t in threading.enumerate() if t.name == "trainer"]


def test_a_round_is_its_quota_of_chunks_and_then_nothing(rig: Callable[..., Rig]) -> None:
    host = rig(InFlight.CARRY)
    for round in range(5):
        host.open(round)
        events = [host.event() for _ in range(3)]
        assert [e.quota_done for e in events] == [False, False, True]
        assert {(e.verdict, e.round, e.staleness, e.error) for e in events} == {(Verdict.COUNTED, round, 0, None)}
        assert not host.trainer.in_flight
        assert host.close(round).num_chunks == 3
    assert host.applied.tolist() == [1.0] * NUM_SAMPLES  # one pass: 5 rounds of 3 chunks of 2


def test_carry_goes_on_undisturbed_and_counts_in_the_next_round(rig: Callable[..., Rig]) -> None:
    clock = ManualClock()
    host = rig(InFlight.CARRY, clock, chunk_seconds=1.0)
    host.open(0)
    assert clock.sleeps.get(timeout=30) == 1.0
    clock.advance(1.0)
    assert host.event().staleness == 0
    clock.sleeps.get(timeout=30)
    assert host.close(0).num_chunks == 1
    host.open(1)
    assert host.trainer.in_flight
    clock.advance(1.0)
    carried = host.event()
    assert (carried.round, carried.staleness, carried.verdict) == (0, 1, Verdict.COUNTED)
    clock.sleeps.get(timeout=30)
    clock.advance(1.0)
    assert host.event().staleness == 0
    clock.sleeps.get(timeout=30)
    assert host.close(1).staleness == (1, 0)


def test_redo_stops_at_once_and_computes_the_same_samples_again(rig: Callable[..., Rig]) -> None:
    clock = ManualClock()
    host = rig(InFlight.REDO, clock, chunk_seconds=1.0, quota=1)
    host.open(0)
    clock.sleeps.get(timeout=30)
    assert host.close(0).num_samples == 0
    dropped = host.event()  # no time has passed
    assert (dropped.verdict, dropped.quota_done) == (Verdict.REDO, False)
    assert not host.trainer.in_flight
    host.open(1)
    clock.sleeps.get(timeout=30)
    clock.advance(1.0)
    assert host.event().round == 1
    done = host.close(1)
    assert done.staleness == (0,)
    assert done.grad_sum.nonzero().flatten().tolist() == sorted(_stream().next().tolist())
    assert host.trainer.samples.redone == CHUNK


def test_drain_holds_then_closes(rig: Callable[..., Rig]) -> None:
    clock = ManualClock()
    host = rig(InFlight.DRAIN, clock, chunk_seconds=1.0)
    host.open(0)
    clock.sleeps.get(timeout=30)
    assert host.trainer.hold()
    clock.advance(1.0)
    assert host.event().verdict is Verdict.COUNTED
    assert not host.trainer.hold()
    assert host.close(0).num_chunks == 1
    assert clock.sleeps.empty()
    host.open(1)
    assert clock.sleeps.get(timeout=30) == 1.0


def test_stop_interrupts_a_sleep_and_abandons_what_was_not_handed_out(rig: Callable[..., Rig]) -> None:
    clock = ManualClock()
    host = rig(InFlight.CARRY, clock, chunk_seconds=1.0)
    host.open(0)
    clock.sleeps.get(timeout=30)
    clock.advance(1.0)
    host.event()
    clock.sleeps.get(timeout=30)
    clock.advance(0.25)
    assert host.trainer.stop(timeout=30)
    assert host.trainer.samples.abandoned == host.trainer.samples.started == 2 * CHUNK
    assert host.trainer.seconds == (1.25, 0.0)
    assert host.events.empty()
    assert host.close(0).num_samples == 0
    host.open(1)
    assert not host.trainer.in_flight


def test_a_trainer_that_never_opened_stops(rig: Callable[..., Rig]) -> None:
    host = rig(InFlight.CARRY)
    assert host.trainer.stop(timeout=30)
    assert host.trainer.seconds == (0.0, 0.0)


def test_seconds_and_pauses_count_from_when_training_began(rig: Callable[..., Rig]) -> None:
    clock = SkippingClock()
    host = rig(InFlight.CARRY, clock, quota=2, chunk_seconds=0.5, slowness=Slowness(pauses=(Pause(2.0, 1.0),)))
    host.trainer.begin()
    clock.time += 1.5  # the first evaluation, a busy machine
    assert host.trainer.seconds == (0.0, 0.0)
    host.open(0)
    ends = [host.event().finished - 100.0 for _ in range(2)]
    assert ends == [2.0, 3.5]  # the second rests from 2 to 3
    host.close(0)
    assert host.trainer.stop(timeout=30)
    assert host.trainer.seconds == (2.0, 1.5)


def test_emulated_chunks_end_on_a_grid_and_idle_time_is_the_rest(rig: Callable[..., Rig]) -> None:
    clock = SkippingClock()
    slowness = Slowness(constant=4.0, pauses=(Pause(1.0, 1.0),))
    host = rig(InFlight.CARRY, clock, chunk_seconds=0.125, slowness=slowness)
    host.open(0)
    ends = [host.event().finished - 100.0 for _ in range(3)]
    assert ends == [0.5, 1.0, 2.5]  # the third rests from 1 to 2
    host.close(0)
    clock.time += 10.0  # idle
    host.open(1)
    assert host.event().seconds == 0.5
    assert [host.event().finished - 100.0 for _ in range(2)] == [13.5, 14.0]
    host.close(1)
    assert host.trainer.seconds == (4.0, 10.0)


def test_each_round_has_its_own_draw(rig: Callable[..., Rig]) -> None:
    slowness = Slowness(seed=3, draws=(Draw("exp", 1.0),))
    host = rig(InFlight.CARRY, SkippingClock(), chunk_seconds=1.0, slowness=slowness)
    for round in range(3):
        host.open(round)
        seconds = [host.event().seconds for _ in range(3)]
        assert seconds == pytest.approx([slowness.factor(round)] * 3)
        host.close(round)


class _StretchedClock(SkippingClock):
    """Every look at the clock takes 1 s: real computation that takes time."""

    def now(self) -> float:
        self.time += 1.0
        return self.time


def test_without_emulation_the_real_time_is_stretched(rig: Callable[..., Rig]) -> None:
    clock = _StretchedClock()
    host = rig(InFlight.CARRY, clock, slowness=Slowness(constant=1000.0), quota=1)
    host.open(0)
    assert host.event().seconds >= 1000.0


class _Fails(Counting):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.mean() > 0:
            raise SystemExit("out of paper")
        return super().loss(outputs, targets)


def test_an_error_in_the_task_reaches_the_host_and_stops_the_trainer(rig: Callable[..., Rig]) -> None:
    host = rig(InFlight.CARRY, quota=1, task=_Fails())
    host.open(0)
    host.event()
    host.close(0)
    host.open(1)
    event = host.event()
    assert isinstance(event.error, SystemExit)
    assert event.verdict is None
    assert not host.trainer.in_flight
    assert host.close(1).num_samples == 0
    assert host.trainer.stop(timeout=30)
    assert host.trainer.samples.abandoned == CHUNK


class _Diverged(Counting):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean() * torch.nan


def test_chunks_that_are_not_finite_are_reported_and_do_not_count(rig: Callable[..., Rig]) -> None:
    host = rig(InFlight.CARRY, quota=1, task=_Diverged())
    host.open(0)
    assert [host.event().nonfinite_in_a_row for _ in range(3)] == [1, 2, 3]
    assert host.close(0).num_samples == 0


def _play_randomly(host: Rig, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    for round in range(rounds):
        host.open(round)
        for _ in range(rng.randrange(3)):
            if host.mode is InFlight.DRAIN:
                host.event()
        if host.mode is InFlight.DRAIN:
            if host.trainer.hold():
                while host.trainer.in_flight:
                    host.event()
        elif rng.random() < 0.5:
            host.events.get(timeout=30)
        host.close(round)


@pytest.mark.parametrize("mode", InFlight)
@pytest.mark.parametrize("chunk_seconds", [0.0, 2e-4])
def test_accounting_is_exact_under_a_random_host(rig: Callable[..., Rig], mode: InFlight, chunk_seconds: float) -> None:
    host = rig(mode, chunk_seconds=chunk_seconds, slowness=Slowness(draws=(Draw("exp", 1.0),)))
    _play_randomly(host, rounds=150, seed=1)
    assert host.trainer.stop(timeout=30)
    samples = host.trainer.samples
    assert samples.applied == host.num_applied
    assert samples.started == samples.applied + samples.redone + samples.nonfinite + samples.abandoned
    assert samples.redone == 0 or mode is InFlight.REDO
    # What was applied is the stream from its beginning, nothing left out and nothing twice.
    expected, stream = torch.zeros(NUM_SAMPLES), _stream()
    for _ in range(samples.applied // CHUNK):
        expected[stream.next()] += 1
    assert torch.equal(host.applied, expected)
