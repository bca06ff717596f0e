"""What exchanges cost, by neighbour: a fold over the outcomes of a round's exchanges. Metrics read it; training does not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Exchanges:
    """Totals since the start. seconds, number: of exchanges that were not lost, from their opening to their end. waited: seconds between
    the closes of rounds and the ends of their exchanges, each by the neighbour whose exchange ended last."""

    seconds: dict[int, float] = field(default_factory=dict)
    number: Counter[int] = field(default_factory=Counter)
    waited: dict[int, float] = field(default_factory=dict)

    def done(self, peer: int, seconds: float) -> None:
        self.seconds[peer] = self.seconds.get(peer, 0.0) + seconds
        self.number[peer] += 1

    def over(self, last: int, waited: float) -> None:
        """All exchanges that were opened together are over."""
        self.waited[last] = self.waited.get(last, 0.0) + waited
