"""Ring all-reduce of (gradient sum, sample count), blocking or non-blocking (He & Dube 2022, arXiv 2211.00889; the ring of Patarasu
& Yuan 2009).

Peers stand in a ring by id; each sends to the next and receives from the previous. The vector [d + 1] = [G_i | n_i] is cut into n
shards. Reduce-scatter: n-1 steps after which peer i holds the whole sum of shard (i + 1) mod n. All-gather: n-1 steps that pass the
finished shards round, so every peer steps with the same bits: g = sum G / sum n, x <- x - lr * g. Each shard is summed in the order of
the ring, at one peer, whatever the order of arrival. Counts are exact in float32 up to 2^24 samples a round. How shards travel when they
are not float32 on the wire is in shards.py.

With local steps the displacements D_i = y - x_i(k) are summed: `samples` x <- x + sum D / N, as a displacement is in proportion to the
steps it is made of; `peers` x <- x + sum D / (number of peers that finished anything), the others' D being 0.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import ClassVar

from torch import Tensor

from peer.gossip.algorithm import Algorithm, PeerState, RoundBroken, ScheduleOptions, Score, Update, scaled, zeros
from peer.gossip.delivery import Delivery
from peer.gossip.effects import Accumulate, Accumulated, Answer, Effect, Exchange, Inbox
from peer.gossip.shards import make_shards
from topology import FixedSchedule, RoundPlan, Schedule, TopologyError, build


class RingAllReduce(Algorithm):
    name: ClassVar[str] = "ring-all-reduce"
    delivery: ClassVar[Delivery] = Delivery.EVERY_MESSAGE
    sends_after_close: ClassVar[bool] = True
    default_weighting: ClassVar[str] = "samples"
    wire_dtypes: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16", "int8")
    why_not_others: ClassVar[str] = (
        "every hop would drop what it does not keep of the others' sums, and nothing would make up for it"
    )

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self._sum = zeros(state.params.numel() + 1)
        self._shards = make_shards(self._sum, state.num_peers, state.wire)

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        ring = build("ring", options.topology.num_peers)
        if options.topology.edges != ring.edges or options.random_graph_every:
            raise TopologyError(
                f"ring-all-reduce passes shards along the ring of all peers: use --topology ring, not {options.topology.name}"
                f"{' with random graphs' if options.random_graph_every else ''}"
            )
        return FixedSchedule(options.topology, options.mixing)

    def round(self, plan: RoundPlan) -> Score:
        answer = yield Accumulate()
        assert isinstance(answer, Accumulated)
        state, done, total = self.state, answer, self._sum

        by_samples = state.weighting == "samples"
        moved = done.displacement
        total[:-1] = done.grad_sum if moved is None else moved
        if moved is None and not by_samples and done.num_samples:
            scaled(total[:-1], 1.0 / done.num_samples)
        total[-1] = done.num_samples if by_samples else float(done.num_samples > 0)
        yield from self._reduce_scatter()
        yield from self._all_gather()

        weight = float(total[-1])
        if not 0 <= weight < math.inf:  # counts are sums of counts: somebody sent another
            raise RoundBroken((state.peer - 1) % state.num_peers, "corrupt")
        state.samples_clock += int(weight) if by_samples else int(weight) * state.batch_size * state.local_steps
        if weight > 0 and moved is not None:
            state.params.add_(total[:-1], alpha=1.0 / (state.num_peers if by_samples else weight))
        elif weight > 0:
            state.optimizer.step(scaled(total[:-1], 1.0 / weight), state.samples_clock)
        return Update(done, num_received=state.num_peers - 1)

    def _reduce_scatter(self) -> Generator[Effect, Answer, None]:
        n, i = self.state.num_peers, self.state.peer
        for step in range(n - 1):
            summed = (i - step - 1) % n
            received = yield from self._pass_on(step, self._shards.packed((i - step) % n), summed)
            if not self._shards.add_(summed, received):
                raise RoundBroken((i - 1) % n, "corrupt")

    def _all_gather(self) -> Generator[Effect, Answer, None]:
        n, i = self.state.num_peers, self.state.peer
        payload = self._shards.finish((i + 1) % n)
        for step in range(n - 1):
            finished = (i - step) % n
            received = yield from self._pass_on(n - 1 + step, payload, finished)
            if not self._shards.take_(finished, received):
                raise RoundBroken((i - 1) % n, "corrupt")
            payload = self._shards.passed_on(finished, received)

    def _pass_on(self, phase: int, payload: Tensor, expected: int) -> Generator[Effect, Answer, Tensor]:
        """Send a shard to the next peer; return the payload of shard number `expected`, as the previous peer has it."""
        n, i = self.state.num_peers, self.state.peer
        following, previous = (i + 1) % n, (i - 1) % n
        size, dtype = self._shards.size(expected), self._shards.dtype
        inbox = yield Exchange(phase, {following: payload}, {previous: size}, atomic=False, dtype=dtype)
        assert isinstance(inbox, Inbox)
        for lost, reason in inbox.lost.items():
            raise RoundBroken(lost, reason)
        return inbox.vectors[previous]
