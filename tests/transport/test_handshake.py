"""The pure check of two hellos."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.transport.base import Identity
from peer.transport.handshake import Greeting, Refusal, Refused, check_hello, check_protocol, parse_control, shake_hands
from peer.transport.lane import LaneClosed, memory_lane

ME = Identity("run", 3, 8, "cafe", {"lr": "0.1", "batch-size": "64"})
YOU = replace(ME, peer=1)


def test_equals_are_accepted() -> None:
    assert check_hello(ME, YOU) is None
    assert check_hello(YOU, ME, expected_peer=3) is None


@pytest.mark.parametrize(
    ("theirs", "expected", "field", "sentence"),
    [
        (replace(YOU, run="b"), None, "run", "peer 1 belongs to run b, this peer to run"),
        (replace(YOU, num_peers=9), None, "num_peers", "peer 1 counts 9 peers, this peer 8"),
        (replace(YOU, peer=8), None, "peer", "peer 8 is outside of a cluster of 8 peers"),
        (replace(YOU, peer=3), None, "peer", "peer 3 has the id of this peer"),
        (replace(YOU, peer=5), 4, "peer", "peer 5 answers at the address of peer 4"),
        (replace(YOU, peer=5), None, "peer", "peer 5 called peer 3, but the lower id dials"),
        (replace(YOU, fingerprint="x"), None, "fingerprint", "peer 1 trains another model (fingerprint x, here cafe)"),
        (replace(YOU, settings={**ME.settings, "lr": "1"}), None, "lr", "peer 1 has --lr 1, this peer 0.1"),
        (replace(YOU, settings={**ME.settings, "a": "\n"}), None, "a", "peer 1 has --a ?, this peer none"),
    ],
)
def test_the_first_difference_is_named(theirs: Identity, expected: int | None, field: str, sentence: str) -> None:
    assert check_hello(ME, theirs, expected) == Refusal(field, sentence)


def test_another_protocol_is_refused() -> None:
    refusal = check_protocol(Greeting(ME, 0, 0), Greeting(YOU, 0, 0, protocol=1))
    assert refusal == Refusal("protocol", "peer 1 speaks protocol 1, this peer 4")


TEXT = st.text(max_size=100)


@given(st.builds(Identity, TEXT, st.integers(0, 2**32 - 1), st.integers(0, 9), TEXT, st.dictionaries(TEXT, TEXT)))
def test_any_hello_gets_a_printable_answer(theirs: Identity) -> None:
    refusal = check_hello(ME, theirs)
    assert refusal is None or (refusal.sentence.isprintable() and len(refusal.sentence) < 400)


@given(st.binary(max_size=200))
async def test_a_first_message_of_noise_is_refused(noise: bytes) -> None:
    parse_control(noise)  # does not raise
    here, there = memory_lane(8)
    heard: list[Refused] = []

    async def accept(_theirs: Greeting) -> Refusal | None:
        return None

    await there.write(noise)
    await there.finish()
    try:
        assert await shake_hands(here, Greeting(ME, 1, 1), accept, heard.append) is None
        assert heard[0].refusal.field == "hello"
    except LaneClosed:
        pass  # the noise was a hello, and no verdict came


async def test_both_ends_agree_on_the_tokens() -> None:
    here, there = memory_lane(8)

    async def accept(_theirs: Greeting) -> Refusal | None:
        return None

    mine, yours, refused = Greeting(ME, 11, 12), Greeting(YOU, 21, 22), list[Refused]()
    answers = await asyncio.gather(
        shake_hands(here, mine, accept, refused.append), shake_hands(there, yours, accept, refused.append)
    )
    assert list(answers) == [yours, mine]
    assert not refused
