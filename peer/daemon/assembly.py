"""Builds the parts of one peer from the config. Everything that can be wrong with a config, a topology or a task is found here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from peer.config import Config, ConfigError, alike, flag
from peer.gossip.algorithm import Algorithm, PeerState, ScheduleOptions
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.closing import ClosingPolicy, make_closing
from peer.training.accumulator import Accumulator, InFlight
from peer.training.chunk import ChunkComputer
from peer.training.data import PartitionError, SampleStream, partition_dataset
from peer.training.flat import FlatModel
from peer.training.optimizer import MasterOptimizer
from peer.training.stragglers import StragglerError
from peer.training.stragglers import parse as parse_stragglers
from peer.training.task import Task, TaskError, build_model, load_task, num_samples
from peer.training.trainer import ChunkEvent, Trainer
from peer.transport.base import Identity
from topology import Schedule, TopologyError, build

#: What a config, a topology, a task or data can be refused with; each is one sentence.
BAD_INPUT = (ConfigError, TopologyError, TaskError, PartitionError, StragglerError)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a peer is made of, before it has a transport."""

    task: Task
    schedule: Schedule
    algorithm: Algorithm
    closing: ClosingPolicy
    trainer: Trainer
    fingerprint: str
    identity: Identity


def make_schedule(config: Config) -> Schedule:
    """Who talks to whom. Raises TopologyError."""
    topology = build(
        config.topology,
        config.peers,
        seed=config.seed,
        degree=config.degree,
        probability=config.probability,
        radius=config.radius,
    )
    options = ScheduleOptions(
        topology=topology,
        random_graph_every=config.random_graph_every,
        degree=config.degree,
        probability=config.probability,
        radius=config.radius,
        mixing=config.mixing,
        budget=config.budget,
        seed=config.seed,
    )
    return ALGORITHMS[config.algorithm].make_schedule(options)


def identity(config: Config, peer: int, schedule: Schedule, fingerprint: str) -> Identity:
    """What the two ends of a link must agree on."""
    settings = {flag(name): str(value) for name, value in alike(config).items()}
    settings["the schedule (--topology, --mixing, --budget, --seed)"] = schedule.digest()
    return Identity(config.run, peer, config.peers, fingerprint, settings)


def assemble(config: Config, peer: int, notify: Callable[[ChunkEvent], None]) -> Parts:
    """Raises ConfigError, TopologyError, TaskError, PartitionError or StragglerError, each one sentence."""
    if peer >= config.peers:
        raise ConfigError(f"--peer: there is no peer {peer} among {config.peers}; ids go from 0 to {config.peers - 1}")
    task = load_task(config.task)
    schedule = make_schedule(config)
    closing = make_closing(
        config.closing, quorum=config.quorum, seconds=config.round_deadline, mads=config.deadline_mads
    )
    master = FlatModel(build_model(task, config.seed))
    state = PeerState(
        peer=peer,
        num_peers=config.peers,
        params=master.vector,
        optimizer=MasterOptimizer(task, master.layout, master.vector, config.optimizer, config.lr),
        batch_size=config.batch_size,
        weighting=config.weighting or ALGORITHMS[config.algorithm].default_weighting,
    )
    fingerprint = master.layout.fingerprint()
    return Parts(
        task=task,
        schedule=schedule,
        algorithm=ALGORITHMS[config.algorithm](state),
        closing=closing,
        trainer=_trainer(config, peer, task, master, notify),
        fingerprint=fingerprint,
        identity=identity(config, peer, schedule, fingerprint),
    )


def warm_up(config: Config, parts: Parts) -> None:
    """Compute one chunk and one optimizer step on throw-away copies, so that torch's first-call costs are paid before the run
    begins. Changes nothing."""
    model = FlatModel(build_model(parts.task, config.seed))
    data = parts.task.train_data()
    computer = ChunkComputer(parts.task, model, data)
    first = np.arange(min(config.chunk_samples, num_samples(data)))
    with suppress(Exception):  # a task that fails is reported by its first real chunk
        chunk = computer.compute(first)
        MasterOptimizer(parts.task, model.layout, model.vector, config.optimizer, config.lr).step(chunk.gradient, 0)


def _trainer(config: Config, peer: int, task: Task, master: FlatModel, notify: Callable[[ChunkEvent], None]) -> Trainer:
    data = task.train_data()
    shares = partition_dataset(task, data, config.peers, config.partition, config.alpha, config.seed)
    stragglers = parse_stragglers(config.straggler, config.peers, config.seed)
    own_copy = FlatModel(build_model(task, config.seed))
    return Trainer(
        ChunkComputer(task, own_copy, data),
        SampleStream(shares[peer], config.seed, peer, config.chunk_samples),
        Accumulator(master.vector.numel(), config.chunks, InFlight(config.in_flight)),
        stragglers.for_peer(peer),
        config.chunk_seconds,
        notify,
    )
