"""A task with known gradients, for exact accounting: sample i's loss is w_i, so a gradient sum counts its samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from peer.training.chunk import ChunkComputer
from peer.training.flat import FlatModel
from peer.training.task import Task

NUM_SAMPLES = 30


class _Pick(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(NUM_SAMPLES))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.w[inputs]


class Counting(Task):
    """With all parameters set to k, the loss of every chunk is k: it tells at which parameters it was computed."""

    name = "counting"

    def model(self) -> nn.Module:
        return _Pick()

    def train_data(self) -> TensorDataset:
        return TensorDataset(torch.arange(NUM_SAMPLES), torch.zeros(NUM_SAMPLES))

    def test_data(self) -> TensorDataset:
        return self.train_data()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()


def counting_computer(task: Task | None = None) -> ChunkComputer:
    task = task or Counting()
    return ChunkComputer(task, FlatModel(task.model()), task.train_data())
