"""`grapevine top HOST:PORT`: the table of `up`, of a cluster that runs elsewhere."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text

from peer.cluster.crawl import Crawl
from peer.cluster.live import Frame
from peer.cluster.table import LATELY, PeersTable, number, placed
from peer.exit_codes import ExitCode, Fatal
from peer.transport.client import PeerUnreachable

#: Nobody has answered for so long: the cluster is gone.
GONE_SECONDS = 10.0
#: Of a table that goes into a file or a pipe, which has none of its own.
PLAIN_WIDTH = 140


async def show_top(address: str, console: Console, *, once: bool, every: float, timeout: float) -> None:
    """Until ctrl-C, or until no peer answers any more. Raises Fatal if none ever did."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, stop.set)
    crawl = Crawl(address, timeout)
    try:
        if await _looked(crawl, stop):
            if once:
                _print(crawl, console, span="since the start")  # there is nothing to compare with
                return
            watch = _live if console.is_interactive else _lines
            if await watch(crawl, console, stop, every):
                over = f"no peer has answered for {GONE_SECONDS:g} s: the run is over, or out of reach"
                console.print(over, soft_wrap=True)
    finally:
        await crawl.close()


async def _looked(crawl: Crawl, stop: asyncio.Event) -> bool:
    """Ask everybody; False if told to stop meanwhile. Raises Fatal if there never was an answer."""
    looking = asyncio.create_task(crawl.look(), name="look")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait((looking, stopping), return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            return False
        looking.result()
    except PeerUnreachable as error:
        raise Fatal(ExitCode.ABSENT, str(error)) from None
    finally:
        looking.cancel()
        stopping.cancel()
        await asyncio.gather(looking, stopping, return_exceptions=True)
    return True


async def _live(crawl: Crawl, console: Console, stop: asyncio.Event, every: float) -> bool:
    """On a screen of its own; the last table stays behind on the one before. As `_repeat`."""
    try:
        with Live(_frame(crawl), console=console, screen=True, refresh_per_second=4) as live:
            return await _repeat(crawl, stop, every, lambda: live.update(_frame(crawl)))
    finally:
        _print(crawl, console)


async def _lines(crawl: Crawl, console: Console, stop: asyncio.Event, every: float) -> bool:
    """For pipes and files. As `_repeat`."""
    return await _repeat(crawl, stop, every, lambda: console.print(_totals(crawl), soft_wrap=True))


async def _repeat(crawl: Crawl, stop: asyncio.Event, every: float, show: Callable[[], None]) -> bool:
    """Show, wait, ask. True when all peers have fallen silent, False if told to stop. Whether the run has ended or the network can't be
    seen from here: of a peer that was killed before, the last word is never that it was done."""
    loop = asyncio.get_running_loop()
    heard_at = loop.time()
    while True:
        show()
        with suppress(TimeoutError):
            async with asyncio.timeout(every):
                await stop.wait()
        if stop.is_set() or not await _looked(crawl, stop):
            return False
        if crawl.answering:
            heard_at = loop.time()
        elif loop.time() - heard_at >= GONE_SECONDS:
            return True


def _print(crawl: Crawl, console: Console, span: str = LATELY) -> None:
    """The table as it is now; all of it, where no terminal sets a limit."""
    table = PeersTable(crawl.rows.values(), span=span)
    if console.is_terminal:
        console.print(_head(crawl))
        console.print(table)
    else:
        for part in (_head(crawl), table):
            console.print(part, width=PLAIN_WIDTH, crop=False)


def _frame(crawl: Crawl) -> Frame:
    return Frame(_head(crawl), crawl.rows.values())


def _head(crawl: Crawl) -> Text:
    first = crawl.first
    assert first is not None, "nobody has answered yet"
    run, algorithm, topology, task = map(printable, (first.run, first.algorithm, first.topology, first.task))
    text = Text(f"run {run!r}: {first.num_peers} peers, {algorithm} {placed(topology)}, task {task}\n", style="dim")
    return text.append_text(_totals(crawl))


def _totals(crawl: Crawl) -> Text:
    """One line about all peers."""
    assert crawl.first is not None, "nobody has answered yet"
    answering = crawl.answering
    text = Text(style="not dim")
    if answering:
        rounds = [status.round for status in answering]
        losses = [status.train_loss for status in answering if math.isfinite(status.train_loss)]
        samples = sum(row.now.samples for row in crawl.rows.values() if row.answers)
        of_head = [row.status.round for row in crawl.rows.values() if row.answers and row.is_head and row.status]
        rounds = of_head or rounds  # only they are steps of the model
        between = str(rounds[0]) if len(set(rounds)) == 1 else f"{min(rounds)} to {max(rounds)}"
        text.append(f"{max(status.seconds for status in answering):.1f} s  ", style="bold")
        text.append(f"round {between}  batch loss {number(sum(losses) / len(losses) if losses else math.nan)}  ")
        text.append(f"{samples:.0f} samples/s  ")
    all_of_them = len(answering) == crawl.first.num_peers
    told = f"{len(answering)} of {crawl.first.num_peers} peers answer"
    return text.append(told, style="" if all_of_them else "red")


def printable(text: str) -> str:
    """Text of a peer, made fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:64])
