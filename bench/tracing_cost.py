"""What tracing costs: processor time of a round, with and without spans, and of the hooks alone when it is off.

    python bench/tracing_cost.py [--rounds 400] [--repeats 7]

Two peers of a real daemon each, over gRPC, in one process, with a model of 7 floats and 4 chunks a round, so that nearly all of a round is
what the daemon does itself: the least favourable case. Methods take turns and the median is printed. With tracing, spans go through
the SDK's batches to an exporter that drops them. Below, what the hooks cost that every round passes when tracing is off.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
import timeit
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.daemon.rig import Rig, config

PEERS, CHUNKS = 2, 4
#: Hooks that a round of D-PSGD passes: begin, end, two mixes with two questions each, an exchange a neighbour, a chunk each.
HOOKS = 2 + 2 * 2 + (PEERS - 1) + CHUNKS


class Dropped(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        return None


async def play(rounds: int, *, traced: bool) -> float:
    """Processor milliseconds of a round of one peer."""
    rig = Rig(config(peers=PEERS, chunks=CHUNKS, max_rounds=rounds), over="grpc").build()
    if traced:
        from peer.daemon.spans import PeerSpans

        for peer in rig.peers:
            provider = TracerProvider(shutdown_on_exit=False)
            provider.add_span_processor(BatchSpanProcessor(Dropped()))
            peer.spans = PeerSpans(provider)
    began = time.process_time()
    await rig.run()
    spent = time.process_time() - began
    if traced:
        for peer in rig.peers:
            assert peer.spans is not None
            await peer.spans.close()
    return 1e3 * spent / rounds / PEERS


class Hooked:
    """As the player asks."""

    def __init__(self) -> None:
        self.spans: object | None = None

    def ask(self) -> None:
        if self.spans is not None:
            raise AssertionError

    def do_not(self) -> None:
        return None


def hook_nanoseconds(times: int = 1_000_000) -> float:
    """Of one question, the call around it not counted."""
    hooked = Hooked()
    asked, called = (min(timeit.repeat(f, number=times, repeat=7)) for f in (hooked.ask, hooked.do_not))
    return 1e9 * (asked - called) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only-off", action="store_true", help="for a commit that has no tracing yet")
    arguments = parser.parse_args()
    asyncio.run(play(50, traced=False))
    modes = (False,) if arguments.only_off else (False, True)
    measured: dict[bool, list[float]] = {mode: [] for mode in modes}
    for _ in range(arguments.repeats):
        for mode in modes:
            measured[mode].append(asyncio.run(play(arguments.rounds, traced=mode)))
    for mode, times in measured.items():
        spread = f"{min(times):.3f} to {max(times):.3f}"
        print(f"tracing {'on ' if mode else 'off'}  {statistics.median(times):.3f} ms a round ({spread})")
    hook = hook_nanoseconds()
    print(f"a hook when off {hook:.1f} ns; {HOOKS} of them a round: {HOOKS * hook / 1e3:.2f} us")


if __name__ == "__main__":
    main()
