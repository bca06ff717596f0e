"""Loading and checking a task: what works, and one sentence for each thing that does not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from peer.training.task import OPTIMIZERS, Task, TaskError, build_model, load_task
from tests.training.counting import Counting


@pytest.mark.parametrize("spec", ["digits", "digits-cnn", "tests.training.counting:Counting"])
def test_known_tasks_load(spec: str) -> None:
    task = load_task(spec)
    assert isinstance(task, Task)
    assert task.name


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("digit", "did you mean 'digits'"),
        ("mnist", "valid: digits, digits-cnn"),
        ("examples:", "is incomplete"),
        ("no_such_module:Task", "no module 'no_such_module'"),
        ("tests.training.no_such:Task", "no module 'tests.training.no_such'"),
        ("tests.training.counting:Countin", "did you mean 'Counting'"),
        ("tests.training.broken_tasks:NOT_A_TASK", "not a subclass"),
        ("tests.training.broken_tasks:NeedsArguments", "without arguments"),
        ("tests.training.broken_tasks:NoModel", "model() of task 'counting' failed: RuntimeError: no weights found"),
        ("tests.training.broken_tasks:ModelIsNone", "returns NoneType"),
        ("tests.training.broken_tasks:Empty", "train_data() of task 'counting' holds no sample"),
        ("tests.training.broken_tasks:NoData", "test_data() of task 'counting' failed: FileNotFoundError: digits.bin"),
        ("tests.training.broken_tasks:Streamed", "not a map-style dataset"),
        ("tests.training.broken_tasks:WrongInput", "fails on two training samples"),
        ("tests.training.broken_tasks:LossFails", "loss() of task 'counting' fails"),
        ("tests.training.broken_tasks:LossPerSample", "scalar tensor, not shape [2]"),
        ("tests.training.broken_tasks:LossDetached", "there is no gradient"),
        ("tests.training.broken_tasks:LossIsNan", "is nan at the start"),
    ],
)
def test_every_mistake_is_told_in_one_sentence(spec: str, told: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(spec)
    message = str(caught.value)
    assert told in message
    assert message.endswith(".")
    assert "\n" not in message


def test_a_module_that_fails_to_import_tells_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken_module.py").write_text("import not_installed_here\n")
    (tmp_path / "my_wrong_module.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    with pytest.raises(TaskError, match=r"could not be imported: ModuleNotFoundError.*not_installed_here"):
        load_task("my_broken_module:Task")
    with pytest.raises(TaskError, match="could not be imported: ZeroDivisionError"):
        load_task("my_wrong_module:Task")


def test_models_are_equal_for_a_seed_and_leave_the_global_generator_alone() -> None:
    task = load_task("digits")
    torch.manual_seed(5)
    first = build_model(task, seed=1)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    second, other = build_model(task, seed=1), build_model(task, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_unknown_optimizer_names_the_nearest() -> None:
    params = {"w": nn.Parameter(torch.zeros(2))}
    with pytest.raises(TaskError, match="did you mean 'adamw'"):
        Counting().optimizer(params, "adamww", 0.1)
    for name in OPTIMIZERS:
        assert Counting().optimizer(params, name, 0.25).param_groups[0]["lr"] == 0.25


def test_accuracy_is_argmax_for_classes_and_none_otherwise() -> None:
    task, outputs = Counting(), torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert task.accuracy(outputs, torch.tensor([1, 1, 1])) == pytest.approx(2 / 3)
    assert task.accuracy(outputs, outputs) is None


class _Labelled(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(2), index % 2


def test_targets_of_any_dataset() -> None:
    task = load_task("digits")
    assert np.bincount(task.targets(task.train_data())).sum() == 1437
    assert task.targets(_Labelled()).tolist() == [0, 1, 0, 1]
    attributed: Any = _Labelled()
    attributed.targets = [3, 2, 1, 0]
    assert task.targets(attributed).tolist() == [3, 2, 1, 0]
    counting = Counting()
    with pytest.raises(TaskError, match="iid"):
        counting.targets(counting.train_data())
