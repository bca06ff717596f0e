"""A crew: processes that play one kind of exchange, told what to do by the bench and measured by it.

Of each repetition the bench hears from every member when it ended (the machine's monotonic clock), the processor seconds of its process,
its peak of resident memory and, where it has an event loop, the longest time that loop was held up.
"""

from __future__ import annotations

import asyncio
import mmap
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvloop
from torch import Tensor

from peer.cluster.forkserver import context
from peer.cluster.line import Line

PATIENCE_SECONDS = 300.0
HEAD_START_SECONDS = 0.02
"""Between the order to begin at a certain time, and that time."""

TICK_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Order:
    """One repetition: `what`, so many times in a row, with payloads of so many bytes."""

    what: str
    num_bytes: int
    times: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one repetition, per time: seconds from the start of the first to the end of the last member; processor seconds of all of them;
    the longest loop lag, seconds; the highest growth of a member's resident memory over what it had before its vectors, bytes;
    extra: what else members say, the largest."""

    seconds: float
    cpu_seconds: float
    lag: float
    peak: int
    extra: dict[str, float]


class Vectors:
    """A member's vectors, of one size at a time, in memory of their own: it is given back when the size changes."""

    def __init__(self) -> None:
        self._num_bytes = -1
        self._made: dict[str, Tensor] = {}
        self.before = resident("VmRSS")

    def resize(self, num_bytes: int) -> None:
        if num_bytes != self._num_bytes:
            self._made.clear()
            self._num_bytes = num_bytes
            self.look()

    def look(self) -> None:
        """From here on memory is counted."""
        self.before = resident("VmRSS")

    def get(self, name: str, num_bytes: int | None = None) -> Tensor:
        """A vector of so many bytes (the size of the order if nothing is said), every page of it touched."""
        if name not in self._made:
            memory = mmap.mmap(-1, max(self._num_bytes if num_bytes is None else num_bytes, 4))
            self._made[name] = torch.frombuffer(memory, dtype=torch.float32).fill_(1.0)
        return self._made[name]


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def cpu_seconds() -> float:
    return time.process_time()


class Crew:
    """Started members; `addresses` is what each said of itself first."""

    def __init__(self, name: str, size: int, main: Callable[..., None], *arguments: Any) -> None:
        self.name, self.size = name, size
        self._lines: list[Line] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = socket.socketpair()
            process = context().Process(target=main, args=(rank, size, theirs, *arguments), daemon=True)
            process.start()
            theirs.close()
            self._lines.append(Line(ours))
            self._processes.append(process)
        addresses = [content for _, content in self._hear("address")]
        self._say("addresses", addresses)
        self._hear("ready")

    def measure(self, order: Order) -> Measured:
        """Play an order. Ends the bench if a member died or is silent."""
        self._say("prepare", {"what": order.what, "num_bytes": order.num_bytes, "times": order.times})
        self._hear("ready")
        begin = time.monotonic() + HEAD_START_SECONDS
        self._say("begin", begin)
        told = [content for _, content in self._hear("done")]
        names = {name for content in told for name in content["extra"]}
        return Measured(
            seconds=(max(content["end"] for content in told) - begin) / order.times,
            cpu_seconds=sum(content["cpu_seconds"] for content in told) / order.times,
            lag=max(content["lag"] for content in told),
            peak=max(content["peak"] for content in told),
            extra={name: max(content["extra"].get(name, 0.0) for content in told) for name in names},
        )

    def stop(self) -> None:
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.join(10.0)
            if process.is_alive():
                process.kill()
                process.join()

    def _say(self, kind: str, content: object) -> None:
        for line in self._lines:
            line.say(kind, content)

    def _hear(self, kind: str) -> list[tuple[int, Any]]:
        """One message of every member, by rank."""
        until, told = time.monotonic() + PATIENCE_SECONDS, dict[int, Any]()
        while len(told) < self.size:
            left = [line for rank, line in enumerate(self._lines) if rank not in told]
            readable, _, _ = select.select(left, (), (), max(until - time.monotonic(), 0.0))
            if not readable:
                raise SystemExit(f"{self.name}: a member said nothing for {PATIENCE_SECONDS:g} s")
            for line in readable:
                try:
                    messages = line.heard()
                except (EOFError, OSError):
                    raise SystemExit(f"{self.name}: a member died") from None
                for message in messages:
                    if message["kind"] != kind:
                        raise SystemExit(f"{self.name}: a member said {message}")
                    told[self._lines.index(line)] = message["content"]
        return sorted(told.items())


class Post:
    """A member's end of the line. Iterating ends when the bench hangs up."""

    def __init__(self, end: socket.socket) -> None:
        self._line = Line(end)
        self._kept: list[dict[str, Any]] = []

    def say(self, kind: str, content: object = None) -> None:
        self._line.say(kind, content)

    def hear(self) -> Any:
        """The content of the next message. Raises EOFError."""
        while not self._kept:
            select.select((self._line,), (), ())
            self._kept += self._line.heard()
        return self._kept.pop(0)["content"]

    async def hear_on_loop(self) -> Any:
        loop = asyncio.get_running_loop()
        while not self._kept:
            waiter = loop.create_future()
            loop.add_reader(self._line.fileno(), waiter.set_result, None)
            try:
                await waiter
            finally:
                loop.remove_reader(self._line.fileno())
            self._kept += self._line.heard()
        return self._kept.pop(0)["content"]

    def done(self, cpu: float, vectors: Vectors, lag: float = 0.0, extra: dict[str, float] | None = None) -> None:
        end = time.monotonic()
        peak = max(resident("VmHWM") - vectors.before, 0)
        self.say(
            "done",
            {"end": end, "cpu_seconds": cpu_seconds() - cpu, "lag": lag, "peak": peak, "extra": extra or {}},
        )


def serve_blocking(
    post: Post,
    play: Callable[[Order, Vectors], dict[str, float] | None],
    warm: Callable[[Order, Vectors], None],
) -> None:
    """Play orders until the bench hangs up, without an event loop. warm: touches the vectors of an order. Lag is that of a thread that
    only ticks."""
    vectors = Vectors()
    post.say("ready")
    while True:
        try:
            order = Order(**post.hear())
            vectors.resize(order.num_bytes)
            warm(order, vectors)
            post.say("ready")
            begin = post.hear()
        except (EOFError, OSError):
            return
        forget_peak()
        time.sleep(max(begin - time.monotonic(), 0.0))
        lag, over = Lag(), threading.Event()
        watch = threading.Thread(target=lag.watch_on_thread, args=(over,))
        watch.start()
        cpu = cpu_seconds()
        extra = play(order, vectors)
        post.done(cpu, vectors, lag.longest, extra)
        over.set()
        watch.join()


async def serve_on_loop(
    post: Post,
    play: Callable[[Order, Vectors], Awaitable[dict[str, float]]],
    warm: Callable[[Order, Vectors], None],
) -> None:
    """The same on an event loop, whose lag is measured."""
    vectors = Vectors()
    post.say("ready")
    while True:
        try:
            order = Order(**await post.hear_on_loop())
            vectors.resize(order.num_bytes)
            warm(order, vectors)
            post.say("ready")
            begin = await post.hear_on_loop()
        except (EOFError, OSError):
            return
        forget_peak()
        await asyncio.sleep(max(begin - time.monotonic(), 0.0))
        lag = Lag()
        watch = asyncio.get_running_loop().create_task(lag.watch())
        cpu = cpu_seconds()
        extra = await play(order, vectors)
        post.done(cpu, vectors, lag.longest, extra)
        watch.cancel()


class Lag:
    """How late the loop, or a thread, is at most with what is due."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            due = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self.longest = max(self.longest, time.monotonic() - due)

    def watch_on_thread(self, over: threading.Event) -> None:
        while not over.is_set():
            due = time.monotonic() + TICK_SECONDS
            time.sleep(TICK_SECONDS)
            self.longest = max(self.longest, time.monotonic() - due)


def run_on_uvloop(main: Callable[[], Awaitable[None]]) -> None:
    async def started() -> None:
        await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(started())
