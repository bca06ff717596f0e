"""What a peer costs when there are many of them on one machine: start-up, memory, processor time per round.

    python bench/many_peers.py [--peers 8 16 32 64] [--rounds 100] [--out bench/results/many_peers.json]

Real processes with default options, the digits MLP on a random regular graph of degree 4, emulated computing (chunks of 100 ms, so that the
machine carries 64 of them), D-PSGD and MATCHA. Each number of peers is run twice, for 10 rounds and for 10 more than asked; the
difference is what rounds cost, without the start and the end; of the peers only, not of the launcher. Memory: of all processes.
Ratios are against the fewest peers of the same run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from footprint import Footprint
from kept import Kept

WARM_UP = 10
ALGORITHMS = ("dpsgd", "matcha")


def run(algorithm: str, peers: int, rounds: int, chunk_seconds: float) -> dict[str, float]:
    """One training of so many rounds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["--peers", peers, "--algorithm", algorithm, "--topology", "random-regular", "--degree", 4]
        words += ["--chunk-seconds", chunk_seconds, "--max-rounds", rounds, "--eval-every", 10, "--metrics-port", -1]
        process = subprocess.Popen(
            [sys.executable, "-m", "peer", "up", *map(str, words), "--report", str(report)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with Footprint(process.pid) as footprint:
            said, _ = process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"{algorithm}, {peers} peers: exit {process.returncode}\n{said}")
        full: dict[str, Any] = json.loads(report.read_text())
    if len(full["peers"]) != peers or any(peer["rounds"] != rounds for peer in full["peers"]):
        raise SystemExit(f"{algorithm}: not all of {peers} peers did {rounds} rounds\n{said}")
    return {
        "start_seconds": full["start_seconds"],
        "cpu_seconds": sum(peer["cpu_seconds"] for peer in full["peers"]),
        "peak_bytes": footprint.peak_bytes,
        "wall_seconds": full["wall_seconds"],
        "lost": sum(full["edges_lost"].values()),
        "sent": full["bytes_sent"],
    }


def measure(algorithm: str, peers: int, a: argparse.Namespace) -> dict[str, float]:
    short, long = (run(algorithm, peers, rounds, a.chunk_seconds) for rounds in (WARM_UP, WARM_UP + a.rounds))
    found = {
        "start_seconds": long["start_seconds"],
        "mib_per_peer": long["peak_bytes"] / 2**20 / peers,
        "cpu_ms_per_peer_and_round": 1e3 * (long["cpu_seconds"] - short["cpu_seconds"]) / peers / a.rounds,
        "kb_sent_per_peer_and_round": (long["sent"] - short["sent"]) / 1e3 / peers / a.rounds,
        "seconds_per_round": (long["wall_seconds"] - short["wall_seconds"]) / a.rounds,
        "edges_lost": long["lost"],
    }
    print(algorithm, peers, {name: round(value, 2) for name, value in found.items()}, flush=True)
    return found


def table(runs: dict[str, dict[str, Any]], sizes: list[int]) -> str:
    """Markdown."""
    lines = [
        "| algorithm | peers | start | memory per peer | sent per peer and round | seconds per round | CPU per peer and round | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for algorithm in ALGORITHMS:
        first = runs[f"{algorithm} {sizes[0]}"]["cpu_ms_per_peer_and_round"]
        for peers in sizes:
            r = runs[f"{algorithm} {peers}"]
            lines.append(
                f"| {algorithm} | {peers} | {r['start_seconds']:.1f} s | {r['mib_per_peer']:.0f} MiB "
                f"| {r['kb_sent_per_peer_and_round']:.0f} kB | {r['seconds_per_round']:.2f} "
                f"| {r['cpu_ms_per_peer_and_round']:.1f} ms | {r['cpu_ms_per_peer_and_round'] / first:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--chunk-seconds", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=Path("bench/results/many_peers.json"))
    a = parser.parse_args()
    kept = Kept(a.out, {"rounds": a.rounds, "chunk_seconds": a.chunk_seconds})
    for algorithm in ALGORITHMS:
        for peers in a.peers:
            if f"{algorithm} {peers}" not in kept.runs:
                kept.add(f"{algorithm} {peers}", measure(algorithm, peers, a))
    print(table(kept.runs, a.peers))


if __name__ == "__main__":
    main()
