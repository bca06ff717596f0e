"""Loss and accuracy of a parameter vector on whole data sets: how the mean model of a cluster is judged, and a peer's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from peer.training.data import batch_reader
from peer.training.flat import FlatModel
from peer.training.task import Task, build_model, num_samples

BATCH = 512


@dataclass(frozen=True, slots=True)
class Judgement:
    """Mean loss and accuracy over the test set; accuracy is None if the task knows none."""

    loss: float
    accuracy: float | None


class Evaluator:
    """Evaluates vectors [d] on its own copy of the model, in evaluation mode. Not to be shared by threads."""

    def __init__(self, task: Task, seed: int) -> None:
        self._task = task
        self._model = FlatModel(build_model(task, seed))
        self._module = self._model.module.eval()
        self._train = task.train_data()
        self._test = task.test_data()

    @torch.no_grad()
    def loss(self, vector: Tensor) -> float:
        """Mean loss over the whole training set with the parameters and buffers [d]."""
        total = 0.0
        for outputs, targets in self._outputs(vector, self._train):
            total += self._task.loss(outputs, targets).item() * len(targets)
        return total / num_samples(self._train)

    @torch.no_grad()
    def accuracy(self, vector: Tensor) -> float | None:
        """Mean accuracy over the whole test set, None if the task knows none."""
        total = 0.0
        for outputs, targets in self._outputs(vector, self._test):
            accuracy = self._task.accuracy(outputs, targets)
            if accuracy is None:
                return None
            total += accuracy * len(targets)
        return total / num_samples(self._test)

    @torch.no_grad()
    def judge(self, vector: Tensor, stop: Callable[[], bool] = lambda: False) -> Judgement | None:
        """Both over the whole test set, in one pass, of the parameters and buffers [d]; None if `stop` said so between two batches."""
        loss, accuracy = 0.0, 0.0
        for outputs, targets in self._outputs(vector, self._test):
            loss += self._task.loss(outputs, targets).item() * len(targets)
            right = self._task.accuracy(outputs, targets)
            accuracy += math.nan if right is None else right * len(targets)
            if stop():
                return None
        samples = num_samples(self._test)
        return Judgement(loss / samples, None if math.isnan(accuracy) else accuracy / samples)

    def _outputs(self, vector: Tensor, dataset: Dataset[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        self._model.vector.copy_(vector)
        read = batch_reader(dataset)
        for start in range(0, num_samples(dataset), BATCH):
            inputs, targets = read(np.arange(start, min(start + BATCH, num_samples(dataset)), dtype=np.int64))
            yield self._module(inputs), targets
