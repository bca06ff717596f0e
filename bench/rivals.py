"""What people use today, written as a competent user would: torch DDP and local SGD, over gloo.

    python bench/rivals.py ddp|local-sgd --peers N --scenario NAME --chunk-seconds S --lr L --target-loss T --out FILE

Equal to our side: the task, the starting parameters (seed), each rank's share of the data and its order, the batch, the
learning rate, plain SGD, and the emulated device: a step of a rank takes as long as the chunks of one of our rounds, with the
same draws; the seconds of the backward pass and the optimizer step, measured beforehand, are part of it, as computing is part of our
chunks. The emulated time passes before the backward pass, so that DDP's all-reduce follows it; one bucket holds the whole model, which is
what DDP makes of a model of 200 kB. One thread per rank.

    ddp        DistributedDataParallel: gradients are averaged by all-reduce in every step
    local-sgd  H steps alone, then one all-reduce averages the parameters (Stich 2018, arXiv 1805.09767)

The clock starts when all ranks have passed a barrier. A thread in rank 0 judges the mean of all ranks' models every quarter of a second,
as our observer does; ranks leave theirs in shared memory after every step (10 us). It slows nobody by more than the interpreter
lock: some milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessContext, spawn
from torch.nn.parallel import DistributedDataParallel

from peer.assembly import make_scenario, make_stragglers
from peer.config import Config, validated
from peer.training.data import SampleStream, batch_reader, partition_dataset
from peer.training.evaluate import Evaluator
from peer.training.flat import FlatModel
from peer.training.stragglers import Slowness
from peer.training.task import build_model, load_task


class Device:
    """Lets the time of one step pass: m chunks of a round on an emulated device, less `tail`, the seconds of what comes after it."""

    def __init__(self, slow: Slowness, config: Config, tail: float) -> None:
        self._slow = slow
        self._config = config
        self._tail = tail
        self._started = 0

    def step(self, number: int, begun: float, origin: float) -> None:
        end = begun - origin
        for _ in range(self._config.chunks):
            seconds = self._slow.chunk_seconds(self._config.chunk_seconds, number, self._started)
            end, self._started = self._slow.finish(end, seconds), self._started + 1
        time.sleep(max(origin + end - self._tail - time.monotonic(), 0.0))


class Batches:
    """What one rank computes on: its share of the data, in the order in which our peer of that number has it."""

    def __init__(self, config: Config, rank: int) -> None:
        self.task = load_task(config.task)
        data = self.task.train_data()
        shares = partition_dataset(self.task, data, config.peers, config.partition, config.alpha, config.seed)
        self._stream = SampleStream(shares[rank], config.seed, rank, config.chunk_samples)
        self._read = batch_reader(data)
        self._config = config

    def next(self) -> Any:
        """(inputs, targets) of the next step."""
        return self._read(np.concatenate([self._stream.next() for _ in range(self._config.chunks)]))

    def tail_seconds(self) -> float:
        """Median seconds of a backward pass and an optimizer step, on a model and samples that are thrown away."""
        config, seconds = self._config, []
        flat = FlatModel(build_model(self.task, config.seed))
        optimizer = torch.optim.SGD(flat.parameters(), lr=config.lr)
        inputs, targets = self._read(np.arange(config.batch_size))
        for _ in range(9):
            loss = self.task.loss(flat.module(inputs), targets)
            begun = time.monotonic()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seconds.append(time.monotonic() - begun)
        return sorted(seconds)[len(seconds) // 2]


class Judge(threading.Thread):
    """Looks at the mean of all ranks' models [n, d] every quarter of a second, until its loss is at the target."""

    def __init__(self, config: Config, models: Tensor, steps: Tensor, origin: float, out: Path) -> None:
        super().__init__(daemon=True)
        self._evaluator = Evaluator(load_task(config.task), config.seed)
        self._target = config.target_loss or 0.0
        self._models, self._steps, self._origin, self._out = models, steps, origin, out

    def run(self) -> None:
        curve = []
        while True:
            time.sleep(0.25)
            seconds, steps, vector = time.monotonic() - self._origin, int(self._steps.max()), self._models.mean(0)
            loss = self._evaluator.loss(vector)
            curve.append([seconds, steps, loss])
            if loss <= self._target:
                found = {
                    "seconds_to_target": seconds,
                    "steps": steps,
                    "test_accuracy": self._evaluator.accuracy(vector),
                    "curve": curve,
                }
                self._out.with_suffix(".partial").write_text(json.dumps(found))
                self._out.with_suffix(".partial").rename(self._out)
                return


def work(
    rank: int, kind: str, local_steps: int, config: Config, port: int, models: Tensor, steps: Tensor, out: str
) -> None:
    """One rank, from its start until the parent ends it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=config.peers)
    batches = Batches(config, rank)
    flat = FlatModel(build_model(batches.task, config.seed))
    optimizer = torch.optim.SGD(flat.parameters(), lr=config.lr)
    module = DistributedDataParallel(flat.module) if kind == "ddp" else flat.module
    slow = make_stragglers(config, make_scenario(config)).for_peer(rank)
    device = Device(slow, config, batches.tail_seconds())
    models[rank] = flat.vector
    dist.barrier()
    origin = time.monotonic()
    if rank == 0:
        Judge(config, models, steps, origin, Path(out)).start()
    step = 0
    while True:
        begun = time.monotonic()
        inputs, targets = batches.next()
        optimizer.zero_grad(set_to_none=True)
        loss = batches.task.loss(module(inputs), targets)
        device.step(step, begun, origin)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        if kind == "local-sgd" and step % local_steps == 0:
            with torch.no_grad():
                dist.all_reduce(flat.vector)
                flat.vector /= config.peers
        models[rank], steps[rank] = flat.vector, step


def shared(config: Config) -> tuple[Tensor, Tensor]:
    """(models [n, d], steps [n]) in memory that all ranks share: what the judge looks at."""
    size = FlatModel(build_model(load_task(config.task), config.seed)).vector.numel()
    models, steps = torch.zeros(config.peers, size), torch.zeros(config.peers, dtype=torch.int64)
    return models.share_memory_(), steps.share_memory_()  # type: ignore[no-untyped-call]


def arguments(parser: argparse.ArgumentParser, max_seconds: float) -> tuple[argparse.Namespace, Config]:
    """What every rival is told on its command line, and the config of it."""
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--scenario", default="none")
    parser.add_argument("--chunk-seconds", type=float, default=0.01)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--target-loss", type=float, default=0.1)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, default=max_seconds)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    names = ("peers", "scenario", "chunk_seconds", "lr", "target_loss", "seed")
    return a, validated({name: getattr(a, name) for name in names})


def until_written(out: Path, ranks: ProcessContext, seconds: float) -> bool:
    """Wait for the judge's file, at most so many seconds and as long as all ranks live; whether it is there."""
    until = time.monotonic() + seconds
    while not out.exists() and time.monotonic() < until and all(p.is_alive() for p in ranks.processes):
        time.sleep(0.1)
    return out.exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["ddp", "local-sgd"])
    a, config = arguments(parser, max_seconds=1200.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models, steps = shared(config)
    ranks = spawn(
        work, (a.kind, a.local_steps, config, port, models, steps, str(a.out)), nprocs=config.peers, join=False
    )  # type: ignore[no-untyped-call]
    written = until_written(a.out, ranks, a.max_seconds)
    for process in ranks.processes:
        process.kill()
        process.join()
    sys.stdout.flush()
    os._exit(0 if written else 1)


if __name__ == "__main__":
    main()
