"""hivemind with local updates, written as its documentation advises, on the same task, data, devices and clock as bench/rivals.py.

    setsid python bench/hivemind_rival.py --peers N --scenario NAME --chunk-seconds S --lr L --target-loss T --out FILE

Each peer steps on its own; whenever all together have seen `local_steps` batches a peer (the target batch size), their parameters are
averaged by hivemind's averager in the background, while the steps go on (`use_local_updates`, `delay_state_averaging`, its defaults for
that mode). Matchmaking takes 1.5 s instead of hivemind's 5 s: its users are told to shorten it on a local network. Needs `hivemind`
(tried with 1.1.12), which is no dependency of this project.

Each peer leaves its parameters in shared memory after every step; a thread in peer 0 judges the mean of all models every quarter of a
second.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import hivemind
import torch
from rivals import Batches, Device, Judge, arguments, shared, until_written
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from peer.assembly import make_scenario, make_stragglers
from peer.config import Config
from peer.training.flat import FlatModel
from peer.training.task import build_model

MATCHMAKING_SECONDS = 1.5


def make_optimizer(flat: FlatModel, dht: Any, config: Config, local_steps: int) -> Any:
    """Averages parameters every local_steps batches a peer, in the background."""
    return hivemind.Optimizer(
        dht=dht,
        run_id="race",
        params=list(flat.parameters()),
        optimizer=lambda params: torch.optim.SGD(params, lr=config.lr),
        batch_size_per_step=config.batch_size,
        target_batch_size=config.batch_size * config.peers * local_steps,
        use_local_updates=True,
        delay_state_averaging=True,
        matchmaking_time=MATCHMAKING_SECONDS,
        averaging_timeout=30.0,
        averager_opts={"request_timeout": 1.0},
        tracker_opts={"min_refresh_period": 0.2, "default_refresh_period": 0.5},
    )


def work(
    rank: int, config: Config, local_steps: int, entrance: Tensor, models: Tensor, steps: Tensor, gate: Any, out: str
) -> None:
    """One peer. entrance: the first peer's address as bytes, the last of them 1 when it is there."""
    torch.set_num_threads(1)
    torch.multiprocessing.set_start_method("fork", force=True)  # hivemind's own processes need it
    batches = Batches(config, rank)
    flat = FlatModel(build_model(batches.task, config.seed))
    slow = make_stragglers(config, make_scenario(config)).for_peer(rank)
    device = Device(slow, config, batches.tail_seconds())
    models[rank] = flat.vector
    while rank and not int(entrance[-1]):
        time.sleep(0.05)
    address = bytes(entrance[:-1].tolist()).rstrip(b"\0").decode()
    dht = hivemind.DHT(initial_peers=[address] if rank else None, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
    if rank == 0:
        mine = str(dht.get_visible_maddrs()[0]).encode()
        entrance[: len(mine)] = torch.tensor(list(mine), dtype=torch.uint8)
        entrance[-1] = 1
    optimizer = make_optimizer(flat, dht, config, local_steps)
    gate.wait()
    origin = time.monotonic()
    if rank == 0:
        Judge(config, models, steps, origin, Path(out)).start()
    step = 0
    while True:
        begun = time.monotonic()
        inputs, targets = batches.next()
        optimizer.zero_grad(set_to_none=True)
        loss = batches.task.loss(flat.module(inputs), targets)
        device.step(step, begun, origin)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        models[rank], steps[rank] = flat.vector, step


def end_session() -> None:
    """hivemind leaves processes of its own behind when a peer is killed. All of this session, which race.py starts for this process."""
    assert os.getsid(0) == os.getpid(), "start it in a session of its own: setsid python bench/hivemind_rival.py"
    for entry in Path("/proc").iterdir():
        try:
            session = int((entry / "stat").read_text().rpartition(")")[2].split()[3]) if entry.name.isdigit() else -1
            if session == os.getpid() != int(entry.name):
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a, config = arguments(parser, max_seconds=600.0)
    entrance = torch.zeros(512, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    models, steps = shared(config)
    gate = torch.multiprocessing.get_context("spawn").Barrier(config.peers)
    ranks = spawn(
        work, (config, a.local_steps, entrance, models, steps, gate, str(a.out)), nprocs=config.peers, join=False
    )  # type: ignore[no-untyped-call]
    if not until_written(a.out, ranks, a.max_seconds):
        with suppress(Exception):
            ranks.join(timeout=0)
        for number, file in enumerate(ranks.error_files):
            if Path(file).exists() and Path(file).stat().st_size:
                print(f"peer {number}:", Path(file).read_bytes().decode(errors="replace"))
    end_session()
    sys.stdout.flush()
    os._exit(0 if a.out.exists() else 1)


if __name__ == "__main__":
    main()
