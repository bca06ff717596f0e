"""What being watched costs training: samples per second of a real cluster with and without scrapes and open pages.

    python bench/watched.py [--peers 4] [--watched 1] [--scrapes 5] [--pages 10] [--seconds 5] [--pairs 12] [--chunk-seconds 0]

One cluster of `grapevine up` trains all the time. Windows of --seconds take turns, off on on off ..., so that whatever drifts strikes
both alike; a process of its own scrapes each of the first --watched peers --scrapes times a second and keeps --pages of their event
streams open, and in the other windows holds nothing. Its own processor time on the same cores is part of what is measured. Shown is the
ratio of samples per second, watched to unwatched, of each pair and in the median, and how long a scrape took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress

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
        print(json.dumps({"scrapes": taken, "updates": updates[0], "broken": list(map(str, broken))}), flush=True)


async def samples(clients: Sequence[PeerClient]) -> tuple[float, int]:
    """When, and how many of all peers are in updates."""
    statuses = await asyncio.gather(*(client.status(timeout=10.0) for client in clients))
    return time.monotonic(), sum(status.samples for status in statuses)


async def measure(args: argparse.Namespace, config: Config) -> None:
    launcher = Launcher(config)
    try:
        launcher.start()
        await launcher.introduce()
        await launcher.all_ready()
        clients = [PeerClient(child.address) for child in launcher.children]
        urls = [page_address(config.listen, child.metrics_port) for child in launcher.children[: args.watched]]
        words = [sys.executable, __file__, "--watch", *urls, "--scrapes", str(args.scrapes), "--pages", str(args.pages)]
        watcher = await asyncio.create_subprocess_exec(*words, stdin=PIPE, stdout=PIPE, limit=1 << 24)
        try:
            await compare(args, clients, watcher)
        finally:
            watcher.terminate()
            await watcher.wait()
        await asyncio.gather(*(client.close() for client in clients))
    finally:
        await launcher.stop("the bench is over")


async def compare(args: argparse.Namespace, clients: Sequence[PeerClient], watcher: Process) -> None:
    assert watcher.stdin is not None
    assert watcher.stdout is not None
    ratios, scrapes, updates = [], [], 0
    await asyncio.sleep(3 * SETTLE_SECONDS)
    for pair in range(args.pairs):
        speed = {}
        for watched in (False, True) if pair % 2 == 0 else (True, False):
            if watched:
                watcher.stdin.write(b"on\n")
            await asyncio.sleep(SETTLE_SECONDS)
            began, before = await samples(clients)
            await asyncio.sleep(args.seconds)
            ended, after = await samples(clients)
            speed[watched] = (after - before) / (ended - began)
            if watched:
                watcher.stdin.write(b"off\n")
                done = json.loads(await watcher.stdout.readline())
                if done["broken"]:
                    raise SystemExit(f"a watcher broke off: {done['broken'][0]}")
                scrapes += done["scrapes"]
                updates += done["updates"]
        ratios.append(speed[True] / speed[False])
        print(
            f"pair {pair + 1}: {speed[False]:.0f} samples/s unwatched, {speed[True]:.0f} watched, ratio {ratios[-1]:.3f}",
            flush=True,
        )
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    print(f"ratio, watched to unwatched: median {statistics.median(ratios):.3f}, quartiles {low:.3f} to {high:.3f}")
    if scrapes:
        worst = max(scrapes)
        print(f"{len(scrapes)} scrapes: median {1e3 * statistics.median(scrapes):.1f} ms, longest {1e3 * worst:.1f} ms")
    print(f"{updates} updates on {args.pages * args.watched} pages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--watched", type=int, default=1, help="peers that are scraped and looked at")
    parser.add_argument("--scrapes", type=float, default=5.0, help="a second, of each of them")
    parser.add_argument("--pages", type=int, default=10, help="open at each of them")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a window")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--chunk-seconds", type=float, default=0.0, help="as of grapevine up; 0: both cores are busy")
    parser.add_argument("--watch", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.watch:
        asyncio.run(watch(args.watch, args.scrapes, args.pages))
        return
    start_early()
    run_loop(measure(args, validated({"peers": args.peers, "chunk_seconds": args.chunk_seconds})))


if __name__ == "__main__":
    main()
