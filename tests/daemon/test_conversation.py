"""What a peer says and hears, with nobody at the other end of its links."""

from __future__ import annotations

from typing import Any

import pytest

from peer.assembly import make_policy, make_schedule
from peer.daemon.conversation import Conversation
from peer.daemon.watch import Watch
from peer.gossip.digest import Digest
from peer.gossip.words import Word, WordKind
from tests.daemon.rig import config


class Links:
    """Stands for a transport whose links are all up; keeps the words."""

    def __init__(self) -> None:
        self.told: list[tuple[int, WordKind]] = []

    def tell(self, peer: int, word: Word) -> bool:
        self.told.append((peer, word.kind))
        return True


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_peer_that_hangs_up_has_lost_nobody(leaves: bool, caplog: pytest.LogCaptureFixture) -> None:
    links: Any = Links()
    nothing: Any = None
    chosen = config(topology="ring")
    said = Conversation(
        0,
        make_schedule(chosen),
        make_policy(chosen, 0),
        links,
        nothing,
        Watch(0, chosen, make_schedule(chosen), lambda: Digest(0)),
        payload_means_closed=False,
        round_timeout=1.0,
    )
    said.on_link_up(1)
    said.on_link_up(3)
    if leaves:
        said.say_last_words()
        assert links.told == [(1, WordKind.LEAVING), (3, WordKind.LEAVING)]
    said.on_link_down(1, "stopped")
    assert ("lost its link to peer 1" in caplog.text) is not leaves
    assert ((3, WordKind.LOST) in links.told) is not leaves
    assert said.directory.is_alive(1) is leaves
