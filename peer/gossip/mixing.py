"""How a gossip round exchanges and mixes vectors, by the format they have on the wire. W: the round's weights; Q: what a format
makes of a vector, C: the same of a difference.

    fp32         x_i <- W_ii x_i + sum_j W_ij x_j
    bf16, fp16   x_i <- x_i + sum_j W_ij (Q(x_j) - Q(x_i)): the own vector rounded as the others see it, so what one end of an edge
                 adds the other takes away, and the mean of all peers stays up to float32 rounding
    int8, top-k  CHOCO-SGD (Koloskova, Stich, Jaggi 2019, arXiv 1902.00340; Koloskova, Lin, Stich, Jaggi 2019, arXiv 1907.09356),
                 with replicas for each edge instead of each peer: replicas.py

A payload is encoded while its beginning is sent already, and looked at as it comes. It is decoded where it is added up, piece by piece
in the cache.

A payload that is not sound (compression.py; in fp32: not finite), this peer's or the other's, makes its edge lost with the reason
`corrupt`. Both ends have the same two payloads, so both decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from peer.gossip.algorithm import Algorithm, PeerState, is_finite, mix_
from peer.gossip.compression import PIECE, WireFormat, pieces
from peer.gossip.delivery import mixing_weights
from peer.gossip.effects import Exchange, Inbox
from peer.gossip.piecewise import Encoding, Inspector
from peer.gossip.replicas import STAMP_BYTES, Replicas
from topology import RoundPlan

CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class Mixed:
    """lost: edges that did not count, and why. distance: as `Update.neighbor_distance`, as far as the format tells."""

    lost: Mapping[int, str]
    num_received: int
    distance: float | None


class Mixing(Protocol):
    """The exchange of one round, and what becomes of x_i by it."""

    def exchange(self, plan: RoundPlan) -> Exchange:
        """What to send at the opening. The plan has neighbours."""

    def mix_(self, plan: RoundPlan, inbox: Inbox) -> Mixed:
        """Change x_i in place, in the order of ids, so that arrival order changes no bit."""


def _lost(inbox: Inbox, heard: Collection[int]) -> Mapping[int, str]:
    """Edges that did not count: those lost on the way, and those whose vectors make no sense."""
    if len(heard) == len(inbox.vectors):
        return inbox.lost
    return {**inbox.lost, **dict.fromkeys(inbox.vectors.keys() - set(heard), CORRUPT)}


class PlainMixing:
    """fp32: the vector is its own payload."""

    def __init__(self, state: PeerState) -> None:
        self._x = state.params

    def exchange(self, plan: RoundPlan) -> Exchange:
        sends = dict.fromkeys(plan.neighbors, self._x)
        return Exchange(phase=0, send=sends, receive=dict.fromkeys(plan.neighbors, self._x.numel()), atomic=True)

    def mix_(self, plan: RoundPlan, inbox: Inbox) -> Mixed:
        heard = {j: x for j, x in inbox.vectors.items() if is_finite(x)} if is_finite(self._x) else {}
        self_weight, weights = mixing_weights(plan, heard)
        distance = mix_(self._x, self_weight, weights, heard)
        return Mixed(_lost(inbox, heard), len(heard), distance)


class RoundedMixing:
    """bf16, fp16: one payload for all neighbours, which is also what this peer takes itself for."""

    def __init__(self, state: PeerState) -> None:
        self._x = state.params
        self._wire = state.wire
        self._payload = state.wire.payload(state.params.numel())
        self._encoding = Encoding(state.wire, state.params, self._payload, checks=True)
        self._looks: Mapping[int, Inspector] = {}
        self._scratch = torch.empty(2, min(PIECE, state.params.numel()))

    def exchange(self, plan: RoundPlan) -> Exchange:
        neighbors, wire, d = plan.neighbors, self._wire, self._x.numel()
        self._encoding = Encoding(wire, self._x, self._payload, checks=True)
        self._looks = {j: Inspector(wire, d) for j in neighbors}
        return Exchange(
            phase=0,
            send=dict.fromkeys(neighbors, self._payload),
            receive=dict.fromkeys(neighbors, self._payload.numel()),
            atomic=True,
            dtype=torch.uint8,
            take=self._looks,
            make=dict.fromkeys(neighbors, self._encoding),
        )

    def mix_(self, plan: RoundPlan, inbox: Inbox) -> Mixed:
        x, wire = self._x, self._wire
        heard = sorted(j for j in inbox.vectors if self._encoding.sound and self._looks[j].sound)
        _, weights = mixing_weights(plan, dict.fromkeys(heard))
        squares = 0.0
        for start, stop in pieces(x.numel()):
            mine, theirs = self._scratch[0, : stop - start], self._scratch[1, : stop - start]
            wire.piece(self._payload, start, mine)
            for j in heard:
                wire.piece(inbox.vectors[j], start, theirs).sub_(mine)
                squares += float(torch.dot(theirs, theirs))
                x[start:stop].add_(theirs, alpha=weights[j])
        return Mixed(_lost(inbox, heard), len(heard), math.sqrt(squares / len(heard)) if heard else None)


class ReplicaMixing:
    """int8, top-k: x_i <- x_i + gamma sum_j W_ij (replica of j - replica of i at j), once both have taken the round's payloads."""

    def __init__(self, state: PeerState) -> None:
        self._x = state.params
        self._gamma = state.consensus_step
        self._replicas = Replicas(state.wire, state.params)

    def exchange(self, plan: RoundPlan) -> Exchange:
        differences = {j: self._replicas.difference(j, self._x) for j in plan.neighbors}
        return Exchange(
            phase=0,
            send={j: difference.payload for j, difference in differences.items()},
            receive={j: difference.payload.numel() for j, difference in differences.items()},
            atomic=True,
            dtype=torch.uint8,
            take={j: self._replicas.look(j) for j in plan.neighbors},
            make=differences,
        )

    def mix_(self, plan: RoundPlan, inbox: Inbox) -> Mixed:
        lost, squares, num_received = dict(inbox.lost), 0.0, 0
        weights = dict(zip(plan.neighbors, plan.weights, strict=True))
        for j in sorted(inbox.vectors):
            why = self._replicas.check(j, inbox.vectors[j])
            if why is not None:
                lost[j] = why
                continue
            squares += self._replicas.commit_(j, inbox.vectors[j], self._x, self._gamma * weights[j])
            num_received += 1
        return Mixed(lost, num_received, math.sqrt(squares / num_received) if num_received else None)


def payload_bytes(wire: WireFormat, d: int) -> int:
    """What a gossip round sends to each neighbour of a vector [d]."""
    return wire.num_bytes(d) + (STAMP_BYTES if wire.name.keeps_replicas else 0)


def make_mixing(state: PeerState) -> Mixing:
    if state.wire.name.kind == "fp32":
        return PlainMixing(state)
    return ReplicaMixing(state) if state.wire.name.keeps_replicas else RoundedMixing(state)


class GossipAlgorithm(Algorithm):
    """What D-PSGD and MATCHA share beside their round."""

    wire_dtypes: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16", "int8", "top-k")
    keeps_replicas: ClassVar[bool] = True

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self.mixing = make_mixing(state)
