"""Tasks with one mistake each; `test_task.py` demands one clear sentence for every one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

from tests.training.counting import Counting

NOT_A_TASK = 3


class NoModel(Counting):
    def model(self) -> nn.Module:
        raise RuntimeError("no weights\nfound")


class ModelIsNone(Counting):
    def model(self) -> Any:
        return None


class NeedsArguments(Counting):
    def __init__(self, size: int) -> None:
        self.size = size


class Empty(Counting):
    def train_data(self) -> TensorDataset:
        return TensorDataset(torch.zeros(0), torch.zeros(0))


class NoData(Counting):
    def test_data(self) -> TensorDataset:
        raise FileNotFoundError("digits.bin")


class _Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.zeros(1)])


class Streamed(Counting):
    def train_data(self) -> Any:
        return _Stream()


class WrongInput(Counting):
    def model(self) -> nn.Module:
        return nn.Linear(5, 2)


class LossFails(Counting):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("label")


class LossPerSample(Counting):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs


class LossDetached(Counting):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.detach().mean()


class LossIsNan(Counting):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean() * torch.nan
