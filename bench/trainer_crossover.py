"""Which of `--trainer thread` and `process` trains more, by the size of the model: real peers, an exchange a round.

    python bench/trainer_crossover.py [--peers 2] [--seconds 8] [--repeats 2] [--hidden 500 1500 5000] [--chunks 2] [--algorithm dpsgd]

Peers of `grapevine up` on this machine, one torch thread each, train perceptrons of two hidden layers on the digits, over sockets as by
default, with chunks of 32 samples: the closing is `first`, after --chunks chunks. Samples a second of all peers together while they
train, by the trainer; medians of repeats that take turns. Longest lag of a peer's loop is in docs/trainer.md's other table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kept import commit
from torch import nn

from peer.training.tasks.digits import DigitsMLP

HERE = Path(__file__).resolve().parent
HIDDEN = "BENCH_HIDDEN"


class Perceptron(DigitsMLP):
    """64 - H - H - 10."""

    name = "perceptron"

    def model(self) -> nn.Module:
        h = int(os.environ[HIDDEN])
        return nn.Sequential(nn.Flatten(), nn.Linear(64, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, 10))


def elements(h: int) -> int:
    return 64 * h + h + h * h + h + 10 * h + 10


def run(a: argparse.Namespace, h: int, trainer: str) -> dict[str, Any]:
    """Samples and rounds a second."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = {
            "--peers": a.peers,
            "--task": "trainer_crossover:Perceptron",
            "--algorithm": a.algorithm,
            "--closing": "first",
            "--chunks": a.chunks,
            "--batch-size": a.chunks * 32,
            "--lr": 0.01,
            "--max-seconds": a.seconds,
            "--trainer": trainer,
            "--report": report,
        }
        command = [sys.executable, "-m", "peer", "up", *(str(word) for pair in options.items() for word in pair)]
        env = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}", HIDDEN: str(h)}
        subprocess.run(command, env=env, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=300)
        told = json.loads(report.read_text())
    seconds = statistics.mean(peer["wall_seconds"] for peer in told["peers"])
    return {"samples": told["samples"] / seconds, "rounds": told["rounds"] / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--algorithm", default="dpsgd")
    parser.add_argument("--hidden", type=int, nargs="+", default=[200, 500, 1000, 1500, 3000, 5000])
    parser.add_argument("--out", type=Path, help="keep the runs in this JSON file")
    a = parser.parse_args()
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for _ in range(a.repeats):
        for h in a.hidden:
            for trainer in ("thread", "process"):
                runs.setdefault((h, trainer), []).append(run(a, h, trainer))
    print(
        "| elements | samples/s, thread | process | process of thread | rounds/s, thread | process |\n|---|---|---|---|---|---|"
    )
    for h in a.hidden:
        samples, rounds = (
            [statistics.median(one[what] for one in runs[h, trainer]) for trainer in ("thread", "process")]
            for what in ("samples", "rounds")
        )
        print(
            f"| {elements(h):,} | {samples[0]:.0f} | {samples[1]:.0f} | {samples[1] / samples[0]:.2f} "
            f"| {rounds[0]:.1f} | {rounds[1]:.1f} |"
        )
    if a.out:
        settings = {name: value for name, value in vars(a).items() if name != "out"}
        kept = [{"hidden": h, "trainer": trainer, "runs": found} for (h, trainer), found in runs.items()]
        a.out.write_text(json.dumps({"commit": commit(), "settings": settings, "runs": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
