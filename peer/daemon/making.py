"""Vectors that are made while their beginning is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from peer.daemon.worker import OffLoop
from peer.gossip.effects import Exchange, Maker
from peer.transport.base import ExchangeHandle, LossReason
from peer.transport.codec import FRAME_BYTES


class Making:
    """Lets the makers of an exchange take turns, off the event loop, until their vectors are whole or nobody takes them any more, and tells
    those who send them. A turn is what another frame can be sent of: with parts for turns the first frame of everybody would be late."""

    def __init__(self, effect: Exchange, handles: Mapping[int, ExchangeHandle], off_loop: OffLoop) -> None:
        self._off_loop = off_loop
        self._handles = handles
        self._peers: dict[Maker, list[int]] = {}
        for peer in handles.keys() & effect.make.keys():
            self._peers.setdefault(effect.make[peer], []).append(peer)
        self._send = effect.send
        self._made = dict.fromkeys(self._peers, 0)  # bytes
        self._at_work = asyncio.create_task(self._work(), name="make what is sent")

    async def finish(self) -> None:
        """All exchanges are over: wait for the part that is being made. Raises what a maker raised."""
        await self._at_work

    def abandon(self) -> None:
        """Nobody will ask for it any more; a part that is on a thread is made."""
        self._at_work.cancel()

    async def _work(self) -> None:
        unfinished = dict(self._peers)
        try:
            while unfinished:
                for make, peers in list(unfinished.items()):
                    if await self._is_done(make, peers):
                        del unfinished[make]
        except Exception:
            for handle in self._handles.values():  # else they would wait for the rest until their deadline
                handle.give_up(LossReason.LEFT)
            raise

    async def _is_done(self, make: Maker, peers: list[int]) -> bool:
        """After a turn of it."""
        send, turn = self._send[peers[0]], self._made[make] // FRAME_BYTES
        whole = send.numel() * send.element_size()
        while self._made[make] // FRAME_BYTES == turn:
            if all(self._handles[peer].outcome.done() for peer in peers):
                return True
            made = self._made[make] = await self._off_loop(make) * send.element_size()
            for peer in peers:
                self._handles[peer].made(made)
            if made == whole:
                return True
        return False
