"""A slow network between processes of one machine: what `--scenario wan` does to `grapevine up`.

The sender stamps each message with the time at which it is due, and the receiver does not look at it before:

    start = max(now, when the uplink is free)        one uplink per peer, shared by its bulk lanes
    due   = start + bytes / bandwidth + latency + Exp(jitter),  never before the message before it

Both ends read the machine's monotonic clock, so they must be on one machine. Loss is not emulated.
"""

from __future__ import annotations

import asyncio
import math
import random
import struct
import time
from dataclasses import dataclass, field

from peer.transport.lane import Lane

_DUE = struct.Struct("<d")


@dataclass(slots=True)
class SlowNetwork:
    """One peer's way out. Seconds one way, mean seconds of jitter, bytes per second of the uplink."""

    latency: float
    jitter: float = 0.0
    bandwidth: float = math.inf
    seed: int = 0
    _uplink_free: float = 0.0
    _dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def due(self, num_bytes: int, now: float, *, bulk: bool) -> float:
        """When a message that is handed over now arrives. Words go beside the bulk and take the latency only."""
        sent = now
        if bulk and self.bandwidth < math.inf:
            sent = self._uplink_free = max(now, self._uplink_free) + num_bytes / self.bandwidth
        return sent + self.latency + (self._dice.expovariate(1 / self.jitter) if self.jitter else 0.0)


class SlowLane:
    """A lane through a slow network; both of its ends must be one."""

    def __init__(self, lane: Lane, network: SlowNetwork, *, bulk: bool) -> None:
        self._lane = lane
        self._network = network
        self._bulk = bulk
        self._last_due = 0.0

    async def read(self) -> bytes:
        message = await self._lane.read()
        (due,) = _DUE.unpack_from(message)
        early = due - time.monotonic()
        if early > 0:
            await asyncio.sleep(early)
        return message[_DUE.size :]

    async def write(self, message: bytes) -> None:
        due = self._network.due(len(message), time.monotonic(), bulk=self._bulk)
        self._last_due = max(due, self._last_due)
        await self._lane.write(_DUE.pack(self._last_due) + message)

    async def finish(self) -> bool:
        return await self._lane.finish()
