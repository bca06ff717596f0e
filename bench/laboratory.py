"""All methods over the scenarios of the laboratory: seconds to a target loss, accuracy and bytes, as tables of docs/algorithms.md.

    python bench/laboratory.py [--seeds 3] [--processes 2] [--out bench/results/laboratory.json]   # simulate what is missing, write
    python bench/laboratory.py --real        # the best four of Dirichlet data in real processes, beside the simulator; write
    python bench/laboratory.py --write       # write the tables of what is kept
    python bench/laboratory.py --check       # end with 1 if docs/algorithms.md has other tables than what is kept gives

8 peers, the digits MLP, batches of 16 per peer cut into 4 chunks, 80 ms of work a batch; virtual seconds until the loss of the run's
model on the training set is 0.3. Each row has its method's defaults, but the learning rate: for each partition it is doubled or halved
from a first guess, with nobody slow and a seed of its own, as long as that is sooner, and of those tried the least is taken that is
within a tenth of the soonest. Finished runs are kept in OUT, so an interrupted bench goes on; one seed comes after the other, so that
its table is whole before the next begins. Nothing but the real runs depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Any

from kept import Kept

from peer.config import choices, flag

PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"
BEGIN, END = "<!-- written by `python bench/laboratory.py` -->\n", "<!-- to here -->\n"

#: What a row adds to the settings that all have. The name is its method, and what is not its default.
ROWS: Mapping[str, Mapping[str, Any]] = {
    "dpsgd, `barrier`": {"algorithm": "dpsgd", "closing": "barrier"},
    "dpsgd": {"algorithm": "dpsgd"},
    "dpsgd, `base`": {"algorithm": "dpsgd", "topology": "base"},
    "matcha": {"algorithm": "matcha"},
    "ring-all-reduce": {"algorithm": "ring-all-reduce"},
    "slowmo": {"algorithm": "slowmo"},
    "diloco": {"algorithm": "diloco"},
    "diloco, H = 8": {"algorithm": "diloco", "local_steps": 8},
    "noloco": {"algorithm": "noloco"},
    "qg-dsgdm": {"algorithm": "qg-dsgdm"},
    "gradient-tracking": {"algorithm": "gradient-tracking"},
    "choco-sgd": {"algorithm": "choco-sgd"},
    "al-dsgd": {"algorithm": "al-dsgd"},
    "al-matcha": {"algorithm": "al-matcha"},
    "sync-sgd": {"algorithm": "sync-sgd"},
    "sync-sgd, 1 backup": {"algorithm": "sync-sgd", "backup_workers": 1},
    "async-sgd": {"algorithm": "async-sgd"},
    "ad-psgd": {"algorithm": "ad-psgd"},
}
SCENARIOS = ("none", "one-4x", "one-10x", "exp", "hetero-1-to-4", "bimodal", "pareto", "pause", "wan")
PARTITIONS: Mapping[str, Mapping[str, Any]] = {
    "iid": {"partition": "iid"},
    "Dirichlet(0.1)": {"partition": "dirichlet", "alpha": 0.1},
}
PEERS, CHUNKS = 8, 4
BATCH_SECONDS, REAL_BATCH_SECONDS = 0.08, 0.32
TARGET = 0.3
MOST_SECONDS, MOST_ROUNDS = 200.0, 400
"""Where a run that does not reach the target ends. Rounds are counted for methods that have them."""
SWEEP_SEED, SWEEP_SECONDS = 100, 30.0
#: Where the sweep begins; elsewhere at 0.2. Less for momentum, and where each gradient is a step of its own.
FIRST_LR = {"qg-dsgdm": 0.05, "slowmo": 0.1, "diloco": 0.05, "async-sgd": 0.05}
REAL_SCENARIO, REAL_PARTITION, BEST = "one-4x", "Dirichlet(0.1)", 4

Runs = Mapping[str, Mapping[str, Any]]


def settings(row: str, partition: str, lr: float, batch_seconds: float = BATCH_SECONDS) -> dict[str, Any]:
    """The options of a run, but for scenario, seed and its latest end."""
    common = {"peers": PEERS, "chunks": CHUNKS, "chunk_seconds": batch_seconds / CHUNKS, "target_loss": TARGET}
    return {**common, **ROWS[row], **PARTITIONS[partition], "lr": lr, "eval_every": 0.5}


def outcome(report: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a report; null for what is no number."""
    names = ("seconds_to_target", "train_loss", "test_accuracy", "worst_peer_test_accuracy", "rounds", "bytes_sent")
    found = {name: report[name] for name in names}
    return {n: v if v is not None and math.isfinite(v) else None for n, v in found.items()}


def simulated(options: Mapping[str, Any]) -> dict[str, Any]:
    from peer.config import validated
    from peer.sim.play import simulate

    return {**outcome(simulate(validated(options))), "lr": options["lr"]}


def run(row: str, partition: str, scenario: str, seed: int, lr: float) -> dict[str, Any]:
    from peer.gossip.algorithms import ALGORITHMS

    rounds = {"max_rounds": MOST_ROUNDS} if ALGORITHMS[ROWS[row]["algorithm"]].has_rounds else {}
    ends = {"scenario": scenario, "seed": seed, "max_seconds": MOST_SECONDS, **rounds}
    return simulated({**settings(row, partition, lr), **ends})


def sweep(row: str, partition: str) -> dict[str, Any]:
    """Learning rates tried, each with how it went: doubled from the first or else halved, as long as that is better."""
    first = FIRST_LR.get(ROWS[row]["algorithm"], 0.2)
    ends = {"scenario": "none", "seed": SWEEP_SEED, "max_seconds": SWEEP_SECONDS}
    tried = {first: simulated({**settings(row, partition, first), **ends})}
    for factor in (2.0, 0.5):
        lr = first
        while 0.001 < lr < 10:
            if (soonest := tried[lr]["seconds_to_target"]) is not None:
                ends["max_seconds"] = 1.1 * soonest + 0.5  # what comes later is not chosen
            tried[lr * factor] = simulated({**settings(row, partition, lr * factor), **ends})
            if order(tried[lr * factor]) >= order(tried[lr]):
                break
            lr *= factor
        if lr != first:
            break
    return {"tried": [tried[lr] for lr in sorted(tried)]}


def order(tried: Mapping[str, Any]) -> tuple[float, float]:
    """Less is better: first who reaches the target, the sooner the better, then by loss."""
    seconds, loss = tried["seconds_to_target"], tried["train_loss"]
    return (seconds if seconds is not None else math.inf, loss if loss is not None else math.inf)


def chosen(runs: Runs, row: str, partition: str) -> float:
    """The least learning rate within a tenth of the soonest; without any that reached the target, that of the least loss."""
    tried = runs[sweep_key(row, partition)]["tried"]
    best = min(tried, key=order)
    near = [t for t in tried if (t["seconds_to_target"] or math.inf) <= 1.1 * (best["seconds_to_target"] or 0)]
    return float(min((t["lr"] for t in near), default=best["lr"]))


def sweep_key(row: str, partition: str) -> str:
    return f"sweep; {partition}; {row}"


def run_key(row: str, partition: str, scenario: str, seed: int) -> str:
    return f"{partition}; {scenario}; {row}; {seed}"


def real_key(row: str) -> str:
    return f"real; {REAL_PARTITION}; {REAL_SCENARIO}; {row}"


def kept(out: Path) -> Kept:
    return Kept(
        out,
        {
            **{"peers": PEERS, "chunks": CHUNKS, "batch_seconds": BATCH_SECONDS, "target_loss": TARGET, "alpha": 0.1},
            **{"max_seconds": MOST_SECONDS, "max_rounds": MOST_ROUNDS, "real_batch_seconds": REAL_BATCH_SECONDS},
        },
    )


def in_pool(
    kept: Kept, processes: int, function: Callable[..., dict[str, Any]], work: Mapping[str, Sequence[Any]]
) -> None:
    """Does what is not kept yet."""
    missing = {key: arguments for key, arguments in work.items() if key not in kept.runs}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(function, *arguments): key for key, arguments in missing.items()}
        for done, future in enumerate(as_completed(futures), 1):
            kept.add(futures[future], future.result())
            if done % 20 == 0 or done == len(futures):
                print(f"{function.__name__}: {done} of {len(futures)}", flush=True)


def measure(kept: Kept, seeds: int, processes: int) -> None:
    pairs = [(row, partition) for partition in PARTITIONS for row in ROWS]
    in_pool(kept, processes, sweep, {sweep_key(*pair): pair for pair in pairs})
    rates = {pair: chosen(kept.runs, *pair) for pair in pairs}
    cells = [(row, p, s, seed) for seed in range(seeds) for s in SCENARIOS for row, p in pairs]
    in_pool(kept, processes, run, {run_key(*cell): (*cell, rates[cell[:2]]) for cell in cells})


def measure_real(kept: Kept) -> None:
    """The best of the partition with real processes, and what the simulator says to the same options and seed."""
    for row in best(kept.runs, REAL_PARTITION):
        if real_key(row) not in kept.runs:
            options = settings(row, REAL_PARTITION, chosen(kept.runs, row, REAL_PARTITION), REAL_BATCH_SECONDS)
            options |= {"scenario": REAL_SCENARIO, "seed": 0, "max_seconds": 400.0}
            kept.add(real_key(row), {"predicted": simulated(options), "measured": in_processes(options)})
            print(real_key(row), json.dumps(kept.runs[real_key(row)]), flush=True)


def in_processes(options: Mapping[str, Any]) -> dict[str, Any]:
    """A run of `grapevine up`, and the machine's load average after it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "peer", "up", "--metrics-port", "-1", "--report", str(report)]
        command += [word for name, value in options.items() for word in (flag(name), str(value))]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        return {**outcome(json.loads(report.read_text())), "load": round(os.getloadavg()[0], 1)}


def of(runs: Runs, row: str, partition: str, scenario: str) -> list[Mapping[str, Any]]:
    """The runs of a cell, one for each seed that was run."""
    keys = (run_key(row, partition, scenario, seed) for seed in range(100))
    return [runs[key] for key in keys if key in runs]


def numbers(cell: Sequence[Mapping[str, Any]], name: str, instead: float) -> list[float]:
    return [instead if run[name] is None else float(run[name]) for run in cell]


def seconds(runs: Runs, row: str, partition: str) -> list[float]:
    """By scenario: medians over seeds, infinite where most do not reach the target."""
    cells = (of(runs, row, partition, scenario) for scenario in SCENARIOS)
    return [median(numbers(cell, "seconds_to_target", math.inf)) for cell in cells]


def mean_seconds(runs: Runs, row: str, partition: str) -> float:
    """Geometric mean over scenarios; infinite if one of them is."""
    return math.exp(fmean(math.log(s) for s in seconds(runs, row, partition)))


def measured_rows(runs: Runs, partition: str) -> list[str]:
    """Rows with runs of all scenarios, the soonest first: by the number of scenarios in which they get there, then by mean."""

    def place(row: str) -> tuple[int, float]:
        there = [s for s in seconds(runs, row, partition) if s < math.inf]
        return len(SCENARIOS) - len(there), math.exp(fmean(map(math.log, there))) if there else math.inf

    return sorted((r for r in ROWS if all(of(runs, r, partition, s) for s in SCENARIOS)), key=place)


def best(runs: Runs, partition: str) -> list[str]:
    """The best methods, each in the best of its rows."""
    firsts: dict[str, str] = {}
    for row in measured_rows(runs, partition):
        firsts.setdefault(ROWS[row]["algorithm"], row)
    return list(firsts.values())[:BEST]


def spelled(cell: Sequence[Mapping[str, Any]]) -> str:
    """Seconds of a cell as text."""
    values = numbers(cell, "seconds_to_target", math.inf)
    reached = sum(v < math.inf for v in values)
    text = f"{median(values):.1f}" if median(values) < math.inf else "-"
    return text if reached in (0, len(values)) else f"{text} ({reached} of {len(values)})"


def line(runs: Runs, row: str, partition: str) -> tuple[list[str], list[float]]:
    """A row's cells as text; and as numbers of which the least is the best, for those that are compared."""
    cells = [of(runs, row, partition, scenario) for scenario in SCENARIOS]
    accuracy = median(median(numbers(cell, "test_accuracy", 0)) for cell in cells)
    worst = min(median(numbers(cell, "worst_peer_test_accuracy", 0)) for cell in cells)
    paid = [run["bytes_sent"] / PEERS / 1e6 for cell in cells for run in cell if run["seconds_to_target"] is not None]
    mean = mean_seconds(runs, row, partition)
    texts = [*map(spelled, cells), f"{mean:.1f}" if mean < math.inf else "-"]
    texts += [f"{100 * accuracy:.1f}", f"{100 * worst:.1f}", f"{median(paid):.1f}" if paid else "-"]
    values = [*seconds(runs, row, partition), mean, -accuracy, -worst, median(paid) if paid else math.inf]
    return texts, [round(v, 3 if -1 <= v < 0 else 1) for v in values]


def table(runs: Runs, partition: str) -> Iterator[str]:
    """Lines of Markdown, the best of each column in bold."""
    lines = {row: line(runs, row, partition) for row in measured_rows(runs, partition)}
    yield f"| {partition} | lr | {' | '.join(SCENARIOS)} | mean | accuracy | worst peer | MB |"
    yield "|---" * (len(SCENARIOS) + 6) + "|"
    for row, (texts, values) in lines.items():
        least = [min(column) for column in zip(*(v for _, v in lines.values()), strict=True)]
        marked = [f"**{t}**" if v == b and v < math.inf else t for t, v, b in zip(texts, values, least, strict=True)]
        yield f"| {row} | {chosen(runs, row, partition):g} | {' | '.join(marked)} |"


def section(runs: Runs) -> str:
    """What stands in the docs between the marks."""
    lines = [""]
    for partition in PARTITIONS:
        lines += [*table(runs, partition), ""]
        if missing := [row for row in ROWS if row not in measured_rows(runs, partition)]:
            lines += [f"Not run yet: {', '.join(missing)}.", ""]
    if any(measured_rows(runs, partition) for partition in PARTITIONS):
        lines += [seeds_told(runs), ""]
    if real := [row for row in best(runs, REAL_PARTITION) if real_key(row) in runs]:
        lines += [*real_table(runs, real), ""]
    return "\n".join(lines)


def seeds_told(runs: Runs) -> str:
    """Over how many seeds the medians are."""
    cells = {(s, len(of(runs, row, p, s))) for p in PARTITIONS for row in measured_rows(runs, p) for s in SCENARIOS}
    counts = sorted({count for _, count in cells}, reverse=True)
    told = [
        f"{n} {'seeds' if n > 1 else 'seed'} ({', '.join(s for s in SCENARIOS if (s, n) in cells)})" for n in counts
    ]
    return f"Medians are over {counts[0]} seeds." if len(counts) == 1 else f"Medians are over {', '.join(told)}."


def real_table(runs: Runs, rows: Sequence[str]) -> Iterator[str]:
    yield f"The best four on {REAL_PARTITION}, each in its best row, as {PEERS} real processes with scenario {REAL_SCENARIO},"
    yield f"{1000 * REAL_BATCH_SECONDS:g} ms of work a batch, seed 0, and simulated alike; load: the machine's after the run."
    yield ""
    yield f"| {REAL_PARTITION}, {REAL_SCENARIO} | real seconds | simulated | rounds | simulated | accuracy | simulated | load |"
    yield "|---" * 8 + "|"
    for row in rows:
        pair = (runs[real_key(row)]["measured"], runs[real_key(row)]["predicted"])
        cells = [[spelled([r]), str(r["rounds"]), f"{100 * (r['test_accuracy'] or 0):.1f}"] for r in pair]
        both = " | ".join(text for texts in zip(*cells, strict=True) for text in texts)
        yield f"| {row} | {both} | {pair[0]['load']} |"


def page(runs: Runs) -> str:
    """docs/algorithms.md with the section in its place."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + section(runs) + END + after


def check(runs: Runs) -> str | None:
    """What is wrong, or nothing."""
    if forgotten := set(choices("algorithm")) - {row["algorithm"] for row in ROWS.values()}:
        return f"no row of bench/laboratory.py is for {', '.join(sorted(forgotten))}"
    if page(runs) != PAGE.read_text():
        return f"{PAGE.name} has other tables than the results give: python bench/laboratory.py --write writes them"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "laboratory.json")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--real", action="store_true")
    only.add_argument("--write", action="store_true")
    only.add_argument("--check", action="store_true")
    a = parser.parse_args()
    results = kept(a.out)
    if a.check:
        sys.exit(check(results.runs))
    if a.real:
        measure_real(results)
    elif not a.write:
        measure(results, a.seeds, a.processes)
    PAGE.write_text(page(results.runs))


if __name__ == "__main__":
    main()
