"""The exchanges of one peer in one phase of one round, in virtual time; the rules are those of peer/transport/link.py.

An atomic edge counts when both ends have the other's vector and the other's vote; a lost edge is lost on both ends. Without `atomic`
an exchange is over when what is expected is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from peer.gossip.effects import Exchange
from peer.gossip.talk import Talk

Key = tuple[int, int]  # round, phase


@dataclass(slots=True)
class UnderWay:
    """effect: what was asked for. waiting: neighbours whose edge is open, with what is still missing (HAVE, VOTE). until: when the
    last of the edges that are decided counts."""

    key: Key
    effect: Exchange
    waiting: dict[int, int] = field(default_factory=dict)
    vectors: dict[int, Tensor] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    ends: dict[int, float] = field(default_factory=dict)
    until: float = 0.0
    _kept: tuple[Tensor, Tensor] | None = None  # what was sent, and the copy

    def expect(self, talk: Talk, linked: set[int]) -> None:
        """Who is waited for, and who is lost from the beginning. linked: peers to which links are up."""
        effect, directory = self.effect, talk.directory
        missing = HAVE | VOTE if effect.atomic else HAVE
        together = linked.issuperset(effect.receive) and linked.issuperset(effect.send)
        if together and not (directory.suspects or directory.leaving):
            self.waiting = dict.fromkeys(effect.receive, missing)
            return
        for j in effect.receive if effect.atomic else sorted({*effect.send, *effect.receive}):
            takes_part, why = directory.takes_part(j, self.key[0])
            if not takes_part or j not in linked:
                self.lost[j] = "link_down" if takes_part else why
            elif j in effect.receive:
                self.waiting[j] = missing

    def arrives(self, peer: int, what: int, when: float) -> bool:
        """One of the things that are missing is there at that time; whether the edge is decided by it."""
        missing = self.waiting[peer] & ~what
        end = self.ends.get(peer, 0.0)
        if when > end:
            end = when
        self.ends[peer] = end
        if missing:
            self.waiting[peer] = missing
            return False
        del self.waiting[peer]
        if end > self.until:
            self.until = end
        return True

    def kept(self, vector: Tensor) -> Tensor:
        """A copy of a vector that is sent in this exchange, for its receivers, who may mix it when the sender has gone on. One for all
        to whom the same vector is sent."""
        if self._kept is None or self._kept[0] is not vector:
            self._kept = vector, vector.clone() if vector.numel() else vector
        return self._kept[1]

    def lose(self, peer: int, why: str, when: float) -> None:
        del self.waiting[peer]
        self.vectors.pop(peer, None)
        self.lost[peer] = why
        self.until = max(self.until, when)


HAVE, VOTE = 1, 2
