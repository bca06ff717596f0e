"""The exchanges of one effect: opened on the transport, with what is done beside them until all are over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peer.daemon.conversation import Conversation
from peer.daemon.making import Making
from peer.daemon.taken import Taken
from peer.daemon.worker import Worker
from peer.gossip.effects import Exchange, make_all
from peer.transport.base import ExchangeHandle, ExchangeKey, LossReason, Transport

Begun = Callable[[int, ExchangeKey, Exchange, ExchangeHandle], None]


@dataclass(slots=True)
class UnderWay:
    """The exchanges of one effect: handles, receive buffers and who works on what has come, by peer; making: what makes vectors meanwhile;
    lost: those that were not even begun, and why."""

    opened_at: float
    handles: dict[int, ExchangeHandle] = field(default_factory=dict)
    inboxes: dict[int, Tensor] = field(default_factory=dict)
    taken: dict[int, Taken] = field(default_factory=dict)
    making: Making | None = None
    lost: dict[int, str] = field(default_factory=dict)

    async def finish(self) -> None:
        """Every exchange has its outcome: wait for the work beside them. Afterwards nobody touches a vector. Raises what a maker or a
        taker raised."""
        if self.making is not None:
            await self.making.finish()
        for peer, taken in self.taken.items():
            await taken.finish(whole=self.handles[peer].outcome.result().lost is None)

    def abandon(self) -> None:
        """Nobody will ask for it any more."""
        for handle in self.handles.values():
            handle.give_up(LossReason.LEFT)
        for work in (*self.taken.values(), self.making):
            if work is not None:
                work.abandon()


class Exchanging:
    """Opens them for one peer. begun: told of each.

    Receive buffers belong to places, not to peers: with random graphs there would be one for every peer in time. They are free again when
    the exchange is over, because its effect's answer waits for every outcome."""

    def __init__(self, transport: Transport, said: Conversation, worker: Worker, begun: Begun) -> None:
        self._transport = transport
        self._said = said
        self._worker = worker
        self._begun = begun
        self._inboxes: dict[int, Tensor] = {}

    @property
    def num_inboxes(self) -> int:
        """Receive buffers made so far: as many as the most neighbours of a round, kept for the whole run."""
        return len(self._inboxes)

    def open(self, round: int, effect: Exchange) -> UnderWay:
        """With everybody who takes part."""
        assert not (effect.atomic and effect.into), "an atomic exchange may be lost without harm"
        under_way, key, making = UnderWay(time.monotonic()), ExchangeKey(round, effect.phase), effect.make
        if making and self._worker.is_inline:
            make_all(effect)
            making = {}
        for peer in sorted({*effect.send, *effect.receive}):
            takes_part, why = self._said.directory.takes_part(peer, round)
            if not takes_part:
                under_way.lost[peer] = why
                continue
            receive, taken = self._receiving(peer, effect, under_way)
            under_way.handles[peer] = self._transport.exchange(
                peer,
                key,
                effect.send.get(peer),
                receive,
                atomic=effect.atomic,
                arrived=None if taken is None else taken.arrived,
                lent=None if taken is None else taken.lent,
                making=peer in making,
            )
            self._begun(peer, key, effect, under_way.handles[peer])
        if making:
            under_way.making = Making(effect, under_way.handles, self._worker)
        return under_way

    def _receiving(self, peer: int, effect: Exchange, under_way: UnderWay) -> tuple[Tensor | None, Taken | None]:
        """Where the vector of a peer is received, and who takes it."""
        if peer not in effect.receive:
            return None, None
        room = effect.into.get(peer)
        if room is None:
            room = self._inbox(len(under_way.inboxes), effect.receive[peer], effect.dtype)
        under_way.inboxes[peer] = room
        if peer not in effect.take:
            return room, None
        kept = effect.atomic or peer in effect.into
        taken = under_way.taken[peer] = Taken(room, effect.take[peer], self._worker, kept=kept)
        return room, taken

    def _inbox(self, slot: int, num_elements: int, dtype: torch.dtype) -> Tensor:
        buffer = self._inboxes.get(slot)
        if buffer is None or buffer.numel() < num_elements or buffer.dtype != dtype:
            buffer = self._inboxes[slot] = torch.empty(num_elements, dtype=dtype)
        return buffer[:num_elements]
