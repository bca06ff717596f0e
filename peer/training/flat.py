"""A model as one contiguous vector: what peers send, mix and step on.

    vector [d] = [trainable parameters [d_params] | persistent float buffers [d_buffers]]

Parameters and buffers of the module become views of the vector, so writing the vector is writing the model. Integer
buffers (BatchNorm's count of batches) and non-persistent ones (masks, caches: equal everywhere) are left alone. Every
value is float32.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from peer.training.task import TaskError


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor lies in the vector: names, shapes and dtypes in order, the parameters first.

    num_params, num_buffers: floats in the two parts; `dim` d is their sum.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    num_params: int
    num_buffers: int

    @property
    def dim(self) -> int:
        return self.num_params + self.num_buffers

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    def fingerprint(self) -> str:
        """SHA-256 in hex of names, shapes and dtypes: peers with equal fingerprints can mix their vectors."""
        told = json.dumps([self.names, self.shapes, self.dtypes, self.num_params], separators=(",", ":"))
        return hashlib.sha256(told.encode()).hexdigest()

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """The tensors that lie in a vector [d], by name, sharing its memory."""
        parts = torch.split(vector, self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def parameters(self, vector: Tensor) -> dict[str, nn.Parameter]:
        """The trainable parameters in a vector [d], by name, as leaves for torch.optim that share its memory."""
        views, params = self.views(vector), {}
        offset = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            if offset == self.num_params:
                break
            params[name] = nn.Parameter(views[name])
            offset += size
        return params


class FlatModel:
    """A module whose parameters and float buffers are views of one vector [d]; it starts with the module's values.

    memory: makes a vector of so many floats on the CPU, for the model's own and for its gradient; default: on the module's device.
    Raises TaskError if a tensor is not float32, not initialised, or if there is nothing to train.
    """

    def __init__(self, module: nn.Module, memory: Callable[[int], Tensor] | None = None) -> None:
        self.module = module
        self._memory = memory
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        buffers = _mixed_buffers(module)
        tensors: dict[str, Tensor] = {**self._parameters, **buffers}
        if not self._parameters:
            raise TaskError("the model has no trainable parameter.")
        for name, tensor in tensors.items():
            _check(name, tensor)
        self.layout = Layout(
            names=tuple(tensors),
            shapes=tuple(tuple(t.shape) for t in tensors.values()),
            dtypes=tuple("float32" for _ in tensors),
            num_params=sum(p.numel() for p in self._parameters.values()),
            num_buffers=sum(b.numel() for b in buffers.values()),
        )
        flat = torch.cat([t.detach().reshape(-1) for t in tensors.values()])
        self.vector = flat if memory is None else memory(flat.numel()).copy_(flat)
        for tensor, view in zip(tensors.values(), self.layout.views(self.vector).values(), strict=True):
            tensor.data = view

    @cached_property
    def gradient(self) -> Tensor:
        """[d] The gradient; `.grad` of every parameter is a view of its first d_params floats.

        Made at first use, zeros (so must be what `memory` makes). Autograd adds to it in place; clear it with `zero_()`, never by
        setting it to None.
        """
        gradient = torch.zeros_like(self.vector) if self._memory is None else self._memory(self.layout.dim)
        views = self.layout.views(gradient)
        for name, param in self._parameters.items():
            param.grad = views[name]
        return gradient

    @property
    def params(self) -> Tensor:
        """[d_params] The parameters' part of the vector."""
        return self.vector[: self.layout.num_params]

    @property
    def buffers(self) -> Tensor:
        """[d_buffers] The buffers' part of the vector."""
        return self.vector[self.layout.num_params :]

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, views of `vector`, for torch.optim; tied ones once."""
        return list(self._parameters.values())


def _mixed_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Persistent floating buffers by name, shared ones once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            local = name in part._non_persistent_buffers_set or not buffer.is_floating_point()
            if not local and id(buffer) not in seen:
                seen.add(id(buffer))
                found[f"{path}.{name}" if path else name] = buffer
    return found


def _check(name: str, tensor: Tensor) -> None:
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        raise TaskError(f"{name!r} is not initialised: send one sample through the lazy modules in model().")
    if tensor.dtype != torch.float32:
        told = str(tensor.dtype).removeprefix("torch.")
        raise TaskError(f"{name!r} is {told}, but models are trained in float32: call .float() in model().")
    if not torch.isfinite(tensor).all():
        raise TaskError(f"{name!r} is not finite; initialise it, or register a mask with persistent=False.")
