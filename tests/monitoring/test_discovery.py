"""The real Prometheus finds peers by the DNS name of their service, as in docker compose: a name server answers for the engine's, and the
server sees it as the only one, in a mount namespace of its own."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.test_up import free_block
from tests.monitoring.prometheus import SHIPPED, faster, running, until

NAME_SERVER = "127.53.0.1"
A, IN, NO_SUCH_NAME = 1, 1, 3


def can_hide_the_name_servers() -> bool:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="there is no `prometheus` here: install the Debian package prometheus",
    ),
    pytest.mark.skipif(
        not can_hide_the_name_servers(), reason="a name server of one's own needs root and mount namespaces"
    ),
]


def answer(query: bytes, name: str, addresses: list[str]) -> bytes:
    """RFC 1035: addresses to who asks for the name's, no such name to who asks for another's."""
    question = query[12 : query.index(b"\0", 12) + 5]
    asked, kind = question[:-4], struct.unpack("!H", question[-4:-2])[0]
    known = asked.lower() == bytes([len(name)]) + name.encode() + b"\0"
    found = addresses if known and kind == A else []
    flags = 0x8580 | (0 if known else NO_SUCH_NAME)
    records = (b"\xc0\x0c" + struct.pack("!HHIH", A, IN, 0, 4) + socket.inet_aton(address) for address in found)
    return query[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0) + question + b"".join(records)


@contextmanager
def name_server(name: str, addresses: list[str]) -> Iterator[None]:
    """Answers on loopback, until the end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.bind((NAME_SERVER, 53))

        def serve() -> None:
            while (query := ours.recvfrom(512))[0]:
                ours.sendto(answer(query[0], name, addresses), query[1])

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", (NAME_SERVER, 53))
            server.join(10)


@pytest.mark.slow
def test_peers_are_found_by_dns(tmp_path: Path) -> None:
    """Nobody listens there: what is tested is whom Prometheus would scrape. It looks at what it discovered every five seconds."""
    (tmp_path / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\n")
    hidden = 'mount --bind resolv.conf "$(readlink -f /etc/resolv.conf)" && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", hidden, "sh"]
    replicas = ["127.53.1.1", "127.53.1.2", "127.53.1.3"]
    config = faster((SHIPPED / "prometheus.yml").read_text())
    with name_server("peer", replicas), running(tmp_path, free_block(1), config, *before) as prometheus:
        until(prometheus.addresses, lambda found: found == {f"http://{replica}:9100/metrics" for replica in replicas})
