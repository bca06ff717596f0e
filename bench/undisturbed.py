"""What exchange costs training: throughput of two peers' trainers beside vectors both ways, with the trainer in a thread or a process, and
the vectors over gRPC or a socket beside it.

    python bench/undisturbed.py [--seconds 6] [--repeats 3] [--sizes 1 10 100] [--planes grpc direct] [--out bench/results/undisturbed.json]

Two peers on this machine, one torch thread each: the product's Trainer, transport and allocator settings, each in a forked process with a
uvloop, as `grapevine up` runs them. The trainer computes chunks of a digits CNN of about 25 ms or of the digits MLP of about 1 ms, sized at
the start, and never stops; beside it a vector is exchanged both ways, atomically, 1.3 times a second or back to back. The reference is the
same trainer in the same processes without any exchange; the three take turns, and the medians of the repeats are compared. Lag: how late
the event loop woke up at worst. The vector is not the model's own, so that both models move the same bytes: --sizes says how many MB, by
default 100. Back to back as many bytes are moved whatever the size: --back-to-back vectors of 100 MB, or more smaller ones.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import socket
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept import Kept
from torch import Tensor

from peer.cluster.forkserver import context
from peer.daemon.process import run_loop
from peer.gossip.digest import Digest
from peer.gossip.words import Word
from peer.training.accumulator import Accumulator, InFlight
from peer.training.chunk import ChunkComputer
from peer.training.data import SampleStream
from peer.training.flat import FlatModel
from peer.training.remote import ComputerProcess, give_way, shared_memory
from peer.training.stragglers import Slowness
from peer.training.task import build_model, load_task
from peer.training.trainer import Computer, Trainer
from peer.transport.base import ExchangeKey, Identity
from peer.transport.grpc import GrpcOptions, GrpcTransport
from peer.transport.handshake import DataPlane
from peer.wire import gossip_pb2 as wire

TASKS = {"CNN": ("digits-cnn", 0.025), "MLP": ("digits", 0.001)}
PLANES, TRAINERS = ("grpc", "direct"), ("thread", "process")
EXCHANGE_WITHIN = 30.0


class Observed:
    """A listener and a service that have nothing to say."""

    def __init__(self) -> None:
        self.linked = asyncio.Event()

    def on_word(self, peer: int, word: Word) -> None: ...

    def on_link_up(self, peer: int) -> None:
        self.linked.set()

    def on_link_down(self, peer: int, reason: str) -> None: ...

    def on_refused(self, peer: int | None, field: str, sentence: str) -> None:
        raise RuntimeError(sentence)

    def on_dropped(self, peer: int | None, reason: str) -> None: ...

    def on_heard(self, peer: int, round: int) -> None: ...

    def on_digests(self, peer: int, digests: Sequence[Digest]) -> None: ...

    def on_trace(self, peer: int, key: ExchangeKey, traceparent: str) -> None: ...

    def status(self) -> wire.StatusReply:
        return wire.StatusReply()

    async def snapshot(self) -> tuple[int, Tensor]:
        return 0, torch.empty(0)


def chunk_samples(name: str, seconds: float) -> int:
    """As many samples as one chunk of about so many seconds has, on one torch thread."""
    torch.set_num_threads(1)
    task = load_task(name)
    computer = ChunkComputer(task, FlatModel(build_model(task, 0)), task.train_data())

    def took(samples: int) -> float:
        indices, times = np.arange(samples), []
        for _ in range(15):
            started = time.perf_counter()
            computer.compute(indices)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    samples = 8
    while samples < 1024 and took(samples) < seconds:
        samples = math.ceil(1.25 * samples)
    return samples


def computer_of(name: str, where: str) -> Computer:
    task = load_task(name)
    model = FlatModel(build_model(task, 0), memory=shared_memory if where == "process" else None)
    computer = ChunkComputer(task, model, task.train_data())
    return ComputerProcess(computer, model) if where == "process" else computer


def peer(
    number: int,
    ports: list[int],
    name: str,
    where: str,
    plane: str,
    samples: int,
    megabytes: float,
    a: argparse.Namespace,
    told: Connection,
) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    computer = computer_of(name, where)  # before any thread and the loop
    if where == "process":
        give_way()  # as the daemon does
    task = load_task(name)
    model = FlatModel(build_model(task, 0))
    trainer = Trainer(
        computer,
        SampleStream(np.arange(1437), 0, number, samples),
        Accumulator(model.layout.dim, 1 << 40, InFlight.CARRY),
        Slowness(number, 0),
        0.0,
        lambda event: None,
    )
    told.send(run_loop(beside(number, ports, plane, trainer, model.vector, megabytes, a)))
    trainer.stop(10.0)


async def beside(
    number: int,
    ports: list[int],
    plane: str,
    trainer: Trainer,
    params: Tensor,
    megabytes: float,
    a: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Every load in turn, `repeats` times: samples and exchanges a second, and the longest lag."""
    observed = Observed()
    transport = GrpcTransport(
        Identity("bench", number, 2, "", {}),
        f"127.0.0.1:{ports[number]}",
        service=observed,
        options=GrpcOptions(data_plane=DataPlane(plane)),
    )
    await transport.start(observed)
    transport.connect({1: f"127.0.0.1:{ports[1]}"} if number == 0 else {})
    async with asyncio.timeout(30):
        await observed.linked.wait()
    ours, theirs = torch.ones(round(megabytes * 250_000)), torch.empty(round(megabytes * 250_000))
    rounds = itertools.count()

    async def exchange() -> None:
        key = ExchangeKey(next(rounds), 0)
        async with asyncio.timeout(EXCHANGE_WITHIN):
            outcome = await transport.exchange(1 - number, key, ours, theirs, atomic=True).outcome
        if outcome.lost is not None:
            raise RuntimeError(f"an exchange was lost: {outcome.lost}")

    trainer.start()
    trainer.open(0, params, threading.Lock())
    measured = []
    for _ in range(a.repeats):
        for load, (exchanges, every) in loads(megabytes, a).items():
            await exchange()  # both begin together
            found = await window(trainer, exchange, exchanges, every, a.seconds)
            measured.append({"load": load, **found})
    await exchange()
    await transport.stop()
    return measured


LOADS = ("alone", "1.3 a second", "back to back")


def loads(megabytes: float, a: argparse.Namespace) -> dict[str, tuple[int, float]]:
    """By name: how many exchanges, and seconds from the start of one to that of the next."""
    back_to_back = round(a.back_to_back * 100 / megabytes)
    return dict(zip(LOADS, ((0, 0.0), (round(1.3 * a.seconds), 1 / 1.3), (back_to_back, 0.0)), strict=True))


async def window(
    trainer: Trainer, exchange: Callable[[], Awaitable[None]], exchanges: int, every: float, seconds: float
) -> dict[str, float]:
    """One load. Without an exchange it lasts so many seconds."""
    loop = asyncio.get_running_loop()
    lag = Lag()
    started, before = loop.time(), trainer.samples.started
    for number in range(exchanges):
        await asyncio.sleep(max(started + number * every - loop.time(), 0.0))
        await exchange()
    await asyncio.sleep(max(started + max(exchanges * every, 0.0 if exchanges else seconds) - loop.time(), 0.0))
    took, samples = loop.time() - started, trainer.samples.started - before
    lag.task.cancel()
    return {"samples_per_second": samples / took, "exchanges_per_second": exchanges / took, "lag_seconds": lag.worst}


class Lag:
    """Asks to be woken every 2 ms, and keeps by how much it was late at worst, in seconds."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.002
            await asyncio.sleep(0.002)
            self.worst = max(self.worst, loop.time() - due)


def measure(kind: str, where: str, plane: str, samples: int, megabytes: float, a: argparse.Namespace) -> dict[str, Any]:
    """Both peers with this task, this kind of trainer and vectors of this size."""
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1], other.getsockname()[1]]
    started = time.monotonic()
    pipes = [context().Pipe(duplex=False) for _ in range(2)]
    peers = [
        context().Process(
            target=peer, args=(i, ports, TASKS[kind][0], where, plane, samples, megabytes, a, pipes[i][1])
        )
        for i in range(2)
    ]
    for process in peers:
        process.start()
    told = [pipe.recv() if pipe.poll(900) else [] for pipe, _ in pipes]
    for process in peers:
        process.join(20)
        process.kill()
    found: dict[str, Any] = {"samples": samples, "took": time.monotonic() - started}
    for load in LOADS:
        rows = [row for each in told for row in each if row["load"] == load]
        for name in ("samples_per_second", "exchanges_per_second", "lag_seconds"):
            pick = max if name == "lag_seconds" else statistics.median
            found[f"{load} {name}"] = pick(row[name] for row in rows)
    shown = {load: found[f"{load} samples_per_second"] / found["alone samples_per_second"] for load in LOADS}
    print(
        kind,
        where,
        plane,
        f"{megabytes:g} MB, {1e3 * samples / found['alone samples_per_second']:.1f} ms a chunk",
        shown,
        flush=True,
    )
    return found


def key_of(kind: str, where: str, plane: str, megabytes: float) -> str:
    return f"{kind}, {where}, {plane}, {megabytes:g} MB"


def table(runs: dict[str, dict[str, Any]], megabytes: float) -> str:
    """Markdown, of the runs with vectors of this size."""
    lines = [
        f"| vectors of {megabytes:g} MB: model, trainer, data plane | chunk | 1.3 exchanges a second | back to back "
        "| exchanges a second then | longest lag |",
        "|---|---|---|---|---|---|",
    ]
    for kind, plane, where in itertools.product(TASKS, PLANES, TRAINERS):
        run = runs.get(key_of(kind, where, plane, megabytes))
        if run is None:
            continue
        alone = run["alone samples_per_second"]
        lines.append(
            f"| {kind}, {where}, {plane} | {1e3 * run['samples'] / alone:.1f} ms | {run['1.3 a second samples_per_second'] / alone:.2f} "
            f"| {run['back to back samples_per_second'] / alone:.2f} | {run['back to back exchanges_per_second']:.1f} "
            f"| {1e3 * max(run[f'{load} lag_seconds'] for load in LOADS):.0f} ms |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=float, nargs="+", default=[100.0], help="of the vectors, in MB")
    parser.add_argument(
        "--back-to-back", type=int, default=20, help="exchanges of 100 MB, and so many bytes of other sizes"
    )
    parser.add_argument("--planes", nargs="+", default=PLANES, choices=PLANES)
    parser.add_argument("--out", type=Path, default=Path("bench/results/undisturbed.json"))
    a = parser.parse_args()
    kept = Kept(a.out, {name: getattr(a, name) for name in ("seconds", "repeats", "back_to_back")})
    for kind, (name, seconds) in TASKS.items():
        samples = chunk_samples(name, seconds)
        for megabytes, plane, where in itertools.product(a.sizes, a.planes, TRAINERS):
            key = key_of(kind, where, plane, megabytes)
            if key not in kept.runs:
                kept.add(key, measure(kind, where, plane, samples, megabytes, a))
    print("\n\n".join(table(kept.runs, megabytes) for megabytes in a.sizes))


if __name__ == "__main__":
    main()
