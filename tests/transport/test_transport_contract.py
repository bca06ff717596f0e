"""What every transport promises, checked on each of them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from peer.transport.base import ExchangeKey, LossReason, Word, WordKind
from peer.transport.codec import FRAME_BYTES
from peer.transport.exchange import as_tensor
from peer.transport.lane import MemoryLane
from peer.transport.streams import ClientLane, ServerLane

from .rig import Rig, ended, ends, identity

K = ExchangeKey
BIG = 3_000_000  # 12 MB, more than any carrier buffers


@pytest.mark.parametrize("size", [0, 1, 55_000, 524_288, 524_289, 1_250_000])
@pytest.mark.parametrize("atomic", [True, False])
async def test_both_ends_get_the_others_vector(rig: Rig, size: int, atomic: bool) -> None:
    a, b = await rig.pair()
    x, y = torch.randn(size), torch.randn(size)
    at_a, at_b = torch.full((size,), torch.nan), torch.full((size,), torch.nan)
    handles = a.open(1, K(0, 0), x, at_a, atomic=atomic), b.open(0, K(0, 0), y, at_b, atomic=atomic)
    assert await ends(*handles) == [None, None]
    assert torch.equal(at_a, y)
    assert torch.equal(at_b, x)
    assert a.transport.traffic()[1].bytes_sent > 4 * size
    assert a.transport.traffic()[1].bytes_received > 4 * size


@pytest.mark.parametrize("atomic", [True, False])
async def test_encoded_payloads_of_any_size_travel_as_bytes(rig: Rig, atomic: bool) -> None:
    a, b = await rig.pair()
    sizes = 2_100_001, 13
    x, y = (torch.randint(0, 256, (size,), dtype=torch.uint8) for size in sizes)
    at_a, at_b = torch.zeros_like(y), torch.zeros_like(x)
    handles = a.open(1, K(0, 0), x, at_a, atomic=atomic), b.open(0, K(0, 0), y, at_b, atomic=atomic)
    assert await ends(*handles) == [None, None]
    assert torch.equal(at_a, y)
    assert torch.equal(at_b, x)


async def test_a_receiver_is_told_how_far_its_vector_is_filled(rig: Rig) -> None:
    a, b = await rig.pair()
    x, y = torch.randn(BIG), torch.zeros(BIG)
    told: list[int] = []

    def arrived(num_bytes: int) -> None:
        told.append(num_bytes)
        assert torch.equal(y[: num_bytes // 4], x[: num_bytes // 4])

    received = b.transport.exchange(0, K(0, 0), None, y, atomic=False, arrived=arrived)
    assert await ends(a.open(1, K(0, 0), x, None, atomic=False), received) == [None, None]
    assert told == sorted(set(told))
    assert len(told) >= 4 * BIG // FRAME_BYTES
    assert told[-1] == 4 * BIG


async def test_pieces_may_be_read_where_the_carrier_has_them(rig: Rig) -> None:
    """Or in their place, where it has none: a TCP socket's pieces, and the small last one."""
    a, b = await rig.pair()
    size = BIG + 5
    x, inbox, read, lent_elements = torch.randn(size), torch.full((size,), torch.nan), list[torch.Tensor](), 0
    done = 0

    def lent(piece: memoryview) -> None:
        nonlocal done, lent_elements
        read.append(as_tensor(piece, torch.float32).clone())
        done += len(piece) // 4
        lent_elements += len(piece) // 4

    def arrived(num_bytes: int) -> None:
        nonlocal done
        read.append(inbox[done : num_bytes // 4].clone())
        done = num_bytes // 4

    received = b.transport.exchange(0, K(0, 0), None, inbox, atomic=False, arrived=arrived, lent=lent)
    assert await ends(a.open(1, K(0, 0), x, None, atomic=False), received) == [None, None]
    assert torch.equal(torch.cat(read), x)
    assert lent_elements + int(inbox.isfinite().sum()) == size
    if rig.carrier == "tcp":
        assert lent_elements == 0
    else:
        assert lent_elements >= size - FRAME_BYTES // 4


@pytest.mark.parametrize("atomic", [True, False])
async def test_a_vector_is_sent_as_far_as_it_is_made(rig: Rig, atomic: bool) -> None:
    a, b = await rig.pair()
    x, sent, inbox = torch.randn(BIG), torch.full((BIG,), torch.nan), torch.zeros(BIG)
    made, come = 0, asyncio.Event()

    def arrived(num_bytes: int) -> None:
        assert num_bytes <= made
        if num_bytes == made - made % FRAME_BYTES or num_bytes == 4 * BIG:
            come.set()

    received = b.transport.exchange(0, K(0, 0), None, inbox, atomic=atomic, arrived=arrived)
    sending = a.transport.exchange(1, K(0, 0), sent, None, atomic=atomic, making=True)
    for until in (FRAME_BYTES, 5 * FRAME_BYTES // 2, 4 * FRAME_BYTES + 4, 4 * BIG):
        sent[made // 4 : until // 4] = x[made // 4 : until // 4]
        made = until
        sending.made(made)
        sending.made(made - 4)  # does not take back what was told
        async with asyncio.timeout(10):
            await come.wait()
        come.clear()
    assert await ends(sending, received) == [None, None]
    assert torch.equal(inbox, x)
    sending.made(4 * BIG)  # nobody minds
    assert await ends(a.open(1, K(1, 0), x, None), b.open(0, K(1, 0), None, inbox)) == [None, None]


async def test_a_vote_for_a_vector_that_was_not_sent_commits_nothing(rig: Rig) -> None:
    a, b = await rig.pair()
    y, inbox, whole = torch.ones(9), torch.zeros(9), asyncio.Event()
    mine = a.transport.exchange(
        1, K(0, 0), torch.ones(BIG), inbox, atomic=True, making=True, arrived=lambda num_bytes: whole.set()
    )
    theirs = b.open(0, K(0, 0), y, torch.zeros(BIG))
    b.transport._links[0].send_vote(K(0, 0))  # type: ignore[attr-defined]
    b.transport.tell(0, Word(WordKind.READY, 1))
    await a.recorder.until(lambda: bool(a.recorder.words))
    async with asyncio.timeout(10):
        await whole.wait()
    assert not mine.outcome.done()
    mine.made(4 * BIG)
    assert await ends(mine, theirs) == [None, None]


@pytest.mark.parametrize("made", [0, FRAME_BYTES, FRAME_BYTES + 400])
@pytest.mark.parametrize("who", [0, 1])
async def test_what_is_never_made_is_given_up_in_the_middle_and_the_next_goes_on(rig: Rig, who: int, made: int) -> None:
    a, b = await rig.pair()
    x, inbox, begun = torch.randn(BIG), torch.zeros(BIG), asyncio.Event()
    received = b.transport.exchange(0, K(0, 0), None, inbox, atomic=True, arrived=lambda num_bytes: begun.set())
    sending = a.transport.exchange(1, K(0, 0), x, None, atomic=True, making=True)
    following = a.open(1, K(1, 0), x, None), b.open(0, K(1, 0), None, torch.zeros(BIG))
    sending.made(made)
    if made:
        async with asyncio.timeout(10):
            await begun.wait()
    (sending, received)[who].give_up()
    expected = [LossReason.DEADLINE, LossReason.DECLINED]
    assert await ends(sending, received) == (expected if who == 0 else expected[::-1])
    assert await ends(*following) == [None, None]


async def test_what_is_never_made_does_not_keep_a_vector_or_a_transport(rig: Rig) -> None:
    a, b = await rig.pair()
    x = torch.randn(9)
    held = weakref.ref(memory := np.zeros(BIG, np.float32))
    b.open(0, K(0, 0), None, torch.zeros(BIG))
    sending = a.transport.exchange(1, K(0, 0), torch.from_numpy(memory), None, atomic=True, making=True)
    del memory
    sending.give_up()
    assert await ends(sending, a.open(1, K(1, 0), x, None), b.open(0, K(1, 0), None, x.clone())) == [
        LossReason.DEADLINE,
        None,
        None,
    ]
    del sending
    gc.collect()
    assert held() is None
    a.transport.exchange(1, K(2, 0), torch.zeros(BIG), None, atomic=True, making=True)
    async with asyncio.timeout(10):
        await a.transport.stop()


@pytest.mark.parametrize("atomic", [True, False])
async def test_an_end_may_make_its_vector_from_the_others(rig: Rig, atomic: bool) -> None:
    a, b = await rig.pair()
    x, at_a, at_b = torch.randn(70_000), torch.zeros(70_000), torch.zeros(70_000)
    whole = asyncio.Event()

    def arrived(num_bytes: int) -> None:
        if num_bytes == 4 * at_b.numel():
            whole.set()

    asked = a.open(1, K(0, 0), x, at_a, atomic=atomic)
    answering = b.transport.exchange(0, K(0, 0), None, at_b, atomic=atomic, arrived=arrived, replies=True)
    async with asyncio.timeout(10):
        await whole.wait()
    assert not asked.outcome.done()
    assert not answering.outcome.done()
    answering.reply(2 * at_b)
    assert await ends(asked, answering) == [None, None]
    assert torch.equal(at_a, 2 * x)


async def test_an_answer_may_be_given_before_anything_has_come_and_is_withdrawn_with_its_exchange(rig: Rig) -> None:
    a, b = await rig.pair()
    x = torch.ones(9)
    answering = b.transport.exchange(0, K(0, 0), None, torch.zeros(9), atomic=False, replies=True)
    answering.reply(x)
    assert await ends(a.open(1, K(0, 0), x, torch.zeros(9), atomic=False), answering) == [None, None]
    never = b.transport.exchange(0, K(1, 0), None, torch.zeros(9), atomic=False, replies=True)
    asked = a.open(1, K(1, 0), x, torch.zeros(9), atomic=False)
    never.give_up()
    never.reply(x)
    assert await ends(never, asked) == [LossReason.DEADLINE, LossReason.DECLINED]
    b.transport.advance(K(3, 0))
    assert await ends(a.open(1, K(2, 0), x, torch.zeros(9), atomic=False)) == [LossReason.STALE]


async def test_a_payload_of_another_dtype_is_corrupt_and_costs_its_exchange_only(rig: Rig) -> None:
    a, b = await rig.pair()
    floats, bytes_ = torch.ones(4), torch.ones(16, dtype=torch.uint8)
    handles = a.open(1, K(0, 0), floats, floats.clone()), b.open(0, K(0, 0), bytes_, bytes_.clone())
    assert LossReason.CORRUPT in await ends(*handles)
    assert "dtype" in a.recorder.dropped + b.recorder.dropped
    assert await ends(a.open(1, K(1, 0), floats, None), b.open(0, K(1, 0), None, floats.clone())) == [None, None]


async def test_a_ring_pass_among_three(rig: Rig) -> None:
    members = await rig.cluster(3)
    inbox = [torch.empty(70_000) for _ in members]
    for phase in range(4):
        handles = []
        for i, member in enumerate(members):
            outbox = torch.full((70_000,), float(10 * phase + i))
            handles.append(member.open((i + 1) % 3, K(7, 2 * phase + (i == 2)), outbox, None, atomic=False))
            before = (i - 1) % 3
            handles.append(member.open(before, K(7, 2 * phase + (before == 2)), None, inbox[i], atomic=False))
        assert await ends(*handles) == [None] * 6
        assert [int(v[-1]) for v in inbox] == [10 * phase + 2, 10 * phase, 10 * phase + 1]


async def test_an_atomic_exchange_one_way_and_an_empty_one(rig: Rig) -> None:
    a, b = await rig.pair()
    inbox = torch.empty(9)
    handles = a.open(1, K(0, 0), torch.arange(9.0), None), b.open(0, K(0, 0), None, inbox)
    assert await ends(*handles) == [None, None]
    assert torch.equal(inbox, torch.arange(9.0))
    assert await ends(a.open(1, K(0, 1), None, None), b.open(0, K(0, 1), None, None)) == [None, None]


async def test_a_sender_far_ahead_is_held_back_and_nothing_is_lost(rig: Rig) -> None:
    a, b = await rig.pair()
    outbox = [torch.full((BIG,), float(k)) for k in range(3)]
    sent = [a.open(1, K(k, 0), vector, None, atomic=False) for k, vector in enumerate(outbox)]
    await b.recorder.until(lambda: b.recorder.heard == [(0, 0)])
    for k in range(3):
        assert not sent[k].outcome.done()  # it does not fit into what a carrier buffers
        inbox = torch.empty(BIG)
        assert await ends(b.open(0, K(k, 0), None, inbox, atomic=False)) == [None]
        assert torch.equal(inbox, outbox[k])
        await ended(sent[k])
    assert b.recorder.heard == [(0, 0), (0, 1), (0, 2)]


async def test_words_and_votes_flow_while_bulk_is_blocked(rig: Rig) -> None:
    a, b = await rig.pair()
    blocked = a.open(1, K(5, 0), torch.zeros(BIG), torch.empty(BIG))
    await b.recorder.until(lambda: bool(b.recorder.heard))
    for round_ in range(300):
        assert a.transport.tell(1, Word(WordKind.CLOSED, 0, round_))
    await b.recorder.until(lambda: len(b.recorder.words) == 300)
    assert b.recorder.words[-1] == (0, Word(WordKind.CLOSED, 0, 299))
    assert not blocked.outcome.done()
    blocked.give_up()
    assert await ends(blocked) == [LossReason.DEADLINE]


async def test_advance_drops_what_is_late_and_tells_the_sender(rig: Rig) -> None:
    a, b = await rig.pair()
    late = a.open(1, K(0, 0), torch.zeros(BIG), torch.empty(BIG))
    await b.recorder.until(lambda: bool(b.recorder.heard))
    b.transport.advance(K(1, 0))
    assert await ends(late) == [LossReason.STALE]
    await b.recorder.until(lambda: "stale" in b.recorder.dropped)
    assert b.transport.traffic()[0].late_payloads == 1, "one payload, of many pieces"
    x = torch.ones(5)
    assert await ends(a.open(1, K(1, 0), x, torch.empty(5)), b.open(0, K(1, 0), x, torch.empty(5))) == [None, None]
    assert await ends(b.open(0, K(1, 1), x, None, atomic=False)) == [None]
    a.transport.advance(K(4, 0))
    assert await ends(a.open(1, K(3, 0), x, x)) == [LossReason.STALE]


async def test_advance_ends_what_is_open(rig: Rig) -> None:
    a, b = await rig.pair()
    x = torch.ones(5)
    here = a.open(1, K(0, 0), None, torch.empty(5))
    there = b.open(0, K(0, 0), None, torch.empty(5))
    a.transport.advance(K(1, 0))
    assert await ends(here, there) == [LossReason.DEADLINE, LossReason.STALE]
    assert await ends(a.open(1, K(1, 0), x, x.clone()), b.open(0, K(1, 0), x, x.clone())) == [None, None]


async def test_who_is_far_behind_is_told_at_once_of_every_exchange_that_is_over(rig: Rig) -> None:
    """Also after an exchange was given up that is further ahead: a peer that starts again has hundreds of rounds to close."""
    a, b = await rig.pair()
    x = torch.zeros(500_000)
    ahead = a.open(1, K(300, 0), x, torch.zeros_like(x))
    ahead.give_up()
    assert await ends(ahead) == [LossReason.DEADLINE]
    for round in range(5):
        async with asyncio.timeout(5):
            assert await ends(b.open(0, K(round, 0), x, torch.zeros_like(x))) == [LossReason.STALE]


async def test_giving_up_before_the_vote_ends_it_on_both_ends(rig: Rig) -> None:
    a, b = await rig.pair()
    x = torch.ones(BIG)
    at_b = torch.empty(BIG)
    here = a.open(1, K(0, 0), x, torch.empty(BIG))
    await b.recorder.until(lambda: bool(b.recorder.heard))
    here.give_up()
    assert (await ended(here)).lost is LossReason.DEADLINE
    there = b.open(0, K(0, 0), x, at_b)
    assert (await ended(there)).lost is LossReason.DECLINED
    assert await ends(a.open(1, K(1, 0), x, at_b), b.open(0, K(1, 0), x, torch.empty(BIG))) == [None, None]


async def test_giving_up_in_the_middle_of_a_payload(rig: Rig) -> None:
    a, b = await rig.pair()
    x = torch.ones(BIG)
    here, there = a.open(1, K(0, 0), x, torch.empty(BIG)), b.open(0, K(0, 0), None, torch.empty(BIG))
    await b.recorder.until(lambda: bool(b.recorder.heard))
    there.give_up(LossReason.LEFT)
    assert await ends(here, there) == [LossReason.DECLINED, LossReason.LEFT]
    at_b = torch.zeros(BIG)
    assert await ends(a.open(1, K(0, 1), x, None), b.open(0, K(0, 1), None, at_b)) == [None, None]
    assert torch.equal(at_b, x)


async def test_giving_up_after_the_vote_waits_for_the_others_vote(rig: Rig) -> None:
    a, b = await rig.pair()
    at_a = torch.empty(3)
    there = b.open(0, K(0, 0), torch.ones(3), torch.empty(BIG))  # votes only when 12 MB are there
    here = a.open(1, K(0, 0), torch.ones(BIG), at_a)
    await a.recorder.until(lambda: bool(a.recorder.heard))
    here.give_up()
    assert not here.outcome.done()
    assert await ends(here, there) == [None, None]
    assert torch.equal(at_a, torch.ones(3))


async def test_after_the_vote_the_grace_is_bounded(rig: Rig) -> None:
    rig.grace_seconds = 0.05
    a, b = await rig.pair()
    there = b.open(0, K(0, 0), torch.ones(3), torch.empty(3))
    here = a.open(1, K(0, 0), None, torch.empty(3))
    await a.recorder.until(lambda: bool(a.recorder.heard))
    here.give_up()
    assert not here.outcome.done()
    assert await ends(here, there) == [LossReason.DEADLINE, LossReason.DECLINED]


async def test_a_link_that_goes_down_ends_its_exchanges_at_once(rig: Rig) -> None:
    a, b = await rig.pair()
    # a vector that is never made whole: a fast carrier could bring all of it while the goodbye is said
    here = a.transport.exchange(1, K(0, 0), torch.ones(BIG), torch.empty(BIG), atomic=True, making=True)
    there = b.open(0, K(0, 0), None, torch.empty(BIG))
    here.made(FRAME_BYTES)
    await b.recorder.until(lambda: bool(b.recorder.heard))
    await b.transport.stop()
    assert await ends(here, there) == [LossReason.LINK_DOWN, LossReason.LINK_DOWN]
    await a.recorder.until(lambda: len(a.recorder.links) == 2)
    assert await ends(a.open(1, K(0, 1), torch.ones(1), None)) == [LossReason.LINK_DOWN]
    assert not a.transport.tell(1, Word(WordKind.READY, 0))


async def test_the_last_word_before_stop_arrives(rig: Rig) -> None:
    a, b = await rig.pair()
    a.transport.tell(1, Word(WordKind.LEAVING, 0, 9))
    await a.transport.stop()
    await b.recorder.until(lambda: b.recorder.words == [(0, Word(WordKind.LEAVING, 0, 9))])
    await b.recorder.until(lambda: len(b.recorder.links) == 2)


@pytest.mark.parametrize(
    ("change", "field", "sentence_at_0", "sentence_at_1"),
    [
        ({"run": "other"}, "run", "peer 1 belongs to run other, this peer to run", "peer 0 belongs to run run"),
        ({"num_peers": 3}, "num_peers", "peer 1 counts 3 peers, this peer 2", "peer 0 counts 2 peers, this peer 3"),
        ({"fingerprint": "beef"}, "fingerprint", "peer 1 trains another model (fingerprint beef, here f00d)", "f00d"),
        ({"settings": {"lr": "0.2"}}, "lr", "peer 1 has --lr 0.2, this peer 0.1", "peer 0 has --lr 0.1, this peer 0.2"),
        ({"settings": {}}, "lr", "peer 1 has --lr none, this peer 0.1", "peer 0 has --lr 0.1, this peer none"),
    ],
)
async def test_who_trains_something_else_is_refused_at_both_ends(
    rig: Rig, change: dict[str, object], field: str, sentence_at_0: str, sentence_at_1: str
) -> None:
    a = await rig.start(identity(0))
    b = await rig.start(replace(identity(1), **change))  # type: ignore[arg-type]
    a.transport.connect({1: b.address})
    await a.recorder.until(lambda: len(a.recorder.refused) > 1)  # it tries again
    await b.recorder.until(lambda: bool(b.recorder.refused))
    assert a.recorder.refused[0][:2] == (1, field)
    assert sentence_at_0 in a.recorder.refused[0][2]
    assert b.recorder.refused[0][:2] == (0, field)
    assert sentence_at_1 in b.recorder.refused[0][2]
    assert not a.transport.linked()
    assert not b.transport.linked()


def slowly(read: Callable[[Any], Awaitable[bytes]]) -> Callable[[Any], Awaitable[bytes]]:
    async def late(lane: Any) -> bytes:
        await asyncio.sleep(0.05)
        return await read(lane)

    return late


@pytest.mark.parametrize("who", [0, 1])
async def test_who_refuses_and_stops_at_once_is_heard_all_the_same(
    rig: Rig, who: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer ends when it refuses another, which reads slowly here, as on a busy machine. It must not wait on without knowing why."""
    reads = MemoryLane if rig.carrier == "memory" else (ServerLane, ClientLane)[who]
    monkeypatch.setattr(reads, "read", slowly(reads.read))
    members = [await rig.start(identity(i, lr=lr)) for i, lr in enumerate(("0.1", "0.2"))]
    members[0].transport.connect({1: members[1].address})
    first, second = members[who], members[1 - who]
    await first.recorder.until(lambda: bool(first.recorder.refused))
    await first.transport.stop()
    await second.recorder.until(lambda: bool(second.recorder.refused))
    assert second.recorder.refused[0][:2] == (who, "lr")


async def test_a_wrong_address_is_noticed_and_told(rig: Rig) -> None:
    a, c = await rig.start(identity(0, 3)), await rig.start(identity(2, 3))
    a.transport.connect({1: c.address})
    await c.recorder.until(lambda: bool(c.recorder.refused))
    assert a.recorder.refused[0] == (2, "peer", "peer 2 answers at the address of peer 1")
    assert c.recorder.refused[0] == (0, "peer", "peer 0 refuses: peer 2 answers at the address of peer 1")


async def test_who_starts_late_is_found(rig: Rig) -> None:
    found = await rig.start(identity(1))
    await found.transport.stop()
    a = await rig.start(identity(0))
    a.transport.connect({1: found.address})
    b = await rig.start(identity(1), listen=found.address)
    await asyncio.gather(a.linked_to(1), b.linked_to(0))


@pytest.mark.parametrize("who", [0, 1])
async def test_a_peer_that_started_again_replaces_its_link(rig: Rig, who: int) -> None:
    members = list(await rig.pair())
    other = members[1 - who]
    pending = other.open(who, K(0, 0), None, torch.empty(1))
    await members[who].transport.stop()
    members[who] = await rig.start(identity(who), listen=members[who].address)
    if who == 0:
        members[0].transport.connect({1: members[1].address})
    assert await ends(pending) == [LossReason.LINK_DOWN]
    await members[who].linked_to(1 - who)
    await other.recorder.until(lambda: [up for _, up in other.recorder.links if up == "up"] == ["up", "up"])
    x, at_0, at_1 = torch.ones(4), torch.empty(4), torch.empty(4)
    handles = members[0].open(1, K(0, 0), x, at_0), members[1].open(0, K(0, 0), x, at_1)
    assert await ends(*handles) == [None, None]


async def test_a_second_process_with_the_same_id_is_refused(rig: Rig) -> None:
    a, b = await rig.pair()
    if rig.carrier == "memory":
        assert rig.network is not None
        rig.network.listening.pop(a.address)
    twin = await rig.start(identity(0))
    twin.transport.connect({1: b.address})
    await twin.recorder.until(lambda: bool(twin.recorder.refused))
    peer, field, sentence = twin.recorder.refused[0]
    assert (peer, field) == (1, "duplicate")
    assert sentence == "peer 1 refuses: peer 0 is linked already to peer 1, by another living process"
    await b.recorder.until(lambda: [told[:2] for told in b.recorder.refused][:1] == [(0, "duplicate")])
    assert await ends(a.open(1, K(0, 0), None, None), b.open(0, K(0, 0), None, None)) == [None, None]


async def test_wrong_use_is_told_at_once(rig: Rig) -> None:
    a, _ = await rig.pair()
    a.open(1, K(3, 1), torch.ones(1), None)
    with pytest.raises(ValueError, match="opened after"):
        a.open(1, K(3, 1), torch.ones(1), None)
    with pytest.raises(ValueError, match="float32"):
        a.open(1, K(4, 0), torch.ones(1, dtype=torch.float64), None)
    with pytest.raises(ValueError, match="contiguous"):
        a.open(1, K(4, 0), None, torch.ones(4, 4).t())
    with pytest.raises(OSError, match=a.address):
        await rig.start(identity(0), listen=a.address)


async def test_stop_leaves_no_task_behind(rig: Rig) -> None:
    a, b = await rig.pair()
    a.transport.connect({1: b.address})
    await a.transport.stop()
    await b.transport.stop()
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not [name for name in names if "peer" in name or "bulk" in name or "control" in name]
