"""Vectors of peers that wait for an answer to them: the head's side of an exchange (`Gather` and `Reply`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from peer.daemon.conversation import Conversation
from peer.gossip.effects import Exchange, Gather, Inbox, Reply
from peer.transport.base import ExchangeHandle, ExchangeKey, LossReason, Outcome, Transport


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    round: int
    vector: Tensor
    handle: ExchangeHandle


class Gathering:
    """One buffer a peer, kept for the run. stirs: called on the loop when a vector is there or a peer is lost. begun: told of every
    exchange that is opened."""

    def __init__(
        self,
        transport: Transport,
        said: Conversation,
        stirs: Callable[[], None],
        begun: Callable[[int, ExchangeKey, Exchange, ExchangeHandle], None],
    ) -> None:
        self._transport = transport
        self._said = said
        self._stirs = stirs
        self._begun = begun
        self._buffers: dict[int, Tensor] = {}
        self._expected: dict[int, _Request] = {}
        self._arrived: dict[int, _Request] = {}  # in the order of arrival, not replied to
        self._new: list[tuple[int, float]] = []
        self._lost: dict[int, str] = {}

    @property
    def expected(self) -> Collection[int]:
        """Whose vectors are still to come."""
        return self._expected.keys()

    def open(self, round: int, effect: Gather) -> None:
        """Expect a vector of each peer that none is expected of yet."""
        asked = self._said.asked or {}
        for peer, size in sorted(effect.receive.items()):
            if effect.any_round and peer in self._expected and peer in asked:
                self._expected.pop(peer).handle.give_up(LossReason.LEFT)  # it asks anew: that one never comes
            if peer in self._expected or peer in self._arrived:
                continue
            stamp = effect.stamps.get(peer, round)
            if effect.any_round:
                if peer not in asked:
                    continue
                stamp = asked.pop(peer)
            takes_part, why = self._said.directory.takes_part(peer, stamp)
            if not takes_part:
                self._lost[peer] = why
                continue
            buffer = self._buffers.get(peer)
            if buffer is None or buffer.numel() < size:
                buffer = self._buffers[peer] = torch.empty(size)
            self._begin(peer, ExchangeKey(stamp, 0), buffer[:size], atomic=effect.atomic)

    def _begin(self, peer: int, key: ExchangeKey, vector: Tensor, *, atomic: bool) -> None:
        whole = vector.numel() * vector.element_size()

        def arrived(num_bytes: int) -> None:
            if num_bytes == whole and self._expected.get(peer) is request:
                self._arrived[peer] = self._expected.pop(peer)
                self._new.append((peer, time.monotonic()))
                self._stirs()

        def over(outcome: asyncio.Future[Outcome]) -> None:
            lost = outcome.result().lost
            if lost is None or request not in (self._expected.get(peer), self._arrived.get(peer)):
                return
            self._expected.pop(peer, None)
            self._arrived.pop(peer, None)
            self._lose(peer, lost)

        try:
            handle = self._transport.exchange(peer, key, None, vector, atomic=atomic, arrived=arrived, replies=True)
        except ValueError:  # it asks again in a round that was answered, or in an older one
            self._lose(peer, LossReason.STALE)
            return
        request = self._expected[peer] = _Request(key.round, vector, handle)
        handle.outcome.add_done_callback(over)
        self._begun(peer, key, Exchange(key.phase, {}, {peer: vector.numel()}, atomic), handle)

    def has(self, enough: int | None) -> bool:
        """Whether so many vectors are there, or nobody is left who could send one."""
        return not self._expected or (enough is not None and len(self._arrived) >= enough)

    def has_any(self, enough: int | None) -> bool:
        """Whether so many vectors are there."""
        return enough is not None and len(self._arrived) >= enough

    def give_up(self, peer: int, reason: LossReason) -> None:
        """Its vector is not waited for any more."""
        request = self._expected.pop(peer)
        request.handle.give_up(reason)
        self._lose(peer, reason)

    def abandon(self) -> None:
        """Nobody gets an answer any more."""
        requests = [*self._expected.values(), *self._arrived.values()]
        self._expected.clear()
        self._arrived.clear()
        for request in requests:
            request.handle.give_up(LossReason.LEFT)

    def leave_out_who_left(self) -> None:
        """Who said goodbye sends nothing more."""
        directory = self._said.directory
        for peer, request in list(self._expected.items()):
            if directory.has_left(peer) and not directory.takes_part(peer, request.round)[0]:
                self.give_up(peer, LossReason.LEFT)

    def newly_arrived(self) -> Iterator[tuple[int, float]]:
        """Who sent a vector since the last call, and when it was there, by `time.monotonic`."""
        new, self._new = self._new, []
        return iter(new)

    def inbox(self) -> Inbox:
        return Inbox({peer: request.vector for peer, request in self._arrived.items()}, self.losses().lost)

    def losses(self) -> Inbox:
        """Who was lost since this was asked last, and why."""
        lost, self._lost = self._lost, {}
        return Inbox({}, lost)

    def reply(self, effect: Reply) -> Mapping[int, ExchangeHandle]:
        """Hand the answers over; the exchanges that they end. Peers that are lost by now are left out."""
        handles = {}
        for peer, vector in effect.send.items():
            request = self._arrived.pop(peer, None) or self._expected.pop(peer, None)
            if request is not None:
                request.handle.reply(vector)
                handles[peer] = request.handle
        return handles

    def settled(self, handles: Mapping[int, ExchangeHandle]) -> None:
        """These exchanges are over."""
        for peer, handle in handles.items():
            lost = handle.outcome.result().lost
            if lost is not None:
                self._lose(peer, lost)

    def _lose(self, peer: int, reason: LossReason) -> None:
        self._lost[peer] = str(reason)
        self._said.lost(peer, reason)
        self._stirs()
