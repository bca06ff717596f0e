"""What being watched costs training: samples per second of a real cluster with and without scrapes and open pages.

    python bench/watched.py [--peers 4] [--watched 1] [--scrapes 5] [--pages 10] [--seconds 2] [--pairs 60] [--chunk-seconds 0]

One cluster of `grapevine up` trains all the time. Short windows take turns, off on on off, so that whatever drifts strikes both alike; a
process of its own scrapes each of the first --watched peers --scrapes times a second and keeps --pages of their event streams open, and in
the other windows holds nothing. Shown is the ratio watched to unwatched of each pair of neighbouring windows, and of all pairs the median,
its 95 % interval (bootstrap over pairs) and the quartiles, for two numbers:

- samples per second. Where peers fill the cores (--chunk-seconds 0), what the watching process takes for itself, a browser's work, is taken
  from them: this number has it in it, and how much it took is shown.
- processor seconds of the peers' processes for a sample. The watching process is not in it: it is what serving costs.

Samples are counted when their chunk begins, so that a window need not end with a round.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import random
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from peer.cluster.browser import page_address
from peer.cluster.forkserver import start_early
from peer.cluster.launcher import Launcher
from peer.config import Config, validated
from peer.daemon.process import run_loop
from peer.transport.client import PeerClient

#: After a switch, until every stream is open or closed.
SETTLE_SECONDS = 0.5


async def scrape(session: aiohttp.ClientSession, url: str, every: float, taken: list[float]) -> None:
    while True:
        began = time.monotonic()
        async with session.get(f"{url}metrics") as answer:
            await answer.read()
        taken.append(time.monotonic() - began)
        await asyncio.sleep(max(every - (time.monotonic() - began), 0.0))


async def look(session: aiohttp.ClientSession, url: str, updates: list[int]) -> None:
    async with session.get(f"{url}events") as answer:
        async for line in answer.content:
            updates[0] += line.startswith(b"event: update")


async def watch(urls: Sequence[str], scrapes: float, pages: int) -> None:
    """Obeys lines on standard input: on, off, end. Answers each off with what was done."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while (await lines.readline()).strip() == b"on":
        began, processor = time.monotonic(), time.process_time()
        taken: list[float] = []
        updates = [0]
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, read_bufsize=1 << 20) as session:
            tasks = [asyncio.create_task(scrape(session, url, 1 / scrapes, taken)) for url in urls if scrapes]
            tasks += [asyncio.create_task(look(session, url, updates)) for url in urls for _ in range(pages)]
            await lines.readline()
            broken = [task.exception() for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
        done = {
            "scrapes": taken,
            "updates": updates[0],
            "broken": list(map(str, broken)),
            "seconds": time.monotonic() - began,
            "processor": time.process_time() - processor,
        }
        print(json.dumps(done), flush=True)


class Processor:
    """Processor seconds of a process of this machine until now, by its own clock: to the nanosecond, ended threads included."""

    def __init__(self, pid: int) -> None:
        clock = ctypes.c_int()
        error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
        if error:
            raise OSError(error, os.strerror(error))
        self._clock = clock.value

    def seconds(self) -> float:
        return time.clock_gettime(self._clock)


@dataclass(frozen=True, slots=True)
class Count:
    """Of all peers: when, samples begun, processor seconds."""

    at: float
    samples: int
    processor: float


@dataclass(frozen=True, slots=True)
class Window:
    """samples: a second. processor: seconds of all peers for a sample."""

    samples: float
    processor: float

    @classmethod
    def between(cls, before: Count, after: Count) -> Window:
        samples = after.samples - before.samples
        return cls(samples / (after.at - before.at), (after.processor - before.processor) / samples)


@dataclass(frozen=True, slots=True)
class Cluster:
    clients: Sequence[PeerClient]
    processors: Sequence[Processor]

    async def count(self) -> Count:
        statuses = await asyncio.gather(*(client.status(timeout=10.0) for client in self.clients))
        begun = sum(status.samples_started for status in statuses)
        return Count(time.monotonic(), begun, sum(processor.seconds() for processor in self.processors))


async def measure(args: argparse.Namespace, config: Config) -> None:
    launcher = Launcher(config)
    try:
        launcher.start()
        await launcher.introduce()
        await launcher.all_ready()
        clients = [PeerClient(child.address) for child in launcher.children]
        urls = [page_address(config.listen, child.metrics_port) for child in launcher.children[: args.watched]]
        pids = [child.process.pid for child in launcher.children]
        cluster = Cluster(clients, [Processor(pid) for pid in pids if pid is not None])
        words = [sys.executable, __file__, "--watch", *urls, "--scrapes", str(args.scrapes), "--pages", str(args.pages)]
        watcher = await asyncio.create_subprocess_exec(*words, stdin=PIPE, stdout=PIPE, limit=1 << 24)
        try:
            await compare(args, cluster, watcher)
        finally:
            watcher.terminate()
            await watcher.wait()
        await asyncio.gather(*(client.close() for client in clients))
    finally:
        await launcher.stop("the bench is over")


async def compare(args: argparse.Namespace, cluster: Cluster, watcher: Process) -> None:
    pairs: list[tuple[Window, Window]] = []
    told: list[dict[str, Any]] = []
    await asyncio.sleep(3 * SETTLE_SECONDS)
    for pair in range(args.pairs):
        found = {}
        for watched in (False, True) if pair % 2 == 0 else (True, False):
            found[watched] = await window(args.seconds, cluster, watcher if watched else None, told)
        pairs.append((found[False], found[True]))
        off, on = pairs[-1]
        print(
            f"pair {pair + 1}: {off.samples:.0f} samples/s unwatched, {on.samples:.0f} watched, ratio {on.samples / off.samples:.3f}; "
            f"{1e6 * off.processor:.1f} and {1e6 * on.processor:.1f} us of processor a sample, ratio {on.processor / off.processor:.3f}",
            flush=True,
        )
    tell(args, pairs, told)


async def window(seconds: float, cluster: Cluster, watcher: Process | None, told: list[dict[str, Any]]) -> Window:
    """One of them, watched by the watcher if there is one; what that did is appended."""
    if watcher is not None:
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        watcher.stdin.write(b"on\n")
    await asyncio.sleep(SETTLE_SECONDS)
    before = await cluster.count()
    await asyncio.sleep(seconds)
    found = Window.between(before, await cluster.count())
    if watcher is not None and watcher.stdin is not None and watcher.stdout is not None:
        watcher.stdin.write(b"off\n")
        told.append(json.loads(await watcher.stdout.readline()))
        if told[-1]["broken"]:
            raise SystemExit(f"a watcher broke off: {told[-1]['broken'][0]}")
    return found


def tell(args: argparse.Namespace, pairs: Sequence[tuple[Window, Window]], told: Sequence[dict[str, Any]]) -> None:
    """The sums."""
    speeds = [on.samples / off.samples for off, on in pairs]
    costs = [on.processor / off.processor for off, on in pairs]
    print(f"samples a second, watched to unwatched: {summary(speeds)}")
    print(f"processor seconds of the peers for a sample, watched to unwatched: {summary(costs)}")
    serving = statistics.median((on.processor - off.processor) * on.samples for off, on in pairs) / args.watched
    print(f"serving one watched peer's watchers: {1e3 * serving:.1f} ms of its processor time a second, in the median")
    own = sum(one["processor"] for one in told) / sum(one["seconds"] for one in told)
    cores = len(os.sched_getaffinity(0))
    print(f"the watching process: {own:.2f} cores, {own / cores:.1%} of the {cores} there are")
    scrapes = [seconds for one in told for seconds in one["scrapes"]]
    if scrapes:
        worst = max(scrapes)
        print(f"{len(scrapes)} scrapes: median {1e3 * statistics.median(scrapes):.1f} ms, longest {1e3 * worst:.1f} ms")
    print(f"{sum(one['updates'] for one in told)} updates on {args.pages * args.watched} pages")


def summary(ratios: Sequence[float]) -> str:
    low, high = interval(ratios)
    first, _, third = statistics.quantiles(ratios, n=4)
    return (
        f"median {statistics.median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}, "
        f"quartiles {first:.3f} to {third:.3f}, {len(ratios)} pairs"
    )


def interval(values: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """95 % of the medians of as many values, drawn from these with replacement, lie between the two."""
    dice = random.Random(1)
    medians = sorted(statistics.median(dice.choices(values, k=len(values))) for _ in range(draws))
    return medians[round(0.025 * draws)], medians[round(0.975 * draws) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--watched", type=int, default=1, help="peers that are scraped and looked at")
    parser.add_argument("--scrapes", type=float, default=5.0, help="a second, of each of them")
    parser.add_argument("--pages", type=int, default=10, help="open at each of them")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a window")
    parser.add_argument("--pairs", type=int, default=60, help="of windows, at least two")
    parser.add_argument("--chunk-seconds", type=float, default=0.0, help="as of grapevine up; 0: both cores are busy")
    parser.add_argument("--watch", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pairs < 2 or not 1 <= args.watched <= args.peers:
        parser.error("at least two pairs, and at least one watched peer of those there are")
    if args.watch:
        asyncio.run(watch(args.watch, args.scrapes, args.pages))
        return
    start_early()
    run_loop(measure(args, validated({"peers": args.peers, "chunk_seconds": args.chunk_seconds})))


if __name__ == "__main__":
    main()
