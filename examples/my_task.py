"""A task of your own: two interleaved spirals, told apart by a small network.

Run it from the repository root:  grapevine up --task examples.my_task:Spirals
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from peer.training.task import Task


def spirals(num_samples: int, seed: int) -> TensorDataset:
    """Points float32 [N, 2] on two noisy spirals, and which spiral they are on, int64 [N]."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_samples) % 2
    radius = torch.rand(num_samples, generator=rng).sqrt()
    angle = 7 * radius + torch.pi * labels
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return TensorDataset(points + 0.01 * torch.randn(num_samples, 2, generator=rng), labels)


class Spirals(Task):
    name = "spirals"
    defaults = {"lr": 0.01, "optimizer": "adam", "batch_size": 16, "chunks": 4}  # noqa: RUF012

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))

    def train_data(self) -> TensorDataset:
        return spirals(2000, seed=1)

    def test_data(self) -> TensorDataset:
        return spirals(500, seed=2)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)
