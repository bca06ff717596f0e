"""How fast vectors move: memory, raw sockets, gloo, and ours over gRPC and over data sockets, all in one run on this machine.

    python bench/exchange.py [--sizes 1MB,100MB] [--repeats 7] [--only one-way,all-reduce-4,gossip-8,word,soak] [--planes grpc,direct]

    one-way       a vector from one process to another              both-ways     two processes exchange theirs
    all-reduce-N  the sum of N processes' vectors, in all of them    gossip-8      a ring of 8, everybody with both neighbours (D-PSGD)
    word          a control word and its answer (raw and plain gRPC: 64 bytes back and forth)
    soak          a thousand exchanges both ways of 10 MB: is memory flat?

Contenders take turns within every repetition; times are medians, from the moment all members begin to the end of the last, per exchange
(small ones are repeated within a repetition). raw: sendall and recv_into of whole preallocated vectors over loopback, a thread per
direction; default is the system's congestion control, best the fastest of default, cubic and a Unix socket. Ours: one process per peer as
the product runs it (forkserver, its allocator settings, uvloop, the gRPC transport); all-reduce plays RingAllReduce's score, its
additions on a worker thread as in the daemon; both-ways and gossip are atomic exchanges.

planned memory: the vectors an order needs, and FRAMES_IN_FLIGHT frames of 2 MiB. The table shows what a member had above what it had
before its vectors. lag: how late, at most, what is due every few milliseconds comes to its turn, on the event loop; raw sockets and gloo
have none, so there on a thread that does nothing else: what the machine does to anybody.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from crew import Crew, Measured, Order
from kept import commit
from movers import gloo_main, ours_main, raw_main
from plain_grpc import words_main

from peer.cluster.forkserver import start_early
from peer.transport.codec import FRAME_BYTES

SIZES = "10kB,200kB,1MB,25MB,100MB,400MB"
MEASURES = ("one-way", "both-ways", "all-reduce-2", "all-reduce-4", "all-reduce-8", "gossip-8", "word", "soak")
FRAMES_IN_FLIGHT = 8
"""Per link: what gRPC or a socket holds of both directions."""

BYTES_AT_ONCE = 25_000_000
"""Smaller exchanges are repeated within one measurement until so much was moved, MOST_TIMES at most."""

MOST_TIMES = 100
SOAK_BYTES, SOAK_TIMES, SOAK_REPEATS = 10_000_000, 100, 10
MEMORY_SHARE = 0.7
"""Of the memory that is available: orders whose vectors need more, in all members of all contenders, are left out."""

Medians: TypeAlias = dict[str, dict[int, dict[str, dict[str, Any]]]]
"""By measure, size and contender: a Measured as a dictionary, each field its median (lag and peak: the largest)."""


def parse_size(text: str) -> int:
    """Bytes of "200kB"; whole floats."""
    for unit, factor in (("kB", 1000), ("MB", 1000_000)):
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * factor) // 4 * 4
    raise argparse.ArgumentTypeError(f"{text}: a size is a number and kB or MB")


def size_name(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:g} MB" if num_bytes >= 1_000_000 else f"{num_bytes / 1e3:g} kB"


def times_of(num_bytes: int) -> int:
    return max(1, min(MOST_TIMES, BYTES_AT_ONCE // max(num_bytes, 1)))


def planned_bytes(measure: str, num_bytes: int) -> int:
    """What a member of ours needs: its own vector, an inbox for each neighbour, and frames in flight for each link. All-reduce: its
    sum besides, and its inbox is a shard."""
    vectors = {"one-way": 1.0, "both-ways": 2.0, "gossip-8": 3.0, "word": 0.0, "soak": 2.0}
    if measure not in vectors:
        vectors[measure] = 2.0 + 1.0 / int(measure.rpartition("-")[2])
    links = 2 if measure in ("gossip-8", "all-reduce-4", "all-reduce-8") else 1
    return int(vectors[measure] * num_bytes) + links * FRAMES_IN_FLIGHT * FRAME_BYTES


def moved_bytes(measure: str, num_bytes: int) -> int:
    """Bytes that go from some member to another in one exchange."""
    if measure.startswith("all-reduce-"):
        return 2 * (int(measure.rpartition("-")[2]) - 1) * num_bytes
    return {"one-way": 1, "both-ways": 2, "gossip-8": 16}.get(measure, 0) * num_bytes


def memcpy_seconds(num_bytes: int) -> float:
    source, target = np.ones(num_bytes // 4, np.float32), np.ones(num_bytes // 4, np.float32)  # pages touched
    begun = time.perf_counter()
    for _ in range(times_of(num_bytes)):
        np.copyto(target, source)
    return (time.perf_counter() - begun) / times_of(num_bytes)


def crews_of(measure: str, planes: list[str]) -> dict[str, Callable[[], Crew]]:
    """How to start the contenders of one measure, by name. They are started for it, and stopped after it."""

    def raw(kind: str) -> Callable[[], Crew]:
        return lambda: Crew(f"raw {kind}", 2, raw_main, kind)

    def gloo(size: int) -> Callable[[], Crew]:
        return lambda: Crew(f"gloo {size}", size, gloo_main, free_port())

    def ours(plane: str, size: int) -> Callable[[], Crew]:
        return lambda: Crew(f"{plane} {size}", size, ours_main, plane)

    def plain(kind: str) -> Callable[[], Crew]:
        return lambda: Crew(f"plain gRPC {kind}", 2, words_main, kind)

    pair = measure in ("one-way", "both-ways", "word", "soak")
    size = 2 if pair else int(measure.rpartition("-")[2])
    starts: dict[str, Callable[[], Crew]] = {}
    if measure == "word":
        starts["raw default"] = raw("default")
        starts |= {f"plain gRPC {kind}": plain(kind) for kind in ("unary", "stream")}
    if measure in ("one-way", "both-ways"):
        starts |= {f"raw {kind}": raw(kind) for kind in ("default", "cubic", "unix")}
    if measure not in ("word", "gossip-8", "soak"):
        starts["gloo"] = gloo(size)
    return starts | {plane: ours(plane, size) for plane in planes}


def available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def order_of(measure: str, num_bytes: int) -> Order:
    if measure == "soak":
        return Order("both-ways", num_bytes, SOAK_TIMES)
    what = measure.rpartition("-")[0] if measure[-1].isdigit() else measure
    return Order(what, num_bytes, 1 if measure == "word" else times_of(num_bytes))


def measure_all(measure: str, sizes: list[int], repeats: int, planes: list[str]) -> Iterator[tuple[int, str, Measured]]:
    """(size, contender, one repetition), contenders taking turns; the first of each is thrown away."""
    available = available_bytes()
    crews = {name: start() for name, start in crews_of(measure, planes).items()}
    members = sum(crew.size for crew in crews.values())  # they keep their vectors while others have their turn
    try:
        for num_bytes in {"word": [0], "soak": [SOAK_BYTES]}.get(measure, sizes):
            if members * planned_bytes(measure, num_bytes) > MEMORY_SHARE * available:
                print(f"{measure} of {size_name(num_bytes)}: left out, it would need too much memory", flush=True)
                continue
            for repeat in range((SOAK_REPEATS if measure == "soak" else repeats) + 1):
                if repeat and measure in ("one-way", "both-ways"):
                    yield num_bytes, "memcpy", Measured(memcpy_seconds(num_bytes), 0.0, 0.0, 0, {})
                for name, crew in crews.items():
                    measured = crew.measure(order_of(measure, num_bytes))
                    if repeat:  # of a soak, one hundred more exchanges have gone before
                        yield num_bytes, name, measured
    finally:
        for crew in crews.values():
            crew.stop()


def median_of(repetitions: list[Measured]) -> dict[str, Any]:
    names = sorted({name for one in repetitions for name in one.extra})
    return {
        "seconds": statistics.median(one.seconds for one in repetitions),
        "cpu_seconds": statistics.median(one.cpu_seconds for one in repetitions),
        "lag": max(one.lag for one in repetitions),
        "peak": max(one.peak for one in repetitions),
        "extra": {name: statistics.median(one.extra[name] for one in repetitions) for name in names},
        "all": [asdict(one) for one in repetitions],
    }


def table(head: list[str], rows: list[list[str]]) -> None:
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def report(measure: str, of_size: dict[int, dict[str, dict[str, Any]]], planes: list[str]) -> None:
    """The tables of one measure."""
    if measure == "word":
        for who, found in of_size[0].items():
            print(f"control word and answer, {who}: {found['extra']['median round trip'] * 1e3:.3f} ms median\n")
        return
    if measure == "soak":
        for plane, found in of_size[SOAK_BYTES].items():
            peaks = [one["peak"] / 2**20 for one in found["all"]]
            told = (
                f"{peaks[0]:.1f} MiB in the first {SOAK_TIMES}, {peaks[-1]:.1f} in the last, {max(peaks):.1f} at most"
            )
            print(f"memory over {SOAK_TIMES * len(peaks)} exchanges of {size_name(SOAK_BYTES)}, {plane}: {told}\n")
        return
    names = list(next(iter(of_size.values())))
    print(f"### {measure}, milliseconds\n")
    table(
        ["payload", *names],
        [
            [size_name(size), *(f"{found[name]['seconds'] * 1e3:.2f}" for name in names)]
            for size, found in of_size.items()
        ],
    )
    print(f"### {measure}: how fast against others (1 = as fast), processor, lag, memory\n")
    raws = [name for name in names if name.startswith("raw")]
    head = ["payload", "who", *(["of raw default", "of raw best"] if raws else []), *(["of gloo"] * ("gloo" in names))]
    rows = [
        [size_name(size), name, *_ratios(found, name, raws), *_costs(measure, size, found[name], ours=name in planes)]
        for size, found in of_size.items()
        for name in names
        if name != "memcpy"
    ]
    table([*head, "cpu s per GB", "longest lag ms", "memory MiB / planned", "of which"], rows)


def _ratios(found: dict[str, dict[str, Any]], name: str, raws: list[str]) -> list[str]:
    """Speed against raw TCP by default, the best raw socket, gloo: their seconds / these."""
    ours = found[name]["seconds"]
    rivals = [found["raw default"]["seconds"], min(found[raw]["seconds"] for raw in raws)] if raws else []
    rivals += [found["gloo"]["seconds"]] if "gloo" in found else []
    return [f"{rival / ours:.2f}" for rival in rivals]


def _costs(measure: str, size: int, found: dict[str, Any], *, ours: bool) -> list[str]:
    memory = f"{found['peak'] / 2**20:.0f}" + (f" / {planned_bytes(measure, size) / 2**20:.0f}" if ours else "")
    extra = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in found["extra"].items())
    per_gb = found["cpu_seconds"] / moved_bytes(measure, size) * 1e9
    return [f"{per_gb:.2f}", f"{found['lag'] * 1e3:.1f}", memory, extra]


GOAL_SIZE = 100_000_000
GOALS = (
    ("one-way", "grpc", "raw default", 0.80),
    ("one-way", "grpc", "raw best", 0.35),
    ("both-ways", "grpc", "raw default", 0.45),
    ("both-ways", "grpc", "gloo", 0.55),
    ("all-reduce-4", "grpc", "gloo", 0.50),
    ("both-ways", "direct", "gloo", 1.00),
    ("all-reduce-4", "direct", "gloo", 1.00),
)
"""(measure, ours, rival, how fast ours shall be at least as a part of the rival's speed), for 100 MB."""

LAG_GOAL_SECONDS, WORD_GOAL_SECONDS, CPU_GOAL, MEMORY_GOAL = 0.010, 0.0003, 1 / 3, 1.10


def goals_of(medians: Medians) -> list[list[str]]:
    """Rows of (goal, wanted, measured, met), of all that was measured in this run."""
    rows = []

    def row(goal: str, wanted: str, measured: float, met: bool) -> None:
        rows.append([goal, wanted, f"{measured:.3g}", "yes" if met else "no"])

    for measure, plane, rival, least in GOALS:
        found = medians.get(measure, {}).get(GOAL_SIZE, {})
        rivals = [one["seconds"] for name, one in found.items() if name.startswith(rival.removesuffix(" best"))]
        if plane in found and rivals:
            speed = min(rivals) / found[plane]["seconds"]
            row(f"{measure}, 100 MB, {plane}: of {rival}", f">= {least:.2f}", speed, speed >= least)
    for measure in ("one-way", "both-ways"):
        found = medians.get(measure, {}).get(GOAL_SIZE, {})
        if {"grpc", "direct"} <= found.keys():
            part = found["direct"]["cpu_seconds"] / found["grpc"]["cpu_seconds"]
            row(f"{measure}, 100 MB: processor seconds, direct of grpc", "<= 1/3", part, part <= CPU_GOAL)
        for plane, one in medians.get(measure, {}).get(4 * GOAL_SIZE, {}).items():
            if plane in ("grpc", "direct"):
                met = one["lag"] < LAG_GOAL_SECONDS
                row(f"{measure}, 400 MB, {plane}: longest loop lag, ms", "< 10", one["lag"] * 1e3, met)
    for measure, of_size in medians.items():
        for plane in ("grpc", "direct") if measure not in ("word", "soak") else ():
            if plane in (found := of_size.get(GOAL_SIZE, {})):
                part = found[plane]["peak"] / planned_bytes(measure, GOAL_SIZE)
                row(f"{measure}, 100 MB, {plane}: memory of the plan", "<= 1.10", part, part <= MEMORY_GOAL)
    for plane, one in medians.get("word", {}).get(0, {}).items():
        if plane not in ("grpc", "direct"):
            continue
        seconds = one["extra"]["median round trip"]
        row(f"control word and answer, {plane}, ms", "< 0.3", seconds * 1e3, seconds < WORD_GOAL_SECONDS)
    for plane, one in medians.get("soak", {}).get(SOAK_BYTES, {}).items():
        peaks = [repetition["peak"] for repetition in one["all"]]
        growth = peaks[-1] / peaks[0] - 1
        row(
            f"memory, last hundred of a thousand exchanges to the first, {plane}", "<= 1.01", 1 + growth, growth <= 0.01
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default=",".join(MEASURES))
    parser.add_argument("--planes", default="grpc,direct")
    parser.add_argument("--out", type=Path, default=Path("bench/results/exchange.json"))
    arguments = parser.parse_args()
    sizes = [parse_size(text) for text in arguments.sizes.split(",")]
    measures, planes = arguments.only.split(","), arguments.planes.split(",")
    if unknown := (set(measures) - set(MEASURES)) | (set(planes) - {"grpc", "direct", "tcp"}):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    start_early()
    medians: Medians = {}
    for measure in measures:
        repetitions: dict[tuple[int, str], list[Measured]] = {}
        for size, name, measured in measure_all(measure, sizes, arguments.repeats, planes):
            repetitions.setdefault((size, name), []).append(measured)
        for (size, name), found in repetitions.items():
            medians.setdefault(measure, {}).setdefault(size, {})[name] = median_of(found)
        if measure in medians:
            report(measure, medians[measure], planes)
    if rows := goals_of(medians):
        print("### Goals\n")
        table(["goal", "wanted", "measured", "met"], rows)
    load = os.getloadavg()[0]
    print(f"commit {commit()}, {arguments.repeats} repetitions, load average at the end {load:.1f}")
    content = {"commit": commit(), "cores": os.cpu_count(), "load": load, "repeats": arguments.repeats}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**content, "measures": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
