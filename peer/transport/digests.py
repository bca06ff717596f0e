"""Digests to and from the wire; gossip/digest.py says what they are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from peer.gossip.digest import MAX_IN_MESSAGE, Digest, nonsense
from peer.wire import gossip_pb2 as wire

_PLAIN = (
    *("origin", "stamp", "age_seconds", "state", "round", "seconds", "samples", "samples_per_second", "train_loss"),
    *("neighbor_distance", "computing", "waiting", "exchanging", "mixing", "finished_fraction", "max_staleness"),
    "waits_seconds",
)
_REASONS = tuple(wire.ClosedRounds.DESCRIPTOR.fields_by_name)


#: Digests whose bytes are kept; those of one telling are told again and again, then never.
KEPT = 256


class Encoder:
    """Encodes a digest once, however many neighbours are told of it: in the middle of a star all of them are. For the same object the
    same bytes, so what is told has to be the same object (`DigestBook.news_for`)."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        # by identity, which nobody else has while the digest is in here
        self._made: dict[int, tuple[Digest, bytes]] = {}

    def message(self, digests: Iterable[Digest]) -> wire.ControlMessage:
        message = wire.ControlMessage()
        # the bytes of messages one after the other are those of one message with all of their fields
        message.digests.MergeFromString(b"".join(map(self._bytes, digests)))
        return message

    def _bytes(self, digest: Digest) -> bytes:
        made = self._made.get(id(digest))
        if made is None:
            if len(self._made) >= KEPT:
                self._made.clear()
            made = self._made[id(digest)] = digest, to_wire([digest]).SerializeToString()
        return made[1]


def to_wire(digests: Iterable[Digest]) -> wire.Digests:
    return wire.Digests(digests=map(_encode, digests))


def from_wire(message: wire.Digests, num_peers: int) -> list[Digest]:
    """Those digests of a message that are sound; none of a message that has too many."""
    if len(message.digests) > MAX_IN_MESSAGE:
        return []
    digests = map(_decode, message.digests)
    return [digest for digest in digests if nonsense(digest, num_peers) is None]


def _encode(digest: Digest) -> wire.Digest:
    known = {reason: count for reason, count in digest.closed_rounds.items() if reason in _REASONS}
    return wire.Digest(
        **{name: getattr(digest, name) for name in _PLAIN},
        closed_rounds=wire.ClosedRounds(**known),
        lost_links=digest.lost_links,
        waited_for=_shares(digest.waited_for),
        closed_by=_shares(digest.closed_by),
        waits_for=digest.waits_for,
    )


def _decode(digest: wire.Digest) -> Digest:
    plain = {name: getattr(digest, name) for name in _PLAIN}
    reasons = {name: getattr(digest.closed_rounds, name) for name in _REASONS}
    return Digest(
        **plain,
        closed_rounds={reason: count for reason, count in reasons.items() if count},
        lost_links=tuple(digest.lost_links),
        waited_for={share.peer: share.share for share in digest.waited_for},
        closed_by={share.peer: share.share for share in digest.closed_by},
        waits_for=tuple(digest.waits_for),
    )


def _shares(shares: Mapping[int, float]) -> list[wire.Share]:
    return [wire.Share(peer=peer, share=share) for peer, share in shares.items()]
