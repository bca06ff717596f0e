"""One link: two lanes to one peer, and the exchanges under way on it. The same for every carrier.

Vectors travel on the bulk lane; words, votes, aborts and pings on the control lane, whose reader never waits for
anything.

Back-pressure. Frames of an exchange that this end has not opened yet are not stored: the bulk reader stops, the
carrier fills, the other end's writer waits. The reader goes on as soon as the exchange is opened, passed by
`advance`, or aborted by the other end.

Why this can not deadlock. On one link, exchanges are opened in increasing order of their keys (enforced), so the bulk
lane carries payloads in that order. Suppose the reader at B is stopped at exchange K of A. All that A sent on this
lane for exchanges before K has been read, so nothing that B still waits for from A on this lane lies behind K, except
payloads of exchanges after K. Votes and aborts can not lie behind it, because they take the other lane. So whatever B
waits for before it opens K is either on another lane, or will come from a peer that is at an exchange before K; take
the smallest exchange anywhere in the cluster that is not over: nobody is stopped at it or before it, so it proceeds
or its opener gives it up. A writer may wait for its own worker thread to make a vector, which waits for no peer.

Order between the lanes is not defined, so a vote or an abort may come before the frames it is about: an abort for an
exchange that is not open yet is kept (early.py), lets the frames of that exchange be dropped, and ends it when it is opened.
A vote may come before the exchange is opened if its sender expects nothing. Both lanes are ordered in themselves, so an abort
never overtakes a vote.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from peer.gossip.digest import Digest
from peer.transport.base import ExchangeKey, Listener, LossReason, Traffic, Word, WordKind
from peer.transport.codec import Head, Malformed, decode_head, encode_head, pieces
from peer.transport.digests import Encoder, from_wire
from peer.transport.early import Early
from peer.transport.exchange import Exchange, loss_of_abort
from peer.transport.goodbye import Goodbye
from peer.transport.handshake import Session, parse_control
from peer.transport.lane import Arrival, BulkLane, Lane, LaneClosed
from peer.transport.outbox import Outbox, release
from peer.transport.pings import Pings
from peer.wire import gossip_pb2 as wire

_WORD_KINDS: Final = {int(kind): kind for kind in WordKind}

_NOWHERE: Final = memoryview(b"")

MAX_MALFORMED: Final = 100
"""A link over which so many malformed messages came is closed."""


class Link:
    """Make one per handshake; `run` moves bytes until it is closed or a lane ends."""

    def __init__(
        self,
        session: Session,
        control: Lane,
        bulk: BulkLane,
        listener: Listener,
        traffic: Traffic,
        mark: ExchangeKey,
        words: Lane | None = None,
    ) -> None:
        self.session = session
        self.peer = session.peer
        self.traffic = traffic
        self._control = control if words is None else words  # what this end says its words on
        self._controls = (control,) if words is None else (control, words)  # what it hears them on
        self._bulk = bulk
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self.down: asyncio.Future[str] = self._loop.create_future()
        self._mark = mark
        self._opened: ExchangeKey | None = None  # newest exchange opened here
        self._open: dict[ExchangeKey, Exchange] = {}
        self._early = Early()
        self._aborted: ExchangeKey | None = None  # newest exchange of which this end told that it is over
        self._heard: ExchangeKey | None = None
        self._late: ExchangeKey | None = None  # the payload that came last of those that came too late
        self._malformed = 0
        self._outbox: deque[Exchange] = deque()
        self._gate: asyncio.Future[None] | None = None  # the bulk reader waits here
        self._bulk_idle: asyncio.Future[None] | None = None  # the bulk writer waits here
        self._sending: Exchange | None = None  # whose vector the bulk lane reads now
        self._filling: Exchange | None = None  # whose vector the bulk lane writes to now
        self._place = _NOWHERE  # where in it
        self._words = Outbox(self._control, self.down, traffic, self.close)
        self._pings = Pings(self._words.put, self.down, traffic)
        self._goodbye = Goodbye(self._words.put, self.down)

    # -- what the transport asks

    @property
    def grace_seconds(self) -> float:
        return self.session.grace_seconds

    def open(self, exchange: Exchange) -> Exchange:
        """Begin it. Raises ValueError if it is not after every exchange opened on this link before."""
        key = exchange.key
        if self._opened is not None and key <= self._opened:
            raise ValueError(f"exchange {key} with peer {self.peer} opened after {self._opened}")
        if self.down.done():
            exchange.lose(LossReason.LINK_DOWN)
            return exchange
        self._opened = key
        if key < self._mark:
            exchange.lose(LossReason.STALE, tell=wire.ABORT_REASON_STALE)
            return exchange
        self._begin(exchange)
        release(self._gate)
        return exchange

    def _begin(self, exchange: Exchange) -> None:
        key = exchange.key
        aborted, voted = self._early.take(key)
        if aborted is not None:
            exchange.lose(aborted)
            return
        self._open[key] = exchange
        if exchange.payload is not None:
            self.push(exchange)
        exchange.begin(voted=voted)

    def advance(self, mark: ExchangeKey) -> None:
        """Exchanges before the mark are over: open ones are given up, payloads that still come are dropped."""
        if mark <= self._mark:
            return
        self._mark = mark
        for exchange in [e for key, e in self._open.items() if key < mark]:
            exchange.withdraw(LossReason.DEADLINE, wire.ABORT_REASON_STALE)
        self._early.forget(before=mark)
        release(self._gate)

    def tell(self, word: Word) -> bool:
        if not self._words.takes_words:
            return False
        kind = wire.WordKind.ValueType(word.kind)
        self._words.put(wire.ControlMessage(word=wire.Word(kind=kind, origin=word.origin, round=word.round)))
        return True

    def tell_digests(self, digests: Sequence[Digest], encoder: Encoder) -> bool:
        """They wait behind nothing and make nothing wait that is here before them: what is still to be written goes first."""
        if self.down.done() or self._words:
            return False
        self._words.put(encoder.message(digests))
        return True

    def trace(self, key: ExchangeKey, traceparent: str) -> None:
        if self._words.takes_words:
            said = wire.Trace(round=key.round, phase=key.phase, traceparent=traceparent)
            self._words.put(wire.ControlMessage(trace=said))

    async def alive(self, seconds: float) -> bool:
        """Whether the other end answers a ping in time."""
        return await self._pings.alive(seconds)

    @property
    def owes(self) -> bool:
        """Whether the other end may not have read yet what it needs of what was sent."""
        return self._goodbye.owes

    async def goodbye(self) -> None:
        """Until it has, goes too, or is gone. The caller sets a deadline, and opens no exchange any more."""
        await self._goodbye.say()

    async def hang_up(self) -> None:
        """Write the words that are queued, then tell the other end that nothing more comes and, where the carrier
        lets it answer, wait for its end. The caller sets a deadline."""
        await self._words.empty()
        if not self.down.done() and await self._control.finish():
            await asyncio.wait((self.down,))

    def close(self, reason: str) -> None:
        """Take the link down: exchanges end as LINK_DOWN now, `run` returns soon."""
        if self.down.done():
            return
        self.down.set_result(reason)
        for exchange in list(self._open.values()):
            exchange.lose(LossReason.LINK_DOWN)
        self._outbox.clear()
        self._words.clear()
        self._early.clear()

    async def run(self) -> str:
        """Move bytes until the link is down; returns why."""
        try:
            async with asyncio.TaskGroup() as group:
                loops = [
                    ("read bulk", self._read_bulk()),
                    ("write bulk", self._write_bulk()),
                    ("watch bulk", self._bulk.watch()),
                    *(("read control", self._read_control(lane)) for lane in self._controls),
                    ("write control", self._words.run()),
                    ("ping", self._pings.run()),
                ]
                tasks = [group.create_task(self._until_closed(c), name=f"{n} {self.peer}") for n, c in loops]
                try:
                    await asyncio.wait((self.down,))  # not `await self.down`: cancelling us must not cancel it
                finally:
                    for task in tasks:
                        task.cancel()
        finally:
            self.close("the carrier ended the stream")
        return self.down.result()

    # -- what an exchange asks

    def push(self, exchange: Exchange) -> None:
        """Its vector is there to be written."""
        self._outbox.append(exchange)
        release(self._bulk_idle)

    def send_vote(self, key: ExchangeKey) -> None:
        self._words.put(wire.ControlMessage(vote=wire.Vote(round=key.round, phase=key.phase)))

    def send_abort(self, key: ExchangeKey, reason: wire.AbortReason.ValueType) -> None:
        if self._aborted is None or self._aborted < key:
            self._aborted = key
        self._words.put(wire.ControlMessage(abort=wire.Abort(round=key.round, phase=key.phase, reason=reason)))

    def ended(self, exchange: Exchange) -> None:
        """Its vectors are its owner's again, from now on; the one that it was to fill is not even held any more, however slowly the rest
        of a piece comes."""
        self._open.pop(exchange.key, None)
        if exchange is self._filling:
            self._bulk.divert()
            self._place.release()
        if exchange is self._sending:
            self._bulk.let_go()

    # -- bulk lane

    async def _write_bulk(self) -> None:
        while True:
            while self._outbox:
                await self._push(self._outbox.popleft())
            self._bulk_idle = self._loop.create_future()
            await self._bulk_idle

    async def _push(self, exchange: Exchange) -> None:
        """Write a payload frame by frame, for as long as its exchange lives."""
        payload, bulk = exchange.payload, self._bulk
        if payload is None:
            return
        for offset, piece in pieces(payload):
            if not await exchange.has(offset + len(piece)):
                return
            head = encode_head(
                exchange.key, self.session.tag_out, len(payload), offset, piece, bulk.check, exchange.dtype
            )
            self._sending = exchange
            try:
                await bulk.write(head, piece)
            finally:
                self._sending = None
            self._goodbye.wrote()
            self.traffic.bytes_sent += len(head) + len(piece)
            if not exchange.live:
                return
        if not exchange.atomic:
            self._goodbye.promised()
        exchange.written()

    async def _read_bulk(self) -> None:
        while True:
            arrival = await self._bulk.read()
            self.traffic.bytes_received += arrival.num_bytes
            head = self._decode(arrival)
            if isinstance(head, Malformed):
                await self._bulk.skip()
                self._refuse_frame(head)
                self._goodbye.read()
                continue
            if head.offset == 0 and head.key >= self._mark and (self._heard is None or head.key > self._heard):
                self._heard = head.key
                self._listener.on_heard(self.peer, head.key.round)
            while self._is_future(head.key):
                self._gate = self._loop.create_future()
                await self._gate
            await self._take(head, checked=arrival.piece is not None)
            self._goodbye.read()
            del arrival  # two MiB that must not wait for the next

    def _decode(self, arrival: Arrival) -> Head | Malformed:
        head = decode_head(arrival.head, arrival.num_bytes, self.session.tag_in)
        if isinstance(head, Head) and arrival.piece is not None and not head.matches(arrival.piece, self._bulk.check):
            return Malformed("checksum", head.key)
        return head

    def _is_future(self, key: ExchangeKey) -> bool:
        """Not opened yet, but can still be."""
        return key >= self._mark and (self._opened is None or key > self._opened) and not self._early.is_aborted(key)

    async def _take(self, head: Head, *, checked: bool) -> None:
        exchange = self._open.get(head.key)
        place = None if exchange is None else exchange.place(head)
        if exchange is None or not isinstance(place, memoryview):
            await self._bulk.skip()
            if isinstance(place, str):
                self._refuse_frame(Malformed(place, head.key))
            else:
                self._over(head.key)
            return
        if self._lend(exchange, head, checked=checked):
            await self._bulk.skip()
            return
        self._filling, self._place = exchange, place
        try:
            await self._bulk.fill(place)
        finally:
            self._filling, self._place = None, _NOWHERE
        if not exchange.live:
            self._over(head.key)
        elif checked or head.matches(place, self._bulk.check):
            exchange.placed(head)
        else:
            self._refuse_frame(Malformed("checksum", head.key))

    def _lend(self, exchange: Exchange, head: Head, *, checked: bool) -> bool:
        """Let the exchange read the piece where the carrier has it, if both can, and it is what was sent."""
        piece = self._bulk.lend() if exchange.reads(head) else None
        if piece is None or not (checked or head.matches(piece, self._bulk.check)):
            return False
        exchange.lend(piece)
        exchange.placed(head)
        return True

    def _over(self, key: ExchangeKey) -> None:
        """A piece has come of an exchange that is over, or never will be."""
        stale = key < self._mark
        self._listener.on_dropped(self.peer, "stale" if stale else "late")
        if key == self._late:
            return  # a further piece of what the other end was told about
        self._late = key
        self.traffic.late_payloads += 1
        over = stale or (self._opened is not None and key <= self._opened)
        if over and key != self._aborted:  # to tell what was told before an abort of a newer one does no harm
            self.send_abort(key, wire.ABORT_REASON_STALE)

    def _refuse_frame(self, malformed: Malformed) -> None:
        """Count it, and lose the exchange it claims to be of, if there can be one."""
        key = malformed.key
        if key is not None:
            exchange = self._open.get(key)
            if exchange is not None:
                exchange.corrupt()
            elif self._is_future(key) and self._early.abort(key, LossReason.CORRUPT):
                self.send_abort(key, wire.ABORT_REASON_CORRUPT)
        self._refuse(malformed.reason)

    # -- control lane

    async def _read_control(self, lane: Lane) -> None:
        while True:
            message = await lane.read()
            self.traffic.bytes_received += len(message)
            parsed = parse_control(message)
            refusal = "control" if parsed is None else self._hear(parsed)
            if refusal is not None:
                self._refuse(refusal)

    def _hear(self, message: wire.ControlMessage) -> str | None:
        """Act on a control message; the reason if it makes no sense."""
        match message.WhichOneof("body"):
            case "vote":
                return self._hear_vote(ExchangeKey(message.vote.round, message.vote.phase))
            case "abort":
                return self._hear_abort(ExchangeKey(message.abort.round, message.abort.phase), message.abort.reason)
            case "word":
                return self._hear_word(message.word)
            case "ping":
                self._pings.hear(message.ping)
                return None
            case "trace":
                said = message.trace
                self._listener.on_trace(self.peer, ExchangeKey(said.round, said.phase), said.traceparent)
                return None
            case "goodbye":
                self._goodbye.hear(message.goodbye)
                return None
            case "digests":
                digests = from_wire(message.digests, self.session.num_peers)
                if len(digests) < len(message.digests.digests):  # not `_refuse`: whoever passes one on did not make it
                    self._listener.on_dropped(self.peer, "digest")
                self._listener.on_digests(self.peer, digests)
                return None
            case _:
                return "control"

    def _hear_vote(self, key: ExchangeKey) -> str | None:
        exchange = self._open.get(key)
        if exchange is not None:
            exchange.vote_arrived()
        elif self._is_future(key) and not self._early.vote(key):
            return "early"
        return None  # a vote for what is over has crossed our abort

    def _hear_abort(self, key: ExchangeKey, reason: wire.AbortReason.ValueType) -> str | None:
        exchange = self._open.get(key)
        if exchange is not None:
            exchange.lose(loss_of_abort(reason))
        elif self._is_future(key):
            if not self._early.abort(key, loss_of_abort(reason)):
                return "early"
            release(self._gate)
        return None

    def _hear_word(self, word: wire.Word) -> str | None:
        kind = _WORD_KINDS.get(word.kind)
        if kind is None or word.origin >= self.session.num_peers:
            return "word"
        self._listener.on_word(self.peer, Word(kind, word.origin, word.round))
        return None

    # -- both

    def _refuse(self, reason: str) -> None:
        self._listener.on_dropped(self.peer, reason)
        self._malformed += 1
        if self._malformed >= MAX_MALFORMED:
            self.close(f"{MAX_MALFORMED} malformed messages, the last one: {reason}")

    async def _until_closed(self, moving: Coroutine[Any, Any, None]) -> None:
        try:
            await moving
        except LaneClosed as ended:
            if ended.refused and not self.down.done():
                self._listener.on_dropped(self.peer, ended.refused)
            self.close(str(ended))
