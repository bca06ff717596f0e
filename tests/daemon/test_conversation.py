"""What a peer says and hears, with nobody at the other end of its links."""

from __future__ import annotations

import logging
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


def conversation(links: Any) -> Conversation:
    nothing: Any = None
    chosen = config(topology="ring")
    return Conversation(
        0,
        make_schedule(chosen),
        make_policy(chosen, 0),
        links,
        nothing,
        Watch(0, chosen, make_schedule(chosen), lambda: Digest(0)),
        payload_means_closed=False,
        round_timeout=1.0,
    )


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_peer_that_hangs_up_has_lost_nobody(leaves: bool, caplog: pytest.LogCaptureFixture) -> None:
    links = Links()
    said = conversation(links)
    said.on_link_up(1)
    said.on_link_up(3)
    if leaves:
        said.say_last_words()
        assert links.told == [(1, WordKind.LEAVING), (3, WordKind.LEAVING)]
    said.on_link_down(1, "stopped")
    assert ("lost its link to peer 1" in caplog.text) is not leaves
    assert ((3, WordKind.LOST) in links.told) is not leaves
    assert said.directory.is_alive(1) is leaves


async def test_why_the_link_to_a_silent_peer_was_lost_is_told_but_warns_of_nothing_new(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "grapevine")
    said = conversation(Links())
    for peer in (1, 3):
        said.on_link_up(peer)
    said.missed(1)
    for peer in (1, 3):
        said.on_link_down(peer, "cut")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "peer 0 goes on without peer 1, which is silent"),
        ("INFO", "peer 0 lost its link to peer 1: cut"),
        ("WARNING", "peer 0 lost its link to peer 3: cut"),
    ]
