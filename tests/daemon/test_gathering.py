"""What the head's side of an exchange does with peers that send what they must not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from peer.assembly import make_policy, make_schedule
from peer.daemon.conversation import Conversation
from peer.daemon.gathering import Gathering
from peer.daemon.watch import Watch
from peer.gossip.digest import Digest
from peer.gossip.effects import Gather, Reply
from peer.transport.base import ExchangeKey, LossReason, Word, WordKind
from tests.daemon.rig import config
from tests.transport.rig import Member, Rig, ends

D = 9


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig("memory")
    yield made
    await made.stop()


def conversation(member: Member, algorithm: str = "ad-psgd") -> Conversation:
    """Of peer 1, over the transport of `member`, without the rest of a peer."""
    chosen = config(algorithm=algorithm, peers=2, **({"head": 1} if algorithm == "sync-sgd" else {}))
    nothing: Any = None
    return Conversation(
        1,
        make_schedule(chosen),
        make_policy(chosen, 1),
        member.transport,
        nothing,
        Watch(1, chosen, make_schedule(chosen), lambda: Digest(1)),
        payload_means_closed=False,
        round_timeout=1.0,
    )


def head(member: Member, algorithm: str = "ad-psgd") -> tuple[Conversation, Gathering, asyncio.Event]:
    """Peer 1 of two, which answers peer 0. The event: something has come, or is lost."""
    said = conversation(member, algorithm)
    said.on_link_up(0)
    stirred = asyncio.Event()
    return said, Gathering(member.transport, said, stirred.set, lambda *_: None), stirred


async def test_who_asks_twice_in_one_round_is_lost_and_the_peer_goes_on(rig: Rig) -> None:
    """A round of an asker has one exchange, of phase 0. A frame of phase 1 is heard as one more request of the same round."""
    asker, answerer = await rig.pair()
    said, gathering, stirred = head(answerer)
    asks = Gather({0: D}, enough=1, any_round=True, atomic=True)
    for round in (3, 4):
        x, theirs = torch.full((D,), float(round)), torch.zeros(D)
        asked = asker.open(1, ExchangeKey(round, 0), x, theirs)
        said.asked = {0: round}
        gathering.open(round, asks)
        async with asyncio.timeout(10):
            while not gathering.has_any(1):
                stirred.clear()
                await stirred.wait()
        assert torch.equal(gathering.inbox().vectors[0], x)
        replied = gathering.reply(Reply({0: -x}))
        assert await ends(asked, *replied.values()) == [None, None]
        assert torch.equal(theirs, -x)

        said.asked = {0: round}  # phase 1 of the same round
        gathering.open(round, asks)
        assert not gathering.expected
        assert gathering.losses().lost == {0: "stale"}


async def test_who_said_goodbye_is_waited_for_in_the_rounds_before_it_only(rig: Rig) -> None:
    asker, answerer = await rig.pair()
    said, gathering, stirred = head(answerer, "sync-sgd")
    gathering.open(4, Gather({0: D}))
    said.on_word(0, Word(WordKind.LEAVING, 0, 5))
    gathering.leave_out_who_left()
    assert list(gathering.expected) == [0], "it takes part in round 4 yet"
    asked = asker.open(1, ExchangeKey(4, 0), torch.ones(D), torch.zeros(D), atomic=False)
    async with asyncio.timeout(10):
        while not gathering.has(None):
            stirred.clear()
            await stirred.wait()
    assert await ends(asked, *gathering.reply(Reply({0: torch.zeros(D)})).values()) == [None, None]
    gathering.open(5, Gather({0: D}))
    assert (list(gathering.expected), gathering.losses().lost) == ([], {0: "left"})


async def test_who_says_goodbye_while_it_is_waited_for_is_left_out(rig: Rig) -> None:
    _, answerer = await rig.pair()
    said, gathering, stirred = head(answerer, "sync-sgd")
    gathering.open(4, Gather({0: D}))
    assert not gathering.has(None)
    said.on_word(0, Word(WordKind.LEAVING, 0, 4))
    stirred.clear()
    gathering.leave_out_who_left()
    assert gathering.has(None)
    assert stirred.is_set()
    assert gathering.losses().lost == {0: "left"}
    assert said.directory.has_left(0)


@pytest.mark.parametrize("why", [LossReason.DEADLINE, LossReason.LEFT])
async def test_who_is_given_up_is_lost_and_after_a_deadline_not_waited_for_again(rig: Rig, why: LossReason) -> None:
    asker, answerer = await rig.pair()
    said, gathering, stirred = head(answerer, "sync-sgd")
    gathering.open(4, Gather({0: D}))
    asked = asker.open(1, ExchangeKey(4, 0), None, torch.zeros(D), atomic=False)
    stirred.clear()
    gathering.give_up(0, why)
    assert gathering.has(None)
    assert stirred.is_set()
    assert gathering.losses().lost == {0: str(why)}
    assert said.directory.is_alive(0) is (why is not LossReason.DEADLINE)
    (lost,) = await ends(asked)
    assert lost is not None, "the other end hears of it"


async def test_a_request_that_went_with_its_link_makes_room_for_the_next(rig: Rig) -> None:
    """The first frame of a round was heard, the rest never comes; the peer asks again in a later round."""
    asker, answerer = await rig.pair()
    said = conversation(answerer)
    said.on_link_up(0)
    gathering = Gathering(answerer.transport, said, asyncio.Event().set, lambda *_: None)
    asks = Gather({0: D}, enough=1, any_round=True, atomic=True)
    said.asked = {0: 3}
    gathering.open(3, asks)
    assert list(gathering.expected) == [0]
    x, theirs = torch.ones(D), torch.zeros(D)
    asked = asker.open(1, ExchangeKey(4, 0), x, theirs)
    said.asked[0] = 4
    gathering.open(3, asks)
    async with asyncio.timeout(10):
        while not gathering.has_any(1):
            await asyncio.sleep(0.001)
    replied = gathering.reply(Reply({0: -x}))
    assert await ends(asked, *replied.values()) == [None, None]
    assert torch.equal(theirs, -x)


async def test_what_was_asked_over_a_link_is_gone_with_it(rig: Rig) -> None:
    said = conversation((await rig.pair())[1])
    said.on_link_up(0)
    said.asked = {0: 3}
    said._hangs_up = True
    said.on_link_down(0, "cut")
    assert said.asked == {}
