"""Frames: round trip, and nothing a peer sends raises or is taken for something else."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from peer.transport.base import ExchangeKey
from peer.transport.codec import FRAME_BYTES, HEADER_BYTES, Assembly, DType, Frame, Malformed, decode, encode, frames

U64 = st.integers(0, 2**64 - 1)
KEYS = st.builds(ExchangeKey, U64, st.integers(0, 2**32 - 1))


@given(KEYS, U64, st.binary(min_size=1, max_size=200), U64.map(lambda n: n // 2))
def test_round_trip(key: ExchangeKey, tag: int, piece: bytes, offset: int) -> None:
    frame = decode(encode(key, tag, offset + len(piece), offset, memoryview(piece)), tag)
    assert frame == Frame(key, offset + len(piece), offset, memoryview(piece))


def test_frames_carry_the_dtype_and_a_payload_has_one() -> None:
    key, piece = ExchangeKey(0, 0), memoryview(b"abcd")
    (message,) = frames(key, 1, piece, DType.BYTES)
    frame = decode(message, 1)
    assert frame == Frame(key, 4, 0, piece, DType.BYTES)
    assert isinstance(frame, Frame)
    into = bytearray(4)
    assert Assembly(memoryview(into)).take(frame) == "dtype"
    assert into == bytes(4)
    assert Assembly(memoryview(into), DType.BYTES).take(frame) is None
    assert into == b"abcd"


@given(st.binary(max_size=300), U64)
def test_noise_is_no_frame(noise: bytes, tag: int) -> None:
    assert isinstance(decode(noise, tag), Malformed)
    assert isinstance(decode(b"GRPV\x01\x01\x01\x00" + struct.pack("<Q", tag) + noise, tag), Malformed)


@given(KEYS, U64, st.binary(max_size=100), st.data())
def test_one_damaged_byte_is_noticed(key: ExchangeKey, tag: int, piece: bytes, data: st.DataObject) -> None:
    message = bytearray(encode(key, tag, len(piece), 0, memoryview(piece)))
    message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    assert isinstance(decode(bytes(message), tag), Malformed)


@given(KEYS, U64, st.binary(max_size=100), st.data())
def test_a_cut_or_padded_frame_is_noticed(key: ExchangeKey, tag: int, piece: bytes, data: st.DataObject) -> None:
    message = encode(key, tag, len(piece), 0, memoryview(piece))
    assert isinstance(decode(message[: data.draw(st.integers(0, len(message) - 1))], tag), Malformed)
    assert isinstance(decode(message + data.draw(st.binary(min_size=1, max_size=9)), tag), Malformed)


def test_a_payload_of_several_frames_fills_its_buffer() -> None:
    payload = bytes(range(256)) * (FRAME_BYTES // 256) + b"tail"
    messages = list(frames(ExchangeKey(3, 1), 9, memoryview(payload)))
    assert [len(message) - HEADER_BYTES for message in messages] == [FRAME_BYTES, 4]
    into = bytearray(len(payload))
    assembly = Assembly(memoryview(into))
    for message in messages:
        frame = decode(message, 9)
        assert isinstance(frame, Frame)
        assert assembly.take(frame) is None
    assert assembly.whole
    assert into == payload


def test_frames_out_of_place_are_refused_and_write_nothing() -> None:
    def piece(total: int, offset: int, text: bytes) -> Frame:
        return Frame(ExchangeKey(0, 0), total, offset, memoryview(text))

    into = bytearray(8)
    assembly = Assembly(memoryview(into))
    assert assembly.take(piece(12, 0, b"abcd")) == "size"
    assert assembly.take(piece(8, 4, b"abcd")) == "order"
    assert into == bytes(8)
    assert assembly.take(piece(8, 0, b"abcd")) is None
    assert assembly.take(piece(8, 0, b"abcd")) == "order"
    assert assembly.take(piece(8, 4, b"efgh")) is None
    assert assembly.take(piece(8, 4, b"zzzz")) == "duplicate"
    assert into == b"abcdefgh"


def test_an_empty_payload_is_one_frame() -> None:
    (message,) = frames(ExchangeKey(0, 0), 1, memoryview(b""))
    frame = decode(message, 1)
    assert isinstance(frame, Frame)
    assembly = Assembly(memoryview(bytearray()))
    assert assembly.take(frame) is None
    assert assembly.whole
