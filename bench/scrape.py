"""What metrics cost: a scrape of a peer with many neighbours, and keeping count of a round.

    python bench/scrape.py [--neighbors 64] [--rounds 40] [--repeats 200]

A star of peers in one process trains for some rounds over the memory transport, so that the peer in the middle has as many real
neighbours and all their numbers. Then its page is asked for again and again, and its last report is counted again and again. Shown are
processor milliseconds of a scrape (median), of the library's writing of the same values, and processor microseconds of a round.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence

from prometheus_client import generate_latest

from peer.config import validated
from peer.daemon.counts import PeerMetrics
from peer.daemon.peer import Bound, Peer
from peer.daemon.process import run_loop
from peer.gossip.round import RoundReport
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
    metrics = PeerMetrics()

    def count_them() -> None:
        for report in reports:
            metrics.round(report)

    rounds = 1e6 * median_seconds(count_them, args.repeats) / len(reports)
    print(f"a round: {rounds:.2f} us of processor time to count")


if __name__ == "__main__":
    main()
