"""What a peer answers to observers: its status and a snapshot of its vector. The daemon supplies the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from peer.wire import gossip_pb2 as wire

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE_SERVICE = "grapevine.v1.Gossip"


class PeerService(Protocol):
    """Both are called on the event loop."""

    def status(self) -> wire.StatusReply:
        """What the peer is doing; must return at once."""

    async def snapshot(self) -> tuple[int, Tensor]:
        """A round k and a copy [d] of the vector x_k, float32, that nobody will change."""
