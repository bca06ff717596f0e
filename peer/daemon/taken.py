"""A vector that is worked on while the rest of it is under way."""

from __future__ import annotations

import asyncio

from torch import Tensor

from peer.daemon.worker import OffLoop
from peer.gossip.effects import Taker
from peer.transport.base import Lent
from peer.transport.exchange import as_tensor


class Taken:
    """Hands what has arrived of `payload` [k] to `take`, never twice at once: at once where that can `read`, else off the event loop, and
    what arrives while it works is the next piece. kept: all of the payload has to be in its place when it is whole."""

    def __init__(self, payload: Tensor, take: Taker, off_loop: OffLoop, *, kept: bool = True) -> None:
        self._payload = payload
        self._take = take
        self._off_loop = off_loop
        self._kept = kept
        self._arrived = 0
        self._done = -1  # elements handed over; none ever
        self._at_work: asyncio.Task[None] | None = None
        self._abandoned = False

    @property
    def lent(self) -> Lent | None:
        """To be handed pieces where the carrier has them, in the place of `arrived` of what is in the payload."""
        return None if self._kept or self._take.read is None else self._read_elsewhere

    def _read_elsewhere(self, piece: memoryview) -> None:
        assert self._take.read is not None
        elements = as_tensor(piece, self._payload.dtype)
        self._done = self._arrived = self._arrived + elements.numel()
        self._take.read(elements)

    def arrived(self, num_bytes: int) -> None:
        """Called on the event loop as the payload fills. What came at once waits for `finish`, which has to come anyhow."""
        self._arrived = num_bytes // self._payload.element_size()
        if self._take.read is not None:
            start, self._done = max(self._done, 0), self._arrived
            if start < self._arrived:
                self._take.read(self._payload[start : self._arrived])
            return
        at_once = self._done < 0 and self._arrived == self._payload.numel()
        if self._at_work is None and not (at_once or self._abandoned):
            self._at_work = asyncio.create_task(self._work(), name="take what has come")

    async def finish(self, *, whole: bool) -> None:
        """Wait for the work under way and, if the payload is whole, for all of it. Raises what `take` raised."""
        if self._at_work is not None:
            await self._at_work
        self._arrived = self._payload.numel()
        if whole and self._done < self._arrived:
            await self._off_loop(self._piece)

    def abandon(self) -> None:
        """Nobody will ask for it any more; a piece that is on a thread is done."""
        self._abandoned = True
        if self._at_work is not None:
            self._at_work.cancel()

    async def _work(self) -> None:
        while self._done < self._arrived:
            await self._off_loop(self._piece)
        self._at_work = None

    def _piece(self) -> None:
        self._done = self._arrived
        self._take(self._payload, self._done)
