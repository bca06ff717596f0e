"""Tasks whose training can be written down by hand."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from peer.daemon.computing import PROCESS_FROM
from peer.training.task import Task

NUM_SAMPLES, NUM_INPUTS = 96, 6


class Linear(Task):
    """Least squares: loss = mean (w'x + b - y)^2, so the gradient has a closed form."""

    name = "linear"

    def model(self) -> nn.Module:
        return nn.Linear(NUM_INPUTS, 1)

    def train_data(self) -> Dataset[Any]:
        generator = torch.Generator().manual_seed(11)
        x = torch.randn(NUM_SAMPLES, NUM_INPUTS, generator=generator)
        return TensorDataset(x, x @ torch.arange(1.0, NUM_INPUTS + 1) + torch.randn(NUM_SAMPLES, generator=generator))

    def test_data(self) -> Dataset[Any]:
        return self.train_data()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.mean((outputs[:, 0] - targets) ** 2)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float | None:
        return None


class Wide(Linear):
    """The same with many outputs, whose mean counts: a third of the vector is two frames, even as int8."""

    outputs: ClassVar[int] = 900_000

    def model(self) -> nn.Module:
        made = nn.Linear(NUM_INPUTS, self.outputs, device="meta").to_empty(device="cpu")
        for parameter in made.parameters():  # random numbers would be half of a test's time
            parameter.data.copy_(torch.arange(1000).div(1000).repeat(parameter.numel() // 1000).view_as(parameter))
        return made

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.mean((outputs.mean(1) - targets) ** 2)


class Wide16(Wide):
    """Of two bytes an element."""

    outputs = Wide.outputs // 2


class Wide32(Wide):
    """Of four."""

    outputs = Wide.outputs // 4


class Large(Linear):
    """So many parameters that a process computes its chunks by default; cheap to compute and to evaluate."""

    def model(self) -> nn.Module:
        hidden = math.isqrt(PROCESS_FROM) + 1
        return nn.Sequential(nn.Linear(NUM_INPUTS, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1))


class Poisoned(Linear):
    """One sample in twelve gives a NaN gradient."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        poison = torch.where(targets > 12.0, torch.nan, 1.0)
        return torch.mean(poison * (outputs[:, 0] - targets) ** 2)


class Hopeless(Linear):
    """Every gradient is NaN."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum() * (torch.nan if torch.is_grad_enabled() and len(targets) != 2 else 1.0)


class Graded(Linear):
    """An output is right if it is less than 2 off; to see that takes 20 ms of processor time."""

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float | None:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return (torch.abs(outputs[:, 0] - targets) < 2).float().mean().item()


class Unjudged(Linear):
    """Can be trained, and not evaluated."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise ArithmeticError("only trained")
        return super().loss(outputs, targets)


class Wider(Linear):
    """Trains another model under another name: its fingerprint differs."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(NUM_INPUTS, 3), nn.Linear(3, 1))


class Broken(Linear):
    """Fails in the middle of training."""

    calls = 0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        type(self).calls += 1
        if type(self).calls > 40:
            raise ArithmeticError("the flux capacitor is empty")
        return super().loss(outputs, targets)
