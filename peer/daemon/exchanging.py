"""The exchanges of one effect: opened on the transport, with what is done beside them until all are over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from peer.daemon.conversation import Conversation
from peer.daemon.making import Making
from peer.daemon.taken import Taken
from peer.daemon.worker import Worker
from peer.gossip.effects import Exchange, make_all
from peer.gossip.piecewise import STEP_ELEMENTS
from peer.transport.base import ExchangeHandle, ExchangeKey, LossReason, Transport

MAKE_BESIDE_FROM: Final = STEP_ELEMENTS
"""Elements of a peer's vector above which it is encoded while its beginning is sent. Up to there it is a part or less."""

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
        """Every exchange has its outcome: wait for the work beside them. Afterwards nobody touches a vector, whatever a maker or a taker
        raised, the first of which is raised."""
        work = [
            taken.finish(whole=self.handles[peer].outcome.result().lost is None) for peer, taken in self.taken.items()
        ]
        if self.making is not None:
            work.append(self.making.finish())
        if len(work) < 2:
            for only in work:
                await only
            return
        for raised in await asyncio.gather(*work, return_exceptions=True):  # at once: each goes to the thread and back
            if raised is not None:
                raise raised

    def abandon(self) -> None:
        """Nobody will ask for it any more."""
        for handle in self.handles.values():
            handle.give_up(LossReason.LEFT)
        for work in (*self.taken.values(), self.making):
            if work is not None:
                work.abandon()


class Exchanging:
    """Opens them for one peer. num_elements: of its vector. begun: told of each.

    Receive buffers belong to places, not to peers: with random graphs there would be one for every peer in time. They are free again when
    the exchange is over, because its effect's answer waits for every outcome."""

    def __init__(
        self, transport: Transport, said: Conversation, worker: Worker, num_elements: int, begun: Begun
    ) -> None:
        self._transport = transport
        self._said = said
        self._worker = worker
        self._begun = begun
        self._makes_beside = num_elements > MAKE_BESIDE_FROM
        self._inboxes: dict[int, Tensor] = {}

    @property
    def num_inboxes(self) -> int:
        """Receive buffers made so far: as many as the most neighbours of a round, kept for the whole run."""
        return len(self._inboxes)

    def prepare(self, effect: Exchange) -> None:
        """Where the score's mathematics runs: make what is not to be made beside the exchange."""
        if not self._makes_beside:
            make_all(effect)

    def open(self, round: int, effect: Exchange) -> UnderWay:
        """With everybody who takes part."""
        if effect.atomic:
            assert not effect.into, "it may be lost without harm"
            assert all(take.read is None for take in effect.take.values()), "what takes its vectors only looks"
        under_way, key = UnderWay(time.monotonic()), ExchangeKey(round, effect.phase)
        making = effect.make if self._makes_beside else {}
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
