"""The replicas of CHOCO-SGD (Koloskova, Stich, Jaggi 2019, arXiv 1902.00340, algorithms 1 and 2), kept for each edge.

Each end of an edge (i, j) keeps what the other end knows of it, `mine`, and what it knows of the other, `theirs`. The payload is
C(x_i - mine): the difference, compressed. When the edge counts, both ends add both payloads to their replicas, so `mine` at i stays
equal to `theirs` at j bit for bit. What C left out is still in the difference of the next round: that is the error feedback. The paper
has one replica for each peer, which all of its neighbours must hear of; here an edge may be lost, or rest in MATCHA's schedule, without
the other edges of the peer.

An edge counts on both ends or on none, up to a window that no protocol can close (peer/transport/exchange.py), and a process may start
anew. So a payload begins with the stamp of the replicas that it is a difference to, 8 bytes: a hash of the vector that replicas start
from, which is this peer's at the start of the run, plus the number of payloads taken since. Where stamps differ, or a payload is not
sound, nothing is mixed, the edge is lost for this round (`restarted`, `corrupt`) and starts again from zeros, stamp 0. An end that alone
believes an edge to count is one stamp ahead of the other, or back at 0, and is found out by the next payload; equal stamps mean equal
replicas. The size of a payload is always the same, so a restart needs no agreement on what comes next, and costs no more than a round.

Memory: two vectors [d] and a payload for each edge, and the starting vector [d].
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from peer.gossip.compression import PIECE, WireFormat, pieces
from peer.gossip.piecewise import Encoding, Inspector

STAMP_BYTES: Final = 8


def default_step(fraction: float) -> float:
    """gamma if the user says nothing: the fraction of elements sent. The bound of Koloskova et al. (2019, theorem 2) for gamma is smaller
    by orders of magnitude than what works, and they tune it. Measured here (docs/compression.md): with top-k:R random vectors agree on
    ring, star, complete and exponential graph for every gamma up to 2 R, and diverge on some from 3 R on; the rate grows with gamma.
    """
    return fraction


@dataclass(slots=True)
class _Edge:
    """mine, theirs: [d]. payload: of this round, stamp first. stamp: how often the replicas have changed, and since when. encoding,
    look: of this round's payloads, this end's and the other's."""

    mine: Tensor
    theirs: Tensor
    payload: Tensor
    stamp: int
    encoding: Encoding
    look: Inspector

    def restart(self) -> None:
        self.mine.zero_()
        self.theirs.zero_()
        self.stamp = 0


class Replicas:
    """All edges of one peer, made as they are first used. start [d]: the vector from which replicas start, copied."""

    def __init__(self, wire: WireFormat, start: Tensor) -> None:
        self._wire = wire
        self._start = start.clone()
        digest = hashlib.blake2b(self._start.numpy().data, digest_size=STAMP_BYTES).digest()
        self._first_stamp = int.from_bytes(digest, "little") | 1 << 63  # never near the small ones of restarted edges
        self._edges: dict[int, _Edge] = {}
        self._scratch = torch.empty(min(PIECE, start.numel()))

    def difference(self, j: int, x: Tensor) -> Encoding:
        """Makes the payload C(x - mine) for peer j. x: [d], unchanged until it is made. Its bytes stay until the next call for j."""
        edge = self._edges.get(j)
        if edge is None:
            edge = self._edges[j] = self._new_edge(x)
        edge.payload[:STAMP_BYTES] = _bytes(edge.stamp)
        edge.encoding, edge.look = self._of_round(x, edge.mine, edge.payload)
        return edge.encoding

    def look(self, j: int) -> Inspector:
        """Is to be given the payload of peer j, of the round of the latest `difference`, as it comes."""
        return self._edges[j].look

    def check(self, j: int, theirs: Tensor) -> str | None:
        """Whether both payloads of this round can be taken into the replicas: None, or why the edge starts again from zeros."""
        edge = self._edges[j]
        if not torch.equal(edge.payload[:STAMP_BYTES], theirs[:STAMP_BYTES]):
            edge.restart()
            return "restarted"
        if not (edge.encoding.sound and edge.look.sound):
            edge.restart()
            return "corrupt"
        return None

    def commit_(self, j: int, theirs: Tensor, x: Tensor, weight: float) -> float:
        """Take both payloads, which passed `check`, into the replicas, then x <- x + weight (theirs - mine), [d], all in one pass through
        memory. Returns ||theirs - mine||^2."""
        edge, wire, squares = self._edges[j], self._wire, 0.0
        for start, stop in pieces(x.numel()):
            scratch, pair = self._scratch[: stop - start], (edge.mine[start:stop], edge.theirs[start:stop])
            for replica, payload in zip(pair, (edge.payload, theirs), strict=True):
                replica.add_(wire.piece(payload[STAMP_BYTES:], start, scratch))
            between = torch.sub(pair[1], pair[0], out=scratch)
            squares += float(torch.dot(between, between))
            x[start:stop].add_(between, alpha=weight)
        edge.stamp = (edge.stamp + 1) % (1 << 64)
        return squares

    def _new_edge(self, x: Tensor) -> _Edge:
        payload = torch.empty(STAMP_BYTES + self._wire.num_bytes(x.numel()), dtype=torch.uint8)
        mine, theirs = self._start.clone(), self._start.clone()
        return _Edge(mine, theirs, payload, self._first_stamp, *self._of_round(x, mine, payload))

    def _of_round(self, x: Tensor, mine: Tensor, payload: Tensor) -> tuple[Encoding, Inspector]:
        encoding = Encoding(self._wire, x, payload, ahead=STAMP_BYTES, minus=mine, checks=True)
        return encoding, Inspector(self._wire, x.numel(), ahead=STAMP_BYTES)


def _bytes(stamp: int) -> Tensor:
    return torch.tensor(list(stamp.to_bytes(STAMP_BYTES, "little")), dtype=torch.uint8)
