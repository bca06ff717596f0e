"""How sockets within a machine are set, ours and gRPC's.

gRPC makes its own sockets and gives Python no way to them, so they are found among this process's file descriptors by the address of
their other end. Only what the kernel does with them is set; nothing is read or written.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

SOCKET_BYTES: Final = 2 * 1024 * 1024
"""What the kernel may keep in each direction of a socket, where it lets us say so."""

_DESCRIPTORS: Final = "/proc/self/fd"


def fit_to_machine(sock: socket.socket) -> None:
    """For a socket with both ends within this machine: buffers that take a whole frame, and a congestion control that doesn't pace, as bbr
    does, which halves what loopback moves. Buffers of a size of ours would end the kernel's own fitting of a TCP window to a path, and how
    a path is to be used is for others to say: so this is not for sockets between machines."""
    for option, limit in ((socket.SO_SNDBUF, "wmem_max"), (socket.SO_RCVBUF, "rmem_max")):
        # asking for more than the limit would end the kernel's own tuning for less
        if _kernel_limit(limit) >= SOCKET_BYTES:
            set_option(sock, socket.SOL_SOCKET, option, SOCKET_BYTES)
    if sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_CONGESTION"):
        for name in (b"cubic", b"reno"):  # everybody may take reno; cubic, where it is not the default, needs a right
            if set_option(sock, socket.IPPROTO_TCP, socket.TCP_CONGESTION, name):
                break


def fit_connections(host: str, port: int) -> int:
    """`fit_to_machine` all TCP connections of this process whose other end has this numeric address; how many there are."""
    found = 0
    for sock in _connections(host, port):
        fit_to_machine(sock)
        found += 1
    return found


def set_option(sock: socket.socket, level: int, option: int, value: int | bytes) -> bool:
    """Whether the kernel took it."""
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def _connections(host: str, port: int) -> Iterator[socket.socket]:
    """Second handles of them, for as long as each is looked at: a descriptor may be closed, and be another's, at any time; a handle of our
    own that was found to be what is looked for remains it."""
    try:
        names = os.listdir(_DESCRIPTORS)
    except OSError:  # no Linux
        return
    for name in names:
        with contextlib.suppress(OSError), contextlib.closing(_second_handle(int(name))) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6) and _is(sock.getpeername(), host, port):
                yield sock


def _second_handle(descriptor: int) -> socket.socket:
    """Raises OSError if it is no socket."""
    # a file may be locked by this process, and would not be any more once a second handle of it is closed
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise OSError(f"{descriptor} is no socket")
    handle = os.dup(descriptor)
    try:
        return socket.socket(fileno=handle)
    except OSError:
        os.close(handle)
        raise


def _is(address: Any, host: str, port: int) -> bool:
    """A socket that takes IPv4 and IPv6 names IPv4's addresses ::ffff:a.b.c.d."""
    return (str(address[0]).removeprefix("::ffff:"), address[1]) == (host, port)


@functools.cache
def _kernel_limit(name: str) -> int:
    try:
        return int(Path("/proc/sys/net/core", name).read_text())
    except (OSError, ValueError):
        return 0
