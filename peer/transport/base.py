"""The seam between the daemon and whatever moves bytes.

A `Transport` keeps one link to each peer it was asked to connect to. A link carries small control words, never
blocked by bulk data, and exchanges: one per (round, phase), both directions at once. A lost peer, a late or corrupt
payload is a value (`Outcome`), never an exception. Every buffer is bounded: a link reads bulk data only into the
vector its exchange named, and stops reading (back-pressure) when the next payload belongs to an exchange that this
end has not opened yet.
"""

from __future__ import annotations

import asyncio
import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from peer.gossip.digest import Digest
from peer.gossip.words import Word as Word
from peer.gossip.words import WordKind as WordKind

if TYPE_CHECKING:
    from torch import Tensor


class LossReason(enum.StrEnum):
    """Why an edge was lost for one exchange."""

    DEADLINE = "deadline"  # this end gave up waiting
    DECLINED = "declined"  # the other end gave up, or does not take part
    STALE = "stale"  # the other end is past this exchange
    LINK_DOWN = "link_down"  # no connection
    LEFT = "left"  # the other end said goodbye
    CORRUPT = "corrupt"  # checksum, size or dtype did not match


@dataclass(frozen=True, slots=True, order=True)
class ExchangeKey:
    """Stamp of an exchange; keys are ordered in time on every peer."""

    round: int
    phase: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an exchange with one peer ended. `lost` is None when it was committed. `seconds` from open to end."""

    peer: int
    lost: LossReason | None
    seconds: float


#: Told on the event loop how many bytes of `receive`, from its beginning, are there and are what was sent; before the outcome, so the
#: last number is all of them if the exchange is not lost.
Arrived = Callable[[int], None]
#: Given a piece of what is received, whole elements, in memory that is another's when it returns.
Lent = Callable[[memoryview], None]


class ExchangeHandle(Protocol):
    """An exchange under way with one peer."""

    @property
    def outcome(self) -> asyncio.Future[Outcome]:
        """Resolved exactly once; never raises, never cancelled by the transport."""

    def made(self, num_bytes: int) -> None:
        """So many bytes of `send`, from the first one, are there now and will not change, where `exchange` was told that it is still being
        made. Nothing happens if the exchange is over."""

    def reply(self, send: Tensor) -> None:
        """The vector [k] of this end, where `exchange` was told that it comes later; it stays unchanged until the outcome is there. Nothing
        happens if the exchange is over. Once at most."""

    def give_up(self, reason: LossReason = LossReason.DEADLINE) -> None:
        """Drop this edge. The other end is told. If the vote of this end is already out (atomic), the answer is
        awaited for at most the commit grace, so that both ends decide alike; `outcome` is resolved by then in any
        case."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a peer is and what it trains; two ends of a link must agree on everything but `peer`.

    settings: the options that must be equal on all peers, as text, by option name. fingerprint: of the model's layout.
    """

    run: str
    peer: int
    num_peers: int
    fingerprint: str
    settings: Mapping[str, str]


class Listener(Protocol):
    """What a transport tells its daemon; called on the event loop, must return at once."""

    def on_word(self, peer: int, word: Word) -> None: ...

    def on_link_up(self, peer: int) -> None: ...

    def on_link_down(self, peer: int, reason: str) -> None: ...

    def on_refused(self, peer: int | None, field: str, sentence: str) -> None:
        """A hello did not match: `field` names what differs (run, num_peers, fingerprint, peer, or a setting)."""

    def on_dropped(self, peer: int | None, reason: str) -> None:
        """A message was refused and harmed nothing; counted by reason."""

    def on_heard(self, peer: int, round: int) -> None:
        """A payload of that round began to arrive from that peer."""

    def on_digests(self, peer: int, digests: Sequence[Digest]) -> None:
        """That peer tells what is news to it of the cluster; none of it is nonsense."""

    def on_trace(self, peer: int, key: ExchangeKey, traceparent: str) -> None:
        """That peer traces, and says which span of its own that exchange is; a claim, of any length and form."""


@dataclass(slots=True)
class Traffic:
    """Bytes of payload and headers moved with one peer since the start, and the latest round trip of a control word,
    seconds (NaN before the first and while the peer does not answer). late_payloads: those of which a piece came when their
    exchange was over here. data_plane: what vectors travel on since the link came up last: memory, grpc, tcp or unix."""

    bytes_sent: int = 0
    bytes_received: int = 0
    late_payloads: int = 0
    round_trip_seconds: float = math.nan
    data_plane: str = ""


class Transport(ABC):
    """Links of one peer. All methods are called on the one event loop."""

    @abstractmethod
    async def start(self, listener: Listener) -> str:
        """Begin to listen and return the bound "host:port". Raises OSError with the address when the port is taken."""

    @abstractmethod
    def connect(self, addresses: Mapping[int, str]) -> None:
        """Want links to these peers (in addition to those wanted before). The lower id dials, again and again with
        back-off until `stop`; `on_link_up` tells when one is there."""

    @abstractmethod
    def linked(self) -> Collection[int]:
        """Peers to which a link is up now."""

    @abstractmethod
    def tell(self, peer: int, word: Word) -> bool:
        """Queue a control word; False if the link is down or its bounded queue is full (then the word is dropped)."""

    @abstractmethod
    def tell_digests(self, peer: int, digests: Sequence[Digest]) -> bool:
        """Queue digests, at most MAX_IN_MESSAGE, but never before or in the way of anything: False, and nothing is sent, if the link
        is down or has control words still to write."""

    @abstractmethod
    def trace(self, peer: int, key: ExchangeKey, traceparent: str) -> None:
        """Tell a peer which span of this one that exchange is. Dropped if the link is down or its queue is full."""

    @abstractmethod
    def exchange(
        self,
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
    ) -> ExchangeHandle:
        """Open exchange `key` with a peer: push `send` [k], fill `receive` [k'], both at once, float32 or uint8,
        contiguous on the CPU. The other end's payload must have the dtype and the size of `receive`, else it is CORRUPT.
        making: `send` is still being made, and what is there of it goes as `ExchangeHandle.made` tells.
        replies: this end's vector is made from the other's, so it comes later, by `ExchangeHandle.reply`; `send` is None. Exchanges that
        are opened on the link before that may overtake it.

        Without `atomic` the outcome is good when `send` was handed to the network and `receive` is whole. With
        `atomic` each end votes when it has the other's vector, and commits when it has the other's vote as well.

        On one link, keys must come in strictly increasing order (ValueError otherwise: it would deadlock). `send`
        must not change and `receive` belongs to the transport until the outcome is there; afterwards neither is
        touched. `arrived` is told how far `receive` is filled, piece by piece. `lent` is given pieces, whole elements and in order,
        where the carrier has them, to be read before it returns; these are not put into `receive`. It must not raise.

        An exchange with a peer that is not linked, or for a key before the mark, is lost at once: LINK_DOWN,
        STALE.
        """

    @abstractmethod
    def advance(self, key: ExchangeKey) -> None:
        """Everything before `key` is over here: a payload for it that still comes is dropped, and its sender told
        STALE."""

    @abstractmethod
    def traffic(self) -> Mapping[int, Traffic]:
        """Counters by peer."""

    @abstractmethod
    async def goodbye(self) -> None:
        """This end opens no exchange any more. Waits until every vector of its exchanges that were good without `atomic` has been read
        at the other end, which may open such an exchange as late as it likes; for who is gone, or goes as well, it does not wait. Has
        no deadline."""

    @abstractmethod
    async def stop(self) -> None:
        """`goodbye`, for a time that is bounded (two seconds), then close links and listener; pending exchanges end as LINK_DOWN."""
