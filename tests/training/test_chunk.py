"""Chunk gradients against autograd on the whole batch, buffers against a large batch, and the finite flag."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from peer.training.chunk import ChunkComputer
from peer.training.data import batch_reader
from peer.training.flat import FlatModel
from peer.training.task import Task, build_model, load_task
from tests.training.counting import Counting, counting_computer


def test_chunks_sum_to_the_gradient_of_the_whole_batch() -> None:
    task = load_task("digits")
    twin = build_model(task, seed=0)
    computer = ChunkComputer(task, FlatModel(build_model(task, seed=0)), task.train_data())
    indices, total, losses = np.random.default_rng(1).permutation(1437)[:64], torch.zeros(computer.dim), 0.0
    for part in np.split(indices, [2, 10, 11, 40]):
        chunk = computer.compute(part)
        assert chunk.finite
        assert chunk.num_samples == len(part)
        total += chunk.gradient
        losses += chunk.loss_sum
    inputs, targets = batch_reader(task.train_data())(indices)
    loss = task.loss(twin(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([p.grad.reshape(-1) for p in twin.parameters() if p.grad is not None])
    torch.testing.assert_close(total / 64, expected, rtol=0, atol=1e-6)
    assert losses / 64 == pytest.approx(loss.item(), abs=1e-6)


def test_load_moves_the_model_and_the_vector_it_copied_stays() -> None:
    computer, params = counting_computer(), torch.full((30,), 5.0)
    computer.load(params)
    params.zero_()
    assert computer.compute(np.array([1, 1, 4])).loss_sum == 15
    gradient = computer.compute(np.array([1, 1, 4])).gradient
    assert gradient.nonzero().flatten().tolist() == [1, 4]
    assert gradient[[1, 4]].tolist() == [2, 1]


class _Normed(Task):
    """BatchNorm on samples that come in equal pairs."""

    name = "normed"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))

    def train_data(self) -> TensorDataset:
        return TensorDataset(torch.tensor([1.0, 3.0] * 4).unsqueeze(1), torch.zeros(8, 1))

    def test_data(self) -> TensorDataset:
        return self.train_data()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()


def test_batchnorm_moves_once_per_round_as_with_one_large_batch() -> None:
    task = _Normed()
    model = FlatModel(build_model(task, seed=0))
    computer = ChunkComputer(task, model, task.train_data())
    assert model.layout.names[2:] == ("0.running_mean", "0.running_var") or model.layout.num_buffers == 2
    x = model.vector.clone()
    gradient = torch.zeros(model.layout.dim)
    for chunk in np.arange(8).reshape(4, 2):
        gradient += computer.compute(chunk).gradient
    x[model.layout.num_params :] -= (gradient / 8)[model.layout.num_params :]
    # Every chunk has mean 2 and unbiased variance 2; momentum 0.1 from mean 0, variance 1.
    torch.testing.assert_close(x[model.layout.num_params :], torch.tensor([0.2, 1.1]))


def test_every_chunk_starts_from_the_loaded_buffers() -> None:
    task = load_task("digits-cnn")
    model = FlatModel(build_model(task, seed=0))
    computer = ChunkComputer(task, model, task.train_data())
    first = computer.compute(np.arange(8)).gradient.clone()
    computer.compute(np.arange(50, 90))
    assert torch.equal(computer.compute(np.arange(8)).gradient, first)


class _Blowup(Counting):
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs * self.factor).mean() + targets.sum()


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 3e38])
def test_a_chunk_that_is_not_finite_says_so(factor: float) -> None:
    computer = counting_computer(_Blowup(factor))
    assert not computer.compute(np.array([0, 0, 1])).finite
    assert counting_computer(_Blowup(1.0)).compute(np.array([0, 0, 1])).finite


class _Listed(Dataset[tuple[Tensor, int]]):
    """The digits without the fast path."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        inputs, target = self.data[index]
        return inputs, int(target)


def test_any_map_style_dataset_gives_the_same_chunk() -> None:
    task = load_task("digits")
    data = task.train_data()
    assert isinstance(data, TensorDataset)
    gradients = [
        ChunkComputer(task, FlatModel(build_model(task, seed=0)), d).compute(np.arange(5)).gradient
        for d in (data, _Listed(data))
    ]
    assert torch.equal(*gradients)
