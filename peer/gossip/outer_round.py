"""The round that SlowMo and DiLoCo share; they differ in what becomes of the mean displacement.

All peers begin at the same x(k), make H steps of their own, and sum their displacements D_i = y_i - x(k) along the ring: D = sum D_i / N
(`samples`), or / the number of peers that finished anything (`peers`). The outer step then moves x by an optimizer that takes -D for a
gradient. Its momentum is of the parameters [p]; float buffers, which come after them in x [d], move by D, as they have no gradient. All
of it is the same on every peer, bit for bit. A round in which nobody finished anything is no step.

Bytes a peer sends in a round: those of ring all-reduce, 8 (d + 1) (N - 1) / N, for H batches. Memory: its [d + 1], the momentum [p], y [d].
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from peer.gossip.algorithm import PeerState, Score, Update, zeros
from peer.gossip.effects import Accumulate, Accumulated
from peer.gossip.ring import RingAlgorithm
from topology import RoundPlan


class OuterAlgorithm(RingAlgorithm):
    """velocity v [p]: the momentum, in units of N displacements, so that without one the sum is added as ring all-reduce adds it."""

    steps_locally: ClassVar[bool] = True

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self.velocity = zeros(state.num_parameters)

    def round(self, plan: RoundPlan) -> Score:
        answer = yield Accumulate()
        assert isinstance(answer, Accumulated)
        state, done = self.state, answer
        assert done.displacement is not None
        by_samples, clock = state.weighting == "samples", state.samples_clock
        count = done.num_samples if by_samples else float(done.num_samples > 0)
        total, weight = yield from self.ring.sum(done.displacement, count)
        self.count_samples(weight)
        if weight > 0:
            p, divisor = state.num_parameters, state.num_peers if by_samples else weight
            self.outer_step(state.params[:p], total[:p], state.num_peers / divisor, clock)
            state.params[p:].add_(total[p:], alpha=1.0 / divisor)
        return Update(done, num_received=state.num_peers - 1)

    @abstractmethod
    def outer_step(self, x: Tensor, total: Tensor, scale: float, clock: int) -> None:
        """Change x [p]. total [p]: scale * total = N D. clock: samples when the round began."""
