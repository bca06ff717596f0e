"""What `--wire-dtype` gains on a slow link: time to a target loss, bytes and accuracy for each format, in virtual time.

    python bench/compression.py [--seeds 3] [--lr 0.3] [--target-loss 0.1] [--partition iid] [--out bench/results/compression.json]
    python bench/compression.py --only-large

Eight peers train the digits MLP with real gradients over the network of bench/scenarios/20mbit.toml; a chunk takes 2 ms, so a round
computes for 16 ms and sends two vectors of 204 kB, or a ring's 14 shards of 26 kB. Medians over seeds. Then, without training, how long
rounds of a model of 25 million parameters last over 1 Gbit/s, and what encoding, decoding and D-PSGD's mixing with two neighbours
(decoding included) cost one processor, which virtual time does not count; with --only-large that alone, and nothing is kept. Last, how
fast random vectors agree by CHOCO-SGD with top-k, by graph and --consensus-step.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from movers import NoStep

from peer.config import validated
from peer.gossip.algorithm import PeerState
from peer.gossip.compression import WireFormat, pieces, wire_format
from peer.gossip.effects import delivered, make_all
from peer.gossip.mixing import make_mixing
from peer.gossip.wire_dtype import WireDtype
from peer.sim.play import simulate
from topology import FixedSchedule, RoundPlan, build

FORMATS = {
    "dpsgd": ("fp32", "bf16", "fp16", "int8", "top-k:0.25", "top-k:0.1", "top-k:0.01"),
    "ring-all-reduce": ("fp32", "bf16", "fp16", "int8"),
}
SLOW_LINK = Path(__file__).parent / "scenarios" / "20mbit.toml"
LARGE = 25_000_000
FIBRE = 'straggler = ["all=jitter:0.01"]\n[network]\nlatency = "0.5ms"\nbandwidth = "1Gbit/s"\n'


def train(settings: dict[str, Any], algorithm: str, wire: str, seed: int) -> dict[str, Any]:
    """One simulated run to the target."""
    options = {**settings, "algorithm": algorithm, "wire_dtype": wire, "seed": seed, "scenario": str(SLOW_LINK)}
    report = simulate(validated(options))
    names = ("seconds_to_target", "rounds", "test_accuracy", "worst_peer_test_accuracy", "consensus_distance")
    kept = {name: report[name] for name in names}
    return {
        **kept,
        "algorithm": algorithm,
        "wire_dtype": wire,
        "seed": seed,
        "bytes_per_peer_and_round": report["bytes_sent"] / sum(peer["rounds"] for peer in report["peers"]),
    }


def median(runs: list[dict[str, Any]], name: str) -> float:
    """NaN if a run never came to the target."""
    values = [run[name] for run in runs]
    return float("nan") if None in values else float(statistics.median(values))


def table(runs: list[dict[str, Any]]) -> str:
    lines = [
        "| algorithm | format | s to target | of fp32 | rounds | kB a peer and round | of fp32 | accuracy | worst peer | distance |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for algorithm, formats in FORMATS.items():
        cells = {
            wire: [run for run in runs if (run["algorithm"], run["wire_dtype"]) == (algorithm, wire)]
            for wire in formats
        }
        seconds, sent = (
            {wire: median(cell, name) for wire, cell in cells.items()}
            for name in ("seconds_to_target", "bytes_per_peer_and_round")
        )
        for wire, cell in cells.items():
            lines.append(
                f"| {algorithm} | {wire} | {seconds[wire]:.1f} | {seconds[wire] / seconds['fp32']:.2f} | {median(cell, 'rounds'):.0f} | "
                f"{sent[wire] / 1000:.1f} | {sent[wire] / sent['fp32']:.3f} | {median(cell, 'test_accuracy'):.3f} | "
                f"{median(cell, 'worst_peer_test_accuracy'):.3f} | {median(cell, 'consensus_distance'):.2f} |"
            )
    return "\n".join(lines)


def round_seconds(algorithm: str, wire: str) -> float:
    """Seconds of a round of a large model over fibre, computing 0.1 s, without training."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as scenario:
        scenario.write(FIBRE)
        scenario.flush()
        options = {
            "algorithm": algorithm,
            "wire_dtype": wire,
            "task": "timing",
            "max_rounds": 50,
            "chunk_seconds": 0.0125,
        }
        report = simulate(validated({**options, "scenario": scenario.name}), num_parameters=LARGE)
    return float(report["wall_seconds"] / report["rounds"])


def coding_seconds(wire: WireFormat, vector: torch.Tensor) -> tuple[float, float]:
    """Processor seconds (one thread, least of three) to encode a vector, and to check and decode its payload."""
    payload, out = wire.payload(vector.numel()), torch.empty_like(vector)
    times = []
    for _ in range(3):
        began = time.process_time()
        wire.encode(vector, payload)
        encoded = time.process_time()
        assert wire.is_sound(payload, vector.numel())
        for start, stop in pieces(vector.numel()):
            wire.piece(payload, start, out[start:stop])
        times.append((encoded - began, time.process_time() - encoded))
    return min(t for t, _ in times), min(t for _, t in times)


def mixing_seconds(wire: WireFormat, vector: torch.Tensor) -> float:
    """Processor seconds (one thread, least of three) to mix vector [d] with what two neighbours sent, once it is known that both count."""
    state = PeerState(0, 3, vector.clone(), NoStep(), batch_size=1, weighting="peers", wire=wire, consensus_step=0.1)
    mixing, plan, times = make_mixing(state), RoundPlan(0, 0, (1, 2), (0.3, 0.3), 0.4), []
    for _ in range(3):
        exchange = mixing.exchange(plan)
        make_all(exchange)
        inbox = delivered(exchange, {j: sent.clone() for j, sent in exchange.send.items()}, {})
        began = time.process_time()
        mixed = mixing.mix_(plan, inbox)
        times.append(time.process_time() - began)
        assert not mixed.lost
    return min(times)


def large_model() -> list[dict[str, Any]]:
    """One row a format: seconds of a round by algorithm, and of coding."""
    torch.set_num_threads(1)
    vector = torch.randn(LARGE)
    rows = []
    for wire in FORMATS["dpsgd"]:
        encoding, decoding = coding_seconds(wire_format(WireDtype.parse(wire)), vector)
        rounds = {
            algorithm: round_seconds(algorithm, wire) for algorithm, formats in FORMATS.items() if wire in formats
        }
        mixing = mixing_seconds(wire_format(WireDtype.parse(wire)), vector)
        row = {"wire_dtype": wire, "round_seconds": rounds, "encoding": encoding, "decoding": decoding}
        rows.append({**row, "mixing": mixing})
    return rows


def large_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| format | s a round, dpsgd | s a round, ring-all-reduce | encode s | decode s | mix two s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ring = row["round_seconds"].get("ring-all-reduce")
        told = "refused" if ring is None else f"{ring:.2f}"
        coding = " - | - " if row["wire_dtype"] == "fp32" else f" {row['encoding']:.3f} | {row['decoding']:.3f} "
        lines.append(
            f"| {row['wire_dtype']} | {row['round_seconds']['dpsgd']:.2f} | {told} |{coding}| {row['mixing']:.3f} |"
        )
    return "\n".join(lines)


def agreement(topology: str, fraction: float, gamma: float, rounds: int = 600) -> float:
    """-ln of the factor by which the distance of 8 random vectors [1000] to their mean shrinks a round, over the second half."""
    schedule, w = FixedSchedule(build(topology, 8), "metropolis"), np.zeros((8, 8))
    for i in range(8):
        plan = schedule.plan(0, i)
        w[i, i] = plan.self_weight
        w[i, list(plan.neighbors)] = plan.weights
    x = np.random.default_rng(0).normal(size=(8, 1000))
    replica, distances = np.zeros_like(x), []
    for _ in range(rounds):
        difference = x - replica
        least = np.partition(np.abs(difference), -int(1000 * fraction), axis=1)[:, [-int(1000 * fraction)]]
        replica += np.where(np.abs(difference) >= least, difference, 0)
        x += gamma * (w @ replica - replica)
        distances.append(float(np.linalg.norm(x - x.mean(0))))
        if not 1e-10 < distances[-1] < 1e6:
            break
    half = len(distances) // 2
    return -math.log(distances[-1] / distances[half]) / (len(distances) - 1 - half)


def agreement_table(fraction: float = 0.1) -> str:
    multiples = (0.5, 1, 1.5, 2, 3, 4)
    lines = ["| graph | " + " | ".join(f"{m:g} R" for m in multiples) + " |", "|---" * (len(multiples) + 1) + "|"]
    for topology in ("ring", "star", "exponential", "complete"):
        rates = [agreement(topology, fraction, m * fraction) for m in multiples]
        lines.append(f"| {topology} | " + " | ".join("apart" if r < 0 else f"{r:.4f}" for r in rates) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--target-loss", type=float, default=0.1)
    parser.add_argument("--partition", default="iid")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "compression.json")
    parser.add_argument("--only-large", action="store_true")
    a = parser.parse_args()
    if a.only_large:
        print(large_table(large_model()))
        return
    settings: dict[str, Any] = {
        "peers": 8,
        "chunk_seconds": 0.002,
        "lr": a.lr,
        "target_loss": a.target_loss,
        "partition": a.partition,
        "max_rounds": 3000,
    }
    runs = []
    for algorithm, formats in FORMATS.items():
        for wire in formats:
            for seed in range(a.seeds):
                runs.append(train(settings, algorithm, wire, seed))
                print(f"{algorithm} {wire} seed {seed}: {runs[-1]['seconds_to_target']} s", flush=True)
    print("\n" + table(runs) + "\n", flush=True)
    rows = large_model()
    print(large_table(rows) + "\n\n" + agreement_table())
    a.out.write_text(json.dumps({"settings": settings, "runs": runs, "large_model": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
