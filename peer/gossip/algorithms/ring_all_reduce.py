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

import torch
from torch import Tensor

from peer.gossip.algorithm import Algorithm, PeerState, RoundBroken, ScheduleOptions, Score, Update, scaled, zeros
from peer.gossip.delivery import Delivery
from peer.gossip.effects import Accumulate, Accumulated, Answer, Effect, Exchange, Inbox
from peer.gossip.shards import Reader, make_shards
from topology import FixedSchedule, RoundPlan, Schedule, TopologyError, build


class RingAllReduce(Algorithm):
    name: ClassVar[str] = "ring-all-reduce"
    delivery: ClassVar[Delivery] = Delivery.EVERY_MESSAGE
    sends_after_close: ClassVar[bool] = True
    default_weighting: ClassVar[str] = "samples"
    sums_gradients: ClassVar[bool] = True
    sends_shards: ClassVar[bool] = True
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
        sums = done.grad_sum if moved is None else moved
        if moved is None and not by_samples and done.num_samples:
            sums = torch.mul(sums, 1.0 / done.num_samples, out=total[:-1])
        self._shards.load(sums, done.num_samples if by_samples else float(done.num_samples > 0))
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
        n, i, shards = self.state.num_peers, self.state.peer, self._shards
        for step in range(n - 1):
            summed = (i - step - 1) % n
            payload = shards.packed((i - step) % n)
            yield from self._pass_on(step, payload, summed, shards.adding(summed), None)

    def _all_gather(self) -> Generator[Effect, Answer, None]:
        n, i, shards = self.state.num_peers, self.state.peer, self._shards
        payload = shards.finish((i + 1) % n)
        for step in range(n - 1):
            finished = (i - step) % n
            take, room = shards.taking(finished), shards.room(finished)
            received = yield from self._pass_on(n - 1 + step, payload, finished, take, room)
            payload = shards.passed_on(finished, received)

    def _pass_on(
        self, phase: int, payload: Tensor, expected: int, take: Reader, room: Tensor | None
    ) -> Generator[Effect, Answer, Tensor]:
        """Send a shard to the next peer, and take shard number `expected`, as the previous peer has it, while it comes. Returns its
        payload. room: where to receive it."""
        n, i = self.state.num_peers, self.state.peer
        following, previous = (i + 1) % n, (i - 1) % n
        inbox = yield Exchange(
            phase,
            {following: payload},
            {previous: self._shards.size(expected)},
            atomic=False,
            dtype=self._shards.dtype,
            into={} if room is None else {previous: room},
            take={previous: take},
        )
        assert isinstance(inbox, Inbox)
        for lost, reason in inbox.lost.items():
            raise RoundBroken(lost, reason)
        if not take.sound:
            raise RoundBroken(previous, "corrupt")
        return inbox.vectors[previous]
