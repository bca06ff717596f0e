"""The example task loads by its module path and trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from peer.training.chunk import ChunkComputer
from peer.training.data import SampleStream
from peer.training.evaluate import Evaluator
from peer.training.flat import FlatModel
from peer.training.optimizer import MasterOptimizer
from peer.training.task import build_model, load_task

ROOT = Path(__file__).parents[2]


def test_spirals_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    task = load_task("examples.my_task:Spirals")
    model = FlatModel(build_model(task, seed=0))
    x = model.vector.clone()
    computer, evaluator = ChunkComputer(task, model, task.train_data()), Evaluator(task, seed=0)
    stream = SampleStream(np.arange(2000), seed=0, peer=0, chunk_samples=64)
    optimizer = MasterOptimizer(task, model.layout, x, str(task.defaults["optimizer"]), lr=0.01)
    before = evaluator.loss(x)
    for _ in range(300):
        computer.load(x)
        chunk = computer.compute(stream.next())
        optimizer.step(chunk.gradient / chunk.num_samples, 0)
    assert evaluator.loss(x) < before / 2
    accuracy = evaluator.accuracy(x)
    assert accuracy is not None
    assert accuracy > 0.8


def test_the_example_is_short() -> None:
    assert len((ROOT / "examples" / "my_task.py").read_text().splitlines()) < 40
