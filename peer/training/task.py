"""What a user implements to train a model: `Task`, and how the name on the command line becomes one.

A task says what the model, the data and the loss are. It knows nothing of peers: who trains on which samples, in which
chunks, and what happens to the gradients is decided elsewhere. `examples/my_task.py` is a complete one.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from topology.suggestion import closest

Optimizer: TypeAlias = torch.optim.Optimizer

OPTIMIZERS: Mapping[str, Callable[[list[nn.Parameter], float], Optimizer]] = MappingProxyType(
    {
        "sgd": lambda params, lr: torch.optim.SGD(params, lr=lr),
        "momentum": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
        "adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
        "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr),
    }
)

BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "digits": "peer.training.tasks.digits:DigitsMLP",
        "digits-cnn": "peer.training.tasks.digits:DigitsCNN",
    }
)


class TaskError(ValueError):
    """A task that cannot be loaded or trained; the message is one sentence that says what to repair."""


class Task(ABC):
    """One training problem. Subclass it, implement the four abstract methods, override the rest where needed.

    The class is built without arguments, once in every peer, and must describe the same problem in all of them.
    """

    name: str = ""
    """How logs and metrics call the task."""

    defaults: ClassVar[Mapping[str, object]] = MappingProxyType({})
    """Settings that suit the task, used where the user gives none: `lr`, `batch_size` (samples per peer and step),
    `chunks` (mini-batches the batch is cut into), `optimizer`."""

    repeatable: ClassVar[bool] = False
    """Whether the gradient of a chunk depends on nothing but its samples and the parameters: no dropout, no random augmentation, no
    state of one's own. Then a long simulation may compute with two processes."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A freshly initialised float32 model. Called under a seeded generator, so all peers start equal.

        Trainable parameters and persistent float buffers (BatchNorm statistics) are mixed between peers; integer and
        non-persistent buffers stay local. Buffers must be changed in place.
        """

    @abstractmethod
    def train_data(self) -> Dataset[Any]:
        """The whole map-style training set of (input, target); each peer draws its own samples from it.

        A `TensorDataset` is read without a python loop over its samples.
        """

    @abstractmethod
    def test_data(self) -> Dataset[Any]:
        """The map-style test set of (input, target), never trained on."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar MEAN of the loss over the samples of a chunk; outputs [b, ...], targets [b, ...]."""

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float | None:
        """Fraction of outputs [b, classes] whose largest entry is the integer target [b]; None if it means nothing."""
        if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
            return None
        return (outputs.argmax(1) == targets).float().mean().item()

    def optimizer(self, params: Mapping[str, nn.Parameter], name: str, lr: float) -> Optimizer:
        """The optimiser over the named parameters; `name` is the configured one, by default a key of `OPTIMIZERS`.

        Override it for parameter groups (by name or shape) or other settings; the rate of every group is scaled by
        `learning_rate_factor`. Raises TaskError if the name is unknown.
        """
        if name not in OPTIMIZERS:
            raise TaskError(f"optimizer {name!r} is unknown; {nearest(name, OPTIMIZERS)}.")
        return OPTIMIZERS[name](list(params.values()), lr)

    def learning_rate_factor(self, samples: int) -> float:
        """Factor on the learning rate once the cluster has trained on `samples` samples: the clock is not the round."""
        return 1.0

    def targets(self, dataset: Dataset[Any]) -> NDArray[np.int64]:
        """Class labels [N] of the dataset, by which a non-iid partition divides it. Raises TaskError if it has none."""
        if isinstance(dataset, TensorDataset):
            labels = dataset.tensors[-1].numpy(force=True)
        elif hasattr(dataset, "targets"):
            labels = np.asarray(dataset.targets)
        else:
            labels = np.asarray([dataset[i][-1] for i in range(num_samples(dataset))])
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise TaskError(
                f"task {self.name!r} has no integer class labels: partition it 'iid' or override targets()."
            )
        return labels.astype(np.int64)


def nearest(word: str, choices: Iterable[str]) -> str:
    """The repair to offer for a misspelt word: 'did you mean 'x'? (valid: ...)'."""
    names = sorted(choices)
    valid = "valid: " + ", ".join(names) if names else "there is nothing to choose from"
    close = closest(word, names)
    return f"did you mean {close!r}? ({valid})" if close is not None else valid


def num_samples(dataset: Dataset[Any]) -> int:
    """Length of a map-style dataset. Raises TaskError if it is not one."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TaskError(f"{type(dataset).__name__} is not a map-style dataset: give it __len__ and __getitem__.")
    return len(dataset)


def _has_accelerators() -> bool:
    """Whether this torch was built for any; it does not ask for the devices."""
    built = torch.backends.cuda.is_built() or torch.backends.mps.is_built()  # type: ignore[no-untyped-call]
    return built or getattr(torch.version, "xpu", None) is not None


def build_model(task: Task, seed: int) -> nn.Module:
    """The task's model, equal in every peer with the same seed; torch's global generator is left as it was.

    Raises TaskError if the task's own code fails.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would note the call, and the stack it came from, for every kind of accelerator that this torch has not
        seed_all = torch.manual_seed if _has_accelerators() else torch.default_generator.manual_seed
        seed_all(seed)
        try:
            module = task.model()
        except Exception as error:
            raise TaskError(f"model() of task {task.name!r} failed: {_told(error)}.") from error
    if not isinstance(module, nn.Module):
        raise TaskError(f"model() of task {task.name!r} returns {type(module).__name__}, not a torch.nn.Module.")
    return module


def load_task(spec: str, *, check: bool = True) -> Task:
    """The task called `spec`: a key of `BUILT_IN`, or "module:Class" looked up as `python -m` would from here.

    With `check`, two samples go forward and backward once, so that a mistake shows at start-up and not in a round.
    Raises TaskError with one sentence that says what to repair.
    """
    if spec == "timing":
        raise TaskError("task 'timing' is nothing but time, for `grapevine simulate`; real peers need a model.")
    if ":" not in spec and spec not in BUILT_IN:
        raise TaskError(f"task {spec!r} is unknown; {nearest(spec, BUILT_IN)}, or give your own as module:Class.")
    module_name, _, class_name = BUILT_IN.get(spec, spec).partition(":")
    if not module_name or not class_name:
        raise TaskError(f"task {spec!r} is incomplete; write module:Class, for instance examples.my_task:Spirals.")
    task_class = _find_class(_import(module_name), class_name)
    try:
        task = task_class()
    except Exception as error:
        raise TaskError(f"task {spec!r} could not be built without arguments: {_told(error)}.") from error
    task.name = task.name or class_name
    if check:
        check_task(task)
    return task


def check_task(task: Task) -> None:
    """Send two samples of the training set forward and backward through a throw-away model.

    Raises TaskError if data, model or loss fail or do not keep the promises of `Task`.
    """
    module = build_model(task, seed=0)
    samples = _two_samples(task, "train_data")
    _two_samples(task, "test_data")
    try:
        inputs, targets = default_collate(samples)
    except Exception as error:
        raise TaskError(f"samples of task {task.name!r} do not form (inputs, targets): {_told(error)}.") from error
    try:
        with torch.random.fork_rng(devices=[]):
            outputs = module(inputs)
    except Exception as error:
        raise TaskError(f"the model of task {task.name!r} fails on two training samples: {_told(error)}.") from error
    try:
        loss: object = task.loss(outputs, targets)
    except Exception as error:
        raise TaskError(f"loss() of task {task.name!r} fails on two training samples: {_told(error)}.") from error
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        told = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TaskError(f"loss() of task {task.name!r} must return the mean over samples, a scalar tensor, not {told}.")
    if not loss.requires_grad:
        raise TaskError(f"loss() of task {task.name!r} does not depend on trainable parameters: there is no gradient.")
    if not math.isfinite(loss.item()):
        raise TaskError(f"loss() of task {task.name!r} is {loss.item()} at the start; check inputs and targets.")


def _two_samples(task: Task, method: str) -> list[Any]:
    try:
        dataset: Dataset[Any] = getattr(task, method)()
        size = num_samples(dataset)
        samples = [dataset[i] for i in range(min(2, size))]
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(f"{method}() of task {task.name!r} failed: {_told(error)}.") from error
    if not samples:
        raise TaskError(f"{method}() of task {task.name!r} holds no sample.")
    return samples


def _import(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise TaskError(f"there is no module {name!r} in {here} or on the python path.") from error
        raise TaskError(f"module {name!r} could not be imported: {_told(error)}.") from error
    except Exception as error:
        raise TaskError(f"module {name!r} could not be imported: {_told(error)}.") from error


def _find_class(module: ModuleType, name: str) -> type[Task]:
    found = getattr(module, name, None)
    if found is None:
        tasks = [n for n, v in vars(module).items() if inspect.isclass(v) and issubclass(v, Task) and v is not Task]
        raise TaskError(f"module {module.__name__!r} has no class {name!r}; {nearest(name, tasks)}.")
    if not inspect.isclass(found) or not issubclass(found, Task):
        raise TaskError(f"{module.__name__}:{name} is not a subclass of peer.training.task.Task.")
    return found


def _told(error: Exception) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
