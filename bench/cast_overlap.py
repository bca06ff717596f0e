"""What encoding and decoding cost a round of a large model beside the transfer: `--wire-dtype` between real peers.

    python bench/cast_overlap.py [--rounds 20] [--repeats 3] [--algorithm dpsgd] [--rate 125] [--peers 2] [--formats ...]
                                  [--beside DIR] [--out FILE]

Peers of `grapevine up` on this machine, on a ring, train a model of 25 million parameters, over gRPC on a network emulated to carry
`--rate` MB/s with 0.5 ms of latency. Milliseconds of a round by the peers' own timelines, and of its parts before and after its
close: before it the exchange hides behind the computing of a chunk, after it peers wait for the rest of it, and mix. Medians over all
peers and all rounds but the first five, then over repeats, which take turns. Transfer: the payload's bytes by the rate. --beside: the
same by the peers of another checkout of this project, in the same run, for what a change made of it.
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

import torch
from kept import commit
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from peer.gossip.compression import wire_format
from peer.gossip.mixing import payload_bytes
from peer.gossip.wire_dtype import WireDtype
from peer.training.task import Task

ELEMENTS = 25_000_000
FORMATS = ("fp32", "bf16", "fp16", "int8", "top-k:0.1")
WARM_UP = 5
HERE = Path(__file__).resolve().parent


class Picks(nn.Module):
    """Its output depends on a few of its many parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ELEMENTS))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight[:4]


class Large(Task):
    """Least squares in four of 25 million parameters."""

    name = "large"

    def model(self) -> nn.Module:
        return Picks()

    def train_data(self) -> Dataset[Any]:
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
        return TensorDataset(x, x.sum(1))

    def test_data(self) -> Dataset[Any]:
        return self.train_data()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.mean((outputs - targets) ** 2)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float | None:
        return None


def run(tree: Path, a: argparse.Namespace, wire: str) -> list[float]:
    """Median milliseconds of a round, until its close, and from there."""
    with tempfile.TemporaryDirectory() as folder:
        scenario, report = Path(folder) / "network.toml", Path(folder) / "report.json"
        scenario.write_text(f'[network]\nlatency = "0.5ms"\nbandwidth = "{a.rate:g}MB/s"\n')
        options = {
            "--peers": a.peers,
            "--task": "cast_overlap:Large",
            "--algorithm": a.algorithm,
            "--wire-dtype": wire,
            "--chunks": 1,
            "--batch-size": 1,
            "--lr": 0.01,
            "--closing": "barrier",
            "--trainer": "thread",
            "--max-rounds": a.rounds,
            "--scenario": scenario,
            "--report": report,
        }
        command = [sys.executable, "-m", "peer", "up", *(str(word) for pair in options.items() for word in pair)]
        env = {**os.environ, "PYTHONPATH": f"{tree}:{HERE}"}
        subprocess.run(command, env=env, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=300)
        peers = json.loads(report.read_text())["peers"]
    rounds = [times for peer in peers for times in peer["timeline"][WARM_UP:]]
    parts = [(end - began, closed - began, end - closed) for began, _, closed, end in rounds]
    return [1000 * statistics.median(column) for column in zip(*parts, strict=True)]


def transfer(wire: str, rate: float) -> float:
    """Milliseconds that the payload is under way, at so many MB/s."""
    return payload_bytes(wire_format(WireDtype.parse(wire)), ELEMENTS) / rate / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--algorithm", default="dpsgd")
    parser.add_argument("--rate", type=float, default=125.0)
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep the medians in this JSON file")
    a = parser.parse_args()
    if a.rounds <= WARM_UP:
        parser.error(f"--rounds: more than {WARM_UP}, which are not counted")
    trees = {"this": HERE.parent} | ({"other": a.beside.resolve()} if a.beside else {})
    runs: dict[tuple[str, str], list[list[float]]] = {}
    for repeat in range(a.repeats):
        for wire in a.formats:
            for name, tree in trees.items():
                runs.setdefault((wire, name), []).append(run(tree, a, wire))
                print(f"{repeat + 1} of {a.repeats}: {wire} {name} {runs[wire, name][-1][0]:.0f} ms", flush=True)
    print(
        "\n| format | checkout | transfer, ms | a round, ms | before its close | after it |\n|---|---|---|---|---|---|"
    )
    kept = []
    for (wire, name), times in runs.items():
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        told = " | ".join(f"{value:.0f}" for value in medians)
        print(f"| {wire} | {name} | {transfer(wire, a.rate):.0f} | {told} |")
        kept.append({"wire_dtype": wire, "checkout": name, "commit": commit(trees[name]), "milliseconds": medians})
    if a.out:
        settings = {name: value for name, value in vars(a).items() if name not in ("out", "beside")}
        a.out.write_text(json.dumps({"settings": settings, "rounds": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
