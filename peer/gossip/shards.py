"""The shards of a ring all-reduce as they travel: [d + 1] = [G | n] cut into as many as there are peers.

Received shards are worked on while the rest of them is under way (`Taker`), in pieces that are still in the cache, so that the addition
hides behind the transfer; and what has to be encoded is encoded while its beginning is on its way (`Maker`).

fp32: a shard is its own payload. G is not copied: a shard is sent from where the trainer left it, or summed from there into the total,
and finished shards are received straight into the total.

Else a payload is a shard's gradients in the format of compression.py; the shard that holds the count n
sends it before them, as float32, so that counts stay exact. Partial sums are rounded at every hop and added up in float32. A finished
shard is rounded once, by the peer that finished it; everybody, this peer too, takes what the payload says, and passes on the payload as
it came, so all peers end with the same bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from peer.gossip.algorithm import is_finite
from peer.gossip.compression import PIECE, WireFormat
from peer.gossip.effects import Maker, Taker
from peer.gossip.piecewise import Encoding

COUNT_BYTES = 4


class Reader(Taker, Protocol):
    """sound: whether all that was taken so far makes sense. What comes after a piece that does not is left alone."""

    sound: bool


class Sent(NamedTuple):
    """A payload, and what makes it; None: it is there."""

    payload: Tensor
    make: Maker | None = None


class Shards(Protocol):
    """dtype: of payloads. The order of calls in a round: load; then for each phase packed or passed_on, adding or taking."""

    dtype: torch.dtype

    def load(self, sums: Tensor, count: float) -> None:
        """What this peer brings: sums [d], which stay unchanged until the round is over, or are the total's own memory; and its count."""

    def size(self, s: int) -> int:
        """Elements of the payload of shard s."""

    def packed(self, s: int) -> Sent:
        """The payload of shard s as it is now, which does not change until that is made; it stays until the next call."""

    def adding(self, s: int) -> Reader:
        """Adds a payload to shard s."""

    def finish(self, s: int) -> Sent:
        """The payload of a shard that is summed; as it is made, the shard takes the values that the others will read from it."""

    def room(self, s: int) -> Tensor | None:
        """Where the payload of finished shard s may be received to, instead of in a buffer."""

    def taking(self, s: int) -> Reader:
        """Reads a finished shard."""

    def passed_on(self, s: int, payload: Tensor) -> Sent:
        """The payload of a finished shard that was taken, for the next peer."""


class PlainShards:
    """See the head of this file."""

    dtype = torch.float32

    def __init__(self, total: Tensor, num_peers: int) -> None:
        self._total = total
        self._shards = list(total.tensor_split(num_peers))
        self._last = _holder_of_count(self._shards)
        self._brought: list[Tensor] = []

    def load(self, sums: Tensor, count: float) -> None:
        self._brought = _cut_alike(sums, self._shards)
        self._total[-1] = count

    def size(self, s: int) -> int:
        return self._shards[s].numel()

    def packed(self, s: int) -> Sent:
        brought, shard = self._brought[s], self._shards[s]
        if self._is_summed(s):
            return Sent(shard)
        if s != self._last:
            return Sent(brought)
        shard[:-1].copy_(brought)  # the count has to travel with it
        return Sent(shard)

    def adding(self, s: int) -> Reader:
        brought, shard = self._brought[s], self._shards[s]
        self._brought[s] = shard[: brought.numel()]
        return _PlainReader(shard, brought)

    def finish(self, s: int) -> Sent:
        return Sent(self._shards[s])

    def room(self, s: int) -> Tensor | None:
        return self._shards[s]

    def taking(self, s: int) -> Reader:
        return _PlainReader(self._shards[s], None)

    def passed_on(self, s: int, payload: Tensor) -> Sent:
        return Sent(self._shards[s])

    def _is_summed(self, s: int) -> bool:
        brought, shard = self._brought[s], self._shards[s]
        return brought.numel() == 0 or brought.data_ptr() == shard.data_ptr()


class _PlainReader:
    """shard [k] = payload [k], or, with what this peer brought [k] or [k - 1], shard = brought + payload; the last element, the count, is
    in the shard already where `brought` is shorter."""

    def __init__(self, shard: Tensor, brought: Tensor | None) -> None:
        self.sound = True
        self._shard = shard
        self._brought = brought
        self._done = 0

    def __call__(self, payload: Tensor, arrived: int) -> None:
        self.read(payload[self._done : arrived])

    def read(self, piece: Tensor) -> None:
        start, arrived = self._done, self._done + piece.numel()
        self._done = arrived
        self.sound = self.sound and is_finite(piece)
        if not self.sound:
            return
        shard, brought = self._shard[start:arrived], self._brought
        if brought is None:
            if shard.data_ptr() != piece.data_ptr():
                shard.copy_(piece)
            return
        summands = brought[start:arrived]
        torch.add(summands, piece[: summands.numel()], out=shard[: summands.numel()])
        shard[summands.numel() :].add_(piece[summands.numel() :])


class PackedShards:
    """See the head of this file. Memory: one payload of a shard."""

    dtype = torch.uint8

    def __init__(self, total: Tensor, num_peers: int, wire: WireFormat) -> None:
        self.wire = wire
        shards = list(total.tensor_split(num_peers))
        self._total = total
        self._last = _holder_of_count(shards)
        self._count = shards[self._last][-1:]
        shards[self._last] = shards[self._last][:-1]
        self._shards = shards
        self._payload = torch.empty(max(map(self.size, range(num_peers))), dtype=torch.uint8)
        self._scratch = torch.empty(min(PIECE, max(shard.numel() for shard in shards)))

    def load(self, sums: Tensor, count: float) -> None:
        if sums.data_ptr() != self._total.data_ptr():
            self._total[:-1].copy_(sums)
        self._count.fill_(count)

    def size(self, s: int) -> int:
        return self._ahead(s) + self.wire.num_bytes(self._shards[s].numel())

    def packed(self, s: int) -> Sent:
        return self._encoded(s, reads_back=False)

    def adding(self, s: int) -> Reader:
        return self._reader(s, self._scratch)

    def finish(self, s: int) -> Sent:
        return self._encoded(s, reads_back=True)

    def room(self, s: int) -> Tensor | None:
        return None

    def taking(self, s: int) -> Reader:
        return self._reader(s, None)

    def passed_on(self, s: int, payload: Tensor) -> Sent:
        return Sent(self._payload[: self.size(s)].copy_(payload))

    def _encoded(self, s: int, *, reads_back: bool) -> Sent:
        payload, ahead = self._payload[: self.size(s)], self._ahead(s)
        if ahead:
            payload[:COUNT_BYTES] = self._count.view(torch.uint8)
        return Sent(payload, Encoding(self.wire, self._shards[s], payload, ahead=ahead, reads_back=reads_back))

    def _reader(self, s: int, scratch: Tensor | None) -> _PackedReader:
        return _PackedReader(self.wire, self._shards[s], self._count if s == self._last else None, scratch)

    def _ahead(self, s: int) -> int:
        return COUNT_BYTES if s == self._last else 0


class _PackedReader:
    """Decodes a payload into a shard, or, with scratch of a piece, adds it."""

    read = None

    def __init__(self, wire: WireFormat, shard: Tensor, count: Tensor | None, scratch: Tensor | None) -> None:
        self.sound = True
        self._wire = wire
        self._shard = shard
        self._count = count
        self._scratch = scratch
        self._ahead = 0 if count is None else COUNT_BYTES
        self._done = 0

    def __call__(self, payload: Tensor, arrived: int) -> None:
        if self._count is not None and arrived >= COUNT_BYTES:
            self._read_count(float(payload[:COUNT_BYTES].view(torch.float32)), self._count)
            self._count = None
        d, values = self._shard.numel(), payload[self._ahead :]
        while self.sound and self._done < d:
            start, stop = self._done, min(self._done + PIECE, d)
            if arrived < self._ahead + self._wire.num_bytes(stop):
                return
            self._read(values, start, stop)

    def _read_count(self, theirs: float, ours: Tensor) -> None:
        self.sound = math.isfinite(theirs) and theirs >= 0
        if self.sound:
            ours.fill_(theirs if self._scratch is None else theirs + float(ours))

    def _read(self, values: Tensor, start: int, stop: int) -> None:
        self.sound = self._wire.is_sound_piece(values, start, stop)
        if not self.sound:
            return
        self._done, part = stop, self._shard[start:stop]
        if self._scratch is None:
            self._wire.piece(values, start, part)
        else:
            part.add_(self._wire.piece(values, start, self._scratch[: stop - start]))


def make_shards(total: Tensor, num_peers: int, wire: WireFormat) -> Shards:
    """total: [d + 1], the sums and then the count."""
    return PlainShards(total, num_peers) if wire.name.kind == "fp32" else PackedShards(total, num_peers, wire)


def _holder_of_count(shards: list[Tensor]) -> int:
    """The last shard that is not empty: with fewer elements than peers some are."""
    return max(s for s, shard in enumerate(shards) if shard.numel())


def _cut_alike(sums: Tensor, shards: list[Tensor]) -> list[Tensor]:
    """sums [d] cut where total [d + 1] is; the piece that stands for the count's shard is one shorter."""
    starts, at = [], 0
    for shard in shards:
        starts.append((at, min(at + shard.numel(), sums.numel())))
        at += shard.numel()
    return [sums[min(start, stop) : stop] for start, stop in starts]
