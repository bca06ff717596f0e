"""What a simulated peer sees of the others and of the run; peer/sim/simulator.py is it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from peer.gossip.algorithm import RoundBroken
from peer.gossip.round import RoundReport
from peer.sim.events import Agenda
from peer.sim.network import Links
from topology import Schedule

if TYPE_CHECKING:
    from peer.sim.accumulating import Accumulating
    from peer.sim.host import SimPeer


class World(Protocol):
    """What a peer sees of the others and of the run."""

    agenda: Agenda
    links: Links
    schedule: Schedule

    @property
    def peers(self) -> Sequence[SimPeer]:
        """By id; always the same list, which is filled when all are made."""

    def links_of(self, peer: int) -> set[int]:
        """Peers to which its links are up; always the same set, kept up to date."""

    def vector_bytes(self, vector: Tensor) -> int: ...

    def round_ended(self, peer: SimPeer, report: RoundReport) -> bool:
        """Whether the peer goes on."""

    def broken(self, peer: SimPeer, error: RoundBroken) -> None: ...

    def diverged(self, peer: Accumulating) -> bool:
        """Asked after NaN or infinite gradients: whether that ends the run."""
