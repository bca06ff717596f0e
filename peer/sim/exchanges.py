"""The exchanges of one peer in one phase of one round, in virtual time; the rules are those of peer/transport/link.py.

An atomic edge counts when both ends have the other's vector and the other's vote; a lost edge is lost on both ends. Without `atomic`
an exchange is over when what is expected is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from peer.gossip.effects import Exchange

Key = tuple[int, int]  # round, phase


@dataclass(slots=True)
class UnderWay:
    """effect: what was asked for. waiting: neighbours whose edge is open, with what is still missing (HAVE, VOTE). until: when the
    last of the edges that are decided counts."""

    key: Key
    effect: Exchange
    opened_at: float
    waiting: dict[int, int] = field(default_factory=dict)
    vectors: dict[int, Tensor] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    ends: dict[int, float] = field(default_factory=dict)
    until: float = 0.0
    slots: int = 0  # receive buffers in use

    def arrives(self, peer: int, what: int, when: float) -> bool:
        """One of the things that are missing is there at that time; whether the edge is decided by it."""
        missing = self.waiting[peer] & ~what
        self.ends[peer] = max(self.ends.get(peer, 0.0), when)
        if missing:
            self.waiting[peer] = missing
            return False
        del self.waiting[peer]
        self.until = max(self.until, self.ends[peer])
        return True

    def lose(self, peer: int, why: str, when: float) -> None:
        del self.waiting[peer]
        self.vectors.pop(peer, None)
        self.lost[peer] = why
        self.until = max(self.until, when)


HAVE, VOTE = 1, 2
