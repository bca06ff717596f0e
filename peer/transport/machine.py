"""Whether two peers are on one machine: then their frames never leave its memory, and pieces need no checksum (codec.py)."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def is_loopback(host: str) -> bool:
    """Of a numeric address; a name is never taken for one."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@functools.cache
def machine_name(run: str) -> bytes:
    """What all peers of a run on this kernel say alike, and no others; it doesn't tell who they are. Empty if this can't be known."""
    try:
        boot = _BOOT_ID.read_bytes().strip()
    except OSError:
        return b""
    return hashlib.blake2b(run.encode(), key=boot[:64], digest_size=16).digest() if boot else b""


def both_here(mine: bytes, theirs: bytes) -> bool:
    """Whether these are names of one machine. A peer says its name only over loopback, as machines that were copied while they ran have
    the same one, and loopback alone may be the near end of a tunnel."""
    return bool(mine) and mine == theirs
