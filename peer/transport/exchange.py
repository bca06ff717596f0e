"""One exchange with one peer: when it is committed, when it is lost, and who is told.

Both ends push their vector and fill the other's. Without `atomic`, an end is content when its own vector is written
and the other's is whole. With `atomic` it votes as soon as the other's vector is whole, and commits when it has the
other's vote too:

    open --receive is whole--> voted --other's vote, and send is written--> committed
     |  give_up, abort, corrupt  |  abort, or the grace is over after give_up
     +-----------> lost <--------+

An end that has not voted may leave at any time: the other can not have committed, for it lacks this vote. An end that
has voted must ask: the other may have committed already. So `give_up` then waits, for the grace, for the answer that
is under way. The ends decide differently only if that answer is lost with the link or slower than the grace; no
protocol can close this window (two generals), the grace makes it narrow.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from peer.transport.base import Arrived, ExchangeKey, Lent, LossReason, Outcome
from peer.transport.codec import Assembly, DType, Head
from peer.transport.outbox import release
from peer.wire import gossip_pb2 as wire

DTYPES: Final = {torch.float32: DType.FLOAT32, torch.uint8: DType.BYTES}
"""What a payload may be made of, and the code of it in frames."""


class Ends(Protocol):
    """What an exchange needs of its link."""

    @property
    def grace_seconds(self) -> float: ...

    def send_vote(self, key: ExchangeKey) -> None: ...

    def send_abort(self, key: ExchangeKey, reason: wire.AbortReason.ValueType) -> None: ...

    def push(self, exchange: Exchange) -> None: ...

    def ended(self, exchange: Exchange) -> None: ...


class Exchange:
    """The handle that `Transport.exchange` returns, and the slot that the link fills. Holds the vectors until it
    ends."""

    def __init__(
        self,
        link: Ends,
        peer: int,
        key: ExchangeKey,
        send: Tensor | None,
        receive: Tensor | None,
        *,
        atomic: bool,
        arrived: Arrived | None = None,
        lent: Lent | None = None,
        making: bool = False,
        replies: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.key = key
        self.outcome: asyncio.Future[Outcome] = loop.create_future()
        self.payload: memoryview | None = None if send is None else byte_view(send)
        self.dtype = DType.FLOAT32 if send is None else DTYPES[send.dtype]
        self._made: int | None = 0 if making else None  # bytes of it that are there; None: all
        self._more: asyncio.Future[None] | None = None  # who writes it waits here for more
        self._link = link
        self._peer = peer
        self._inbound: Assembly | None = (
            None if receive is None else Assembly(byte_view(receive), DTYPES[receive.dtype])
        )
        self.atomic = atomic
        self._arrived = arrived
        self._lent = lent
        self._owes = replies
        self._opened_at = time.monotonic()  # uvloop's own clock counts in milliseconds
        self._voted = False
        self._other_voted = False
        self._grace: asyncio.TimerHandle | None = None
        self.live = True

    def begin(self, *, voted: bool) -> None:
        """To be called once the link knows this exchange: one that expects nothing may vote, or end, at once. `voted`:
        the other end's vote came before."""
        self._other_voted = voted
        self._weigh()

    def place(self, head: Head) -> memoryview | str:
        """Where a piece of the other end's payload is to be written, or the reason if it does not belong here. The place
        is free to be written to until this exchange ends: the link is told at once (`Ends.ended`)."""
        if self._inbound is None:
            return "size"
        return self._inbound.place(head.total, head.offset, head.length, head.dtype)

    def reads(self, head: Head) -> bool:
        """Whether the piece may be handed over by `lend`, instead of being put into its place: only whole elements."""
        return self._lent is not None and head.length > 0 and not (head.offset % 4 or head.length % 4)

    def lend(self, piece: memoryview) -> None:
        """The piece that has a place now, where it lies."""
        if self._lent is not None:
            self._lent(piece)

    def placed(self, head: Head) -> None:
        """The piece is in its place, and its checksum is right."""
        if self._inbound is not None:
            self._inbound.placed(head.length)
            if self._arrived is not None:
                self._arrived(self._inbound.arrived)
            if self._inbound.whole:
                self._weigh()

    @property
    def whole(self) -> bool:
        """Nothing more is to come from the other end."""
        return self._inbound is None or self._inbound.whole

    def made(self, num_bytes: int) -> None:
        if self._made is not None and num_bytes > self._made:
            self._made = num_bytes
            release(self._more)

    async def has(self, num_bytes: int) -> bool:
        """Wait until so many bytes of `payload` are made; False if this exchange ended first."""
        while self.live and self._made is not None and self._made < num_bytes:
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        return self.live

    def written(self) -> None:
        """All of `payload` was handed to the carrier."""
        self.payload = None
        self._weigh()

    def vote_arrived(self) -> None:
        self._other_voted = True
        self._weigh()

    def corrupt(self) -> None:
        """What came is not what was sent. Harmless once the vector is whole: then it is surplus."""
        if not self.whole:
            self.lose(LossReason.CORRUPT, tell=wire.ABORT_REASON_CORRUPT)

    def reply(self, send: Tensor) -> None:
        if not self.live or not self._owes:
            return
        self._owes = False
        self.payload, self.dtype = byte_view(send), DTYPES[send.dtype]
        self._link.push(self)

    def give_up(self, reason: LossReason = LossReason.DEADLINE) -> None:
        self.withdraw(reason, wire.ABORT_REASON_DECLINED)

    def withdraw(self, reason: LossReason, tell: wire.AbortReason.ValueType) -> None:
        """`give_up`, and what the other end is told."""
        if not self.live or self._grace is not None:
            return
        if self._voted:
            loop = asyncio.get_running_loop()
            self._grace = loop.call_later(self._link.grace_seconds, self.lose, reason, tell)
        else:
            self.lose(reason, tell)

    def lose(self, reason: LossReason, tell: wire.AbortReason.ValueType | None = None) -> None:
        """End without commit; all that this exchange holds is free afterwards."""
        if self.live:
            if tell is not None:
                self._link.send_abort(self.key, tell)
            self._end(reason)

    def _weigh(self) -> None:
        """Vote and commit as far as what has come allows."""
        if not self.live or not self.whole:
            return
        if not self.atomic:
            if self.payload is None and not self._owes:
                self._end(None)
            return
        if not self._voted:
            self._voted = True
            self._link.send_vote(self.key)
        if self._other_voted and self.payload is None and not self._owes:  # a vote for what was not sent is none
            self._end(None)

    def _end(self, lost: LossReason | None) -> None:
        self.live = False
        self.payload = None
        self._inbound = None
        self._arrived = self._lent = None
        if self._grace is not None:
            self._grace.cancel()
        self._link.ended(self)
        release(self._more)
        if not self.outcome.done():
            self.outcome.set_result(Outcome(self._peer, lost, time.monotonic() - self._opened_at))


def byte_view(tensor: Tensor) -> memoryview:
    """The memory of a tensor [k] as bytes, shared. Raises ValueError unless float32 or uint8, contiguous and on the CPU."""
    if tensor.dtype not in DTYPES or not tensor.is_contiguous() or tensor.device.type != "cpu":
        told = "a payload is float32 or uint8, contiguous and on the CPU"
        raise ValueError(f"{told}, not {tensor.dtype} on {tensor.device}")
    return tensor.detach().numpy().reshape(-1).view(np.uint8).data


def as_tensor(piece: memoryview, dtype: torch.dtype) -> Tensor:
    """What lies in a piece of a payload [k elements], shared; not to be written to."""
    return torch.frombuffer(piece, dtype=dtype)


with warnings.catch_warnings():  # torch says once that memory may be read-only: this once
    warnings.simplefilter("ignore")
    as_tensor(memoryview(bytes(4)), torch.float32)


def loss_of_abort(reason: wire.AbortReason.ValueType) -> LossReason:
    """What the other end's abort means here."""
    return LossReason.STALE if reason == wire.ABORT_REASON_STALE else LossReason.DECLINED
