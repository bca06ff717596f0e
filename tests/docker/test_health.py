"""The health check of the image speaks to the health service of a real peer, and takes nothing else for one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from docker.health import check
from peer.transport.grpc import GrpcTransport
from tests.transport.rig import Recorder, StubService, identity

SCRIPT = Path(__file__).parents[2] / "docker" / "health.py"


async def asked(address: str, seconds: float = 4.0) -> str:
    host, _, port = address.rpartition(":")
    return await asyncio.to_thread(check, host, int(port), seconds)


async def test_a_peer_that_serves_and_then_does_not() -> None:
    transport = GrpcTransport(identity(1), "127.0.0.1:0", service=StubService())
    address = await transport.start(Recorder())
    try:
        assert await asked(address) == ""
        transport.set_serving(False)
        assert await asked(address) == "does not serve"
        transport.set_serving(True)
        assert await asked(address) == ""
    finally:
        await transport.stop()
    assert await asked(address) == "can't be reached: Connection refused"


async def test_the_script_as_the_image_runs_it() -> None:
    """Without site-packages and the environment; the exit code is the verdict."""
    transport = GrpcTransport(identity(1), "127.0.0.1:0", service=StubService())
    address = await transport.start(Recorder())

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-S", str(SCRIPT), address], capture_output=True, text=True, timeout=20, check=False
        )

    try:
        well = await asyncio.to_thread(run)
        transport.set_serving(False)
        ill = await asyncio.to_thread(run)
    finally:
        await transport.stop()
    assert (well.returncode, well.stderr) == (0, "")
    assert (ill.returncode, ill.stderr) == (1, f"{address} does not serve\n")


async def test_a_grpc_server_without_a_health_service() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        assert await asked(f"127.0.0.1:{port}") == "has no health service"
    finally:
        await server.stop(None)


class Odd(socketserver.BaseRequestHandler):
    """Answers with the bytes it is told, then waits for the other end to hang up or hangs up itself."""

    answer = b""
    stays = False

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            self.request.recv(4096)
            self.request.sendall(self.answer)
            while self.stays and self.request.recv(4096):
                pass


@pytest.fixture
def odd() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Odd) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "stays", "wrong"),
    [
        (b"", True, "did not answer within 0.3 s"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, "hung up without an answer"),
        (b"\0\0\4\3\0\0\0\0\1\0\0\0\7", True, "refused the call"),  # RST_STREAM
        (b"\0\0\0\1\5\0\0\0\1", True, "has no health service"),  # trailers only
        (b"\0\0\5\0\1\0\0\0\1\0\0\0\0\0", True, "does not serve"),  # an empty message: UNKNOWN
        (b"\xff\xff\xff\0\0\0\0\0\1" + bytes(80_000), True, "does not speak HTTP/2"),
    ],
)
async def test_what_is_no_peer(
    odd: str, answer: bytes, stays: bool, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Odd, "answer", answer)
    monkeypatch.setattr(Odd, "stays", stays)
    assert await asked(odd, seconds=0.3 if "0.3 s" in wrong else 10.0) == wrong


def test_an_answer_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames need not come whole: the same answer, a byte at a time."""
    answer = b"\0\0\0\4\0\0\0\0\0" + b"\0\0\7\0\0\0\0\0\1" + b"\0\0\0\0\2\x08\x01"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                for byte in answer:
                    connection.sendall(bytes([byte]))
                connection.recv(4096)

        thread = threading.Thread(target=drip)
        thread.start()
        assert check("127.0.0.1", server.getsockname()[1], 5.0) == ""
        thread.join()
