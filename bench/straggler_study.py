"""The straggler study: which number of chunks, closing policy and in-flight rule reaches the target soonest, over all scenarios.

    python bench/straggler_study.py [--seeds 3] [--processes 2] [--out bench/results/straggler_study.json] [--plots docs/study]

Simulated D-PSGD on a ring of 8 peers, the digits MLP, lr 0.3, batches of 16 per peer, 10 ms a nominal chunk of a batch cut into 8 (so a
batch is 80 ms of work whatever it is cut into), virtual seconds to training loss 0.1, and the test accuracy there. Finished runs are kept
in OUT, so an interrupted study goes on. Nothing here depends on the machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kept import Kept

CHUNKS = (2, 4, 8, 16)
CLOSINGS = ("first", "quorum", "deadline")
IN_FLIGHT = ("carry", "redo", "drain")
SCENARIOS = ("none", "one-4x", "one-10x", "exp", "hetero-1-to-4", "bimodal", "pareto", "pause", "wan")
BATCH_SECONDS = 0.08
LR = 0.3


@dataclass(frozen=True)
class Choice:
    """One way to run. barrier with 8 chunks is the reference."""

    chunks: int
    closing: str
    in_flight: str

    def __str__(self) -> str:
        return f"{self.closing}, {self.in_flight}, m = {self.chunks}"


def choices() -> list[Choice]:
    """The default first; then each of its three settings varied against the other two."""
    varied = [Choice(m, c, f) for m in CHUNKS for c in CLOSINGS for f in IN_FLIGHT if m == 8 or c == "first"]
    return [Choice(8, "barrier", "carry"), *varied]


def run(choice: Choice, scenario: str, seed: int) -> dict[str, Any]:
    from peer.config import validated
    from peer.sim.play import simulate

    settings = {
        **asdict(choice),
        "scenario": scenario,
        "seed": seed,
        "lr": LR,
        "target_loss": 0.1,
        "max_seconds": 400.0,
    }
    report = simulate(validated({**settings, "chunk_seconds": BATCH_SECONDS / choice.chunks, "eval_every": 0.5}))
    kept = (
        "seconds_to_target",
        "test_accuracy",
        "worst_peer_test_accuracy",
        "idle_fraction",
        "finished_fraction",
        "max_staleness",
        "rounds",
    )
    return {name: report[name] for name in kept}


def measure(a: argparse.Namespace) -> dict[str, dict[str, Any]]:
    kept = Kept(a.out, {"batch_seconds": BATCH_SECONDS, "lr": LR, "target_loss": 0.1})
    wanted = [(c, s, k) for k in range(a.seeds) for c in choices() for s in SCENARIOS]
    missing = {f"{c}; {s}; {k}": (c, s, k) for c, s, k in wanted if f"{c}; {s}; {k}" not in kept.runs}
    with ProcessPoolExecutor(a.processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run, *entry): key for key, entry in missing.items()}
        for done, future in enumerate(as_completed(futures), 1):
            kept.add(futures[future], future.result())
            if done % 20 == 0 or done == len(futures):
                print(f"{done} of {len(futures)}", flush=True)
    return kept.runs


def medians(runs: dict[str, dict[str, Any]], seeds: int, name: str) -> dict[tuple[Choice, str], float]:
    """Of one number over seeds; infinite where a run did not reach the target."""
    found = {}
    for choice in choices():
        for scenario in SCENARIOS:
            values = [runs[f"{choice}; {scenario}; {seed}"][name] for seed in range(seeds)]
            found[choice, scenario] = statistics.median(math.inf if v is None else v for v in values)
    return found


def table(runs: dict[str, dict[str, Any]], seeds: int) -> str:
    """Markdown: median seconds to target, the geometric mean of the speed-up over barrier, and the worst change of accuracy."""
    seconds, accuracy = medians(runs, seeds, "seconds_to_target"), medians(runs, seeds, "test_accuracy")
    reference = choices()[0]
    lines = [
        "| choice | " + " | ".join(SCENARIOS) + " | mean speed-up | accuracy |",
        "|---|" + "---|" * (len(SCENARIOS) + 2),
    ]
    rows = []
    for choice in choices():
        ratios = [seconds[reference, s] / seconds[choice, s] for s in SCENARIOS]
        mean = math.exp(statistics.fmean(math.log(r) for r in ratios)) if min(ratios) > 0 else 0.0
        loss = min(accuracy[choice, s] - accuracy[reference, s] for s in SCENARIOS)
        cells = " | ".join(f"{seconds[choice, s]:.1f}" if seconds[choice, s] < math.inf else "-" for s in SCENARIOS)
        rows.append((-mean, f"| {choice} | {cells} | {mean:.2f}x | {100 * loss:+.1f} |"))
    return "\n".join([*lines, *(row for _, row in sorted(rows))])


def plot(runs: dict[str, dict[str, Any]], seeds: int, folder: Path) -> None:
    """Three panels: speed-up over barrier by chunks, by closing and by in-flight rule, the other two at their defaults."""
    from matplotlib.figure import Figure

    seconds, reference = medians(runs, seeds, "seconds_to_target"), choices()[0]
    panels = {
        "chunks": [(str(m), Choice(m, "first", "carry")) for m in CHUNKS],
        "closing": [(c, Choice(8, c, "carry")) for c in CLOSINGS],
        "in flight": [(f, Choice(8, "first", f)) for f in IN_FLIGHT],
    }
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    for axis, (title, options) in zip(axes, panels.items(), strict=True):
        width = 0.8 / len(options)
        for place, (label, choice) in enumerate(options):
            at = [i + (place - (len(options) - 1) / 2) * width for i in range(len(SCENARIOS))]
            heights = [seconds[reference, s] / seconds[choice, s] for s in SCENARIOS]
            axis.bar(
                at,
                heights,
                width,
                label=label,
                color=colours[place],
                edgecolor="white",
                hatch=("", "//", "..", "xx")[place],
            )
        axis.set_title(title, loc="left")
        axis.set_xticks(range(len(SCENARIOS)), SCENARIOS, rotation=60, ha="right", rotation_mode="anchor")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    axes[0].set_ylabel("time to loss 0.1: barrier / choice")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "straggler-study.svg")
    figure.savefig(folder / "straggler-study.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "straggler_study.json")
    parser.add_argument("--plots", type=Path, default=Path(__file__).parent.parent / "docs" / "study")
    a = parser.parse_args()
    runs = measure(a)
    print(table(runs, a.seeds))
    plot(runs, a.seeds, a.plots)


if __name__ == "__main__":
    main()
