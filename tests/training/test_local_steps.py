"""Steps of a peer's own between two exchanges: which chunks make a step, at which parameters, and what is handed out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from peer.training.accumulator import Accumulator, InFlight, Verdict
from peer.training.chunk import Chunk, ChunkComputer
from peer.training.data import SampleStream
from peer.training.flat import FlatModel
from peer.training.local_steps import LocalSteps
from peer.training.optimizer import MasterOptimizer
from peer.training.stragglers import Draw, Slowness
from peer.training.task import OPTIMIZERS, Task
from peer.training.trainer import ChunkEvent, Trainer
from tests.training.clocks import ManualClock, SkippingClock

D, B, M, LR = 3, 4, 2, 0.5  # chunks of two samples


class _PlainSGD:
    """params <- params - lr g, and when it did."""

    def __init__(self, params: Tensor) -> None:
        self.params = params
        self.clock: list[int] = []

    def step(self, gradient: Tensor, samples_clock: int, scale: float = 1.0) -> None:
        self.clock.append(samples_clock)
        self.params.add_(gradient, alpha=-LR * scale)

    def learning_rate(self, samples_clock: int) -> float:
        return LR


def _accumulator(
    steps: int = 3, *, chunks: int = M, weighting: str = "samples", mode: InFlight = InFlight.CARRY, num_peers: int = 1
) -> tuple[Accumulator, _PlainSGD]:
    optimizer = _PlainSGD(torch.zeros(D))
    local = LocalSteps(
        optimizer.params,
        optimizer,
        steps=steps,
        batch_chunks=chunks,
        batch_size=B,
        weighting=weighting,
        num_peers=num_peers,
    )
    return Accumulator(D, steps * chunks, mode, local), optimizer


def _chunk(value: float, samples: int = B // M, *, finite: bool = True) -> Chunk:
    return Chunk(torch.full((D,), value), samples, value, finite)


def _run(accumulator: Accumulator, value: float, samples: int = B // M, *, finite: bool = True) -> Verdict:
    accumulator.start_chunk(samples)
    return accumulator.finish(_chunk(value, samples, finite=finite))


def _moved(accumulator: Accumulator, round: int) -> list[float]:
    done = accumulator.close(round, "test")
    assert done.grad_sum.numel() == 0
    assert done.displacement is not None
    return done.displacement.tolist()


def test_every_batch_is_one_step_and_the_round_hands_out_how_far_it_went() -> None:
    accumulator, optimizer = _accumulator()
    start = torch.tensor([1.0, 2.0, 3.0])
    accumulator.open(0, start)
    for value in (1.0, 3.0, 2.0, 2.0, 8.0):
        assert not accumulator.quota_done
        _run(accumulator, value)
    assert torch.equal(optimizer.params, start - LR * (4.0 + 4.0) / B)
    _run(accumulator, 4.0)
    assert accumulator.quota_done
    assert _moved(accumulator, 0) == [-LR * 20.0 / B] * D
    assert optimizer.clock == [4, 8, 12]


@pytest.mark.parametrize(("weighting", "divisor"), [("samples", B), ("peers", B // M)])
def test_what_is_finished_of_a_batch_is_a_last_step_under_the_weighting_rule(weighting: str, divisor: int) -> None:
    accumulator, optimizer = _accumulator(weighting=weighting, num_peers=3)
    accumulator.open(0, torch.zeros(D), 100)
    for value in (1.0, 3.0, 6.0):
        _run(accumulator, value)
    assert _moved(accumulator, 0) == [-LR * (4.0 / B + 6.0 / divisor)] * D
    assert optimizer.clock == [100 + 3 * 4, 100 + 3 * 6], (
        "the clock: at the opening, then in proportion to the own progress"
    )


def test_a_carried_chunk_is_of_the_next_rounds_first_batch() -> None:
    accumulator, optimizer = _accumulator()
    accumulator.open(0, torch.zeros(D))
    accumulator.start_chunk(2)
    assert _moved(accumulator, 0) == [0.0] * D
    accumulator.open(1, torch.full((D,), 5.0), 40)
    assert accumulator.finish(_chunk(1.0)) is Verdict.COUNTED
    assert not accumulator.between_batches
    _run(accumulator, 7.0)
    assert accumulator.between_batches
    assert optimizer.params.tolist() == [5.0 - LR * 8.0 / B] * D
    done = accumulator.close(1, "test")
    assert done.staleness == (1, 0)
    assert optimizer.clock == [44]


def test_a_chunk_that_fills_a_batch_between_two_rounds_steps_at_the_opening() -> None:
    accumulator, optimizer = _accumulator(chunks=1)
    accumulator.open(0, torch.zeros(D))
    accumulator.start_chunk(B)
    _moved(accumulator, 0)
    accumulator.finish(_chunk(1.0, B))
    assert optimizer.clock == [], "the parameters that it steps from are not there yet"
    accumulator.open(1, torch.full((D,), 5.0), 40)
    assert optimizer.params.tolist() == [5.0 - LR / B] * D
    assert _moved(accumulator, 1) == [-LR / B] * D


def test_what_is_not_finite_is_in_no_step_and_another_chunk_takes_its_place() -> None:
    accumulator, _ = _accumulator(steps=1)
    accumulator.open(0, torch.zeros(D))
    assert [_run(accumulator, value, finite=value < 9) for value in (1.0, 9.0)] == [Verdict.COUNTED, Verdict.NONFINITE]
    assert not accumulator.quota_done
    _run(accumulator, 2.0)
    assert accumulator.quota_done
    assert _moved(accumulator, 0) == [-LR * 3.0 / B] * D


def test_an_abandoned_round_has_not_moved() -> None:
    accumulator, _ = _accumulator()
    accumulator.open(0, torch.zeros(D))
    _run(accumulator, 1.0)
    _run(accumulator, 1.0)
    accumulator.abandon()
    assert _moved(accumulator, 0) == [0.0] * D


def test_the_handed_out_displacement_stays_until_the_next_close() -> None:
    accumulator, _ = _accumulator(steps=1)
    accumulator.open(0, torch.zeros(D))
    _run(accumulator, 1.0)
    done = accumulator.close(0, "test")
    accumulator.open(1, torch.zeros(D))
    for _ in range(M):
        _run(accumulator, 7.0)
    assert done.displacement is not None
    assert done.displacement.tolist() == [-LR / B] * D


class Regression(Task):
    """A small network with BatchNorm: everything that a step may change."""

    name = "regression"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))

    def train_data(self) -> TensorDataset:
        generator = torch.Generator().manual_seed(3)
        return TensorDataset(torch.randn(48, 4, generator=generator), torch.randn(48, generator=generator))

    def test_data(self) -> TensorDataset:
        return self.train_data()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.mean((outputs[:, 0] - targets) ** 2)

    def learning_rate_factor(self, samples: int) -> float:
        return 1.0 / (1.0 + samples / 20.0)


def _trainer(
    model: FlatModel, name: str, clock: ManualClock | SkippingClock, slowness: Slowness | None = None, chunks: int = 1
) -> tuple[Trainer, queue.Queue[ChunkEvent], SampleStream]:
    """H = 4 steps of batches of 6."""
    task, events = Regression(), queue.Queue[ChunkEvent]()
    y = model.vector.clone()
    optimizer = MasterOptimizer(task, model.layout, y, name, 0.05)
    local = LocalSteps(y, optimizer, steps=4, batch_chunks=chunks, batch_size=6, weighting="peers", num_peers=1)
    streams = [SampleStream(np.arange(48), seed=0, peer=0, chunk_samples=6 // chunks) for _ in range(2)]
    accumulator = Accumulator(y.numel(), 4 * chunks, InFlight.CARRY, local)
    computer = ChunkComputer(task, FlatModel(task.model()), task.train_data())
    trainer = Trainer(computer, streams[0], accumulator, slowness or Slowness(), 1.0, events.put, clock)
    return trainer, events, streams[1]


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name == "trainer"]


def _on_one_machine(model: FlatModel, name: str, stream: SampleStream, steps: int) -> None:
    """torch.optim on the module, batch by batch; the buffers are the module's own business."""
    task = Regression()
    inputs, targets = task.train_data().tensors
    optimizer = OPTIMIZERS[name](model.parameters(), 0.05)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * task.learning_rate_factor(6 * (step + 1))
        rows = torch.from_numpy(stream.next())
        optimizer.zero_grad()
        task.loss(model.module(inputs[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@pytest.mark.usefixtures("no_thread_is_left")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_peer_alone_is_torch_on_one_machine(name: str) -> None:
    """Twelve steps in three rounds of four: parameters, BatchNorm's statistics, momenta and the learning rate's clock."""
    torch.manual_seed(1)
    model = FlatModel(Regression().model())
    x, lock = model.vector.clone(), threading.Lock()
    trainer, events, stream = _trainer(model, name, SkippingClock())
    trainer.start()
    for round in range(3):
        trainer.open(round, x, lock, 24 * round)
        assert [events.get(timeout=30).quota_done for _ in range(4)] == [False] * 3 + [True]
        done = trainer.close(round, "quota")
        assert (done.num_chunks, done.staleness, done.displacement is None) == (4, (0,) * 4, False)
        x += done.displacement  # type: ignore[arg-type]
    assert trainer.stop(timeout=30)
    _on_one_machine(model, name, stream, 12)
    torch.testing.assert_close(x, model.vector, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("no_thread_is_left")
def test_a_chunk_in_flight_at_the_close_was_computed_before_the_last_step_and_counts_in_the_next_round() -> None:
    torch.manual_seed(1)
    model, clock = FlatModel(Regression().model()), ManualClock()
    x, lock = model.vector.clone(), threading.Lock()
    trainer, events, stream = _trainer(model, "sgd", clock)
    trainer.start()
    trainer.open(0, x, lock)
    clock.sleeps.get(timeout=30)
    clock.advance(1.0)
    events.get(timeout=30)
    clock.sleeps.get(timeout=30)  # the second is computed, and its time has not passed
    done = trainer.close(0, "first")
    _on_one_machine(model, "sgd", stream, 1)
    torch.testing.assert_close(x + done.displacement, model.vector, rtol=1e-5, atol=1e-6)  # type: ignore[operator]
    one_step, indices = model.vector.clone(), stream.next()
    computer = ChunkComputer(Regression(), model, Regression().train_data())
    computer.load(one_step)
    carried = computer.compute(indices)
    far = torch.full_like(x, 3.0)
    trainer.open(1, far, lock, 6)
    clock.advance(1.0)
    assert events.get(timeout=30).staleness == 1
    clock.sleeps.get(timeout=30)
    done = trainer.close(1, "first")
    expected = MasterOptimizer(Regression(), model.layout, one_step.copy_(far), "sgd", 0.05)
    expected.step(carried.gradient / 6, 12)
    torch.testing.assert_close(done.displacement, one_step - far, rtol=1e-5, atol=1e-6)
    assert trainer.stop(timeout=30)


@pytest.mark.usefixtures("no_thread_is_left")
def test_every_batch_has_its_own_draw() -> None:
    model, slowness = FlatModel(Regression().model()), Slowness(seed=3, draws=(Draw("exp", 1.0),))
    trainer, events, _ = _trainer(model, "sgd", SkippingClock(), slowness, chunks=2)
    trainer.start()
    for round in range(2):
        trainer.open(round, model.vector, threading.Lock())
        seconds = [events.get(timeout=30).seconds for _ in range(8)]
        assert seconds == pytest.approx([slowness.factor(4 * round + step) for step in range(4) for _ in range(2)])
        trainer.close(round, "quota")
    assert trainer.stop(timeout=30)
