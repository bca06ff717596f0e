"""A sum over all peers, along the ring that they stand in by id (Patarasu & Yuan 2009); what the algorithms that use it share.

Each peer sends to the next and receives from the previous. The vector [d + 1] = [sums | weight] is cut into N shards. Reduce-scatter:
N-1 steps after which peer i holds the whole sum of shard (i + 1) mod N. All-gather: N-1 steps that pass the finished shards round. Each
shard is summed in the order of the ring, at one peer, whatever the order of arrival, so every peer ends with the same bits. Counts are
exact in float32 up to 2^24 a round. How shards travel when they are not float32 on the wire is in shards.py.

Bytes a peer sends: 8 (d + 1) (N - 1) / N. Memory: [d + 1], and a shard to receive.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import ClassVar

from torch import Tensor

from peer.gossip.algorithm import Algorithm, PeerState, RoundBroken, ScheduleOptions, zeros
from peer.gossip.delivery import Delivery
from peer.gossip.effects import Answer, Effect, Exchange, Inbox
from peer.gossip.shards import Reader, make_shards
from topology import FixedSchedule, Schedule, TopologyError, build


class Ring:
    """One peer's place in it."""

    def __init__(self, state: PeerState) -> None:
        self._peer = state.peer
        self._num_peers = state.num_peers
        self._total = zeros(state.params.numel() + 1)
        self._shards = make_shards(self._total, state.num_peers, state.wire)

    @property
    def room(self) -> Tensor:
        """[d], where what is to be summed may be put, instead of in a vector of its own."""
        return self._total[:-1]

    def sum(self, vector: Tensor, weight: float) -> Generator[Effect, Answer, tuple[Tensor, float]]:
        """(sum of all peers' vectors [d], sum of their weights), the same bits on every peer. The sum may be changed until the next
        call. vector: [d], unchanged until then, or `room`. Raises RoundBroken."""
        self._shards.load(vector, weight)
        yield from self._reduce_scatter()
        yield from self._all_gather()
        total = float(self._total[-1])
        if not 0 <= total < math.inf:  # weights are sums of counts: somebody sent another
            raise RoundBroken((self._peer - 1) % self._num_peers, "corrupt")
        return self.room, total

    def _reduce_scatter(self) -> Generator[Effect, Answer, None]:
        n, i, shards = self._num_peers, self._peer, self._shards
        for step in range(n - 1):
            summed = (i - step - 1) % n
            payload = shards.packed((i - step) % n)
            yield from self._pass_on(step, payload, summed, shards.adding(summed), None)

    def _all_gather(self) -> Generator[Effect, Answer, None]:
        n, i, shards = self._num_peers, self._peer, self._shards
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
        n, i = self._num_peers, self._peer
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


class RingAlgorithm(Algorithm):
    """What algorithms on the ring declare alike. A sum needs every peer, so a lost one ends the run."""

    delivery: ClassVar[Delivery] = Delivery.EVERY_MESSAGE
    sends_after_close: ClassVar[bool] = True
    default_weighting: ClassVar[str] = "samples"
    sums_gradients: ClassVar[bool] = True
    sends_shards: ClassVar[bool] = True
    why_not_varying: ClassVar[str] = "it passes shards along the ring of all peers"
    why_no_random_graphs: ClassVar[str] = "it passes shards along the ring of all peers"
    wire_dtypes: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16", "int8")
    why_not_others: ClassVar[str] = (
        "every hop would drop what it does not keep of the others' sums, and nothing would make up for it"
    )

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self.ring = Ring(state)

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        ring = build("ring", options.topology.num_peers)
        if options.topology.edges != ring.edges:
            raise TopologyError(
                f"{cls.name} passes shards along the ring of all peers: use --topology ring, not {options.topology.name}"
            )
        return FixedSchedule(options.topology, options.mixing)

    def count_samples(self, weight: float) -> None:
        """Advance the clock by the samples of a round whose weights sum to this: of samples, or of peers that finished anything."""
        state = self.state
        whole = 1 if state.weighting == "samples" else state.batch_size * state.local_steps
        state.samples_clock += int(weight) * whole
