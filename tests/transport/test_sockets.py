"""How sockets within a machine are set: also gRPC's, which nobody hands out."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer.transport import sockets
from peer.transport.grpc import _endpoint
from peer.transport.sockets import SOCKET_BYTES, _kernel_limit, fit_connections, fit_to_machine

from .rig import Rig
from .test_direct import goes_on


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection over loopback: (the end that dialled, the one that answered)."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as here:
        there, _ = listener.accept()
        with there:
            yield here, there


def congestion(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


def fitted(sock: socket.socket) -> bool:
    return congestion(sock) in (b"cubic", b"reno") and (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= SOCKET_BYTES or _kernel_limit("wmem_max") < SOCKET_BYTES
    )


def test_who_may_not_take_cubic_takes_reno(
    connection: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(sock: socket.socket, level: int, option: int, value: int | bytes) -> bool:
        if value == b"cubic":
            return False
        sock.setsockopt(level, option, value)
        return True

    monkeypatch.setattr(sockets, "set_option", refuse)
    fit_to_machine(connection[0])
    assert congestion(connection[0]) == b"reno"


def test_only_connections_to_that_end_are_set(connection: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    here, there = connection
    before = congestion(there), there.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    one, other = socket.socketpair()
    with (tmp_path / "file").open("wb"), socket.socket(), one, other:
        assert fit_connections(*here.getpeername()) == 1
    assert fitted(here)
    assert (congestion(there), there.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)) == before
    assert fit_connections("127.0.0.2", here.getpeername()[1]) == 0


def test_a_socket_for_both_families_is_found_by_its_ipv4_address() -> None:
    both = socket.create_server(("::ffff:127.0.0.1", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with both, socket.create_connection(("127.0.0.1", both.getsockname()[1])) as here:
        there, _ = both.accept()
        with there:
            assert fit_connections(*here.getsockname()) == 1
            assert fitted(there)


def test_no_descriptor_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as here:
        before = os.listdir("/proc/self/fd")
        fit_connections(*here.getpeername())
        assert os.listdir("/proc/self/fd") == before


def test_without_proc_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_DESCRIPTORS", "/nowhere")
    assert fit_connections("127.0.0.1", 1) == 0


async def test_vectors_over_grpc_within_a_machine_take_fitted_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends set theirs. Both are of this process, so each end is found as what the other is to be."""
    set_by: list[tuple[str, int, int]] = []

    def noting(host: str, port: int) -> int:
        set_by.append((host, port, fit_connections(host, port)))
        return set_by[-1][2]

    monkeypatch.setattr("peer.transport.grpc.fit_connections", noting)
    rig = Rig("grpc")
    try:
        a, b = await rig.pair()
        await goes_on(a, b, 0)
        assert b.address in [f"{host}:{port}" for host, port, _ in set_by]
        assert [found for _, _, found in set_by] == [1, 1]
    finally:
        await rig.stop()


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [("127.0.0.1:7", ("127.0.0.1", 7)), ("[::1]:7", ("::1", 7)), ("node-a:80", ("node-a", 80)), ("", ("", 0))],
)
def test_endpoints_are_read(address: str, endpoint: tuple[str, int]) -> None:
    assert _endpoint(address) == endpoint
