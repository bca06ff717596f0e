"""Builds the parts of one daemon from the config."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch

from peer.assembly import (
    in_effect,
    make_accumulator,
    make_algorithm,
    make_model,
    make_optimizer,
    make_policy,
    make_real_scenario,
    make_schedule,
    make_shares,
    make_stragglers,
    nominal_chunk_seconds,
)
from peer.config import Config, ConfigError, alike, flag
from peer.daemon.computing import TrainerKind, first_chunk, make_computer, model_to_compute_with
from peer.gossip.algorithm import Algorithm
from peer.gossip.closing import ClosingPolicy
from peer.scenario import Scenario
from peer.training.chunk import ChunkComputer
from peer.training.data import Indices, SampleStream
from peer.training.flat import FlatModel
from peer.training.optimizer import MasterOptimizer
from peer.training.task import Task, load_task
from peer.training.trainer import ChunkEvent, Computer, Trainer
from peer.transport.base import Identity
from topology import Schedule


@dataclass(frozen=True, slots=True)
class Parts:
    """What a peer is made of, before it has a transport. trainer_kind: what `--trainer` came to."""

    task: Task
    schedule: Schedule
    scenario: Scenario
    algorithm: Algorithm
    closing: ClosingPolicy
    trainer: Trainer
    trainer_kind: TrainerKind
    fingerprint: str
    identity: Identity


def identity(config: Config, peer: int, schedule: Schedule, fingerprint: str) -> Identity:
    """What the two ends of a link must agree on."""
    told = alike(in_effect(config))
    settings = {flag(name): "none" if value is None else str(value) for name, value in told.items()}
    settings["the schedule (--topology, --mixing, --budget, --seed)"] = schedule.digest()
    return Identity(config.run, peer, config.peers, fingerprint, settings)


def assemble(config: Config, peer: int, notify: Callable[[ChunkEvent], None]) -> Parts:
    """Raises ConfigError, TopologyError, TaskError, PartitionError or StragglerError, each one sentence."""
    if peer >= config.peers:
        raise ConfigError(f"--peer: there is no peer {peer} among {config.peers}; ids go from 0 to {config.peers - 1}")
    _check_device(config)
    task = load_task(config.task)
    scenario = make_real_scenario(config)
    schedule = make_schedule(config)
    data = task.train_data()
    shares = make_shares(config, task, data)  # reads labels: not beside a process that reads the same files
    computer, trainer_kind = make_computer(config, peer, task, data)  # before there are vectors, as it may fork
    try:
        master = make_model(config, task)
        fingerprint = master.layout.fingerprint()
        return Parts(
            task=task,
            schedule=schedule,
            scenario=scenario,
            algorithm=make_algorithm(config, peer, master.vector, make_optimizer(config, task, master, master.vector)),
            closing=make_policy(config, peer),
            trainer=_trainer(config, peer, shares[peer], task, computer, master, scenario, notify),
            trainer_kind=trainer_kind,
            fingerprint=fingerprint,
            identity=identity(config, peer, schedule, fingerprint),
        )
    except BaseException:
        computer.close()
        raise


def warm_up(config: Config, parts: Parts) -> None:
    """Compute one chunk and one optimizer step on throw-away copies, so that torch's first-call costs are paid before the run
    begins. Changes nothing. A computer in a process of its own has its own first chunk, and the data are its alone."""
    model = model_to_compute_with(config, parts.task)
    with suppress(Exception):  # a task that fails is reported by its first real chunk
        if parts.trainer_kind == "process":
            gradient = torch.zeros_like(model.vector)
        else:
            data = parts.task.train_data()
            gradient = ChunkComputer(parts.task, model, data).compute(first_chunk(config, data)).gradient
        MasterOptimizer(parts.task, model.layout, model.vector.cpu(), config.optimizer, config.lr).step(gradient, 0)


def _trainer(
    config: Config,
    peer: int,
    share: Indices,
    task: Task,
    computer: Computer,
    master: FlatModel,
    scenario: Scenario,
    notify: Callable[[ChunkEvent], None],
) -> Trainer:
    return Trainer(
        computer,
        SampleStream(share, config.seed, peer, config.chunk_samples),
        make_accumulator(config, master.vector, partial(make_optimizer, config, task, master)),
        make_stragglers(config, scenario).for_peer(peer),
        nominal_chunk_seconds(config, scenario),
        notify,
    )


def _check_device(config: Config) -> None:
    """Raises ConfigError: what was asked for is not quietly computed elsewhere."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device: torch {torch.__version__} finds no CUDA device here; use cpu, or torch's CUDA build on a machine with a GPU"
        )
