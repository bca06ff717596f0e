"""Where the processor time of an exchange goes, copy by copy: perf beside the members of bench/exchange.py.

    python bench/exchange_profile.py [--planes grpc,direct] [--measures one-way,both-ways,all-reduce-4] [--size 100MB] [--seconds 5]

Needs Linux's perf (Debian: linux-perf) and the right to use it. A sample is put to the first row that fits its stack; a row's microseconds
are its part of the members' processor time, for each piece of 2 MiB that goes from one member to another, both ends together.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from crew import Crew
from exchange import moved_bytes, order_of, parse_size, table
from movers import ours_main

from peer.cluster.forkserver import start_early
from peer.transport.codec import FRAME_BYTES

HERTZ: Final = 997
STACK_BYTES: Final = 4096


class Frame(NamedTuple):
    symbol: str
    file: str


Stack = list[Frame]
"""Innermost first."""

COPIES: Final = re.compile(r"mem(cpy|move)")
KERNEL_COPIES: Final = (("_copy_from_iter", "into the kernel"), ("_copy_to_iter", "out of the kernel"))
SWITCHING: Final = re.compile(
    r"finish_task_switch|spin_unlock|irqentry|softirq|schedule|futex|epoll|eventfd|wake|select|native_write_msr|pick_|enqueue|dequeue|update_"
)
SUMMING: Final = re.compile(r"native::|at::|c10::|torch")


def part_of(stack: Stack) -> str:
    """The row of the table."""
    leaf = stack[0]
    callers = [frame.symbol for frame in stack[1:4]]
    grpc_calls = any(frame.file.startswith("cygrpc") for frame in stack[1:3])
    if COPIES.search(leaf.symbol):
        if any("bytes_join" in caller for caller in callers):
            return "copy: gRPC's pieces joined" if grpc_calls else "copy: out of the vector, into a message"
        if any("PyBytes_FromString" in caller for caller in callers):
            return "copy: out of gRPC's slices"
        if any(caller in ("copy_single", "memory_ass_sub") for caller in callers):
            return "copy: to its place in the vector"
        if grpc_calls:
            return "copy: into gRPC's slice"
        return (
            "copy: into and out of shared memory"
            if any("numpy" in f.file or "array" in f.symbol for f in stack[1:6])
            else "copy: other"
        )
    for symbol, what in KERNEL_COPIES:
        if symbol in leaf.symbol:
            return f"copy: {what}"
    if leaf.file.startswith("[kernel"):
        return (
            "kernel: switches, wake-ups, interrupts"
            if SWITCHING.search(leaf.symbol)
            else "kernel: the rest (TCP/IP, pages, calls)"
        )
    if leaf.file.startswith("cygrpc"):
        return "gRPC's own code"
    if leaf.file.startswith("libtorch") or SUMMING.search(leaf.symbol):
        return "sums and checks of them (torch)"
    if "malloc" in leaf.symbol or "free" in leaf.symbol.lower():
        return "malloc and free"
    return "Python, uvloop, and the rest"


def stacks(data: Path) -> Iterator[Stack]:
    """Of every sample."""
    said = subprocess.run(
        ["perf", "script", "--no-inline", "-i", str(data), "-F", "comm,tid,ip,sym,dso"],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    ).stdout
    for sample in said.split("\n\n"):
        found = re.findall(r"^\s+[0-9a-f]+ (.+?)(?:\+0x[0-9a-f]+)? \((.+)\)$", sample, re.MULTILINE)
        if found:
            yield [Frame(symbol, file.rsplit("/", 1)[-1]) for symbol, file in found]


def profile(plane: str, measure: str, num_bytes: int, seconds: float) -> tuple[float, float, Counter[str]]:
    """(seconds of an exchange, processor seconds of one, samples by row)."""
    size = int(measure.rpartition("-")[2]) if measure[-1].isdigit() else 2
    crew = Crew(plane, size, ours_main, plane)
    order = order_of(measure, num_bytes)
    try:
        once = crew.measure(order)
        order = replace(order, times=max(3, int(seconds / once.seconds)))
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder, "perf.data")
            members = ",".join(str(pid) for pid in crew.pids)
            watch = [
                "perf",
                "record",
                "-q",
                "-F",
                str(HERTZ),
                "--call-graph",
                f"dwarf,{STACK_BYTES}",
                "-o",
                str(data),
                "-p",
                members,
            ]
            perf = subprocess.Popen(watch)
            try:
                time.sleep(1.0)  # until it watches; members wait meanwhile
                measured = crew.measure(order)
            finally:
                perf.send_signal(signal.SIGINT)
                perf.wait(60)
            return measured.seconds, measured.cpu_seconds, Counter(map(part_of, stacks(data)))
    finally:
        crew.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planes", default="grpc,direct")
    parser.add_argument("--measures", default="one-way,both-ways,all-reduce-4")
    parser.add_argument("--size", type=parse_size, default=parse_size("100MB"))
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    if shutil.which("perf") is None:
        parser.error("perf is not installed")
    start_early()
    for measure in arguments.measures.split(","):
        found = {
            plane: profile(plane, measure, arguments.size, arguments.seconds) for plane in arguments.planes.split(",")
        }
        pieces = moved_bytes(measure, arguments.size) / FRAME_BYTES
        print(f"### {measure}: microseconds of processor time for each piece of 2 MiB, both ends\n")
        names = sorted({name for _, _, rows in found.values() for name in rows})
        lines = [
            [name, *(f"{cpu / pieces * 1e6 * rows[name] / rows.total():.0f}" for _, cpu, rows in found.values())]
            for name in names
        ]
        lines.append(["**all**", *(f"{cpu / pieces * 1e6:.0f}" for _, cpu, _ in found.values())])
        lines.append(["exchange, ms by the clock", *(f"{seconds * 1e3:.1f}" for seconds, _, _ in found.values())])
        table(["where", *found], lines)


if __name__ == "__main__":
    main()
