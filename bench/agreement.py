"""Predicted against measured: eight straggler configurations through real gRPC processes and through the simulator.

    python bench/agreement.py [--chunk-seconds 0.03] [--lr 0.3] [--out bench/results/agreement.json]
    python bench/agreement.py --table bench/results/straggler_table.json     # real runs that bench/straggler_table.py has kept

For each: seconds to training loss 0.1, measured with `grapevine up` on this machine and predicted by `grapevine simulate` with
the same options and seeds (medians where there are several), and a scenario that adds what this machine's network is like. That is
calibrated by one configuration that is not among the eight: ring all-reduce with a barrier and nobody slow, whose rounds last longer
than their computing by n / 2 words and 2 (n - 1) messages, one after the other. Devices jitter by up to 1 % a round: of eight that are
exactly alike all would finish at once, and none would close a round by its word, as happens on any real machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peer.config import validated
from peer.sim.play import simulate

CONFIGURATIONS: tuple[tuple[str, str, str], ...] = (
    ("dpsgd", "first", "0=4x"),
    ("dpsgd", "first", "0=10x"),
    ("dpsgd", "first", "all=exp:1.0"),
    ("dpsgd", "barrier", "all=exp:1.0"),
    ("matcha", "first", "0=4x"),
    ("matcha", "barrier", "0=4x"),
    ("ring-all-reduce", "first", "0=10x"),
    ("ring-all-reduce", "barrier", "all=exp:1.0"),
)
CALIBRATION = ("ring-all-reduce", "barrier", "none")


def measure(common: dict[str, Any], algorithm: str, closing: str, straggler: str) -> list[dict[str, Any]]:
    """The report of one real run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "peer", "up", "--metrics-port", "-1", "--report", str(report)]
        command += [
            "--algorithm",
            algorithm,
            "--closing",
            closing,
            *(["--straggler", straggler] if straggler != "none" else []),
        ]
        for name, value in common.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return [json.loads(report.read_text())]


def kept(table: Path, algorithm: str, closing: str, straggler: str) -> list[dict[str, Any]]:
    """What bench/straggler_table.py measured for that cell, by seed."""
    runs = json.loads(table.read_text())["runs"]
    return [runs[key] for seed in range(9) if (key := f"{algorithm} {closing} {straggler} {seed}") in runs]


def seconds_per_message(runs: list[dict[str, Any]], common: dict[str, Any]) -> float:
    """How much longer a round of the calibration lasts than its computing, over the messages that follow each other in it: the last
    peer's word on its way to the far side of the ring, and the 2 (n - 1) of a pass."""
    one_after_the_other = 2 * (common["peers"] - 1) + common["peers"] // 2
    rounds = statistics.median(run["seconds_to_target"] / run["rounds"] for run in runs)
    return float(max((rounds - 8 * common["chunk_seconds"]) / one_after_the_other, 1e-5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunk-seconds", type=float, default=0.03)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--table", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "agreement.json")
    a = parser.parse_args()
    common: dict[str, Any] = {"peers": 8, "chunk_seconds": a.chunk_seconds, "lr": a.lr, "target_loss": 0.1}
    if a.table is not None:
        common |= {name: json.loads(a.table.read_text())["settings"][name] for name in common}

    def measured(*configuration: str) -> list[dict[str, Any]]:
        return kept(a.table, *configuration) if a.table is not None else measure(common, *configuration)

    latency = seconds_per_message(measured(*CALIBRATION), common)
    print(f"calibrated: {1e3 * latency:.2f} ms a message\n")
    print("| algorithm | closing | stragglers | measured s | predicted s | error |\n|---|---|---|---|---|---|")
    rows = []
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as scenario:
        scenario.write(f"straggler = ['all=jitter:0.01']\n[network]\nlatency = {latency}\n")
        scenario.flush()
        for algorithm, closing, straggler in CONFIGURATIONS:
            runs = measured(algorithm, closing, straggler)
            real = statistics.median(run["seconds_to_target"] for run in runs)
            options = {
                **common,
                "algorithm": algorithm,
                "closing": closing,
                "straggler": straggler,
                "scenario": scenario.name,
            }
            predictions = [
                simulate(validated({**options, "seed": seed}))["seconds_to_target"] for seed in range(len(runs))
            ]
            virtual = statistics.median(predictions)
            error = virtual / real - 1
            print(
                f"| {algorithm} | {closing} | {straggler} | {real:.1f} | {virtual:.1f} | {100 * error:+.1f} % |",
                flush=True,
            )
            rows.append(
                {"cell": [algorithm, closing, straggler], "measured": real, "predicted": virtual, "error": error}
            )
    median = statistics.median(abs(row["error"]) for row in rows)
    print(f"\nmedian error {100 * median:.1f} %")
    a.out.write_text(
        json.dumps({"latency": latency, "settings": common, "runs": rows, "median_error": median}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
