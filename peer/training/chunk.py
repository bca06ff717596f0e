"""The gradient of one chunk at given parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from peer.training.data import Indices, batch_reader
from peer.training.flat import FlatModel
from peer.training.task import Task


class Chunk(NamedTuple):
    """A computed chunk.

    gradient: [d] SUM over the samples of the loss's gradient (buffers: minus b times their change), on the CPU, valid
    until the next `compute`. loss_sum: sum of the losses. finite: no gradient and no loss is inf or nan.
    """

    gradient: Tensor
    num_samples: int
    loss_sum: float
    finite: bool


class ChunkComputer:
    """Computes chunk gradients on its own copy of the model, in training mode.

    With the mean loss l over the chunk's b samples and the buffers u before and u' after the forward pass,

        gradient = [ b * dl/dparams | b * (u - u') ]

    so sums over chunks divided by the number of samples are means over samples. Every chunk starts from the loaded
    buffers: the mean over m chunks is then ONE update of BatchNorm's running statistics per round,
    u + momentum * (mean of the chunks' statistics - u), as a single large batch would make, and not m of them.
    Memory: the module's 2 d floats, and d_buffers (on an accelerator d more on the CPU).
    """

    def __init__(self, task: Task, model: FlatModel, dataset: Dataset[Any]) -> None:
        self._task = task
        self._model = model
        self._module = model.module.train()
        self._read = batch_reader(dataset)
        self._buffers = model.buffers.clone()
        self._device = model.vector.device

    @property
    def dim(self) -> int:
        return self._model.layout.dim

    def load(self, params: Tensor) -> None:
        """Take over parameters and buffers [d]; the following chunks are computed there."""
        self._model.vector.copy_(params)
        self.take_over()

    def take_over(self) -> None:
        """What is in the model's vector now are the parameters and buffers of the following chunks."""
        self._buffers.copy_(self._model.buffers)

    def close(self) -> None:
        """Nothing of it outlives it."""

    def compute(self, indices: Indices) -> Chunk:
        """The chunk of the samples at these dataset indices [b]. Errors of the task's model or loss pass through."""
        model, num_samples = self._model, len(indices)
        has_buffers = model.layout.num_buffers > 0
        if has_buffers:
            model.buffers.copy_(self._buffers)
        gradient = model.gradient.zero_()
        inputs, targets = self._read(indices)
        if self._device.type != "cpu":
            inputs, targets = inputs.to(self._device), targets.to(self._device)
        loss = self._task.loss(self._module(inputs), targets)
        # the same bits as backward(gradient), which checks its shape with sympy: a second's import in every process
        (loss * num_samples).backward()  # type: ignore[no-untyped-call]
        if has_buffers:
            change = torch.sub(self._buffers, model.buffers, out=gradient[model.layout.num_params :])
            change.mul_(num_samples)
        loss_sum = loss.item() * num_samples
        # Any inf or nan among the addends makes the sum inf or nan: one read of the gradient, no mask of d bools.
        finite = math.isfinite(loss_sum) and math.isfinite(gradient.sum().item())
        return Chunk(gradient.cpu(), num_samples, loss_sum, finite)
