"""Ring all-reduce of (gradient sum, sample count), blocking or non-blocking (He & Dube 2022, arXiv 2211.00889; the ring of Patarasu
& Yuan 2009).

g = sum G / sum n over all peers, along the ring (peer/gossip/ring.py), and x <- x - lr * g: every peer steps with the same bits.

With local steps the displacements D_i = y - x_i(k) are summed: `samples` x <- x + sum D / N, as a displacement is in proportion to the
steps it is made of; `peers` x <- x + sum D / (number of peers that finished anything), the others' D being 0.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from peer.gossip.algorithm import Score, Update, scaled
from peer.gossip.effects import Accumulate, Accumulated
from peer.gossip.ring import RingAlgorithm
from topology import RoundPlan


class RingAllReduce(RingAlgorithm):
    name: ClassVar[str] = "ring-all-reduce"

    def round(self, plan: RoundPlan) -> Score:
        answer = yield Accumulate()
        assert isinstance(answer, Accumulated)
        state, done = self.state, answer

        by_samples = state.weighting == "samples"
        moved = done.displacement
        sums = done.grad_sum if moved is None else moved
        if moved is None and not by_samples and done.num_samples:
            sums = torch.mul(sums, 1.0 / done.num_samples, out=self.ring.room)
        total, weight = yield from self.ring.sum(sums, done.num_samples if by_samples else float(done.num_samples > 0))

        self.count_samples(weight)
        if weight > 0 and moved is not None:
            state.params.add_(total, alpha=1.0 / (state.num_peers if by_samples else weight))
        elif weight > 0:
            state.optimizer.step(scaled(total, 1.0 / weight), state.samples_clock)
        return Update(done, num_received=state.num_peers - 1)
