"""Watches a cluster from outside: fetches every peer's model over gRPC, evaluates their mean, and slows nobody.

The loss is that of the mean model x_mean = sum_i x_i / n on the whole training set. Cadence: `eval_every` seconds, or ten times
the processor time of one observation, whichever is longer, so that the observer never uses more than a tenth of one core.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peer.accounts.observation import Observation, consensus_distance, model_of
from peer.exit_codes import ExitCode, Fatal
from peer.training.evaluate import Evaluator
from peer.transport.client import PeerClient, PeerUnreachable
from peer.wire.gossip_pb2 import StatusReply

SHARE_OF_A_CORE = 0.1
SILENCES = 5


@dataclass(slots=True)
class Observer:
    """models [n, d]: the newest whole snapshots, in the order of ids; a peer that has never answered has no row worth reading.
    answered: whose rows were fetched at the last look; the mean is over them. head: whose model is the run's, if one peer has it."""

    clients: Sequence[PeerClient]
    evaluator: Evaluator
    models: Tensor
    ready_at: float
    head: int | None = None
    answered: list[int] = field(default_factory=list)
    curve: list[Observation] = field(default_factory=list)
    statuses: list[StatusReply | None] = field(default_factory=list)
    _silences: list[int] = field(default_factory=list)
    _incoming: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._incoming = torch.empty_like(self.models)

    async def observe(self) -> Observation:
        """Fetch all models and evaluate their mean. Peers that do not answer are left out; raises PeerUnreachable if none does,
        Fatal if the task's own code fails."""
        fetched_at = [0.0] * len(self.clients)

        async def fetch(i: int) -> int:
            if i < len(self.statuses) and self.statuses[i] is None:
                raise PeerUnreachable(f"peer {i} does not answer")  # asked again when it answers a status
            round = await self.clients[i].snapshot(self._incoming[i], timeout=10.0)
            self.models[i].copy_(self._incoming[i])  # whole now; one that broke off half-way leaves the last whole one
            fetched_at[i] = time.monotonic()
            return round

        answers = await asyncio.gather(*map(fetch, range(len(self.clients))), return_exceptions=True)
        seconds = max(fetched_at) - self.ready_at
        rounds = {i: answer for i, answer in enumerate(answers) if isinstance(answer, int)}
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        unexpected = [failure for failure in failures if not isinstance(failure, PeerUnreachable)]
        if unexpected or not rounds:
            raise (unexpected or failures)[0]
        self.answered = list(rounds)
        loss, distance = await asyncio.to_thread(self._evaluate)
        samples = sum(status.samples for status in self.statuses if status is not None)
        mean_round = sum(rounds.values()) / len(rounds) if self.head not in rounds else rounds[self.head]
        seen = Observation(seconds, mean_round, loss, distance, samples)
        self.curve.append(seen)
        return seen

    async def refresh_statuses(self) -> None:
        """Newest status of each peer, None where it did not answer."""

        async def ask(client: PeerClient) -> StatusReply | None:
            try:
                return await client.status(timeout=2.0)
            except PeerUnreachable:
                return None

        self.statuses = list(await asyncio.gather(*(ask(client) for client in self.clients)))
        self._silences = [
            0 if status is not None else silence + 1
            for status, silence in zip(self.statuses, self._silences or [0] * len(self.clients), strict=True)
        ]

    def silent_for_long(self, peer: int) -> bool:
        """Whether it has not answered for so many questions in a row that nobody should wait for it."""
        return bool(self._silences) and self._silences[peer] >= SILENCES

    def _evaluate(self) -> tuple[float, float]:
        models = self.models[self.answered]
        mean = model_of(models, self.answered, self.head)
        return loss_of(self.evaluator, mean), consensus_distance(models, mean)


def loss_of(evaluator: Evaluator, model: Tensor) -> float:
    """Loss of a model [d] on the whole training set. Raises Fatal: it is the task's own code that fails."""
    try:
        return evaluator.loss(model)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise Fatal(ExitCode.TASK, f"the task failed when a model was evaluated: {told}") from error


def pause_after(seconds: float, cpu_seconds: float, eval_every: float) -> float:
    """Seconds to wait before the next observation when the last one took that long, and that much processor time."""
    return max(eval_every - seconds, cpu_seconds / SHARE_OF_A_CORE - seconds, 0.0)
