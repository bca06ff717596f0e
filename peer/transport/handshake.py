"""How two ends of a link make sure that they train the same thing.

Each end sends a `Hello`, reads the other's, and sends a `Verdict`; the link is up when both verdicts are empty. Both
ends run the same pure check on the same two hellos, so both can say in their own words what differs; what only one
end can know (it expected another peer here, or has a living link to that id) travels in its verdict. Whoever refuses
still waits for the other's verdict, so nobody hangs up on a sentence under way.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import DecodeError

from peer.transport.base import Identity
from peer.transport.lane import Lane, LaneClosed
from peer.wire import gossip_pb2 as wire

PROTOCOL: Final = 4
HELLO_SECONDS: Final = 5.0
"""A caller that has not agreed within this time is cut."""

MAX_CONTROL_BYTES: Final = 64 * 1024
"""Largest control message accepted."""

_QUOTED: Final = 64  # characters of the other's text that a sentence repeats


class DataPlane(enum.StrEnum):
    """What vectors travel on: a gRPC stream, a plain socket, or that if it can be had."""

    GRPC = "grpc"
    DIRECT = "direct"
    AUTO = "auto"


_WIRE_PLANES: Final = {
    DataPlane.GRPC: wire.DATA_PLANE_GRPC,
    DataPlane.DIRECT: wire.DATA_PLANE_DIRECT,
    DataPlane.AUTO: wire.DATA_PLANE_AUTO,
}


@dataclass(frozen=True, slots=True)
class Greeting:
    """A hello: who speaks, and the tokens of this link (`session`) and of the process (`incarnation`), 64 random bits
    each. offer: where the peer that was dialled waits for a data socket; comes with its verdict."""

    identity: Identity
    session: int
    incarnation: int
    protocol: int = PROTOCOL
    data_plane: DataPlane = DataPlane.GRPC
    offer: wire.DirectOffer | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """What was agreed in the handshake. `tag_out` is stamped on frames sent, `tag_in` demanded of frames received.
    offer: where the other end waits for a data socket."""

    peer: int
    num_peers: int
    tag_out: int
    tag_in: int
    incarnation: int = 0
    grace_seconds: float = 1.0
    data_plane: DataPlane = DataPlane.GRPC
    offer: wire.DirectOffer | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """`field`: run, protocol, num_peers, fingerprint, peer, hello, duplicate, data-plane, or the name of a setting."""

    field: str
    sentence: str


def check_protocol(mine: Greeting, theirs: Greeting) -> Refusal | None:
    """None if both speak the same version of the protocol."""
    if theirs.protocol == mine.protocol:
        return None
    sentence = f"peer {theirs.identity.peer} speaks protocol {theirs.protocol}, this peer {mine.protocol}"
    return Refusal("protocol", sentence)


def agreed_plane(mine: DataPlane, theirs: DataPlane) -> DataPlane | None:
    """What both ends can live with: AUTO only if both said so. None if one insists on what the other does not want."""
    wanted = {mine, theirs}
    if wanted == {DataPlane.GRPC, DataPlane.DIRECT}:
        return None
    return next(plane for plane in (DataPlane.GRPC, DataPlane.DIRECT, DataPlane.AUTO) if plane in wanted)


def check_planes(mine: Greeting, theirs: Greeting) -> Refusal | None:
    """None if there is something that vectors can travel on."""
    if agreed_plane(mine.data_plane, theirs.data_plane) is not None:
        return None
    there, here = theirs.data_plane, mine.data_plane
    return Refusal("data-plane", f"peer {theirs.identity.peer} has --data-plane {there}, this peer {here}")


def check_hello(mine: Identity, theirs: Identity, expected_peer: int | None = None) -> Refusal | None:
    """None if both can train together, else the first thing that differs and a sentence about it.

    `expected_peer`: whom this end dialled; None when it was called. The lower id dials, so a caller must have a lower
    id.
    """
    name = f"peer {theirs.peer}"
    if theirs.run != mine.run:
        return Refusal("run", f"{name} belongs to run {_quote(theirs.run)}, this peer to {_quote(mine.run)}")
    if theirs.num_peers != mine.num_peers:
        return Refusal("num_peers", f"{name} counts {theirs.num_peers} peers, this peer {mine.num_peers}")
    if not 0 <= theirs.peer < mine.num_peers:
        return Refusal("peer", f"{name} is outside of a cluster of {mine.num_peers} peers")
    if theirs.peer == mine.peer:
        return Refusal("peer", f"{name} has the id of this peer")
    if expected_peer is not None and theirs.peer != expected_peer:
        return Refusal("peer", f"{name} answers at the address of peer {expected_peer}")
    if expected_peer is None and theirs.peer > mine.peer:
        return Refusal("peer", f"{name} called peer {mine.peer}, but the lower id dials")
    if theirs.fingerprint != mine.fingerprint:
        there, here = _quote(theirs.fingerprint), _quote(mine.fingerprint)
        return Refusal("fingerprint", f"{name} trains another model (fingerprint {there}, here {here})")
    return _check_settings(mine, theirs)


def _check_settings(mine: Identity, theirs: Identity) -> Refusal | None:
    for key in sorted(mine.settings.keys() | theirs.settings.keys()):
        there, here = theirs.settings.get(key), mine.settings.get(key)
        if there != here:
            option = "--" + _quote(key).lstrip("-")
            values = [("none" if value is None else _quote(value)) for value in (there, here)]
            return Refusal(key, f"peer {theirs.peer} has {option} {values[0]}, this peer {values[1]}")
    return None


def _quote(text: str) -> str:
    """Text of another peer, made fit for a log line."""
    cut = text if len(text) <= _QUOTED else text[:_QUOTED] + "…"
    return "".join(c if c.isprintable() else "?" for c in cut) or "''"


@dataclass(frozen=True, slots=True)
class Refused:
    """A handshake that failed. `peer`: who the other end says it is, None if it did not get that far."""

    peer: int | None
    refusal: Refusal


async def shake_hands(
    lane: Lane,
    mine: Greeting,
    check: Callable[[Greeting], Awaitable[Refusal | None]],
    told: Callable[[Refused], None],
    offer: Callable[[Greeting], wire.DirectOffer | None] = lambda theirs: None,
) -> Greeting | None:
    """Exchange hellos and verdicts; the other's greeting, or None if either end refused. `told` hears of it as soon
    as it is known, before anything else can break off. `offer` goes with a verdict that accepts. Raises `LaneClosed`; the
    caller sets a deadline."""
    await lane.write(_hello(mine))
    theirs = _read_hello(await lane.read())
    if isinstance(theirs, Refusal):
        refused: Refused | None = Refused(None, theirs)
    else:
        refusal = await check(theirs)
        refused = None if refusal is None else Refused(theirs.identity.peer, refusal)
    if isinstance(theirs, Refusal) or refused is not None:
        assert refused is not None
        told(refused)
        await _turn_away(lane, refused.refusal)
        return None
    await lane.write(wire.ControlMessage(verdict=wire.Verdict(direct=offer(theirs))).SerializeToString())
    answer = parse_control(await lane.read())
    refusal = _read_verdict(theirs.identity.peer, answer)
    if refusal is None:
        assert answer is not None
        return replace(theirs, offer=answer.verdict.direct if answer.verdict.HasField("direct") else None)
    told(Refused(theirs.identity.peer, refusal))
    return None


async def _turn_away(lane: Lane, refusal: Refusal) -> None:
    """Send the verdict and see to it that it is read: who dialled waits for the other end to hang up."""
    verdict = wire.Verdict(field=refusal.field, sentence=refusal.sentence)
    with contextlib.suppress(LaneClosed):
        await lane.write(wire.ControlMessage(verdict=verdict).SerializeToString())
        await lane.read()  # the other's verdict
        if await lane.finish():
            await lane.read()


def _read_verdict(peer: int, answer: wire.ControlMessage | None) -> Refusal | None:
    if answer is None or answer.WhichOneof("body") != "verdict":
        return Refusal("hello", f"peer {peer} sent no verdict")
    if answer.verdict.field:
        return Refusal(_quote(answer.verdict.field), f"peer {peer} refuses: {_quote_sentence(answer.verdict.sentence)}")
    return None


def _quote_sentence(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:500])


def _hello(mine: Greeting) -> bytes:
    identity = mine.identity
    hello = wire.Hello(
        protocol=mine.protocol,
        run=identity.run,
        peer=identity.peer,
        num_peers=identity.num_peers,
        fingerprint=identity.fingerprint,
        settings=identity.settings,
        session=mine.session,
        incarnation=mine.incarnation,
        data_plane=_WIRE_PLANES[mine.data_plane],
    )
    return wire.ControlMessage(hello=hello).SerializeToString()


def _read_hello(message: bytes) -> Greeting | Refusal:
    parsed = parse_control(message)
    if parsed is None or parsed.WhichOneof("body") != "hello":
        return Refusal("hello", "the caller did not begin with a hello")
    hello = parsed.hello
    identity = Identity(hello.run, hello.peer, hello.num_peers, hello.fingerprint, dict(hello.settings))
    plane = next((plane for plane, number in _WIRE_PLANES.items() if number == hello.data_plane), DataPlane.GRPC)
    return Greeting(identity, hello.session, hello.incarnation, hello.protocol, plane)


def parse_control(message: bytes) -> wire.ControlMessage | None:
    """A control message, or None if the bytes are none or too many."""
    if len(message) > MAX_CONTROL_BYTES:
        return None
    try:
        return wire.ControlMessage.FromString(message)
    except DecodeError:
        return None
