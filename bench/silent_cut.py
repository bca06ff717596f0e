"""How soon two peers talk again after a silent cut: for a minute no packet passes between their machines, and nothing says so.

    sudo python bench/silent_cut.py [--seconds 60] [--vectors]

Two machines (network namespaces) on a switch (a bridge in a third); the cut takes a port out of the switch, so that both ends still have
a carrier and TCP hears nothing. The peers are `grapevine peer`; what is timed is what they log: that they go on
alone, and the new link. The
reference, over the same cut, is a plain grpc.aio channel with default options that asks the other peer's health service in turn, each
call with a deadline of a second. Prints one JSON object. Needs root and iproute2.

With --vectors only the connection that the vectors are on is cut, and new ones to its port, as by a firewall that changes its mind; gRPC
and the words get through. Timed: that an end notices, and that vectors take gRPC. Needs iptables besides.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

ADDRESSES = ("10.79.0.1", "10.79.0.2")
PORT = 7000
DATA_PORT = 7001
HEALED_WITHIN = 120.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def drop(host: str, *packets: str) -> None:
    """What comes there of TCP, from now on."""
    command = ["iptables", "-w", "-A", "INPUT", "-p", "tcp", *packets, "-j", "DROP"]
    subprocess.run(["ip", "netns", "exec", host, *command], check=True)


class Wire:
    """Two hosts and the switch between them, in namespaces of this process's own."""

    def __init__(self) -> None:
        self.hosts = [f"grapevine-{os.getpid()}-{name}" for name in ("a", "b")]
        self._switch = f"grapevine-{os.getpid()}-s"

    @contextmanager
    def up(self) -> Iterator[Wire]:
        made = [self._switch, *self.hosts]
        try:
            for name in made:
                ip("netns", "add", name)
            ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            ip("-n", self._switch, "link", "set", "br0", "up")
            for number, (host, address) in enumerate(zip(self.hosts, ADDRESSES, strict=True)):
                self._plug(host, address, f"port{number}")
            yield self
        finally:
            for name in made:
                subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)

    def _plug(self, host: str, address: str, port: str) -> None:
        ip("-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self._switch)
        ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
        for name, device in ((host, "lo"), (host, "eth0"), (self._switch, port)):
            ip("-n", name, "link", "set", device, "up")
        ip("-n", self._switch, "link", "set", port, "master", "br0")

    def cut(self) -> None:
        ip("-n", self._switch, "link", "set", "port1", "nomaster")

    def cut_vectors(self) -> None:
        """Of the two connections to the data port the one on which more has come."""
        dialler, door = self.hosts
        command = ["ss", "-HtniO", "state", "established", "sport", "=", f":{DATA_PORT}"]
        told = subprocess.run(
            ["ip", "netns", "exec", door, *command], check=True, capture_output=True, text=True
        ).stdout
        found = [re.search(r":\d+ +\S+:(\d+) .*bytes_received:(\d+)", line) for line in told.splitlines()]
        port = max((int(one[2]), one[1]) for one in found if one)[1]
        drop(dialler, "--dport", port, "--sport", str(DATA_PORT))
        drop(door, "--sport", port, "--dport", str(DATA_PORT))
        drop(door, "--dport", str(DATA_PORT), "--syn")

    def heal(self) -> None:
        ip("-n", self._switch, "link", "set", "port1", "master", "br0")


class Told:
    """A process, and when it wrote which line; the thread ends with it."""

    def __init__(self, host: str, *command: str) -> None:
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", host, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[tuple[float, str]] = []
        self._more = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.lines.append((time.monotonic(), line.rstrip()))
                self._more.notify_all()

    def when(self, words: str | tuple[str, ...], since: float, within: float) -> float | None:
        """Seconds after `since` at which it first wrote these words, or one of several; None: not within so many."""
        told = (words,) if isinstance(words, str) else words

        def found() -> float | None:
            return next((at - since for at, line in self.lines if at >= since and any(w in line for w in told)), None)

        with self._more:
            self._more.wait_for(lambda: found() is not None, max(since + within - time.monotonic(), 0.0))
            return found()

    @contextmanager
    def living(self) -> Iterator[Told]:
        try:
            yield self
        finally:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def peer(wire: Wire, number: int) -> Told:
    addresses = [word for address in ADDRESSES for word in ("--address", f"{address}:{PORT}")]
    words = ["--peer", str(number), "--peers", "2", *addresses, "--listen", f"{ADDRESSES[number]}:{PORT}"]
    more = ["--metrics-port", "-1", "--chunk-seconds", "0.01", "--log-level", "info", "--data-port", str(DATA_PORT)]
    return Told(wire.hosts[number], sys.executable, "-m", "peer", "peer", *words, *more)


async def ask_for_ever() -> None:
    """What a plain channel makes of it."""
    async with grpc.aio.insecure_channel(f"{ADDRESSES[1]}:{PORT}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while True:
            try:
                await check(health_pb2.HealthCheckRequest(), timeout=1.0)
                print("answered", flush=True)
            except grpc.aio.AioRpcError as error:
                print(f"failed: {error.code().name}", flush=True)
            await asyncio.sleep(0.1)


def measure(seconds: float, *, reference: bool) -> dict[str, object]:
    with ExitStack() as stack:
        wire = stack.enter_context(Wire().up())
        peers = [stack.enter_context(peer(wire, number).living()) for number in (0, 1)]
        waited_for = [(told, "training") for told in peers]
        if reference:
            plain = stack.enter_context(Told(wire.hosts[0], sys.executable, __file__, "--plain").living())
            waited_for.append((plain, "answered"))
        for told, words in waited_for:
            if told.when(words, 0.0, time.monotonic() + 60) is None:
                raise SystemExit(f"it never said {words!r}: {told.lines}")
        cut_at = time.monotonic()
        wire.cut()
        time.sleep(seconds)
        noticed = [told.when(("goes on without", "lost its link"), cut_at, 0.0) for told in peers]
        healed_at = time.monotonic()
        wire.heal()
        again = [told.when("again", healed_at, HEALED_WITHIN) for told in peers]
        return {
            "cut_seconds": seconds,
            "noticed_seconds": noticed,
            "again_seconds": again,
            "plain_channel_again_seconds": plain.when("answered", healed_at, HEALED_WITHIN) if reference else None,
        }


def measure_vectors() -> dict[str, object]:
    with ExitStack() as stack:
        wire = stack.enter_context(Wire().up())
        peers = [stack.enter_context(peer(wire, number).living()) for number in (0, 1)]
        for told in peers:
            if told.when("training", 0.0, time.monotonic() + 60) is None:
                raise SystemExit(f"it never trained: {told.lines}")
        time.sleep(2)
        cut_at = time.monotonic()
        wire.cut_vectors()
        on_grpc = peers[0].when("its vectors take gRPC", cut_at, HEALED_WITHIN)
        return {
            "noticed_seconds": [
                told.when("nothing sent on the data socket was answered", cut_at, 0.0) for told in peers
            ],
            "on_grpc_seconds": on_grpc,
            "again_seconds": [told.when("again", cut_at, (on_grpc or 0.0) + 10) for told in peers],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="How long the cut lasts")
    parser.add_argument("--vectors", action="store_true", help="Cut the vectors' connection alone")
    parser.add_argument("--plain", action="store_true", help="Be the reference; started by this bench itself")
    parser.add_argument("--no-reference", action="store_true", help="The peers only")
    a = parser.parse_args()
    if a.plain:
        asyncio.run(ask_for_ever())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # peers and namespaces are taken along
    print(json.dumps(measure_vectors() if a.vectors else measure(a.seconds, reference=not a.no_reference)))


if __name__ == "__main__":
    main()
