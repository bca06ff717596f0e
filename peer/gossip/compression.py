"""What a vector [d] is on the wire: formats, their exact sizes, encoding and decoding. Pure, and nothing here trusts what came.

    format    bytes for d elements              of float32   what becomes of an element x of a block with largest |x| = m
    fp32      4 d                               1            itself
    bf16      2 d                               1/2          within 2^-8 |x|
    fp16      2 d + 4 ceil(d / 1024)            0.501        within 2^-11 |x|, or 2^-39 m if that is more: scaled by a power of two
                                                             so that m is in [2^14, 2^15); nothing overflows
    int8      d + 4 ceil(d / 1024)              0.251        within m / 254: the nearest multiple of m / 127
    top-k:R   4 sum over pieces of ceil(R p)    R            within 2^-8 |x| if it is among the ceil(R p) largest |x| of its
                                                             piece of p elements, else 0

A payload is the vector's pieces of 65,536 elements (the last one shorter) one after the other, so that all work fits the cache and
needs no vector of its own. A piece is: bf16 its numbers; fp16 and int8 one float32 scale for each block of 1024 elements, then the
numbers; top-k the indices within the piece, uint16 and strictly increasing, then as many bf16. Numbers are little-endian. Rounding is
to nearest even, so equal vectors have equal payloads.

Decoding. The size is checked by the transport, before anything is here. `is_sound` refuses what is not finite in any format but fp32
(NaN or infinite numbers; scales that are NaN, negative or above 2^111, so a product can't overflow) and top-k's indices that are not
strictly increasing or are outside of their piece. What it lets pass decodes to finite numbers and writes nowhere but into the piece.
An int8 of -128 is harmless, -128 scales. A sender whose vector is not finite sends a payload that is not sound.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from peer.gossip.wire_dtype import WireDtype

PIECE: Final = 1 << 16
BLOCK: Final = 1024
LARGEST_SCALE: Final = 2.0**111
SMALLEST_INT8: Final = 2.0**-118
"""A block whose largest magnitude is less has no scale that float32 can hold exactly enough, and is sent as zeros."""


class WireFormat(ABC):
    """A subclass says what one piece [p], p <= PIECE, looks like; what is done with whole vectors is here."""

    dtype: ClassVar[torch.dtype] = torch.uint8  # of payloads
    #: Passes over a vector that encoding costs, roughly: what is done on the event loop and what is handed to a thread.
    work: ClassVar[int] = 2

    def __init__(self, name: WireDtype) -> None:
        self.name = name

    @abstractmethod
    def piece_bytes(self, p: int) -> int:
        """Size of a piece of p elements."""

    @abstractmethod
    def _put(self, values: Tensor, code: Tensor) -> None:
        """Encode values [p] into code [piece_bytes]."""

    @abstractmethod
    def _get(self, code: Tensor, out: Tensor) -> None:
        """Decode a sound code [piece_bytes] into out [p]."""

    @abstractmethod
    def _sound(self, code: Tensor, p: int) -> bool: ...

    def num_bytes(self, d: int) -> int:
        """Exact size of the payload of d elements."""
        whole, rest = divmod(d, PIECE)
        return whole * self.piece_bytes(PIECE) + (self.piece_bytes(rest) if rest else 0)

    def payload(self, d: int) -> Tensor:
        """Room for the payload of d elements."""
        return torch.empty(self.num_bytes(d), dtype=torch.uint8)

    def encode(self, vector: Tensor, payload: Tensor, minus: Tensor | None = None) -> Tensor:
        """vector [d], or vector - minus, into payload [num_bytes(d)], which is returned."""
        for start, stop in pieces(vector.numel()):
            self.encode_piece(vector, payload, start, stop, minus)
        return payload

    def encode_piece(self, vector: Tensor, payload: Tensor, start: int, stop: int, minus: Tensor | None = None) -> None:
        """Elements start:stop of it, one of its pieces."""
        values = vector[start:stop] if minus is None else vector[start:stop] - minus[start:stop]
        self._put(values, self._code(payload, start, stop))

    def is_sound(self, payload: Tensor, d: int) -> bool:
        """Whether bytes [num_bytes(d)] are a vector [d] of finite numbers."""
        return all(self.is_sound_piece(payload, start, stop) for start, stop in pieces(d))

    def is_sound_piece(self, payload: Tensor, start: int, stop: int) -> bool:
        """Whether elements start:stop of a payload, one of its pieces, are finite numbers."""
        return self._sound(self._code(payload, start, stop), stop - start)

    def piece(self, payload: Tensor, start: int, out: Tensor) -> Tensor:
        """Elements [start, start + p) of a sound payload, into out [p], which is returned. start: a multiple of PIECE."""
        self._get(self._code(payload, start, start + out.numel()), out)
        return out

    def _code(self, payload: Tensor, start: int, stop: int) -> Tensor:
        at = start // PIECE * self.piece_bytes(PIECE)
        return payload[at : at + self.piece_bytes(stop - start)]


def pieces(d: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the pieces of d elements."""
    for start in range(0, d, PIECE):
        yield start, min(start + PIECE, d)


class Float32(WireFormat):
    """Never encoded in a round: the vector is its own payload. Here for its size, and as the yardstick of tests."""

    dtype = torch.float32
    work = 1

    def piece_bytes(self, p: int) -> int:
        return 4 * p

    def _put(self, values: Tensor, code: Tensor) -> None:
        code.view(torch.float32).copy_(values)

    def _get(self, code: Tensor, out: Tensor) -> None:
        out.copy_(code.view(torch.float32))

    def _sound(self, code: Tensor, p: int) -> bool:
        return True


class BFloat16(WireFormat):
    def piece_bytes(self, p: int) -> int:
        return 2 * p

    def _put(self, values: Tensor, code: Tensor) -> None:
        code.view(torch.bfloat16).copy_(values)

    def _get(self, code: Tensor, out: Tensor) -> None:
        out.copy_(code.view(torch.bfloat16))

    def _sound(self, code: Tensor, p: int) -> bool:
        return _finite_bfloat16(code)


class _Blocks(WireFormat):
    """Numbers of `number` type that are multiples of their block's scale."""

    number: ClassVar[torch.dtype]

    def piece_bytes(self, p: int) -> int:
        return 4 * _num_blocks(p) + self.number.itemsize * p

    def _parts(self, code: Tensor, p: int) -> tuple[Tensor, Tensor]:
        """(scales [blocks], numbers [p]), views."""
        at = 4 * _num_blocks(p)
        return code[:at].view(torch.float32), code[at:].view(self.number)

    @abstractmethod
    def _scales(self, largest: Tensor) -> Tensor:
        """Scale of each block from its largest magnitude [blocks]; what is not finite stays so, and is refused."""

    @abstractmethod
    def _round_(self, multiples: Tensor) -> Tensor: ...

    def _put(self, values: Tensor, code: Tensor) -> None:
        p = values.numel()
        scales, numbers = self._parts(code, p)
        if not p % BLOCK:
            self._put_blocks(values.view(-1, BLOCK), scales, numbers.view(-1, BLOCK))
            return
        cut = p - p % BLOCK
        if cut:
            self._put_blocks(values[:cut].view(-1, BLOCK), scales[:-1], numbers[:cut].view(-1, BLOCK))
        self._put_blocks(values[cut:].view(1, -1), scales[-1:], numbers[cut:].view(1, -1))

    def _put_blocks(self, values: Tensor, scales: Tensor, numbers: Tensor) -> None:
        """values, numbers: [blocks, elements]."""
        scales.copy_(self._scales(values.abs().amax(1)))
        inverse = torch.where(scales > 0, scales.reciprocal(), 0.0)
        numbers.copy_(self._round_(values * inverse[:, None]))

    def _get(self, code: Tensor, out: Tensor) -> None:
        p = out.numel()
        scales, numbers = self._parts(code, p)
        out.copy_(numbers)
        cut = p - p % BLOCK
        out[:cut].view(-1, BLOCK).mul_(scales[: cut // BLOCK, None])
        if cut < p:
            out[cut:].mul_(scales[-1])

    def _sound(self, code: Tensor, p: int) -> bool:
        scales, _ = self._parts(code, p)
        return bool(((scales >= 0) & (scales <= LARGEST_SCALE)).all())


class Float16(_Blocks):
    number = torch.float16
    work = 3

    def _scales(self, largest: Tensor) -> Tensor:
        _, exponent = torch.frexp(largest)
        power = torch.ldexp(torch.ones_like(largest), (exponent - 15).clamp(min=-126))
        return torch.where(torch.isfinite(largest) & (largest > 0), power, largest)  # 0, NaN and infinity stay

    def _round_(self, multiples: Tensor) -> Tensor:
        return multiples  # the cast rounds

    def _sound(self, code: Tensor, p: int) -> bool:
        _, numbers = self._parts(code, p)
        return super()._sound(code, p) and int((numbers.view(torch.int16) & 0x7FFF).max()) < 0x7C00


class Int8(_Blocks):
    number = torch.int8
    work = 6

    def _scales(self, largest: Tensor) -> Tensor:
        return torch.where(largest < SMALLEST_INT8, 0.0, largest / 127)

    def _round_(self, multiples: Tensor) -> Tensor:
        return multiples.round_().nan_to_num_(0.0)


class TopK(WireFormat):
    work = 12

    def kept(self, p: int) -> int:
        """How many of p elements are sent."""
        return math.ceil(self.name.fraction * p)

    def piece_bytes(self, p: int) -> int:
        return 4 * self.kept(p)

    def _parts(self, code: Tensor, p: int) -> tuple[Tensor, Tensor]:
        """(indices as bytes, numbers as bytes), views."""
        at = 2 * self.kept(p)
        return code[:at], code[at:]

    def _put(self, values: Tensor, code: Tensor) -> None:
        """numpy's partition is ten times as fast as torch.topk. It takes a NaN for the largest of all, so it is sent and refused."""
        p, kept = values.numel(), self.kept(values.numel())
        where, numbers = self._parts(code, p)
        indices = where.numpy().view("<u2")
        if kept < p:
            indices[:] = np.argpartition(values.abs().numpy(), p - kept)[p - kept :]
            indices.sort()
        else:
            indices[:] = np.arange(p)
        numbers.view(torch.bfloat16).copy_(values[torch.from_numpy(indices.astype(np.int64))])

    def _get(self, code: Tensor, out: Tensor) -> None:
        where, numbers = self._parts(code, out.numel())
        indices = torch.from_numpy(where.numpy().view("<u2").astype(np.int64))
        out.zero_()[indices] = numbers.view(torch.bfloat16).float()

    def _sound(self, code: Tensor, p: int) -> bool:
        where, numbers = self._parts(code, p)
        indices = where.numpy().view("<u2")
        return bool(indices[-1] < p and (indices[1:] > indices[:-1]).all()) and _finite_bfloat16(numbers)


def _num_blocks(p: int) -> int:
    return -(-p // BLOCK)


def _finite_bfloat16(code: Tensor) -> bool:
    """By their bits: an exponent of all ones is NaN or infinity."""
    return int((code.view(torch.int16) & 0x7FFF).max()) < 0x7F80


_FORMATS: Final[dict[str, type[WireFormat]]] = {
    "fp32": Float32,
    "bf16": BFloat16,
    "fp16": Float16,
    "int8": Int8,
    "top-k": TopK,
}


def wire_format(name: WireDtype) -> WireFormat:
    """Raises ValueError on a machine whose numbers are not little-endian."""
    if sys.byteorder != "little":
        raise ValueError("vectors travel little-endian, and this machine is not")
    return _FORMATS[name.kind](name)


FP32: Final = wire_format(WireDtype("fp32"))
