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
