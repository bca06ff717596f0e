"""Encoding a vector while it is sent, and looking at one while it comes."""

from __future__ import annotations

import pytest
import torch

from peer.gossip.compression import PIECE, WireFormat, wire_format
from peer.gossip.piecewise import STEP_ELEMENTS, Encoding, Inspector
from peer.gossip.wire_dtype import WireDtype

FORMATS = ["bf16", "fp16", "int8", "top-k:0.1"]
SIZES = [0, 1, 1025, PIECE, PIECE + 1, STEP_ELEMENTS - 1, STEP_ELEMENTS, 2 * STEP_ELEMENTS + 3 * PIECE + 17]


def made(name: str) -> WireFormat:
    return wire_format(WireDtype.parse(name))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("ahead", [0, 8])
def test_an_encoding_is_that_of_the_whole_vector_and_never_takes_back_what_it_told(
    name: str, d: int, ahead: int
) -> None:
    wire, x, y = made(name), torch.randn(d), torch.randn(d)
    payload = torch.full((ahead + wire.num_bytes(d),), 77, dtype=torch.uint8)
    encoding = Encoding(wire, x, payload, ahead=ahead, minus=y, checks=True)
    whole, told = wire.encode(x, wire.payload(d), minus=y), [ahead]
    while True:
        told.append(encoding())
        assert torch.equal(payload[ahead : told[-1]], whole[: told[-1] - ahead])
        if told[-1] == payload.numel():
            break
        assert told[-1] > told[-2]
        assert not encoding.sound
    assert encoding.sound
    assert encoding() == payload.numel()
    assert torch.equal(payload[:ahead], torch.full((ahead,), 77, dtype=torch.uint8))


@pytest.mark.parametrize("name", FORMATS)
def test_a_vector_takes_what_is_read_from_its_payload(name: str) -> None:
    wire, d = made(name), STEP_ELEMENTS + PIECE + 5
    x = torch.randn(d)
    whole, read = wire.encode(x, wire.payload(d)), torch.empty(d)
    for start in range(0, d, PIECE):
        wire.piece(whole, start, read[start : start + PIECE])
    encoding = Encoding(wire, x, payload := wire.payload(d), reads_back=True)
    while encoding() < payload.numel():
        pass
    assert torch.equal(payload, whole)
    assert torch.equal(x, read)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("at", [0, STEP_ELEMENTS + 3])
def test_a_number_that_is_not_finite_is_found_by_both_ends(name: str, at: int) -> None:
    wire, d = made(name), STEP_ELEMENTS + PIECE + 5
    x = torch.randn(d)
    x[at] = torch.nan
    encoding = Encoding(wire, x, payload := wire.payload(d), checks=True)
    while encoding() < payload.numel():
        pass
    assert not encoding.sound
    look = Inspector(wire, d)
    look(payload, payload.numel())
    assert not look.sound
    unchecked = Encoding(wire, x, payload)
    while unchecked() < payload.numel():
        pass
    assert unchecked.sound


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("ahead", [0, 8])
def test_an_inspector_reads_nothing_that_has_not_come(name: str, ahead: int) -> None:
    """What has not come is not sound; once it is there it is."""
    wire, d = made(name), 3 * PIECE + 100
    sent = torch.cat((torch.zeros(ahead, dtype=torch.uint8), wire.encode(torch.randn(d), wire.payload(d))))
    room, look, come = torch.full_like(sent, 255), Inspector(wire, d, ahead=ahead), 0
    for until in (0, 3, ahead + wire.num_bytes(PIECE) - 1, ahead + wire.num_bytes(2 * PIECE) + 9, sent.numel()):
        room[come:until] = sent[come:until]
        come = until
        assert not look.sound
        look(room, come)
    assert look.sound
    assert torch.equal(room, sent)
