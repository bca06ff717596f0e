"""What people use today, written as a competent user would: torch DDP and local SGD, over gloo.

    python bench/rivals.py ddp|local-sgd --peers N --scenario NAME --chunk-seconds S --lr L --target-loss T --out FILE

Equal to our side: the task, the starting parameters (seed), each rank's share of the data and its order, the batch, the
learning rate, plain SGD, and the emulated device: a step of a rank takes as long as the chunks of one of our rounds, with the
same draws. The emulated time passes before the backward pass, so that DDP's all-reduce overlaps with it as usual; one bucket
holds the whole model. One thread per rank.

    ddp        DistributedDataParallel: gradients are averaged by all-reduce in every step
    local-sgd  H steps alone, then one all-reduce averages the parameters (Stich 2018, arXiv 1805.09767)

The clock starts when all ranks have passed a barrier. Rank 0 judges the model (for local-sgd the average, after each all-
reduce) in a thread of its own, every quarter of a second, and that slows nobody by more than the interpreter lock: some
milliseconds.
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

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from peer.assembly import make_scenario, make_stragglers
from peer.config import Config, validated
from peer.training.data import SampleStream, batch_reader, partition_dataset
from peer.training.evaluate import Evaluator
from peer.training.flat import FlatModel
from peer.training.stragglers import Slowness
from peer.training.task import build_model, load_task


class Device:
    """Lets the time of one step pass: m chunks of a round on an emulated device."""

    def __init__(self, slow: Slowness, config: Config) -> None:
        self._slow = slow
        self._config = config
        self._started = 0

    def step(self, number: int, begun: float, origin: float) -> None:
        end = begun - origin
        for _ in range(self._config.chunks):
            seconds = self._slow.chunk_seconds(self._config.chunk_seconds, number, self._started)
            end, self._started = self._slow.finish(end, seconds), self._started + 1
        time.sleep(max(origin + end - time.monotonic(), 0.0))


class Judge(threading.Thread):
    """Looks at the newest model every quarter of a second, until its loss is at the target."""

    def __init__(self, config: Config, out: Path) -> None:
        super().__init__(daemon=True)
        self._evaluator = Evaluator(load_task(config.task), config.seed)
        self._target = config.target_loss or 0.0
        self._out = out
        self.newest: tuple[int, float, Tensor] | None = None
        self.reached = threading.Event()

    def run(self) -> None:
        curve = []
        while True:
            time.sleep(0.25)
            if self.newest is None:
                continue
            steps, seconds, vector = self.newest
            loss = self._evaluator.loss(vector)
            curve.append([seconds, steps, loss])
            if loss <= self._target:
                found = {
                    "seconds_to_target": seconds,
                    "steps": steps,
                    "test_accuracy": self._evaluator.accuracy(vector),
                    "curve": curve,
                }
                self._out.write_text(json.dumps(found))
                self.reached.set()
                return


def work(rank: int, kind: str, local_steps: int, config: Config, port: int, out: str) -> None:
    """One rank, from its start until the parent ends it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=config.peers)
    task = load_task(config.task)
    data = task.train_data()
    shares = partition_dataset(task, data, config.peers, config.partition, config.alpha, config.seed)
    stream = SampleStream(shares[rank], config.seed, rank, config.chunk_samples)
    read = batch_reader(data)
    flat = FlatModel(build_model(task, config.seed))
    optimizer = torch.optim.SGD(flat.parameters(), lr=config.lr)
    module = DistributedDataParallel(flat.module) if kind == "ddp" else flat.module
    device = Device(make_stragglers(config, make_scenario(config)).for_peer(rank), config)
    judge = Judge(config, Path(out)) if rank == 0 else None
    dist.barrier()
    origin = time.monotonic()
    if judge is not None:
        judge.start()
    step = 0
    while True:
        begun = time.monotonic()
        inputs, targets = read(np.concatenate([stream.next() for _ in range(config.chunks)]))
        optimizer.zero_grad(set_to_none=True)
        loss = task.loss(module(inputs), targets)
        device.step(step, begun, origin)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        if kind == "local-sgd" and step % local_steps == 0:
            with torch.no_grad():
                dist.all_reduce(flat.vector)
                flat.vector /= config.peers
        if judge is not None and (kind == "ddp" or step % local_steps == 0):
            judge.newest = (step, time.monotonic() - origin, flat.vector.clone())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["ddp", "local-sgd"])
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--scenario", default="none")
    parser.add_argument("--chunk-seconds", type=float, default=0.01)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--target-loss", type=float, default=0.1)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, default=1200.0)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    names = ("peers", "scenario", "chunk_seconds", "lr", "target_loss", "seed")
    config = validated({name: getattr(a, name) for name in names})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = spawn(work, (a.kind, a.local_steps, config, port, str(a.out)), nprocs=config.peers, join=False)  # type: ignore[no-untyped-call]
    until = time.monotonic() + a.max_seconds
    while not a.out.exists() and time.monotonic() < until and all(p.is_alive() for p in ranks.processes):
        time.sleep(0.1)
    time.sleep(0.1)
    for process in ranks.processes:
        process.kill()
        process.join()
    sys.stdout.flush()
    os._exit(0 if a.out.exists() else 1)


if __name__ == "__main__":
    main()
