"""Which samples a peer trains on, and in which order: pure functions of the seed, equal on every machine.

Shuffling sorts the raw bits of PCG64, which numpy keeps stable over versions, since peers that disagree about a
partition would train on the same samples. No global generator is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from peer.training.task import Task, nearest, num_samples
from topology.randomness import stable_seed

SHUFFLED_AHEAD = 64  # samples

Indices: TypeAlias = NDArray[np.int64]


class PartitionError(ValueError):
    """A training set that cannot be divided as asked; the message is one sentence."""


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """An independent generator for (seed, purpose, index), the same on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(stable_seed(seed, purpose, *index))))


def permutation(rng: np.random.Generator, size: int) -> Indices:
    """A random order of 0 .. size-1."""
    bits: NDArray[np.uint64] = rng.bit_generator.random_raw(size)
    return np.argsort(bits, kind="stable").astype(np.int64)


def partition(labels: NDArray[np.int64], num_peers: int, scheme: str, alpha: float, seed: int) -> list[Indices]:
    """Divide the samples with these labels [N] among the peers: disjoint, covering, at least one sample each.

    iid        a random equal share
    shards     sorted by label and cut into 2 shards per peer, two random ones each (McMahan et al. 2017, 1602.05629)
    dirichlet  equal shares, peer i's classes drawn from q_i ~ Dir(alpha p) without replacement, p the class frequencies
               (Hsu et al. 2019, 1909.06335); a class that is used up drops out of q. alpha -> inf: iid; -> 0: one class
    Raises PartitionError if that cannot be done.
    """
    if scheme not in _SCHEMES:
        raise PartitionError(f"partition {scheme!r} is unknown; {nearest(scheme, _SCHEMES)}.")
    if num_peers < 1 or len(labels) < num_peers:
        raise PartitionError(f"{len(labels)} samples cannot be divided among {num_peers} peers: use fewer peers.")
    if scheme == "dirichlet" and not alpha > 0:
        raise PartitionError(f"partition alpha is {alpha}, but must be above 0 (0.1 very unlike, 100 nearly iid).")
    parts = _SCHEMES[scheme](np.asarray(labels), num_peers, alpha, generator(seed, f"partition-{scheme}"))
    if any(len(part) == 0 for part in parts):
        raise PartitionError(f"partition {scheme!r} leaves a peer without samples: use fewer peers or 'iid'.")
    return parts


def partition_dataset(
    task: Task, dataset: Dataset[Any], num_peers: int, scheme: str = "iid", alpha: float = 0.5, seed: int = 0
) -> list[Indices]:
    """`partition` of a task's dataset; iid needs no labels."""
    labels = np.zeros(num_samples(dataset), np.int64) if scheme == "iid" else task.targets(dataset)
    return partition(labels, num_peers, scheme, alpha, seed)


def _iid(labels: NDArray[np.int64], num_peers: int, alpha: float, rng: np.random.Generator) -> list[Indices]:
    return np.array_split(permutation(rng, len(labels)), num_peers)


def _shards(labels: NDArray[np.int64], num_peers: int, alpha: float, rng: np.random.Generator) -> list[Indices]:
    order = permutation(rng, len(labels))
    shards = np.array_split(order[np.argsort(labels[order], kind="stable")], 2 * num_peers)
    deal = permutation(rng, 2 * num_peers)
    return [np.concatenate([shards[deal[2 * i]], shards[deal[2 * i + 1]]]) for i in range(num_peers)]


def _dirichlet(labels: NDArray[np.int64], num_peers: int, alpha: float, rng: np.random.Generator) -> list[Indices]:
    order = permutation(rng, len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    pools = [order[labels[order] == c] for c in classes]
    left = counts.astype(np.int64)
    parts = []
    for share in np.array_split(order, num_peers):
        wanted = rng.dirichlet(np.maximum(alpha * counts / counts.sum(), 1e-12))
        taken = _draw_classes(wanted, left, len(share), rng)
        ends = counts - left
        parts.append(np.concatenate([pool[e : e + n] for pool, e, n in zip(pools, ends, taken, strict=True)]))
        left -= taken
    return parts


def _draw_classes(
    wanted: NDArray[np.float64], left: NDArray[np.int64], size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """How many samples of each class: `size` draws from `wanted`, never more of a class than is left."""
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        weights = np.where(left > taken, wanted, 0.0)
        if weights.sum() < 1e-290:  # every wanted class is used up: the one of which most is left
            weights[np.argmax(left - taken)] = 1.0
        draws = rng.multinomial(missing, weights / weights.sum())
        taken = np.minimum(taken + draws, left)
    return taken


_SCHEMES: dict[str, Callable[[NDArray[np.int64], int, float, np.random.Generator], list[Indices]]] = {
    "iid": _iid,
    "shards": _shards,
    "dirichlet": _dirichlet,
}


class SampleStream:
    """Endless chunks of one peer's samples: each pass has all once in a new order; chunks may straddle passes."""

    def __init__(self, indices: Indices, seed: int, peer: int, chunk_samples: int) -> None:
        if len(indices) == 0 or chunk_samples < 1:
            raise PartitionError(f"peer {peer} cannot draw chunks of {chunk_samples} from {len(indices)} samples.")
        self._indices = np.asarray(indices, np.int64)
        self._seed = seed
        self._peer = peer
        self._chunk_samples = chunk_samples
        self._returned: list[Indices] = []
        self._orders: dict[int, Indices] = {}
        self.seek(0)

    @property
    def position(self) -> int:
        """Samples drawn and not put back; `seek(position)` in a new stream goes on from here."""
        return self._pass * len(self._indices) + self._offset - sum(map(len, self._returned))

    def seek(self, position: int) -> None:
        """Go to where `position` samples have been drawn since the beginning."""
        self._pass, self._offset = divmod(position, len(self._indices))
        self._order = self._shuffled()
        self._returned.clear()

    def next(self) -> Indices:
        """The dataset indices [b] of the next chunk."""
        if self._returned:
            return self._returned.pop()
        parts, missing = [], self._chunk_samples
        while missing:
            if self._offset == len(self._order):
                self._pass, self._offset = self._pass + 1, 0
                self._order = self._shuffled()
            parts.append(self._order[self._offset : self._offset + missing])
            self._offset += len(parts[-1])
            missing -= len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def push_back(self, indices: Indices) -> None:
        """Put the newest chunk back: the next call returns it again."""
        self._returned.append(indices)

    def _shuffled(self) -> Indices:
        if self._pass not in self._orders:
            # A peer of hundreds has few samples and begins a pass several times a round: several at once cost less.
            ahead = range(self._pass, self._pass + 1 + SHUFFLED_AHEAD // len(self._indices))
            self._orders = {number: self._order_of(number) for number in ahead}
        return self._orders[self._pass]

    def _order_of(self, number: int) -> Indices:
        order = permutation(generator(self._seed, "samples", self._peer, number), len(self._indices))
        return self._indices[order]


def batch_reader(dataset: Dataset[Any]) -> Callable[[Indices], tuple[Tensor, Tensor]]:
    """A function from indices [b] to (inputs [b, ...], targets [b, ...]); tensors are indexed without a python loop."""
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        inputs, targets = dataset.tensors

        def read_tensors(indices: Indices) -> tuple[Tensor, Tensor]:
            rows = torch.from_numpy(indices)
            return inputs.index_select(0, rows), targets.index_select(0, rows)

        return read_tensors

    def read_samples(indices: Indices) -> tuple[Tensor, Tensor]:
        batch = default_collate([dataset[int(i)] for i in indices])
        return batch[0], batch[1]

    return read_samples
