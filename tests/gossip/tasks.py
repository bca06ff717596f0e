"""A task with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from peer.training.task import Optimizer
from tests.daemon.tasks import Linear


class OwnOptimizer(Linear):
    def optimizer(self, params: Mapping[str, nn.Parameter], name: str, lr: float) -> Optimizer:
        return torch.optim.SGD(list(params.values()), lr=lr, weight_decay=0.01)


class OwnRMSprop(Linear):
    """Its steps are as long whatever the gradient is scaled by."""

    def optimizer(self, params: Mapping[str, nn.Parameter], name: str, lr: float) -> Optimizer:
        return torch.optim.RMSprop(list(params.values()), lr=lr)
