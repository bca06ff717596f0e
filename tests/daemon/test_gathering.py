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
from peer.transport.base import ExchangeKey
from tests.daemon.rig import config
from tests.transport.rig import Rig, ends

D = 9


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig("memory")
    yield made
    await made.stop()


async def test_who_asks_twice_in_one_round_is_lost_and_the_peer_goes_on(rig: Rig) -> None:
    """A round of an asker has one exchange, of phase 0. A frame of phase 1 is heard as one more request of the same round."""
    asker, answerer = await rig.pair()
    chosen = config(algorithm="ad-psgd", peers=2, closing="none")
    nothing: Any = None
    said = Conversation(
        1,
        make_schedule(chosen),
        make_policy(chosen, 1),
        answerer.transport,
        nothing,
        Watch(1, chosen, make_schedule(chosen), lambda: Digest(1)),
        payload_means_closed=False,
        round_timeout=1.0,
    )
    said.on_link_up(0)
    stirred = asyncio.Event()
    gathering = Gathering(answerer.transport, said, stirred.set, lambda *_: None)
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
