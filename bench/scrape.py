"""What metrics and digests cost: a scrape of a peer with many neighbours, keeping count of a round, telling neighbours of each other.

    python bench/scrape.py [--neighbors 64] [--rounds 40] [--repeats 200]

A star of peers in one process trains for some rounds over the memory transport, so that the peer in the middle has as many real
neighbours and all their numbers. Then its page is asked for again and again, and its last report is counted again and again. Shown are
processor milliseconds of a scrape (median), of the library's writing of the same values, processor microseconds of a round, and processor
milliseconds to pass everybody's digest on to everybody else, which who is in the middle of a star has to do every time that they speak.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import count

from prometheus_client import generate_latest

from peer.config import validated
from peer.daemon.counts import PeerMetrics
from peer.daemon.peer import Bound, Peer
from peer.daemon.process import run_loop
from peer.gossip.digest import Digest, DigestBook, say_every
from peer.gossip.round import RoundReport
from peer.transport.digests import Encoder
from peer.transport.memory import MemoryNetwork


async def trained(neighbors: int, rounds: int) -> tuple[Peer, list[RoundReport]]:
    """The peer in the middle, and its rounds."""
    config = validated(
        {
            "peers": neighbors + 1,
            "topology": "star",
            "max_rounds": rounds,
            "metrics_port": -1,
            "chunks": 2,
            "closing": "barrier",
        }
    )
    network, addresses, reports = MemoryNetwork(), dict[int, str](), list[RoundReport]()
    everybody = asyncio.Event()
    peers = [Peer(config, i) for i in range(config.peers)]
    counted = peers[0].metrics.round

    def kept(report: RoundReport) -> None:
        reports.append(report)
        counted(report)

    peers[0].metrics.round = kept  # type: ignore[method-assign]

    async def book(bound: Bound) -> Sequence[str]:
        addresses[bound.peer] = bound.address
        if len(addresses) == config.peers:
            everybody.set()
        await everybody.wait()
        return [addresses[i] for i in range(config.peers)]

    await asyncio.gather(*(peer.run(network.transport(peer.parts.identity), book) for peer in peers))
    return peers[0], reports


def passed_on(neighbors: int, digest: Digest) -> Callable[[], None]:
    """One round of digests in the middle of a star, up to the bytes that are queued."""
    book, encoder, moments = DigestBook(0, neighbors + 1, lambda peer: ()), Encoder(), count(1)
    links = range(1, neighbors + 1)
    for link in links:
        book.link_up(link)

    def round() -> None:
        moment = next(moments)
        book.say(digest, float(moment))
        for link in links:
            book.hear(link, [digest._replace(origin=link, stamp=moment)], float(moment))
        told = -1
        while told:
            told = 0
            for link in links:
                if news := book.news_for(link, moment + 0.25):
                    encoder.message(news).SerializeToString()
                    book.told(link, news)
                    told += len(news)

    return round


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Of processor time."""
    taken = []
    for _ in range(repeats):
        begun = time.thread_time()
        work()
        taken.append(time.thread_time() - begun)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neighbors", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    peer, reports = run_loop(trained(args.neighbors, args.rounds))
    page = peer.metrics.text()
    ours = 1e3 * median_seconds(peer.metrics.text, args.repeats)
    library = 1e3 * median_seconds(lambda: generate_latest(peer.metrics.registry), args.repeats)
    print(f"{args.neighbors} neighbours: {page.count(10)} lines, {len(page)} bytes")
    print(f"a scrape: {ours:.2f} ms of processor time; written by prometheus_client: {library:.2f} ms")
    said = peer.watch.held[0].digest
    spread = median_seconds(passed_on(args.neighbors, said), max(args.repeats // 10, 1))
    every = say_every(args.neighbors + 1)
    print(
        f"digests of all to all others: {1e3 * spread:.1f} ms of processor time every {every:.1f} s, {spread / every:.2%} of a core"
    )
    metrics = PeerMetrics("bench", 0)

    def count_them() -> None:
        for report in reports:
            metrics.round(report)

    rounds = 1e6 * median_seconds(count_them, args.repeats) / len(reports)
    print(f"a round: {rounds:.2f} us of processor time to count")


if __name__ == "__main__":
    main()
