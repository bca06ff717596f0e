"""The optimiser of a peer: torch.optim stepping on the master vector x [d] itself."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from peer.training.flat import Layout
from peer.training.task import Optimizer, Task


class MasterOptimizer:
    """Steps on the vector x [d] in place with the gradients of finished rounds.

    parameters   one step of the task's torch optimiser, lr = base lr * learning_rate_factor(samples)
    buffers      x -= gradient: a buffer's "gradient" is minus the change that training made to it

    x may be a FlatModel's vector or any float32 vector of the layout; no module is needed. Momenta start at zero and
    are the only memory beside x (plain SGD: none).

    The built-in optimisers do the same to every entry, so all parameters are one tensor to them: the same bits, and a third of the time
    where the model is small. Plain SGD is done here, as torch does it: one addition, and torch's own is made only if somebody asks for
    its state: making one imports torch._dynamo, some seconds of a process's start. A task with an optimiser of its own is given its
    parameters by name.
    """

    def __init__(self, task: Task, layout: Layout, x: Tensor, name: str = "sgd", lr: float = 0.1) -> None:
        self._task = task
        self._layout = layout
        self._x = x
        alike = type(task).optimizer is Task.optimizer
        self._named = {"": nn.Parameter(x[: layout.num_params])} if alike else layout.parameters(x)
        self._params = list(self._named.values())
        self._sizes = [p.numel() for p in self._params]
        self._name, self._lr = name, lr
        self._plain = alike and name == "sgd"
        self.is_builtin = alike  # not the task's own
        self._base_lrs = [lr] if self._plain else [float(group["lr"]) for group in self._optimizer.param_groups]

    @cached_property
    def _optimizer(self) -> Optimizer:
        return self._task.optimizer(self._named, self._name, self._lr)

    @property
    def is_plain_sgd(self) -> bool:
        """Whether a step is x - lr g with one lr for all parameters."""
        return self._plain

    @property
    def scales_with_gradient(self) -> bool:
        """Whether a step from half the gradient is half as long: of torch's, SGD, with or without momentum, and no other."""
        return self._plain or isinstance(self._optimizer, torch.optim.SGD)

    @property
    def num_params(self) -> int:
        """Elements of x that are parameters; float buffers come after them."""
        return self._layout.num_params

    def learning_rate_factor(self, samples_clock: int) -> float:
        """Of the base learning rate, when the cluster has trained on so many samples."""
        return self._task.learning_rate_factor(samples_clock)

    def learning_rate(self, samples_clock: int) -> float:
        """lr of a plain SGD step at that clock. Raises RuntimeError if the optimizer is another, which has no such one."""
        if not self._plain:
            raise RuntimeError("only plain SGD has one learning rate for all parameters.")
        return self._base_lrs[0] * self.learning_rate_factor(samples_clock)

    @torch.no_grad()
    def step(self, gradient: Tensor, samples_clock: int, scale: float = 1.0) -> None:
        """One step with the mean gradient, scale times `gradient` [d], when the cluster has trained on `samples_clock` samples. Plain SGD
        scales as it steps, in one pass; the others scale in place before."""
        factor = self.learning_rate_factor(samples_clock)
        num_params = self._layout.num_params
        if self._plain:
            self._x[:num_params].add_(gradient[:num_params], alpha=-self._base_lrs[0] * factor * scale)
        else:
            for group, base in zip(self._optimizer.param_groups, self._base_lrs, strict=True):
                group["lr"] = base * factor
            parameters = gradient[:num_params]
            self._step(parameters if scale == 1.0 else parameters.mul_(scale))
        if self._layout.num_buffers:
            self._x[num_params:].add_(gradient[num_params:], alpha=-scale)

    def _step(self, gradient: Tensor) -> None:
        for param, part in zip(self._params, torch.split(gradient, self._sizes), strict=True):
            param.grad = part.view(param.shape)
        self._optimizer.step()
        for param in self._params:
            param.grad = None  # the caller reuses the gradient's memory

    def state_dict(self) -> dict[str, Any]:
        """The torch optimiser's state, for a checkpoint; its tensors are the live ones, so write them before the next step."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; x is restored by its owner. The configured learning rate is kept."""
        self._optimizer.load_state_dict(copy.deepcopy(state))
