"""A sum over all peers, along the ring that they stand in by id (Patarasu & Yuan 2009); what the algorithms that use it share.

Each peer sends to the next and receives from the previous. The vector [d + 1] = [sums | weight] is cut into N shards. Reduce-scatter:
N-1 steps after which peer i holds the whole sum of shard (i + 1) mod N. All-gather: N-1 steps that pass the finished shards round. Each
shard is summed in the order of the ring, at one peer, whatever the order of arrival, so every peer ends with the same bits. Counts are
exact in float32 up to 2^24 a round. How shards travel when they are not float32 on the wire is in shards.py.

Bytes a peer sends: 8 (d + 1) (N - 1) / N. Memory: [d + 1], and a shard to receive.

Small vectors travel whole, which takes N / 2 steps for 2 (N - 1): a step costs a wake-up of every peer, which is most of what the sum of a
small vector takes. It is the usual choice between latency and bandwidth (Thakur, Rabenseifner, Gropp 2005, "Optimization of collective
communication operations in MPICH").

N even: neighbours take turns (the neighbour exchange of Chen, Zhang, Zhang, Yuan 2005, with sums in the place of lists). First the two
peers of a pair, 2m and 2m + 1, swap their vectors, and both have the sum of their pair. Then each swaps with its other neighbour, and then
with the one in its pair again, and so on, what it has received last, at first the sum of its pair: after h steps everybody has the sums of
h pairs. Bytes: 2 (d + 1) N. Memory: N / 2 + 1 vectors [d + 1].

N odd: in both directions; in step h everybody gets the vectors of the peers h places before and after. Bytes: 4 (d + 1) (N - 1). Memory:
N + 1 vectors [d + 1].

Either way everybody sums in the order of ids, with the same bits, and sends at most WHOLE_BYTES.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from peer.gossip.algorithm import Algorithm, PeerState, RoundBroken, ScheduleOptions, zeros
from peer.gossip.central import is_count, read_count
from peer.gossip.compression import WireFormat
from peer.gossip.delivery import Delivery
from peer.gossip.effects import Answer, Effect, Exchange, Inbox
from peer.gossip.shards import Reader, Sent, make_shards
from topology import FixedSchedule, Schedule, TopologyError, build

WHOLE_BYTES = 3 << 18
"""What a peer may send in a sum to have fewer steps: 768 KiB."""


def passes_whole(num_peers: int, num_elements: int, wire: WireFormat, whole_bytes: int = WHOLE_BYTES) -> bool:
    """Whether vectors of so many elements travel whole. In fp32 only: the other formats are for those who count bytes."""
    num_vectors = num_peers - 1 if num_peers % 2 else num_peers // 2
    return wire.name.kind == "fp32" and 4 * (num_elements + 1) * num_vectors <= whole_bytes


class Ring:
    """One peer's place in it."""

    def __init__(self, state: PeerState, whole_bytes: int) -> None:
        self._peer = state.peer
        self._num_peers = state.num_peers
        self._total = zeros(state.params.numel() + 1)
        self._shards = make_shards(self._total, state.num_peers, state.wire)
        whole = passes_whole(state.num_peers, state.size_on_wire, state.wire, whole_bytes)
        num_rows = state.num_peers if state.num_peers % 2 else state.num_peers // 2
        self._rows = [zeros(self._total.numel()) for _ in range(num_rows if whole else 0)]  # by peer, or by pair

    @property
    def room(self) -> Tensor:
        """[d], where what is to be summed may be put, instead of in a vector of its own."""
        return self._total[:-1]

    def sum(self, vector: Tensor, weight: float) -> Generator[Effect, Answer, tuple[Tensor, float]]:
        """(sum of all peers' vectors [d], sum of their weights), the same bits on every peer. The sum may be changed until the next
        call. vector: [d], unchanged until then, or `room`. Raises RoundBroken."""
        if self._rows:
            yield from (self._pass_whole if self._num_peers % 2 else self._swap)(vector, weight)
            self._sum_rows()
        else:
            self._shards.load(vector, weight)
            yield from self._reduce_scatter()
            yield from self._all_gather()
        total = float(self._total[-1])
        if not is_count(total, self._num_peers):  # somebody sent another
            raise RoundBroken((self._peer - 1) % self._num_peers, "corrupt")
        return self.room, total

    def _swap(self, vector: Tensor, weight: float) -> Generator[Effect, Answer, None]:
        i, mine, rows = self._peer, self._total, self._rows
        if vector.data_ptr() != mine.data_ptr():
            mine[:-1].copy_(vector)
        mine[-1] = weight
        others = {0: i ^ 1, 1: (i + 1 if i % 2 else i - 1) % self._num_peers}  # of this pair, and of the one beside it
        newest = mine
        for step in range(self._num_peers // 2):
            away = (step + 1) // 2 if step % 2 == i % 2 else -((step + 1) // 2)
            row = rows[(i // 2 + away) % len(rows)]
            other = others[step % 2]
            yield from self._whole(step, {other: newest}, {other: row}, peers=2 if step else 1)
            if step == 0:
                row.add_(mine)
            newest = row

    def _pass_whole(self, vector: Tensor, weight: float) -> Generator[Effect, Answer, None]:
        n, i, rows = self._num_peers, self._peer, self._rows
        following, previous = (i + 1) % n, (i - 1) % n
        rows[i][:-1].copy_(vector)
        rows[i][-1] = weight
        for h in range(1, n // 2 + 1):
            send = {following: rows[(i - h + 1) % n], previous: rows[(i + h - 1) % n]}
            yield from self._whole(h - 1, send, {previous: rows[(i - h) % n], following: rows[(i + h) % n]})

    def _whole(
        self, phase: int, send: Mapping[int, Tensor], into: Mapping[int, Tensor], peers: int = 1
    ) -> Generator[Effect, Answer, None]:
        """Swap vectors [d + 1] with neighbours; each is the sum of so many peers'. Raises RoundBroken."""
        inbox = yield Exchange(phase, send, {j: row.numel() for j, row in into.items()}, atomic=False, into=into)
        assert isinstance(inbox, Inbox)
        for lost, reason in inbox.lost.items():
            raise RoundBroken(lost, reason)
        for j, row in inbox.vectors.items():
            if read_count(row, peers) is None:
                raise RoundBroken(j, "corrupt")

    def _sum_rows(self) -> None:
        first, *others = self._rows
        if not others:
            self._total.copy_(first)
            return
        torch.add(first, others[0], out=self._total)
        for row in others[1:]:
            self._total.add_(row)

    def _reduce_scatter(self) -> Generator[Effect, Answer, None]:
        n, i, shards = self._num_peers, self._peer, self._shards
        for step in range(n - 1):
            summed = (i - step - 1) % n
            sent = shards.packed((i - step) % n)
            yield from self._pass_on(step, sent, summed, shards.adding(summed), None)

    def _all_gather(self) -> Generator[Effect, Answer, None]:
        n, i, shards = self._num_peers, self._peer, self._shards
        sent = shards.finish((i + 1) % n)
        for step in range(n - 1):
            finished = (i - step) % n
            take, room = shards.taking(finished), shards.room(finished)
            received = yield from self._pass_on(n - 1 + step, sent, finished, take, room)
            sent = shards.passed_on(finished, received)

    def _pass_on(
        self, phase: int, sent: Sent, expected: int, take: Reader, room: Tensor | None
    ) -> Generator[Effect, Answer, Tensor]:
        """Send a shard to the next peer, and take shard number `expected`, as the previous peer has it, while it comes. Returns its
        payload. room: where to receive it."""
        n, i = self._num_peers, self._peer
        following, previous = (i + 1) % n, (i - 1) % n
        inbox = yield Exchange(
            phase,
            {following: sent.payload},
            {previous: self._shards.size(expected)},
            atomic=False,
            dtype=self._shards.dtype,
            into={} if room is None else {previous: room},
            take={previous: take},
            make={} if sent.make is None else {following: sent.make},
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
    whole_bytes: ClassVar[int] = WHOLE_BYTES
    why_not_varying: ClassVar[str] = "it passes shards along the ring of all peers"
    why_no_random_graphs: ClassVar[str] = "it passes shards along the ring of all peers"
    wire_dtypes: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16", "int8")
    why_not_others: ClassVar[str] = (
        "every hop would drop what it does not keep of the others' sums, and nothing would make up for it"
    )

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self.ring = Ring(state, self.whole_bytes)

    @classmethod
    def num_shards(cls, num_peers: int, num_elements: int, wire: WireFormat) -> int:
        return 1 if passes_whole(num_peers, num_elements, wire, cls.whole_bytes) else num_peers

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
