"""A network that loses, delays, damages and cuts, by a seeded script. Stands between the peers of a `MemoryNetwork`.

Whether a payload is lost depends on (seed, sender, receiver, exchange) only, not on time, so a test sees the same
losses in each run, and may ask for them. Only vectors are lost or damaged: control words travel over a stream that arrives whole or breaks,
as TCP does, and it breaks by `cut`.
"""

from __future__ import annotations

import asyncio
import random
import struct
from dataclasses import dataclass, field

from peer.transport.base import ExchangeKey
from peer.transport.codec import FRAME_BYTES
from peer.transport.lane import Lane, MemoryLane

_KEY = struct.Struct("<QIQQ")  # round, phase, total, offset, from byte 16 of a frame on
_KEY_AT = 16


@dataclass(slots=True)
class Counts:
    """What was done so far."""

    payloads_dropped: int = 0
    frames_corrupted: int = 0
    cuts: int = 0


@dataclass(slots=True)
class FaultyWiring:
    """`drop`: fraction of payloads that break off at a random frame. `corrupt`: fraction of frames in which one byte is
    flipped. `delay_seconds`: every frame takes a random time up to this. `cut` and `heal` act on a pair of peers."""

    seed: int = 0
    drop: float = 0.0
    corrupt: float = 0.0
    delay_seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)
    _cut: set[frozenset[int]] = field(default_factory=set)
    _lanes: dict[frozenset[int], list[MemoryLane]] = field(default_factory=dict)

    def cut(self, i: int, j: int) -> None:
        """Break the link between i and j; what is on the wire is lost, and they cannot link again until `heal`."""
        pair = frozenset((i, j))
        self._cut.add(pair)
        self.counts.cuts += 1
        for lane in self._lanes.pop(pair, []):
            lane.cut("cut")

    def heal(self, i: int, j: int) -> None:
        self._cut.discard(frozenset((i, j)))

    def reachable(self, here: int, there: int) -> bool:
        return frozenset((here, there)) not in self._cut

    def breaks_off(self, here: int, there: int, key: ExchangeKey, total: int) -> int | None:
        """From which byte on the payload [total] that `here` sends to `there` is lost; None if it is not."""
        dice = self.dice("drop", here, there, key)
        return None if dice.random() >= self.drop else FRAME_BYTES * dice.randrange(max(1, -(-total // FRAME_BYTES)))

    def damages(self, here: int, there: int, key: ExchangeKey, offset: int) -> bool:
        """Whether the frame at `offset` of that payload is damaged on its way."""
        return self.dice("corrupt", here, there, key, offset).random() < self.corrupt

    def dice(self, purpose: str, here: int, there: int, key: ExchangeKey, offset: int = 0) -> random.Random:
        return random.Random(f"{self.seed} {purpose} {here} {there} {key.round} {key.phase} {offset}")

    def wire(self, here: int, there: int, control: MemoryLane, bulk: MemoryLane) -> tuple[Lane, Lane]:
        pair = frozenset((here, there))
        if pair in self._cut:
            control.cut("cut")
            bulk.cut("cut")
        else:
            self._lanes.setdefault(pair, []).extend((control, bulk))
        return control, FaultyLane(bulk, self, here, there)


class FaultyLane:
    """The bulk lane of `here` towards `there`: faults strike what is written."""

    def __init__(self, lane: Lane, wiring: FaultyWiring, here: int, there: int) -> None:
        self._lane = lane
        self._wiring = wiring
        self._ends = (here, there)

    async def read(self) -> bytes:
        return await self._lane.read()

    async def finish(self) -> bool:
        return await self._lane.finish()

    async def write(self, message: bytes) -> None:
        wiring, (here, there) = self._wiring, self._ends
        round_, phase, total, offset = _KEY.unpack_from(message, _KEY_AT)
        key = ExchangeKey(round_, phase)
        broken_at = wiring.breaks_off(here, there, key, total)
        if broken_at is not None and offset >= broken_at:
            wiring.counts.payloads_dropped += offset == broken_at
            return
        if wiring.damages(here, there, key, offset):
            wiring.counts.frames_corrupted += 1
            damaged = bytearray(message)
            damaged[-1] ^= 1
            message = bytes(damaged)
        if wiring.delay_seconds:
            await asyncio.sleep(wiring.dice("delay", here, there, key, offset).random() * wiring.delay_seconds)
        await self._lane.write(message)
