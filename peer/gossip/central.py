"""Whole numbers that travel beside a vector, in float32: counts of samples, and the clocks of methods with a head."""

from __future__ import annotations

from torch import Tensor

from peer.gossip.algorithm import RoundBroken, is_finite

DIGIT = 1 << 24
"""The largest integer up to which float32 is exact."""


def read_count(sent: Tensor, peers: int = 1) -> int | None:
    """The number that weighs the sum [d] before it; sent: [d + 1]. None if a number is not finite, or the last is no count: also one that
    is larger than float32 counts (`refusals` refuses such rounds), which no clock could be written with. peers: whose counts are added up
    in it."""
    return int(sent[-1]) if is_finite(sent) and is_count(float(sent[-1]), peers) else None


def is_count(number: float, peers: int = 1) -> bool:
    """Whether so many peers' counts may add up to this."""
    return 0 <= number <= peers * DIGIT and number.is_integer()


def write_clock(clock: int, digits: Tensor) -> None:
    """Samples so far, below 2^48, into the first two of `digits`."""
    digits[0], digits[1] = divmod(clock, DIGIT)


def read_clock(digits: Tensor) -> int:
    """The number that the first two of `digits` are; -1 if they are none."""
    high, low = float(digits[0]), float(digits[1])
    if all(digit.is_integer() and 0 <= digit < DIGIT for digit in (high, low)):
        return int(high) * DIGIT + int(low)
    return -1


def take_model(head: int, sent: Tensor, params: Tensor) -> int:
    """Copy the head's x into params, [d], and return its clock; sent: x and the clock's digits, [d + 2] or longer. Raises RoundBroken if
    they are not finite, or digits are none."""
    d = params.numel()
    if is_finite(sent) and (clock := read_clock(sent[d:])) >= 0:
        params.copy_(sent[:d])
        return clock
    raise RoundBroken(head, "corrupt", needs="its head")
