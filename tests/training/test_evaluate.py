"""Evaluation against one pass over everything at once."""

from __future__ import annotations

import pytest
import torch

from peer.training import evaluate
from peer.training.evaluate import Evaluator
from peer.training.flat import FlatModel
from peer.training.task import build_model, load_task
from tests.training.counting import Counting


@pytest.mark.parametrize("name", ["digits", "digits-cnn"])
def test_batches_add_up_to_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BATCH", 100)  # does not divide 1437
    task = load_task(name)
    model = FlatModel(build_model(task, seed=3))
    evaluator, module = Evaluator(task, seed=0), model.module.eval()
    inputs, targets = task.train_data()[:]
    with torch.no_grad():
        assert evaluator.loss(model.vector) == pytest.approx(task.loss(module(inputs), targets).item(), rel=1e-5)
        inputs, targets = task.test_data()[:]
        assert evaluator.accuracy(model.vector) == pytest.approx(task.accuracy(module(inputs), targets))


def test_the_vector_is_copied_and_accuracy_may_mean_nothing() -> None:
    evaluator, vector = Evaluator(Counting(), seed=0), torch.full((30,), 2.0)
    assert evaluator.loss(vector) == 2.0
    assert evaluator.accuracy(vector) is None
    assert vector.tolist() == [2.0] * 30
