"""The shards of a ring all-reduce as they travel: [d + 1] = [G | n] cut into as many as there are peers.

fp32: a shard is its own payload. Else a payload is a shard's gradients in the format of compression.py; the shard that holds the count n
sends it before them, as float32, so that counts stay exact. Partial sums are rounded at every hop and added up in float32. A finished
shard is rounded once, by the peer that finished it; everybody, this peer too, takes what the payload says, and passes on the payload as
it came, so all peers end with the same bits.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from peer.gossip.algorithm import is_finite
from peer.gossip.compression import PIECE, WireFormat, pieces

COUNT_BYTES = 4


class Shards(Protocol):
    """dtype: of payloads. `add_` and `take_` return False for a payload that is not sound, and change nothing then."""

    dtype: torch.dtype

    def size(self, s: int) -> int:
        """Elements of the payload of shard s."""

    def packed(self, s: int) -> Tensor:
        """The payload of shard s as it is now; it stays until the next call."""

    def add_(self, s: int, payload: Tensor) -> bool: ...

    def finish(self, s: int) -> Tensor:
        """The payload of a shard that is summed; the shard takes the values that the others will read from it."""

    def take_(self, s: int, payload: Tensor) -> bool: ...

    def passed_on(self, s: int, payload: Tensor) -> Tensor:
        """The payload of a finished shard that was taken, for the next peer."""


class PlainShards:
    """Of total [d + 1], without a copy."""

    dtype = torch.float32

    def __init__(self, total: Tensor, num_peers: int) -> None:
        self._shards = list(total.tensor_split(num_peers))

    def size(self, s: int) -> int:
        return self._shards[s].numel()

    def packed(self, s: int) -> Tensor:
        return self._shards[s]

    def add_(self, s: int, payload: Tensor) -> bool:
        if not is_finite(payload):
            return False
        self._shards[s].add_(payload)
        return True

    def finish(self, s: int) -> Tensor:
        return self._shards[s]

    def take_(self, s: int, payload: Tensor) -> bool:
        if not is_finite(payload):
            return False
        self._shards[s].copy_(payload)
        return True

    def passed_on(self, s: int, payload: Tensor) -> Tensor:
        return self._shards[s]


class PackedShards:
    """See the head of this file. Memory: one payload of a shard."""

    dtype = torch.uint8

    def __init__(self, total: Tensor, num_peers: int, wire: WireFormat) -> None:
        self._wire = wire
        shards = list(total.tensor_split(num_peers))
        self._last = max(s for s, shard in enumerate(shards) if shard.numel())
        self._count = shards[self._last][-1:]
        shards[self._last] = shards[self._last][:-1]
        self._shards = shards
        self._payload = torch.empty(max(map(self.size, range(num_peers))), dtype=torch.uint8)
        self._scratch = torch.empty(min(PIECE, max(shard.numel() for shard in shards)))

    def size(self, s: int) -> int:
        return self._ahead(s) + self._wire.num_bytes(self._shards[s].numel())

    def packed(self, s: int) -> Tensor:
        payload = self._payload[: self.size(s)]
        if s == self._last:
            payload[:COUNT_BYTES] = self._count.view(torch.uint8)
        self._wire.encode(self._shards[s], payload[self._ahead(s) :])
        return payload

    def add_(self, s: int, payload: Tensor) -> bool:
        return self._read(s, payload, add=True)

    def finish(self, s: int) -> Tensor:
        payload = self.packed(s)
        self.take_(s, payload)
        return payload

    def take_(self, s: int, payload: Tensor) -> bool:
        return self._read(s, payload, add=False)

    def passed_on(self, s: int, payload: Tensor) -> Tensor:
        return self._payload[: self.size(s)].copy_(payload)

    def _ahead(self, s: int) -> int:
        return COUNT_BYTES if s == self._last else 0

    def _read(self, s: int, payload: Tensor, *, add: bool) -> bool:
        shard, values = self._shards[s], payload[self._ahead(s) :]
        if not self._wire.is_sound(values, shard.numel()):
            return False
        if s == self._last:
            count = float(payload[:COUNT_BYTES].view(torch.float32))
            if not (math.isfinite(count) and count >= 0):
                return False
            self._count.fill_(count + float(self._count) if add else count)
        for start, stop in pieces(shard.numel()):
            if add:
                shard[start:stop].add_(self._wire.piece(values, start, self._scratch[: stop - start]))
            else:
                self._wire.piece(values, start, shard[start:stop])
        return True


def make_shards(total: Tensor, num_peers: int, wire: WireFormat) -> Shards:
    """total: [d + 1], the sums and then the count."""
    return PlainShards(total, num_peers) if wire.name.kind == "fp32" else PackedShards(total, num_peers, wire)
