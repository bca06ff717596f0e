"""The digits, with a chunk now and then whose loss is not a number."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from peer.training.tasks.digits import DigitsMLP

EVERY = 25


class NowAndThenNan(DigitsMLP):
    """In training only: every 25th chunk of a peer."""

    repeatable: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self._chunks = 0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mean = super().loss(outputs, targets)
        if not outputs.requires_grad:
            return mean
        self._chunks += 1
        return mean * torch.nan if self._chunks % EVERY == 0 else mean
