"""Random numbers that are the same on every peer, platform and library version: SHA-256 of what they are for."""

from __future__ import annotations

import hashlib


def _digest(seed: int, purpose: str, index: tuple[int, ...]) -> bytes:
    return hashlib.sha256("/".join([str(seed), purpose, *map(str, index)]).encode()).digest()


def stable_uniform(seed: int, purpose: str, *index: int) -> float:
    """A number in [0, 1), with 53 random bits, that depends on (seed, purpose, index) only."""
    return (int.from_bytes(_digest(seed, purpose, index)[:8], "little") >> 11) * 2.0**-53


def stable_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed that depends on (seed, purpose, index) only."""
    return int.from_bytes(_digest(seed, purpose, index)[8:16], "little") >> 1
