"""The flat vector is the model: views, buffers, gradients, layout, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peer.training.flat import FlatModel
from peer.training.task import TaskError, build_model, load_task


class _Odd(nn.Module):
    """Tied, frozen and non-contiguous parameters, and every kind of buffer."""

    mask: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.skew = nn.Parameter(torch.arange(6.0).view(2, 3).t())
        self.register_buffer("mean", torch.full((2,), 7.0))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mask", torch.tensor(-torch.inf), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.tied(self.first(inputs)) @ self.skew
        return out


def test_vector_holds_trainable_parameters_then_persistent_float_buffers() -> None:
    model = FlatModel(_Odd())
    assert model.layout.names == ("skew", "first.weight", "mean")
    assert model.layout.shapes == ((3, 2), (3, 3), (2,))
    assert (model.layout.num_params, model.layout.num_buffers, model.layout.dim) == (15, 2, 17)
    assert model.params[:6].tolist() == [0, 3, 1, 4, 2, 5]
    assert model.buffers.tolist() == [7, 7]
    assert len(model.parameters()) == 2


def test_writing_the_vector_writes_the_model_and_back() -> None:
    module = _Odd()
    model = FlatModel(module)
    inputs, reference = torch.randn(4, 3), _Odd()
    reference.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(inputs), reference(inputs))
    model.vector.copy_(torch.arange(17.0))
    assert module.tied.weight[0].tolist() == [6, 7, 8]
    assert module.mean.tolist() == [15, 16]
    with torch.no_grad():
        module.skew.zero_()
    assert model.params[:6].abs().sum() == 0


def test_gradient_vector_receives_autograd_and_survives_zeroing() -> None:
    module, twin = _Odd(), _Odd()
    model = FlatModel(module)
    twin.load_state_dict(module.state_dict())
    inputs = torch.randn(4, 3)
    for _ in range(3):
        model.gradient.zero_()
        module(inputs).square().sum().backward()
    twin(inputs).square().sum().backward()
    for name, view in model.layout.views(model.gradient).items():
        expected = dict(twin.named_parameters()).get(name)
        grad = torch.zeros_like(view) if expected is None or expected.grad is None else expected.grad
        torch.testing.assert_close(view, grad)
    module(inputs).square().sum().backward()
    torch.testing.assert_close(model.gradient[6:15], 2 * _grad(twin.first.weight).reshape(-1))


def _grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


def test_batchnorm_statistics_are_in_the_vector_and_its_count_is_not() -> None:
    model = FlatModel(build_model(load_task("digits-cnn"), seed=0))
    assert model.layout.num_buffers == 2 * (16 + 32)
    assert not any("num_batches_tracked" in name for name in model.layout.names)
    model.module.train()(torch.rand(8, 64))
    assert model.buffers[:16].abs().sum() > 0


def test_fingerprint_tells_models_apart_and_nothing_else() -> None:
    digits, cnn = (load_task(name) for name in ("digits", "digits-cnn"))
    layouts = [FlatModel(build_model(task, seed)).layout for task, seed in ((digits, 0), (digits, 1), (cnn, 0))]
    assert layouts[0].fingerprint() == layouts[1].fingerprint() != layouts[2].fingerprint()
    assert len(layouts[0].fingerprint()) == 64
    narrow, wide = FlatModel(nn.Linear(2, 3)).layout, FlatModel(nn.Linear(3, 2)).layout
    assert narrow.fingerprint() != wide.fingerprint()


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (nn.Linear(2, 2).double(), "'weight' is float64"),
        (nn.Linear(2, 2).half(), "'weight' is float16"),
        (nn.LazyLinear(2), "'weight' is not initialised"),
        (nn.ReLU(), "no trainable parameter"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_flattened_is_told(module: nn.Module, told: str) -> None:
    with pytest.raises(TaskError, match=told):
        FlatModel(module)


def test_a_buffer_that_is_not_finite_is_told() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.tensor(-torch.inf))
    with pytest.raises(TaskError, match="persistent=False"):
        FlatModel(module)
