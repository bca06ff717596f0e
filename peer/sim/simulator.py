"""A whole cluster in virtual time, from a config to a report."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from peer.accounts.observation import Observation, consensus_distance, model_of
from peer.accounts.summary import PeerSummary
from peer.assembly import (
    head_of,
    make_accumulator,
    make_algorithm,
    make_model,
    make_optimizer,
    make_policy,
    make_scenario,
    make_schedule,
    make_shares,
    make_stragglers,
    make_wire,
    max_rounds,
    nominal_chunk_seconds,
    steps_locally,
)
from peer.config import TIMING, Config
from peer.exit_codes import ExitCode, Fatal
from peer.gossip.algorithm import Algorithm, Optimizer, RoundBroken
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.delivery import PRESETS
from peer.gossip.mixing import payload_bytes
from peer.gossip.round import RoundReport
from peer.scenario import Network
from peer.sim import assistant
from peer.sim.accumulating import Accumulating
from peer.sim.assistant import Assistant
from peer.sim.device import Device, Gradients, NoGradients, RealGradients
from peer.sim.events import Agenda
from peer.sim.host import SimPeer
from peer.sim.network import Links
from peer.training.accumulator import InFlight, Samples
from peer.training.chunk import ChunkComputer
from peer.training.data import SampleStream
from peer.training.evaluate import Evaluator
from peer.training.task import load_task

CHUNK_SECONDS: Final = 0.01
"""Nominal time of a chunk if neither the config nor the scenario says one."""


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Millions of small values that live long make the cycle collector look at them over and over; a run makes hardly any cycle."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _NoOptimizer:
    def step(self, gradient: Tensor, samples_clock: int, scale: float = 1.0) -> None:
        return None

    def learning_rate(self, samples_clock: int) -> float:
        return 1.0


class Simulation:
    """One run. exact: chunk by chunk as the daemon computes, so that equal rounds give equal bits; else all chunks of a round in one
    pass where the model has no buffers. num_parameters: size of the vectors of the task `timing`, which has none.

    Raises what `peer.assembly.BAD_INPUT` names.
    """

    @_without_garbage_collection()
    def __init__(
        self,
        config: Config,
        *,
        exact: bool = False,
        num_parameters: int = 50_826,
        progress: Callable[[Simulation], None] = lambda simulation: None,
    ) -> None:
        self.config = config
        self.agenda = Agenda()
        self.scenario = make_scenario(config)
        self.schedule = make_schedule(config)
        self.links = Links(self.scenario.network or Network(), config.peers, self.scenario.partition, config.seed)
        self.curve: list[Observation] = []
        self.stop_reason = ""
        self.seconds_to_target: float | None = None
        self.failure: Fatal | None = None  # what ended the run before its time
        self.evaluator: Evaluator | None = None
        self.rounds = 0  # of the furthest peer
        self._progress = progress
        self._linked: list[set[int]] = [set() for _ in range(config.peers)]
        self._living = config.peers
        self._params = torch.zeros(config.peers, 0)
        self._num_parameters = num_parameters
        self._full_bytes = _payload_bytes(config, num_parameters)
        self._num_shards = ALGORITHMS[config.algorithm].num_shards(config.peers, num_parameters, make_wire(config))
        self._sized = False
        self._assistant: Assistant | None = None
        self.dead: set[int] = set()
        self._severed: Counter[tuple[int, int]] = Counter()  # by how many cuts
        self.peers: list[SimPeer] = []
        self.peers += [
            SimPeer(
                i,
                self,
                algorithm,
                device,
                make_policy(config, i),
                in_flight=InFlight(config.in_flight),
                round_timeout=config.round_timeout,
                bounds=PRESETS[config.preset],
            )
            for i, (algorithm, device) in enumerate(self._made(exact))
        ]

    # building

    def _made(self, exact: bool) -> list[tuple[Algorithm, Device]]:
        config = self.config
        stragglers = make_stragglers(config, self.scenario)
        chunk_seconds = nominal_chunk_seconds(config, self.scenario) or CHUNK_SECONDS
        made = []
        for i, (params, optimizer, gradients) in enumerate(
            self._nothing() if config.task == TIMING else self._models(exact)
        ):
            accumulator = make_accumulator(config, params, optimizer)
            device = Device(gradients, accumulator, stragglers.for_peer(i), chunk_seconds)
            stands_for = None if params.numel() else self._num_parameters
            made.append((make_algorithm(config, i, params, optimizer(params), stands_for), device))
        return made

    def _nothing(self) -> Iterator[tuple[Tensor, Callable[[Tensor], Optimizer], Gradients]]:
        for _ in range(self.config.peers):
            yield torch.zeros(0), lambda params: _NoOptimizer(), NoGradients(self.config.chunk_samples)

    def _models(self, exact: bool) -> Iterator[tuple[Tensor, Callable[[Tensor], Optimizer], Gradients]]:
        """Of each peer: the master vector [d], what makes an optimizer on it or on a copy, and where chunks come from."""
        config = self.config
        task = load_task(config.task)
        model = make_model(config, task)
        data = task.train_data()
        computer = ChunkComputer(task, make_model(config, task), data)
        shares = make_shares(config, task, data)
        self._params = model.vector.repeat(config.peers, 1)
        self._sized = True
        self.evaluator = Evaluator(task, config.seed)
        fuse = not exact and model.layout.num_buffers == 0
        if fuse and not steps_locally(config) and assistant.is_of_use(task):
            self._assistant = Assistant(config.task, config.seed, model.layout.dim, config.batch_size)
        for i in range(config.peers):
            stream = SampleStream(shares[i], config.seed, i, config.chunk_samples)
            yield (
                self._params[i],
                partial(make_optimizer, config, task, model),
                RealGradients(computer, stream, fuse=fuse, assistant=self._assistant),
            )

    # the World of the peers

    def links_of(self, peer: int) -> set[int]:
        return self._linked[peer]

    def vector_bytes(self, vector: Tensor) -> int:
        """Of the payload. Those of the task `timing` are empty: one counts as all parameters, a shard of a ring as its share."""
        if self._sized:
            return vector.numel() * vector.element_size()
        return self._full_bytes // self._num_shards

    def round_ended(self, peer: SimPeer, report: RoundReport) -> bool:
        if peer.round > self.rounds:
            self.rounds = peer.round
        if (most := max_rounds(self.config, peer.peer)) is not None and peer.round >= most:
            self._limit(f"{peer.round} rounds are done")
            peer.leave()
            self._one_less()
            return False
        if self.config.random_graph_every:
            self._link_up(peer.peer, peer.round)
        return True

    def broken(self, peer: SimPeer, error: RoundBroken) -> None:
        """As a real run: somebody who said goodbye ends it, somebody who was lost breaks it."""
        if peer.talk.directory.has_left(error.peer):
            self._limit(f"peer {error.peer} left, and {self.config.algorithm} needs {error.needs}")
        else:
            self.failure = Fatal(ExitCode.LOST, error.sentence(self.config.algorithm))
            self._limit(self.failure.sentence)
        self.agenda.stopped = True

    def diverged(self, peer: Accumulating) -> bool:
        in_a_row = peer.device.nonfinite_in_a_row
        if in_a_row < self.config.nonfinite_limit:
            return False
        told = f"peer {peer.peer}: {in_a_row} chunks in a row had NaN or infinite gradients; lower --lr or look at the data"
        self.failure = Fatal(ExitCode.NONFINITE, told)
        self._limit(told)
        self.agenda.stopped = True
        return True

    # the run

    @_without_garbage_collection()
    def run(self) -> None:
        """Play until the target, a limit, or until nobody is left. Raises TraceEnded."""
        config, agenda = self.config, self.agenda
        for i in range(config.peers):
            self._link_up(i, 0)
        for crash in self.scenario.crash:
            agenda.at(crash.at, self._crash, crash.peer)
        for down, up, pairs in self.links.cuts():
            agenda.at(down, self._cut, pairs)
            agenda.at(up, self._heal, pairs)
        for peer in self.peers:
            agenda.at(0.0, peer.begin)
        if self.evaluator is not None:
            agenda.at(0.0, self._observe)
        if config.max_seconds is not None:
            agenda.at(config.max_seconds, self._time_is_up)
        try:
            agenda.play()
        finally:
            if self._assistant is not None:
                self._assistant.close()
        for peer in self.peers:
            if not peer.gone:
                peer.vanish()
            # Nobody said of these that they are in an update.
            peer.device.revoke(peer.device.samples.applied - peer.ledger.samples)
        if len(self.dead) == config.peers:
            self.failure = Fatal(ExitCode.LOST, "every peer has died")
            self._limit(self.failure.sentence)
        elif self.evaluator is not None and (not self.curve or self.curve[-1].seconds < agenda.now):
            self._look()

    def _observe(self) -> None:
        """Evaluate the mean model, as the observer of a real run does at the same cadence."""
        before = self.curve[-1] if self.curve else None
        if before is None or self._mean_round() > before.rounds:
            seen = self._look()
        else:  # no model has changed
            seen = replace(before, seconds=self.agenda.now)
        if self.config.target_loss is not None and seen.loss <= self.config.target_loss:
            self.seconds_to_target = _crossing(before, seen, self.config.target_loss)
            self._limit(f"target loss {self.config.target_loss:g} reached")
            self.agenda.stopped = True
            return
        if self._living:
            self.agenda.at(self.agenda.now + self.config.eval_every, self._observe)

    def _look(self) -> Observation:
        assert self.evaluator is not None
        models = self.models()
        mean = model_of(models, self._alive(), head_of(self.config))
        seen = Observation(
            self.agenda.now,
            self._mean_round(),
            self.evaluator.loss(mean),
            consensus_distance(models, mean),
            self.samples(),
        )
        self.curve.append(seen)
        self._progress(self)
        return seen

    def _mean_round(self) -> float:
        """Of the peers, or of the one that has the model."""
        head = head_of(self.config)
        return sum(peer.round for peer in self.peers) / len(self.peers) if head is None else self.peers[head].round

    def models(self) -> Tensor:
        """[n, d] of the peers that have not died."""
        alive = self._alive()
        return self._params[alive] if len(alive) < len(self.peers) else self._params

    def _alive(self) -> list[int]:
        return [peer.peer for peer in self.peers if peer.peer not in self.dead]

    def samples(self) -> int:
        """In updates so far, over all peers."""
        return sum(peer.ledger.samples for peer in self.peers)

    def _time_is_up(self) -> None:
        self._limit(f"{self.config.max_seconds:g} s are over")
        self.agenda.stopped = True

    def _limit(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason

    def _one_less(self) -> None:
        self._living -= 1
        self.agenda.stopped = self._living == 0

    # links, crashes, cuts

    def _link_up(self, i: int, round: int) -> None:
        for j in self.schedule.links(round, i):
            self._link(i, j)

    def _link(self, i: int, j: int) -> None:
        if j in self._linked[i] or {i, j} & self.dead or self._severed[min(i, j), max(i, j)]:
            return
        self._linked[i].add(j)
        self._linked[j].add(i)
        self.peers[i].link_up(j)
        self.peers[j].link_up(i)

    def _unlink(self, i: int, j: int) -> None:
        if j not in self._linked[i]:
            return
        self._linked[i].discard(j)
        self._linked[j].discard(i)
        self.peers[i].link_down(j)
        self.peers[j].link_down(i)

    def _crash(self, peer: int) -> None:
        """The process is gone; its neighbours' links break at once."""
        if self.peers[peer].gone:
            return
        self.peers[peer].vanish()
        self.dead.add(peer)
        self._one_less()
        for j in sorted(self._linked[peer]):
            self._unlink(j, peer)

    def _cut(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._severed.update(pairs)
        for i, j in pairs:
            self._unlink(i, j)

    def _heal(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._severed.subtract(pairs)
        for i in range(self.config.peers):
            self._link_up(i, self.peers[i].round)

    # what came of it

    def summaries(self) -> list[dict[str, object]]:
        """One of each peer, with the fields of a real one."""
        made = [PeerSummary.of(peer.ledger, _Trained(peer), {0: peer}, _Lived(peer, self)) for peer in self.peers]
        return [{**summary.as_dict(), "pid": None, "cpu_seconds": None} for summary in made]


def _payload_bytes(config: Config, num_parameters: int) -> int:
    return ALGORITHMS[config.algorithm].vectors_in_payload * payload_bytes(make_wire(config), num_parameters)


def _crossing(before: Observation | None, seen: Observation, target: float) -> float:
    """When the loss was at the target: on the straight line between two looks, which are far apart where rounds are short."""
    if before is None or not before.loss > seen.loss:
        return seen.seconds
    passed = (before.loss - target) / (before.loss - seen.loss)
    return before.seconds + passed * (seen.seconds - before.seconds)


@dataclass(frozen=True, slots=True)
class _Trained:
    """A device as a summary sees a trainer."""

    host: SimPeer

    @property
    def samples(self) -> Samples:
        return self.host.device.samples

    @property
    def seconds(self) -> tuple[float, float]:
        if not self.samples.started:  # as a trainer that no round was ever opened for
            return 0.0, 0.0
        computing = self.host.device.seconds_computing
        return computing, max(self.host.ended_at - computing, 0.0)


@dataclass(frozen=True, slots=True)
class _Lived:
    host: SimPeer
    simulation: Simulation

    @property
    def peer(self) -> int:
        return self.host.peer

    @property
    def stop_reason(self) -> str:
        return "crashed" if self.host.peer in self.simulation.dead else self.simulation.stop_reason

    @property
    def samples_of_workers(self) -> Mapping[int, int]:
        return self.host.algorithm.samples_of_workers

    def seconds(self) -> float:
        return self.host.ended_at
