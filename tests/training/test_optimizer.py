"""m chunks and a master step are one step of torch.optim on the whole batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from peer.training.chunk import ChunkComputer
from peer.training.data import Indices, batch_reader
from peer.training.flat import FlatModel
from peer.training.optimizer import MasterOptimizer
from peer.training.task import OPTIMIZERS, Optimizer, Task, build_model, load_task
from peer.training.tasks.digits import DigitsMLP


def _mean_gradient(computer: ChunkComputer, x: torch.Tensor, chunks: list[Indices]) -> torch.Tensor:
    computer.load(x)
    total = torch.zeros_like(x)
    for chunk in chunks:
        total += computer.compute(chunk).gradient
    return total / sum(map(len, chunks))


def _values(tensor: torch.Tensor) -> set[float]:
    return set(tensor.tolist())


def _parts(task: Task) -> tuple[ChunkComputer, FlatModel]:
    model = FlatModel(build_model(task, seed=0))
    return ChunkComputer(task, model, task.train_data()), model


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_twenty_steps_equal_one_process(name: str) -> None:
    task = load_task("digits")
    computer, model = _parts(task)
    x = model.vector.clone()
    lr = 0.1 if name in ("sgd", "momentum") else 1e-3
    master = MasterOptimizer(task, model.layout, x, name, lr)
    twin = build_model(task, seed=0)
    reference = OPTIMIZERS[name](list(twin.parameters()), lr)
    read, rng = batch_reader(task.train_data()), np.random.default_rng(0)
    for _ in range(20):
        batch = rng.integers(0, 1437, 64)
        master.step(_mean_gradient(computer, x, np.split(batch, 8)), 0)
        inputs, targets = read(batch)
        reference.zero_grad()
        task.loss(twin(inputs), targets).backward()  # type: ignore[no-untyped-call]
        reference.step()
    expected = torch.cat([p.detach().reshape(-1) for p in twin.parameters()])
    # Adam divides by sqrt(v): entries with gradients near rounding error differ more than those of SGD.
    close = (x - expected).abs() < (1e-5 if lr == 0.1 else 1e-4)
    assert close.float().mean() > 0.999
    assert (x - expected).norm() < 1e-3 * expected.norm()


def test_learning_rate_follows_the_samples_clock() -> None:
    class Decayed(DigitsMLP):
        def learning_rate_factor(self, samples: int) -> float:
            return 0.5 if samples >= 100 else 1.0

    task = Decayed()
    layout = FlatModel(build_model(task, seed=0)).layout
    x, ones = torch.zeros(layout.dim), torch.ones(layout.dim)
    master = MasterOptimizer(task, layout, x, "sgd", lr=0.25)
    master.step(ones, 99)
    assert torch.equal(x, -0.25 * ones)
    master.step(ones, 100)
    assert torch.equal(x, -0.375 * ones)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_sum_and_its_scale_are_a_mean_gradient(name: str) -> None:
    task = load_task("digits-cnn")  # has buffers
    layout = FlatModel(build_model(task, seed=0)).layout
    mean = torch.randn(layout.dim, generator=torch.Generator().manual_seed(1))
    vectors = torch.zeros(2, layout.dim)
    for x, gradient, scale in ((vectors[0], mean.clone(), 1.0), (vectors[1], 8 * mean, 0.125)):
        MasterOptimizer(task, layout, x, name, lr=0.25).step(gradient, 0, scale)
    assert torch.equal(vectors[0], vectors[1])  # powers of two change no digit
    assert vectors[0].abs().min() > 0


def test_buffers_take_their_change_as_it_is_and_parameters_a_step() -> None:
    task = load_task("digits-cnn")
    layout = FlatModel(build_model(task, seed=0)).layout
    x, ones = torch.zeros(layout.dim), torch.ones(layout.dim)
    MasterOptimizer(task, layout, x, "sgd", lr=0.25).step(ones, 0)
    assert _values(x[: layout.num_params]) == {-0.25}
    assert _values(x[layout.num_params :]) == {-1.0}
    assert _values(ones) == {1.0}


def test_parameter_groups_keep_their_own_rate() -> None:
    class Grouped(DigitsMLP):
        def optimizer(self, params: Mapping[str, nn.Parameter], name: str, lr: float) -> Optimizer:
            biases = [p for n, p in params.items() if n.endswith("bias")]
            others = [p for n, p in params.items() if not n.endswith("bias")]
            groups: list[dict[str, object]] = [{"params": others}, {"params": biases, "lr": 2 * lr}]
            return torch.optim.SGD(groups, lr=lr)

        def learning_rate_factor(self, samples: int) -> float:
            return 2.0

    task = Grouped()
    layout = FlatModel(build_model(task, seed=0)).layout
    x = torch.zeros(layout.dim)
    MasterOptimizer(task, layout, x, "sgd", lr=0.5).step(torch.ones(layout.dim), 0)
    views = layout.views(x)
    assert _values(views["0.weight"].flatten()) == {-1.0}
    assert _values(views["0.bias"]) == {-2.0}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_state_round_trip_continues_identically(name: str) -> None:
    task = load_task("digits")
    layout = FlatModel(build_model(task, seed=0)).layout
    rng = torch.Generator().manual_seed(0)
    gradients = [torch.randn(layout.dim, generator=rng) for _ in range(4)]
    x = torch.zeros(layout.dim)
    master = MasterOptimizer(task, layout, x, name, lr=0.01)
    for gradient in gradients[:2]:
        master.step(gradient, 0)
    saved, state = x.clone(), master.state_dict()
    resumed = MasterOptimizer(task, layout, saved, name, lr=0.01)
    resumed.load_state_dict(state)
    for gradient in gradients[2:]:
        master.step(gradient, 0)
        resumed.step(gradient, 0)
    assert torch.equal(x, saved)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_all_parameters_as_one_tensor_are_the_same_bits_as_by_name(name: str) -> None:
    class ByName(DigitsMLP):
        def optimizer(self, params: Mapping[str, nn.Parameter], name: str, lr: float) -> Optimizer:
            return super().optimizer(params, name, lr)

    layout = FlatModel(build_model(DigitsMLP(), seed=0)).layout
    rng = torch.Generator().manual_seed(0)
    ends = [torch.randn(layout.dim, generator=rng)]
    ends.append(ends[0].clone())
    masters = [
        MasterOptimizer(task, layout, x, name, 0.01) for task, x in zip((DigitsMLP(), ByName()), ends, strict=True)
    ]
    for _ in range(10):
        gradient = torch.randn(layout.dim, generator=rng)
        for master in masters:
            master.step(gradient, 0)
    assert torch.equal(*ends)


def test_plain_sgd_keeps_no_state() -> None:
    task = load_task("digits")
    layout = FlatModel(build_model(task, seed=0)).layout
    master = MasterOptimizer(task, layout, torch.zeros(layout.dim), "sgd", lr=0.1)
    master.step(torch.ones(layout.dim), 0)
    assert not any(value is not None for entry in master.state_dict()["state"].values() for value in entry.values())


def test_plain_sgd_makes_no_optimizer_of_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """To make one imports torch._dynamo, some seconds of a process's start."""

    def made(*_: object) -> None:
        raise RuntimeError("torch's own is made")

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", made)
    task = load_task("digits")
    layout = FlatModel(build_model(task, seed=0)).layout
    x = torch.zeros(layout.dim)
    master = MasterOptimizer(task, layout, x, "sgd", lr=0.5)
    master.step(torch.ones(layout.dim), 0)
    assert torch.equal(x, torch.full_like(x, -0.5))
    assert master.scales_with_gradient
    assert master.learning_rate(0) == 0.5
    with pytest.raises(RuntimeError, match="torch's own is made"):
        MasterOptimizer(task, layout, x, "momentum", lr=0.5)


@pytest.mark.parametrize("more", [{}, {"momentum": 0.5}, {"weight_decay": 0.1}, {"maximize": True}, {"hooked": True}])
def test_plain_sgd_is_stepped_to_the_same_bits_and_everything_else_by_torch(more: dict[str, object]) -> None:
    class Own(DigitsMLP):
        def optimizer(self, params: Mapping[str, nn.Parameter], name: str, lr: float) -> Optimizer:
            return own(list(params.values()))

    def own(params: list[nn.Parameter]) -> Optimizer:
        options = {name: value for name, value in more.items() if name != "hooked"}
        groups = [{"params": params[:2], "lr": 0.3}, {"params": params[2:], "lr": 0.1}]
        made = torch.optim.SGD(groups, lr=0.1, **options)  # type: ignore[arg-type]
        if "hooked" in more:
            made.register_step_post_hook(lambda *_: steps.append(1))
        return made

    steps: list[int] = []
    task = Own()
    model = FlatModel(build_model(task, seed=0))
    x, twin = model.vector.clone(), model.vector.clone()
    master = MasterOptimizer(task, model.layout, x)
    params = list(model.layout.parameters(twin).values())
    reference = own(params)
    for seed in range(5):
        gradient = torch.randn(len(x), generator=torch.Generator().manual_seed(seed))
        master.step(gradient, 0)
        for param, part in zip(params, torch.split(gradient, [p.numel() for p in params]), strict=True):
            param.grad = part.view(param.shape).clone()
        reference.step()
        assert torch.equal(x, twin)
    assert len(steps) == (10 if "hooked" in more else 0)
