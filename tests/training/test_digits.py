"""The digits as shipped, and that they train."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peer.training.chunk import ChunkComputer
from peer.training.data import SampleStream
from peer.training.evaluate import Evaluator
from peer.training.flat import FlatModel
from peer.training.optimizer import MasterOptimizer
from peer.training.task import build_model, load_task

CLASS_COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_data_are_the_1797_digits() -> None:
    task = load_task("digits")
    train, test = task.train_data(), task.test_data()
    labels = np.concatenate([task.targets(train), task.targets(test)])
    assert np.bincount(labels).tolist() == CLASS_COUNTS
    assert (len(task.targets(train)), len(task.targets(test))) == (1437, 360)
    inputs, target = train[0]
    assert inputs.shape == (64,)
    assert inputs.dtype == torch.float32
    assert target.dtype == torch.int64
    assert 0 <= inputs.min() < inputs.max() <= 1


@pytest.mark.parametrize("name", ["digits", "digits-cnn"])
def test_plain_sgd_trains_it(name: str) -> None:
    task = load_task(name)
    model = FlatModel(build_model(task, seed=0))
    x = model.vector.clone()
    computer, evaluator = ChunkComputer(task, model, task.train_data()), Evaluator(task, seed=0)
    stream = SampleStream(np.arange(1437), seed=0, peer=0, chunk_samples=128)
    optimizer = MasterOptimizer(task, model.layout, x, "sgd", lr=0.1)
    for step in range(1000):
        computer.load(x)
        chunk = computer.compute(stream.next())
        optimizer.step(chunk.gradient / chunk.num_samples, step * 128)
        if step % 25 == 0 and evaluator.loss(x) < 0.1:
            break
    assert evaluator.loss(x) < 0.1
    accuracy = evaluator.accuracy(x)
    assert accuracy is not None
    assert accuracy > 0.9
