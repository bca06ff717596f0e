"""A vector in the format of compression.py, encoded while its beginning is sent already, and looked at while it comes."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from peer.gossip.compression import PIECE, WireFormat

STEP_ELEMENTS: Final = 16 * PIECE
"""What is encoded in one go: a million elements, one to five milliseconds; in bf16 a frame of the transport."""


class Encoding:
    """A `Maker` of payload[ahead:] [num_bytes(d)], which is vector [d], or vector - minus, in a format; the `ahead` bytes before it are
    there already. checks: find out whether it is sound. reads_back: vector takes the values that are read from the payload."""

    def __init__(
        self,
        wire: WireFormat,
        vector: Tensor,
        payload: Tensor,
        *,
        ahead: int = 0,
        minus: Tensor | None = None,
        checks: bool = False,
        reads_back: bool = False,
    ) -> None:
        self.payload = payload
        self._wire = wire
        self._vector = vector
        self._minus = minus
        self._ahead = ahead
        self._checks = checks
        self._reads_back = reads_back
        self._done = 0
        self._sound = True

    @property
    def sound(self) -> bool:
        """Whether it is whole and, where that is checked, all numbers in it are finite."""
        return self._sound and self._done == self._vector.numel()

    def __call__(self) -> int:
        """Encode the next STEP_ELEMENTS. Returns the bytes of the payload that are there, at last all."""
        d, wire, values = self._vector.numel(), self._wire, self.payload[self._ahead :]
        for start in range(self._done, min(self._done + STEP_ELEMENTS, d), PIECE):
            stop = min(start + PIECE, d)
            wire.encode_piece(self._vector, values, start, stop, self._minus)
            if self._checks:
                self._sound = self._sound and wire.is_sound_piece(values, start, stop)
            if self._reads_back:
                wire.piece(values, start, self._vector[start:stop])
            self._done = stop
        return self._ahead + wire.num_bytes(self._done)


class Inspector:
    """A `Taker` that finds out whether payload[ahead:] is sound, and changes nothing."""

    read = None

    def __init__(self, wire: WireFormat, d: int, *, ahead: int = 0) -> None:
        self._wire = wire
        self._d = d
        self._ahead = ahead
        self._done = 0
        self._sound = True

    @property
    def sound(self) -> bool:
        """Whether all of it has come, and makes sense."""
        return self._sound and self._done == self._d

    def __call__(self, payload: Tensor, arrived: int) -> None:
        values = payload[self._ahead :]
        while self._sound and self._done < self._d:
            start, stop = self._done, min(self._done + PIECE, self._d)
            if arrived < self._ahead + self._wire.num_bytes(stop):
                return
            self._sound = self._wire.is_sound_piece(values, start, stop)
            self._done = stop
