"""The race: the same training by torch DDP, by local SGD and by Grapevine, side by side.

    python bench/race.py [--chunk-seconds 0.03] [--lr 0.3] [--peers 4 8] [--local-steps 10] [--parallel 8] [--out bench/results/race.json]

Everything is equal but the method: task, data and its order, starting parameters, batch, learning rate, emulated devices (bench/rivals.py
says how the torch side is written). Seconds until the training loss of the (mean) model is 0.1, its test accuracy then, processor
seconds and peak memory of all processes of the run, Grapevine's launcher and observer and the rivals' judge included.

Runs of the rivals with a straggler mostly sleep, and may go side by side (`--parallel`); all others run alone, one after the other.
Finished runs are kept in OUT, so an interrupted race goes on. hivemind takes part when it is installed (bench/hivemind_rival.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from footprint import Footprint
from kept import Kept

SCENARIOS = ("none", "one-4x", "one-10x", "exp")
RIVALS = ("ddp", "local-sgd")
GUEST = "hivemind"
OURS = ("ring-all-reduce", "dpsgd")
#: With as many local steps as local SGD has.
LOCAL = tuple(f"{name}-local" for name in OURS)
HERE = Path(__file__).parent


def command(method: str, peers: int, scenario: str, a: argparse.Namespace, out: Path) -> list[str]:
    common = ["--peers", str(peers), "--scenario", scenario, "--chunk-seconds", str(a.chunk_seconds), "--lr", str(a.lr)]
    common += ["--target-loss", str(a.target_loss), "--seed", str(a.seed)]
    if method in RIVALS:
        steps = ["--local-steps", str(a.local_steps)]
        return [sys.executable, str(HERE / "rivals.py"), method, *common, *steps, "--out", str(out)]
    if method == GUEST:
        return [sys.executable, str(HERE / "hivemind_rival.py"), *common, "--out", str(out)]
    return [
        sys.executable,
        "-m",
        "peer",
        "up",
        "--algorithm",
        method.removesuffix("-local"),
        "--local-steps",
        str(a.local_steps if method in LOCAL else 1),
        *common,
        "--metrics-port",
        "-1",
        "--max-seconds",
        "900",
        "--report",
        str(out),
    ]


def run(method: str, peers: int, scenario: str, a: argparse.Namespace) -> dict[str, Any]:
    """One training; what the table needs of it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        started = time.monotonic()
        process = subprocess.Popen(
            command(method, peers, scenario, a, out),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        with Footprint(process.pid) as footprint:
            said, _ = process.communicate()
        if process.returncode != 0 or not out.exists():
            if method == GUEST:
                print(
                    f"{method} {peers} {scenario}: did not reach the target (exit {process.returncode})\n{said[-2000:]}"
                )
                return {"seconds_to_target": None, "took": time.monotonic() - started}
            raise SystemExit(f"{method} {peers} {scenario}: exit {process.returncode}\n{said}")
        full = json.loads(out.read_text())
    result = {name: full[name] for name in ("seconds_to_target", "test_accuracy")}
    result |= {
        "steps": full["steps"] if "steps" in full else full["rounds"] * full["config"]["local_steps"],
        "cpu_seconds": footprint.cpu_seconds,
        "peak_bytes": footprint.peak_bytes,
    }
    result |= {"load": os.getloadavg()[0], "took": time.monotonic() - started}
    print(
        f"{method:16s} {peers} {scenario:8s} {result['seconds_to_target']:7.1f} s  {result['steps']:5d} steps  "
        f"accuracy {result['test_accuracy']:.3f}  "
        f"cpu {result['cpu_seconds']:6.1f} s  memory {result['peak_bytes'] / 2**30:.1f} GiB  load {result['load']:.1f}",
        flush=True,
    )
    return result


def measure(a: argparse.Namespace) -> dict[str, dict[str, Any]]:
    settings = {name: getattr(a, name) for name in ("chunk_seconds", "lr", "target_loss", "seed", "local_steps")}
    kept = Kept(a.out, settings)

    def one(entry: tuple[str, int, str]) -> None:
        key = "{} {} {}".format(*entry)
        if key not in kept.runs:
            kept.add(key, run(*entry, a))

    methods = (*RIVALS, *OURS, *LOCAL, *([GUEST] if importlib.util.find_spec(GUEST) else []))
    entries = [(method, peers, scenario) for peers in a.peers for scenario in SCENARIOS for method in methods]
    asleep = [entry for entry in entries if entry[0] in RIVALS and entry[2] != "none"]
    with ThreadPoolExecutor(a.parallel) as pool:
        list(pool.map(one, sorted(asleep, key=lambda entry: entry[2] != "one-10x")))
    for entry in entries:
        if entry not in asleep:
            one(entry)
    return kept.runs


def table(results: dict[str, dict[str, Any]], peers_list: list[int]) -> str:
    """Markdown: seconds, and how many times faster the better of ours is than each rival."""
    head = ["processes", "method", *SCENARIOS, "accuracy", "cpu s", "memory"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for peers in peers_list:
        methods = [m for m in (*RIVALS, GUEST, *OURS, *LOCAL) if f"{m} {peers} {SCENARIOS[-1]}" in results]
        seconds = {(m, s): results[f"{m} {peers} {s}"]["seconds_to_target"] for m in methods for s in SCENARIOS}
        for method in methods:
            runs = [results[f"{method} {peers} {s}"] for s in SCENARIOS]
            runs = [run for run in runs if run["seconds_to_target"] is not None]
            cells = " | ".join(f"{seconds[method, s]:.1f} s" if seconds[method, s] else "never" for s in SCENARIOS)
            accuracy = min((r["test_accuracy"] for r in runs), default=0.0)
            cpu = max((r["cpu_seconds"] for r in runs), default=0.0)
            memory = max((r["peak_bytes"] for r in runs), default=0) / 2**30
            lines.append(f"| {peers} | {method} | {cells} | {accuracy:.3f} | {cpu:.0f} | {memory:.1f} GiB |")
        for rival, ours in itertools.product((*RIVALS, GUEST), (*OURS, *LOCAL)):
            if rival in methods and ours in methods:
                ratios = " | ".join(ratio(seconds[rival, s], seconds[ours, s]) for s in SCENARIOS)
                lines.append(f"| {peers} | {ours} against {rival} | {ratios} | | | |")
    return "\n".join(lines)


def ratio(theirs: float | None, ours: float) -> str:
    """How many times faster ours is."""
    return "-" if theirs is None else f"**{theirs / ours:.2f}x**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--chunk-seconds", type=float, default=0.03)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--target-loss", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "race.json")
    a = parser.parse_args()
    results = measure(a)
    print()
    print(table(results, a.peers))
    if importlib.util.find_spec("hivemind") is None:
        print("\nhivemind is not installed: it did not run.")


if __name__ == "__main__":
    main()
