"""The table of the README: seconds to train loss 0.1 for every algorithm, blocking and not, over four kinds of stragglers.

    python bench/straggler_table.py [--chunk-seconds 0.015] [--lr 0.3] [--repeats 3] [--out bench/results/straggler_table.json]

Each run is a real cluster of 8 processes over gRPC on this machine, with emulated compute (a chunk sleeps its nominal time). Each
cell is the median over seeds; the reference is the same algorithm with `barrier`, in the same run of this script.
Runs whose peers mostly sleep (barrier with a straggler) may go side by side: `--parallel` says how many, at most; the machine's
load is printed beside the table. All others run alone, or `--parallel-awake` at a time, which slows them down a little.
Finished runs are kept in OUT, so an interrupted bench resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kept import Kept

ALGORITHMS = ("ring-all-reduce", "dpsgd", "matcha")
SCENARIOS = {"none": [], "0=4x": ["0=4x"], "0=10x": ["0=10x"], "all=exp:1.0": ["all=exp:1.0"]}
CLOSINGS = ("barrier", "first")


@dataclass(frozen=True)
class Cell:
    algorithm: str
    closing: str
    scenario: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.algorithm} {self.closing} {self.scenario} {self.seed}"

    @property
    def mostly_asleep(self) -> bool:
        return self.closing == "barrier" and self.scenario in ("0=4x", "0=10x", "all=exp:1.0")

    @property
    def eval_every(self) -> float:
        """Seconds between two looks at the loss, so rare where a run is long that many can go side by side."""
        return 0.25 if not self.mostly_asleep else 1.0 if self.scenario == "0=10x" else 0.5


def run(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """One real cluster; returns what the table needs of its report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "peer", "up", "--peers", str(arguments.peers), "--algorithm", cell.algorithm]
        command += [
            "--closing",
            cell.closing,
            "--lr",
            str(arguments.lr),
            "--chunk-seconds",
            str(arguments.chunk_seconds),
            "--seed",
            str(cell.seed),
        ]
        command += ["--target-loss", str(arguments.target_loss), "--max-seconds", "900", "--metrics-port", "-1"]
        command += ["--eval-every", str(cell.eval_every)]
        command += ["--report", str(report), *arguments.extra]
        for spec in SCENARIOS[cell.scenario]:
            command += ["--straggler", spec]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1000)
        if done.returncode != 0:
            raise SystemExit(f"{cell.key}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        full = json.loads(report.read_text())
    kept = ("seconds_to_target", "rounds", "samples", "test_accuracy", "worst_peer_test_accuracy", "idle_fraction")
    result = {name: full[name] for name in (*kept, "finished_fraction", "max_staleness", "start_seconds", "bytes_sent")}
    print(
        f"{cell.key:45s} {result['seconds_to_target'] or float('nan'):7.1f} s  {result['rounds']:5d} rounds  "
        f"accuracy {result['test_accuracy']:.3f}  idle {result['idle_fraction']:.2f}  load {os.getloadavg()[0]:.1f}  "
        f"(took {time.monotonic() - started:.0f} s)",
        flush=True,
    )
    return result


def measure(cells: list[Cell], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    kept = Kept(
        arguments.out, {name: getattr(arguments, name) for name in ("chunk_seconds", "lr", "target_loss", "peers")}
    )

    def one(cell: Cell) -> None:
        if cell.key not in kept.runs:
            kept.add(cell.key, run(cell, arguments))

    asleep = [cell for cell in cells if cell.mostly_asleep]
    with ThreadPoolExecutor(arguments.parallel) as pool:
        list(pool.map(one, sorted(asleep, key=lambda cell: cell.scenario != "0=10x")))  # the longest first
    with ThreadPoolExecutor(arguments.parallel_awake) as pool:
        list(pool.map(one, [cell for cell in cells if not cell.mostly_asleep]))
    return kept.runs


def table(results: dict[str, dict[str, Any]], repeats: int) -> str:
    """Markdown: median seconds blocking, non-blocking, and their ratio."""
    lines = ["| algorithm | closing | " + " | ".join(SCENARIOS) + " |", "|---|---|" + "---|" * len(SCENARIOS)]
    for algorithm in ALGORITHMS:
        medians: dict[tuple[str, str], float] = {}
        for closing in CLOSINGS:
            row = []
            for scenario in SCENARIOS:
                runs = [results[Cell(algorithm, closing, scenario, seed).key] for seed in range(repeats)]
                seconds = [r["seconds_to_target"] for r in runs if r["seconds_to_target"] is not None]
                medians[closing, scenario] = statistics.median(seconds) if len(seconds) == repeats else float("nan")
                row.append(f"{medians[closing, scenario]:.1f} s")
            lines.append(f"| {algorithm} | {closing} | " + " | ".join(row) + " |")
        ratios = [medians["barrier", s] / medians["first", s] for s in SCENARIOS]
        lines.append(f"| **{algorithm}** | **speed-up** | " + " | ".join(f"**{r:.2f}x**" for r in ratios) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--chunk-seconds", type=float, default=0.015)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--target-loss", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--parallel-awake", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench/results/straggler_table.json"))
    parser.add_argument("extra", nargs="*", help="further options of `grapevine up`, after --")
    arguments = parser.parse_args()
    cells = [
        Cell(algorithm, closing, scenario, seed)
        for seed in range(arguments.repeats)
        for scenario in SCENARIOS
        for algorithm in ALGORITHMS
        for closing in CLOSINGS
    ]
    results = measure(cells, arguments)
    print()
    print(table(results, arguments.repeats))


if __name__ == "__main__":
    main()
