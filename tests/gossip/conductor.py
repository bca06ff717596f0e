"""A host for tests: plays all peers' scores in lock step, in one thread, without time.

It is handed gradients instead of a trainer, may lose edges (both ends, as an atomic exchange does), and checks what every host may
rely on: payloads stay unchanged while an exchange is under way, and both ends of an edge name each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from peer.gossip.algorithm import NO_OUTER_STEP, Algorithm, Outer, PeerState, Score, Update
from peer.gossip.compression import wire_format
from peer.gossip.delivery import Delivery
from peer.gossip.effects import Accumulate, Accumulated, Answer, Effect, Exchange, Inbox
from peer.gossip.replicas import default_step
from peer.gossip.round import advance
from peer.gossip.wire_dtype import WireDtype
from topology import Schedule

#: (round, peer, parameters [d]) -> (gradient sum [d], samples)
Gradients = Callable[[int, int, Tensor], tuple[Tensor, int]]
#: (round, i, j), i < j -> is this edge lost?
#: For `deaf`: does i alone believe so?
Lost = Callable[[int, int, int], bool]
#: (round, peer, parameters [d]) -> mean training loss
Losses = Callable[[int, int, Tensor], float]


def nobody_is_best_for_ever(round: int, i: int, x: Tensor) -> float:
    return 1.0 + (5 * i + 3 * round) % 7


class PlainSGD:
    """x <- x - lr * g."""

    def __init__(self, params: Tensor, lr: float) -> None:
        self._params = params
        self._lr = lr
        self.clock: list[int] = []

    def step(self, gradient: Tensor, samples_clock: int, scale: float = 1.0) -> None:
        self.clock.append(samples_clock)
        self._params.add_(gradient, alpha=-self._lr * scale)

    def learning_rate(self, samples_clock: int) -> float:
        return self._lr


class Conductor:
    """n peers of one algorithm. params [n, d]: their starting points. displaced: the trainer makes the step, as with local steps;
    and always where the algorithm wants it. wire: None: the first that the algorithm takes."""

    def __init__(
        self,
        algorithm: type[Algorithm],
        schedule: Schedule,
        params: Tensor,
        *,
        lr: float = 0.1,
        batch_size: int = 4,
        weighting: str = "peers",
        lost: Lost = lambda k, i, j: False,
        deaf: Lost = lambda k, i, j: False,
        shuffle: int | None = None,
        displaced: bool = False,
        wire: str | None = None,
        consensus_step: float | None = None,
        losses: Losses = nobody_is_best_for_ever,
        outer: Outer = NO_OUTER_STEP,
        num_params: int | None = None,
    ) -> None:
        name = WireDtype.parse(wire or algorithm.wire_dtypes[0])
        self.schedule = schedule
        self.peers = [
            algorithm(
                PeerState(
                    i,
                    len(params),
                    row := params[i].clone(),
                    PlainSGD(row, lr),
                    batch_size=batch_size,
                    weighting=weighting,
                    wire=wire_format(name),
                    consensus_step=default_step(name.fraction) if consensus_step is None else consensus_step,
                    outer=outer,
                    num_params=num_params,
                )
            )
            for i in range(len(params))
        ]
        self._lr = lr
        self._displaced = displaced or algorithm.steps_locally
        self._lost = lost
        self._deaf = deaf
        self._losses = losses
        self._shuffle = random.Random(shuffle) if shuffle is not None else None

    @property
    def params(self) -> Tensor:
        """[n, d]"""
        return torch.stack([peer.state.params for peer in self.peers])

    def play(self, round: int, gradients: Gradients) -> list[Update]:
        """One round of everybody. Raises RoundBroken."""
        scores = [peer.round(self.schedule.plan(round, i)) for i, peer in enumerate(self.peers)]
        steps: list[Effect | Update] = [advance(score, None) for score in scores]
        while not all(isinstance(step, Update) for step in steps):
            steps = self._answer(round, scores, steps, gradients)
        return [step for step in steps if isinstance(step, Update)]

    def _answer(
        self, round: int, scores: Sequence[Score], steps: list[Effect | Update], gradients: Gradients
    ) -> list[Effect | Update]:
        exchanges = {i: exchange for i, step in enumerate(steps) if (exchange := _exchange(step)) is not None}
        before = {(i, j): sent.clone() for i, e in exchanges.items() for j, sent in e.send.items()}
        answers: dict[int, Answer] = {}
        for i, step in enumerate(steps):
            if isinstance(step, Update):
                continue
            inbox = self._inbox(round, i, exchanges) if i in exchanges else None
            if isinstance(step, Exchange):
                assert inbox is not None
                answers[i] = inbox
                continue
            done = self._done(round, i, *gradients(round, i, self.peers[i].state.params))
            answers[i] = done if isinstance(step, Accumulate) else (done, inbox or Inbox({}))
        for (i, j), sent in before.items():
            assert torch.equal(bits(exchanges[i].send[j]), bits(sent)), (
                "a payload changed while its exchange was under way"
            )
        order = list(answers)
        if self._shuffle:
            self._shuffle.shuffle(order)
        for i in order:
            steps[i] = advance(scores[i], answers[i])
        return steps

    def _done(self, round: int, i: int, grad_sum: Tensor, samples: int) -> Accumulated:
        loss = samples * self._losses(round, i, self.peers[i].state.params)
        if not self._displaced:
            return Accumulated(grad_sum.clone(), samples, samples, loss, (0,) * samples, "quota")
        state = self.peers[i].state
        divisor = state.batch_size if state.weighting == "samples" else max(samples, 1)
        moved = grad_sum * (-self._lr / divisor)
        return Accumulated(torch.zeros(0), samples, samples, loss, (0,) * samples, "quota", moved)

    def _inbox(self, round: int, i: int, exchanges: dict[int, Exchange]) -> Inbox:
        senders = list(exchanges[i].receive)
        if self._shuffle:
            self._shuffle.shuffle(senders)
        vectors, lost = {}, {}
        for j in senders:
            assert i in exchanges[j].send, f"peer {i} expects something that peer {j} does not send"
            assert exchanges[j].phase == exchanges[i].phase
            needs_both_ends = self.peers[i].delivery is Delivery.EDGE_ATOMIC
            assert exchanges[i].atomic is needs_both_ends, "what must count on both ends or on none is exchanged so"
            if self._lost(round, min(i, j), max(i, j)) or self._deaf(round, i, j):
                lost[j] = "deadline"
                continue
            vectors[j] = exchanges[j].send[i].clone()
            assert vectors[j].numel() == exchanges[i].receive[j]
            assert vectors[j].dtype == exchanges[i].dtype
            self._hand_over(j, exchanges[i], vectors)
        return Inbox(vectors, lost)

    def _hand_over(self, j: int, exchange: Exchange, vectors: dict[int, Tensor]) -> None:
        """To its taker, in pieces: the first ends anywhere, the last is what is left."""
        size = vectors[j].numel()
        arrived = [] if self._shuffle is None else [self._shuffle.randint(0, size) for _ in range(3)]
        whole = vectors[j]
        if j in exchange.into:
            vectors[j] = exchange.into[j]
        done = 0
        for until in (*sorted(arrived), size):
            vectors[j][done:until] = whole[done:until]
            done = until
            if j in exchange.take:
                exchange.take[j](vectors[j], until)


def _exchange(step: Effect | Update) -> Exchange | None:
    if isinstance(step, Exchange):
        return step
    return None if isinstance(step, Update | Accumulate) else step.exchange


def bits(vector: Tensor) -> Tensor:
    """Its bytes: a NaN is equal to itself."""
    return vector.contiguous().view(torch.uint8)
