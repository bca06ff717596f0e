"""Binary frames: the pieces in which a vector travels.

A frame is a fixed header, little-endian and without padding, and then a piece of a payload:

    magic 4s | version u8 | kind u8 | dtype u8 | reserved u8 | tag u64 | round u64 | phase u32 | total u64 |
    offset u64 | length u32 | crc32 u32 | payload [length]

`tag` is the session token which the *receiving* end drew for this link and told in its hello, so a frame is bound to
one run, one sender and one fingerprint without repeating them. `total` is the size of the whole payload in bytes,
`offset` where this piece belongs. The checksum (zlib.crc32) covers the header before it and the piece after it, so a
flipped bit can not move a piece to another exchange. How the piece enters it depends on the carrier (`Check`): `column_sums` on the
lanes of links, all of it in a snapshot (`encode`, `decode`).

Nothing here is trusted and nothing here raises on what a peer sent: `decode` returns a `Frame` or says why not. A
carrier that receives pieces in place reads the header alone first (`decode_head`).
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from peer.transport.base import ExchangeKey

MAGIC: Final = b"GRPV"
VERSION: Final = 1
FRAME_BYTES: Final = 2 * 1024 * 1024
"""Largest piece in one frame. Measured: 64 KiB costs 2.5x the time, 16 MiB costs 1.4x and stalls the loop."""

MAX_MESSAGE_BYTES: Final = FRAME_BYTES + 64 * 1024
"""Largest message of any kind that a peer accepts."""

_CHECKED = struct.Struct("<4sBBBBQQIQQI")  # all of the header before the checksum
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES: Final = _CHECKED.size + _CHECKSUM.size


Check: TypeAlias = Callable[[memoryview, int], int]
"""(piece, checksum of what is before it) -> checksum of both, 32 bits. `zlib.crc32` is one."""

COLUMNS: Final = 521
"""A prime, so that what is displaced by a page, or any power of two, comes into other columns."""


def column_sums(piece: memoryview, start: int) -> int:
    """The CRC-32 of the sums (modulo 2^64) of the piece's columns, when its 64-bit little-endian words are written in rows of
    COLUMNS, and of what is left at its end. Notices all that CRC-32 notices, with a chance of 2^-32 to miss it, but for words that
    change places within a column, 4168 bytes or a multiple of that apart. Costs less than half of zlib.crc32."""
    whole = len(piece) - len(piece) % (8 * COLUMNS)
    rows = np.frombuffer(piece[:whole], dtype="<u8").reshape(-1, COLUMNS)
    return zlib.crc32(piece[whole:], zlib.crc32(np.add.reduce(rows, axis=0).data, start))


def unchecked(piece: memoryview, start: int) -> int:
    """Leaves the piece out: for bytes that never leave this machine's memory."""
    return start


class FrameKind(enum.IntEnum):
    DATA = 1


class DType(enum.IntEnum):
    """What a payload is made of. BYTES: a vector in one of the formats of peer/gossip/compression.py."""

    FLOAT32 = 1
    BYTES = 2


_DTYPES: Final = frozenset(int(dtype) for dtype in DType)


@dataclass(frozen=True, slots=True)
class Head:
    """The header of a frame: a piece [offset, offset + length) of a payload of `total` bytes. `start` is the checksum of
    the header itself, `checksum` what the sender says header and piece come to."""

    key: ExchangeKey
    total: int
    offset: int
    length: int
    start: int
    checksum: int
    dtype: DType

    def matches(self, piece: memoryview, check: Check) -> bool:
        """Whether this is the piece that was sent."""
        return check(piece, self.start) == self.checksum


@dataclass(frozen=True, slots=True)
class Frame:
    """A piece [offset, offset + len(payload)) of a payload of `total` bytes; `payload` is a view into the message."""

    key: ExchangeKey
    total: int
    offset: int
    payload: memoryview
    dtype: DType = DType.FLOAT32


@dataclass(frozen=True, slots=True)
class Malformed:
    """Why bytes are not a frame. `key` is what the header says, if there is a header of this session; a hint, not a
    fact."""

    reason: str
    key: ExchangeKey | None = None


def encode_head(
    key: ExchangeKey,
    tag: int,
    total: int,
    offset: int,
    piece: memoryview,
    check: Check = zlib.crc32,
    dtype: DType = DType.FLOAT32,
) -> bytes:
    """The header [HEADER_BYTES] of the frame that carries this piece."""
    checked = _CHECKED.pack(
        MAGIC, VERSION, FrameKind.DATA, dtype, 0, tag, key.round, key.phase, total, offset, len(piece)
    )
    return checked + _CHECKSUM.pack(check(piece, zlib.crc32(checked)))


def encode(
    key: ExchangeKey, tag: int, total: int, offset: int, piece: memoryview, dtype: DType = DType.FLOAT32
) -> bytes:
    """One frame, in one copy of the piece."""
    return b"".join((encode_head(key, tag, total, offset, piece, dtype=dtype), piece))


def pieces(payload: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(offset, piece) of the payload, in order. An empty payload is one empty piece."""
    for offset in range(0, max(len(payload), 1), FRAME_BYTES):
        yield offset, payload[offset : offset + FRAME_BYTES]


def frames(key: ExchangeKey, tag: int, payload: memoryview, dtype: DType = DType.FLOAT32) -> Iterator[bytes]:
    """The payload [total bytes], cut and encoded in order. An empty payload is one frame without a piece."""
    for offset, piece in pieces(payload):
        yield encode(key, tag, len(payload), offset, piece, dtype)


def decode(message: bytes, tag: int) -> Frame | Malformed:
    """Read one frame that must carry `tag`. Never raises, whatever the bytes."""
    view = memoryview(message)
    head = decode_head(view[:HEADER_BYTES], len(message), tag)
    if isinstance(head, Malformed):
        return head
    if not head.matches(view[HEADER_BYTES:], zlib.crc32):
        return Malformed("checksum", head.key)
    return Frame(head.key, head.total, head.offset, view[HEADER_BYTES:], head.dtype)


def decode_head(head: memoryview, num_bytes: int, tag: int) -> Head | Malformed:
    """Read the header of a frame of `num_bytes` that must carry `tag`; all that can be said without its piece. Never
    raises."""
    if num_bytes < HEADER_BYTES:
        return Malformed("truncated")
    magic, version, kind, dtype, reserved, their_tag, round_, phase, total, offset, length = _CHECKED.unpack_from(head)
    if magic != MAGIC:
        return Malformed("magic")
    if version != VERSION:
        return Malformed("version")
    if their_tag != tag:
        return Malformed("tag")
    key = ExchangeKey(round_, phase)
    if length > FRAME_BYTES or num_bytes != HEADER_BYTES + length:
        return Malformed("length", key)
    if kind != FrameKind.DATA or reserved != 0:
        return Malformed("kind", key)
    if dtype not in _DTYPES:
        return Malformed("dtype", key)
    if offset + length > total or (length == 0 and total > 0):
        return Malformed("range", key)
    (checksum,) = _CHECKSUM.unpack_from(head, _CHECKED.size)
    return Head(key, total, offset, length, zlib.crc32(head[: _CHECKED.size]), checksum, DType(dtype))


class Assembly:
    """Fills one preallocated buffer [total bytes] from frames of one dtype that must come in order and cover it exactly."""

    __slots__ = ("_dtype", "_into", "arrived", "whole")

    def __init__(self, into: memoryview, dtype: DType = DType.FLOAT32) -> None:
        self._into = into
        self._dtype = dtype
        self.arrived = 0
        self.whole = False

    def take(self, frame: Frame) -> str | None:
        """Copy the piece to its place. Returns None, or why the frame does not belong here (then nothing is
        written)."""
        place = self.place(frame.total, frame.offset, len(frame.payload), frame.dtype)
        if isinstance(place, str):
            return place
        place[:] = frame.payload
        self.placed(len(place))
        return None

    def place(self, total: int, offset: int, length: int, dtype: DType) -> memoryview | str:
        """Where the next piece [length] is to be written, or why it does not belong here."""
        if self.whole:
            return "duplicate"
        if dtype != self._dtype:
            return "dtype"
        if total != len(self._into):
            return "size"
        if offset != self.arrived:
            return "order"
        return self._into[offset : offset + length]

    def placed(self, length: int) -> None:
        """The next piece [length] is in its place, and is what was sent."""
        self.arrived += length
        self.whole = self.arrived == len(self._into)
