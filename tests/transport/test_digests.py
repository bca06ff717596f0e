"""Digests on a link: there and back over every carrier, refused when they make no sense, and never in the way of a word."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence

import pytest

from peer.gossip.closing import CloseReason
from peer.gossip.digest import MAX_IN_MESSAGE, Digest
from peer.gossip.words import Word, WordKind
from peer.transport import digests as coding
from peer.transport.digests import KEPT, Encoder, from_wire, to_wire
from peer.transport.link import MAX_MALFORMED, Link
from peer.wire import gossip_pb2 as wire
from tests.transport.rig import PATIENCE_SECONDS, Member, Rig

DIGEST = Digest(
    0,
    stamp=1_700_000_000_000,
    age_seconds=0.25,
    state=2,
    round=12,
    seconds=3.5,
    samples=400,
    samples_per_second=120.5,
    train_loss=0.5,
    neighbor_distance=0.125,
    computing=0.5,
    waiting=0.25,
    exchanging=0.125,
    mixing=0.0625,
    finished_fraction=0.75,
    max_staleness=3,
    closed_rounds={"quota": 5, "word": 7},
    lost_links=(1,),
    waited_for={1: 0.25},
    closed_by={0: 0.5, 1: 0.5},
    waits_for=(1,),
    waits_seconds=12.5,
)


@pytest.fixture(params=["memory", "grpc"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made = Rig(request.param)
    yield made
    await made.stop()


async def taken(member: Member, digests: list[Digest]) -> None:
    """Offered until the link has nothing else to write."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not member.transport.tell_digests(1, digests):
            await asyncio.sleep(0.001)


async def test_what_is_said_is_heard(rig: Rig) -> None:
    a, b = await rig.pair()
    await taken(a, [DIGEST, DIGEST._replace(origin=1, closed_rounds={})])
    await b.recorder.until(lambda: len(b.recorder.digests) == 2)
    assert b.recorder.digests == [(0, DIGEST), (0, DIGEST._replace(origin=1, closed_rounds={}))]
    assert not a.transport.tell_digests(0, [DIGEST]), "there is no such link"


async def test_digests_go_when_no_word_waits(rig: Rig) -> None:
    a, b = await rig.pair()
    for round in range(3):
        assert a.transport.tell(1, Word(WordKind.CLOSED, 0, round))
        assert not a.transport.tell_digests(1, [DIGEST]), "the word has not been written yet"
    await b.recorder.until(lambda: len(b.recorder.words) == 3)
    assert b.recorder.digests == []
    await taken(a, [DIGEST])
    await b.recorder.until(lambda: len(b.recorder.digests) == 1)


async def test_nonsense_is_dropped_counted_and_harms_nothing(rig: Rig) -> None:
    a, b = await rig.pair()
    link = vars(a.transport)["_links"][1]
    assert isinstance(link, Link)
    bad = [
        to_wire([DIGEST._replace(origin=2)]),
        to_wire([DIGEST, DIGEST._replace(computing=math.nan)]),
        to_wire([DIGEST] * (MAX_IN_MESSAGE + 1)),
    ]
    for message in bad * MAX_MALFORMED:
        vars(link)["_pings"]._queue(wire.ControlMessage(digests=message))
    await b.recorder.until(lambda: len(b.recorder.dropped) == 3 * MAX_MALFORMED)
    assert set(b.recorder.dropped) == {"digest"}
    assert b.recorder.digests == [(0, DIGEST)] * MAX_MALFORMED, "what is sound in a message is heard"
    assert b.recorder.links == [(0, "up")], "who passes nonsense on keeps its link: it may be honest"
    a.transport.tell(1, Word(WordKind.CLOSED, 0, 9))
    await b.recorder.until(lambda: b.recorder.words == [(0, Word(WordKind.CLOSED, 0, 9))])


def test_a_digest_is_encoded_once_however_many_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Digest] = []

    def to_wire_counted(digests: Sequence[Digest]) -> wire.Digests:
        encoded.extend(digests)
        return to_wire(digests)

    monkeypatch.setattr(coding, "to_wire", to_wire_counted)
    encoder, both = Encoder(), [DIGEST, DIGEST._replace(origin=1, waits_for=())]
    for _ in range(64):
        message = wire.ControlMessage.FromString(encoder.message(both).SerializeToString())
        assert from_wire(message.digests, 2) == both
        assert from_wire(encoder.message(both[:1]).digests, 2) == both[:1]
    assert encoded == both
    for round in range(3 * KEPT):
        later = DIGEST._replace(round=round)
        assert from_wire(encoder.message([later]).digests, 2) == [later]
        assert len(encoder._made) <= KEPT


def test_fields_of_a_later_version_are_passed_over() -> None:
    later = to_wire([DIGEST]).SerializeToString() + b"\xfa\x3f\x03new"  # field 127 of Digests, of bytes
    parsed = wire.Digests.FromString(later)
    assert from_wire(parsed, 2) == [DIGEST]


def test_every_reason_of_a_close_is_told() -> None:
    reasons = {str(reason): 1 + i for i, reason in enumerate(CloseReason)}
    [back] = from_wire(to_wire([DIGEST._replace(closed_rounds=reasons)]), 2)
    assert back.closed_rounds == reasons


def test_reasons_that_the_wire_does_not_know_are_left_out() -> None:
    [back] = from_wire(to_wire([DIGEST._replace(closed_rounds={"quota": 5, "whim": 1})]), 2)
    assert back.closed_rounds == {"quota": 5}
