"""What a network does to messages in virtual time.

A message of s bytes from i to j that is handed over at t arrives at

    start  = max(t, when i's uplink is free)             one uplink per peer, first in, first out
    sent   = start + s / bandwidth
    arrive = sent + latency_ij + Exp(jitter) + losses

but never before a message of its kind, word or vector, that i handed over to j earlier (a stream keeps order, and words have one of
their own). Loss, for a stream that arrives whole or breaks: with a
fraction p of packets lost, the rate of one stream is at most MSS / (RTT sqrt(2 p / 3)) (Mathis, Semke, Mahdavi, Ott 1997), and a
message that fits one packet waits, with probability p, for a retransmission of max(0.2 s, 2 RTT). Words have no size: they only take
the latency. With `cores`, all peers share one machine: a vector that arrives costs `message_seconds` of one of its cores, first in,
first out, before it counts as there.

A cut edge carries nothing. What was sent into a cut that is not noticed (keepalive) before it heals arrives after it has healed; if
it is noticed, the link goes down on both ends and what was under way is lost.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from peer.scenario import Network, Partition, latencies
from topology.randomness import stable_seed

SEGMENT_BYTES: Final = 1448
RETRANSMIT_SECONDS: Final = 0.2
NOTICED_SECONDS: Final = 3.0
"""A silent cut is noticed by keepalive: 2 s idle, 1 s without an answer."""
LINK_AGAIN_SECONDS: Final = 0.1
"""From the end of a noticed cut until the link is up again."""


class Links:
    """Times of messages between n peers. Deterministic: the same calls in the same order give the same times."""

    def __init__(self, network: Network, num_peers: int, partitions: Sequence[Partition] = (), seed: int = 0) -> None:
        self._network = network
        self._matrix: NDArray[np.float64] | None = latencies(network, num_peers) if network.matrix else None
        self._partitions = [(frozenset(part.peers), part.at, part.until) for part in partitions]
        self._uplink_free = [0.0] * num_peers
        self._last: dict[tuple[int, int, bool], float] = {}
        self._cores = [0.0] * network.cores
        self._dice = np.random.Generator(np.random.PCG64(stable_seed(seed, "network")))
        self._chance = network.jitter > 0 or network.loss > 0
        self.instant = network.latency == 0 or self._matrix is not None  # a message may arrive when it is sent
        self._plain = not (self._chance or self._partitions or self._matrix is not None)
        self._only_latency = self._plain and network.bandwidth == math.inf and not self._cores

    def latency(self, here: int, there: int) -> float:
        """Seconds one way."""
        return self._network.latency if self._matrix is None else float(self._matrix[here, there])

    def word(self, here: int, there: int, now: float) -> float:
        """When a control word arrives; inf: never."""
        if self._plain:
            return now + self._network.latency
        return self._arrive(here, there, now, now, word=True)

    def vector(self, here: int, there: int, num_bytes: int, now: float) -> float:
        """When a vector of so many bytes has arrived; inf: never."""
        if self._only_latency:
            return now + self._network.latency
        rate = self._rate(here, there)
        sent = now
        if rate < math.inf:
            sent = self._uplink_free[here] = max(now, self._uplink_free[here]) + num_bytes / rate
        arrived = sent + self._network.latency if self._plain else self._arrive(here, there, now, sent, word=False)
        if self._cores and arrived < math.inf:
            arrived = max(arrived, heapq.heappop(self._cores)) + self._network.message_seconds
            heapq.heappush(self._cores, arrived)
        return arrived

    def cuts(self) -> list[tuple[float, float, list[tuple[int, int]]]]:
        """(link down, link up again, edges i < j) of every cut that lasts long enough to be noticed."""
        noticed = []
        for inside, at, until in self._partitions:
            if until - at > NOTICED_SECONDS:
                outside = [j for j in range(len(self._uplink_free)) if j not in inside]
                pairs = [(min(i, j), max(i, j)) for i in sorted(inside) for j in outside]
                noticed.append((at + NOTICED_SECONDS, until + LINK_AGAIN_SECONDS, pairs))
        return noticed

    def _rate(self, here: int, there: int) -> float:
        loss = self._network.loss
        if not loss:
            return self._network.bandwidth
        rtt = max(self.latency(here, there) + self.latency(there, here), 1e-6)
        return min(self._network.bandwidth, SEGMENT_BYTES / (rtt * math.sqrt(2 * loss / 3)))

    def _arrive(self, here: int, there: int, handed: float, sent: float, *, word: bool) -> float:
        arrived = sent + self.latency(here, there)
        if self._chance:
            if self._network.jitter:
                arrived += self._dice.exponential(self._network.jitter)
            if self._network.loss and self._dice.random() < self._network.loss:
                rtt = self.latency(here, there) + self.latency(there, here)
                arrived += max(RETRANSMIT_SECONDS, 2 * rtt)
        for inside, at, until in self._partitions:
            if (here in inside) != (there in inside) and handed < until and arrived > at:
                if until - at > NOTICED_SECONDS:
                    return math.inf
                arrived = max(arrived, until + self.latency(here, there))
        stream = (here, there, word)
        arrived = self._last[stream] = max(arrived, self._last.get(stream, 0.0))
        return arrived
