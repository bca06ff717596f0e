"""Handwritten digits: 1,797 real images of 8 x 8 pixels in ten classes, small enough to ship and to train in seconds.

Source: Optical Recognition of Handwritten Digits (the test part), E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49, CC BY 4.0. `digits.npz` holds images uint8 [1797, 64] with values 0..16 and
labels uint8 [1797], shuffled once and for all: the first 1,437 are the training set, the last 360 the test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from peer.training.task import Task

NUM_TRAIN = 1437


@cache
def _digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and test set; inputs float32 [N, 64] in [0, 1], targets int64 [N]."""
    with np.load(Path(__file__).with_name("digits.npz")) as stored:
        inputs = torch.from_numpy(stored["images"]).float() / 16
        targets = torch.from_numpy(stored["labels"]).long()
    train = TensorDataset(inputs[:NUM_TRAIN], targets[:NUM_TRAIN])
    return train, TensorDataset(inputs[NUM_TRAIN:], targets[NUM_TRAIN:])


class _Digits(Task):
    repeatable: ClassVar[bool] = True

    def train_data(self) -> TensorDataset:
        return _digits()[0]

    def test_data(self) -> TensorDataset:
        return _digits()[1]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)


class DigitsMLP(_Digits):
    """A perceptron 64-256-128-10 with ReLU, d = 50,826. The task of the benchmarks."""

    name = "digits"
    defaults: ClassVar[Mapping[str, object]] = MappingProxyType({"lr": 0.1, "batch_size": 16, "chunks": 8})

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
        )  # fmt: skip


class DigitsCNN(_Digits):
    """Two convolutions with BatchNorm, whose running statistics are mixed between peers like parameters."""

    name = "digits-cnn"
    defaults: ClassVar[Mapping[str, object]] = MappingProxyType({"lr": 0.1, "batch_size": 64, "chunks": 4})

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            *_block(1, 16),
            *_block(16, 32),
            nn.Flatten(),
            nn.Linear(32 * 2 * 2, 10),
        )


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Convolution that keeps the image's size, then halves it."""
    return (
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
