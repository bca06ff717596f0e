"""How fast the simulator is, and how its cost grows: processor seconds per round and edge.

    python bench/simulator_speed.py

`timing` (no gradients) on rings from 64 to 4,096 peers and on graphs of degree 2 to 16; the digits MLP with 256 peers. The reference is the
cost per edge of the smallest ring in the same run: a ratio of 1 is linear. Default options but for what is named; closing `first`.
"""

from __future__ import annotations

import os
import resource
import time

import torch

from peer.assembly import make_schedule
from peer.config import validated
from peer.sim.simulator import Simulation


def measure(**options: object) -> tuple[float, float, int]:
    """(processor seconds, wall seconds, edges x rounds) of one simulation, building included."""
    config = validated(options)
    edges = len(make_schedule(config).base(0).edges)
    wall, cpu = time.perf_counter(), processor_seconds()
    simulation = Simulation(config)
    simulation.run()
    return processor_seconds() - cpu, time.perf_counter() - wall, edges * simulation.rounds


def processor_seconds() -> float:
    """Of this process and of the assistants that have ended."""
    return sum(os.times()[:4])


def main() -> None:
    torch.set_num_threads(1)  # as `grapevine simulate`
    measure(task="timing", peers=64, max_rounds=20)
    measure(peers=4, max_rounds=5)
    print("| run | cpu s | wall s | us per edge and round | against the first |")
    print("|---|---|---|---|---|")
    first = None
    rows: list[tuple[str, dict[str, object]]] = [
        (f"timing, ring of {n}, 200 rounds", {"task": "timing", "peers": n, "max_rounds": 200})
        for n in (64, 256, 1024, 4096)
    ]
    rows += [
        (
            f"timing, 256 peers of degree {d}, 200 rounds",
            {"task": "timing", "peers": 256, "topology": "random-regular", "degree": d, "max_rounds": 200},
        )
        for d in (4, 8, 16)
    ]
    rows += [("digits MLP, ring of 256, 200 rounds", {"peers": 256, "max_rounds": 200})]
    for name, options in rows:
        cpu, wall, work = measure(**options, scenario="one-4x")
        first = first or cpu / work
        print(f"| {name} | {cpu:.1f} | {wall:.1f} | {1e6 * cpu / work:.0f} | {cpu / work / first:.2f} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak resident memory of all of them: {peak:.2f} GiB, without the assistant")


if __name__ == "__main__":
    main()
