"""What a round costs beside the training itself: nobody is slow, nothing is emulated, the model is small.

    python bench/round_overhead.py [--peers 4] [--rounds 300] [--repeats 3] [--local-steps 10] [--out bench/results/round_overhead.json]

Processor milliseconds of one peer for one optimizer step, by part, and steps a second, of our algorithms and of torch DDP and local
SGD over gloo (bench/rivals.py) in one run: the methods take turns, `--repeats` times, and the median is shown, because the machine's
speed drifts. Then seconds until the mean model's training loss is at the target, by `grapevine up` and by bench/rivals.py, taken from
the straight line between two looks; both look four times a second.

Parts are measured inside our peers with the processor clock of each thread: what functions of a part use themselves, without what they
call of other parts. `carrying` is the rest of the event loop (asyncio, gRPC's Python, frames); `gRPC threads` is what is neither the
event loop's nor the trainer's. Eight chunks of two samples are eight small forward and backward passes, where DDP has one of sixteen:
chunks 1 is the like of it. direct: vectors travel on data sockets beside gRPC (`--data-plane direct`).
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from kept import commit
from rivals import Batches
from torch.nn.parallel import DistributedDataParallel

import peer.daemon.player
from peer.config import Config, validated
from peer.daemon.counts import PeerMetrics
from peer.daemon.peer import Bound, Peer
from peer.daemon.process import run_loop, serve
from peer.gossip.talk import Talk
from peer.training.chunk import ChunkComputer
from peer.training.flat import FlatModel
from peer.training.optimizer import MasterOptimizer
from peer.training.task import build_model

HERE = Path(__file__).parent
PARTS = ("computing", "optimizer", "mixing", "words", "metrics", "trainer", "carrying", "gRPC threads")
RIVALS = ("ddp", "local-sgd")


@dataclass
class Parts:
    """Processor seconds by part: of the functions wrapped, without those of other parts that they call."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inner: threading.local = field(default_factory=threading.local)

    def wrap(self, owner: Any, name: str, part: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            before, self._inner.seconds = getattr(self._inner, "seconds", 0.0), 0.0
            begun = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.thread_time() - begun
                self.seconds[part] = self.seconds.get(part, 0.0) + whole - self._inner.seconds
                self._inner.seconds = before + whole

        setattr(owner, name, timed)

    def wrap_all(self) -> None:
        for method in ("compute", "load"):
            self.wrap(ChunkComputer, method, "computing")
        self.wrap(MasterOptimizer, "step", "optimizer")
        self.wrap(peer.daemon.player, "advance", "mixing")
        for method in ("open", "decide", "hear", "payload"):
            self.wrap(Talk, method, "words")
        for method in ("word", "round"):
            self.wrap(PeerMetrics, method, "metrics")


def our_peer(config_json: str, number: int, line: Connection) -> None:
    """One of our peers in a process of its own; sends what its training cost."""
    config, parts, seen = Config.model_validate_json(config_json), Parts(), dict[str, float]()
    parts.wrap_all()

    async def book(bound: Bound) -> list[str]:
        line.send(bound.address)
        addresses: list[str] = await asyncio.to_thread(line.recv)
        return addresses

    def watch(host: Peer) -> None:
        stop_trainer = host._stop_trainer

        def begin() -> None:
            parts.seconds.clear()
            seen.update(wall=-time.monotonic(), all=-time.process_time(), loop=-time.thread_time())

        async def end() -> None:
            thread = host.parts.trainer._thread
            if "trainer" not in seen and thread.ident is not None:
                seen["trainer"] = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
                for name, now in (("wall", time.monotonic), ("all", time.process_time), ("loop", time.thread_time)):
                    seen[name] += now()
                seen["parts"] = dict(parts.seconds)  # type: ignore[assignment]
            await stop_trainer()

        host.on_training = begin
        host._stop_trainer = end  # type: ignore[method-assign]

    async def live() -> int:
        return (await serve(config, number, book, started=watch)).rounds

    rounds = run_loop(live())
    line.send({**seen, "rounds": rounds})


def rank(kind: str, config_json: str, number: int, port: int, steps: int, line: Connection) -> None:
    """One rank of DDP or local SGD, without a judge and without emulated time."""
    config = Config.model_validate_json(config_json)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=config.peers)
    batches = Batches(config, number)
    flat = FlatModel(build_model(batches.task, config.seed))
    optimizer = torch.optim.SGD(flat.parameters(), lr=config.lr)
    module = DistributedDataParallel(flat.module) if kind == "ddp" else flat.module

    def step(count: int) -> None:
        inputs, targets = batches.next()
        optimizer.zero_grad(set_to_none=True)
        batches.task.loss(module(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if kind == "local-sgd" and count % config.local_steps == 0:
            with torch.no_grad():
                dist.all_reduce(flat.vector)
                flat.vector /= config.peers

    for count in range(1, config.local_steps + 1):
        step(count)  # torch's first-call costs
    dist.barrier()
    wall, cpu, own = time.monotonic(), time.process_time(), time.thread_time()
    for count in range(1, steps + 1):
        step(count)
    own = time.thread_time() - own
    line.send({"wall": time.monotonic() - wall, "all": time.process_time() - cpu, "loop": own, "rounds": steps})
    dist.barrier()
    os._exit(0)  # the other ranks may be gone, and gloo would complain


def side_by_side(count: int, start: Callable[[int, Connection], tuple[Callable[..., None], tuple[Any, ...]]]) -> Any:
    """Processes with a line to each: (lines, processes)."""
    spawn = multiprocessing.get_context("spawn")
    lines, processes = [], []
    for i in range(count):
        here, there = spawn.Pipe()
        work, arguments = start(i, there)
        processes.append(spawn.Process(target=work, args=arguments, daemon=True))
        processes[-1].start()
        there.close()
        lines.append(here)
    return lines, processes


def cost(method: str, config: Config, rounds: int) -> dict[str, float]:
    """Milliseconds of processor time for one step of one peer, by part, and steps a second."""
    text = config.model_dump_json()
    if method in RIVALS:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        steps = rounds * config.local_steps
        lines, processes = side_by_side(config.peers, lambda i, line: (rank, (method, text, i, port, steps, line)))
    else:
        lines, processes = side_by_side(config.peers, lambda i, line: (our_peer, (text, i, line)))
        book = [line.recv() for line in lines]
        for line in lines:
            line.send(book)
    try:
        peers = [line.recv() for line in lines]
    finally:
        for process in processes:
            with suppress(Exception):
                process.join(20)
            process.kill()
    return mean_cost(peers, 1 if method in RIVALS else config.local_steps)


def mean_cost(peers: list[dict[str, Any]], steps_a_round: int) -> dict[str, float]:
    """Over all peers, for each optimizer step."""
    steps = sum(p["rounds"] for p in peers) * steps_a_round
    found = {"whole": sum(p["all"] for p in peers)}
    if "parts" in peers[0]:
        for part in PARTS:
            found[part] = sum(p["parts"].get(part, 0.0) for p in peers)
        loop, trainer = (sum(p[name] for p in peers) for name in ("loop", "trainer"))
        on_loop = sum(found[part] for part in ("mixing", "words", "metrics"))
        found["gRPC threads"] = found["whole"] - loop - trainer
        found["trainer"] = 0.0
        local = steps_a_round > 1
        found["trainer"] = trainer - found["computing"] - (found["optimizer"] if local else 0.0)
        found["carrying"] = loop - on_loop - (0.0 if local else found["optimizer"])
    each = {part: 1e3 * seconds / steps for part, seconds in found.items()}
    return {**each, "steps_per_second": steps / len(peers) / statistics.median(p["wall"] for p in peers)}


def to_target(method: str, config: Config) -> dict[str, float]:
    """Seconds and steps until the loss is at the target, on the line between the looks before and after."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        values = [
            "--peers",
            config.peers,
            "--lr",
            config.lr,
            "--target-loss",
            config.target_loss,
            "--chunk-seconds",
            0.0,
        ]
        values += ["--local-steps", config.local_steps, "--seed", config.seed]
        words = [sys.executable, str(HERE / "rivals.py"), method, "--out", str(out)]
        if method not in RIVALS:
            values += ["--algorithm", config.algorithm, "--chunks", config.chunks, "--closing", config.closing]
            values += ["--metrics-port", -1, "--max-seconds", 300, "--data-plane", config.data_plane]
            words = [sys.executable, "-m", "peer", "up", "--report", str(out)]
        subprocess.run([*words, *map(str, values)], check=True, stdout=subprocess.DEVNULL)
        report = json.loads(out.read_text())
    looks = [
        (look["seconds"], look["rounds"] * config.local_steps, look["loss"]) if isinstance(look, dict) else look
        for look in report["curve"]
    ]
    return crossing(looks, config.target_loss or 0.0)


def crossing(looks: list[tuple[float, float, float]], target: float) -> dict[str, float]:
    """looks: (seconds, steps, loss), the last at or below the target."""
    (s1, n1, loss1), (s0, n0, loss0) = looks[-1], looks[-2] if len(looks) > 1 else (0.0, 0.0, looks[-1][2] + 1.0)
    part = (loss0 - target) / (loss0 - loss1) if loss0 > loss1 else 1.0
    return {"seconds_to_target": s0 + part * (s1 - s0), "steps_to_target": n0 + part * (n1 - n0)}


def methods(a: argparse.Namespace) -> dict[str, tuple[str, Config]]:
    """Name in the table -> (method, config)."""
    common = {"peers": a.peers, "lr": a.lr, "seed": a.seed, "target_loss": a.target_loss, "metrics_port": -1}
    h = a.local_steps
    made: dict[str, tuple[str, Config]] = {
        kind: (kind, validated({**common, "local_steps": a.local_steps})) for kind in RIVALS
    }
    for algorithm in ("ring-all-reduce", "dpsgd"):
        for chunks, steps, plane in (
            (1, 1, "grpc"),
            (8, 1, "grpc"),
            (1, h, "grpc"),
            (1, 1, "direct"),
            (1, h, "direct"),
        ):
            for closing in ("barrier", "first"):
                name = f"{algorithm}, {closing}, chunks {chunks}" + (f", {steps} local steps" if steps > 1 else "")
                name += ", direct" if plane == "direct" else ""
                values = {"algorithm": algorithm, "closing": closing, "chunks": chunks, "local_steps": steps}
                values["data_plane"] = plane
                made[name] = (algorithm, validated({**common, **values}))
    return {name: entry for name, entry in made.items() if any(word in name for word in a.only)}


def measure(a: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    entries, found = methods(a), dict[str, list[dict[str, float]]]()
    for repeat in range(a.repeats):
        for name, (method, config) in entries.items():
            rounds = max(a.rounds // config.local_steps, 20)
            counting = config.model_copy(update={"target_loss": None, "max_rounds": rounds})
            result = cost(method, counting, rounds)
            if not a.no_target:
                result |= to_target(method, config)
            result["load"] = os.getloadavg()[0]
            found.setdefault(name, []).append(result)
            told = "  ".join(f"{key} {value:.2f}" for key, value in result.items())
            print(f"{repeat} {name}: {told}", flush=True)
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown, medians over the repeats."""
    columns = ("whole", *PARTS, "steps_per_second", "steps_to_target", "seconds_to_target")
    head = ["method", "cpu ms a step and peer", *PARTS, "steps/s", "steps to target", "s to target"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, runs in found.items():
        cells = []
        for column in columns:
            values = [run[column] for run in runs if column in run]
            cells.append(f"{statistics.median(values):.{0 if 'steps_' in column else 2}f}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=300, help="optimizer steps measured")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--target-loss", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="methods whose name has one of these words")
    parser.add_argument("--no-target", action="store_true", help="only what a step costs")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "round_overhead.json")
    a = parser.parse_args()
    found = measure(a)
    settings = {name: value for name, value in vars(a).items() if name != "out"}
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(json.dumps({"commit": commit(), "settings": settings, "runs": found}, indent=1) + "\n")
    print("\n" + table(found))


if __name__ == "__main__":
    main()
