"""A host for tests: plays all peers' scores in lock step, in one thread, without time.

It is handed gradients instead of a trainer, may lose edges (both ends, as an atomic exchange does), and checks what every host may
rely on: payloads stay unchanged while an exchange is under way, and both ends of an edge name each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from peer.gossip.algorithm import NO_OUTER_STEP, Algorithm, Central, Outer, PeerState, Score, Update
from peer.gossip.compression import wire_format
from peer.gossip.delivery import Delivery
from peer.gossip.effects import (
    Accumulate,
    Accumulated,
    Answer,
    Both,
    Effect,
    Either,
    Exchange,
    Gather,
    Inbox,
    Reply,
    make_all,
)
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
        central: Central | None = None,
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
                    local_steps=2 if displaced else 1,
                    central=central or Central(),
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
        stage = _Stage(round, scores)
        for i in self._order(range(len(scores))):
            stage.advance(i, None)
        while not all(isinstance(step, Update) for step in stage.steps):
            answers = {i: self._answer(stage, i, gradients) for i in self._order(range(len(scores)))}
            ready = [(i, answer) for i, answer in answers.items() if answer is not None]
            assert ready, f"nobody can go on: {stage.steps}"
            for i, _ in ready:
                stage.check_unchanged(i)
            for i, answer in ready:
                stage.advance(i, answer)
        return [step for step in stage.steps if isinstance(step, Update)]

    def _order(self, peers: Iterable[int]) -> list[int]:
        order = list(peers)
        if self._shuffle:
            self._shuffle.shuffle(order)
        return order

    def _answer(self, stage: _Stage, i: int, gradients: Gradients) -> Answer | None:
        """None: something that it waits for is not there yet."""
        step = stage.steps[i]
        if isinstance(step, Update):
            return None
        if isinstance(step, Accumulate):
            return self._done(stage.round, i, step, gradients)
        if isinstance(step, Reply):
            return Inbox({})
        assert not isinstance(step, Either), "of methods without rounds, which are not played here"
        exchange = step.exchange if isinstance(step, Both) else step
        inbox = self._gathered(stage, i, exchange) if isinstance(exchange, Gather) else self._inbox(stage, i, exchange)
        if inbox is None or not isinstance(step, Both):
            return inbox
        return self._done(stage.round, i, step.accumulate, gradients), inbox

    def _done(self, round: int, i: int, effect: Accumulate, gradients: Gradients) -> Accumulated:
        if not effect.computes:
            return Accumulated(torch.zeros(0), 0, 0, 0.0, (), "quota")
        grad_sum, samples = gradients(round, i, self.peers[i].state.params)
        loss = samples * self._losses(round, i, self.peers[i].state.params)
        chunks = min(samples, self.peers[i].state.batch_size)
        if not self._displaced:
            return Accumulated(grad_sum.clone(), samples, chunks, loss, (0,) * chunks, "quota")
        state = self.peers[i].state
        divisor = state.batch_size if state.weighting == "samples" else max(samples, 1)
        moved = grad_sum * (-self._lr / divisor)
        return Accumulated(torch.zeros(0), samples, chunks, loss, (0,) * chunks, "quota", moved)

    def _is_lost(self, round: int, i: int, j: int) -> bool:
        return self._lost(round, min(i, j), max(i, j)) or self._deaf(round, i, j)

    def _why(self, i: int, j: int) -> str:
        """Who waits longer hears of it from the other end."""
        patient = self.peers[i].is_patient_with(j) and not self.peers[j].is_patient_with(i)
        return "declined" if patient else "deadline"

    def _inbox(self, stage: _Stage, i: int, exchange: Exchange) -> Inbox | None:
        needs_both_ends = self.peers[i].delivery is Delivery.EDGE_ATOMIC
        assert exchange.atomic is needs_both_ends, "what must count on both ends or on none is exchanged so"
        lost = {j: self._why(i, j) for j in exchange.receive if self._is_lost(stage.round, i, j)}
        senders = self._order(j for j in exchange.receive if j not in lost)
        if not all((j, i, exchange.phase) in stage.mail for j in senders):
            return None
        vectors: dict[int, Tensor] = {}
        for j in senders:
            vectors[j] = stage.mail[j, i, exchange.phase].clone()
            assert vectors[j].numel() == exchange.receive[j]
            assert vectors[j].dtype == exchange.dtype
            self._hand_over(j, exchange, vectors)
        return Inbox(vectors, lost)

    def _gathered(self, stage: _Stage, i: int, effect: Gather) -> Inbox | None:
        lost = {j: "deadline" for j in effect.receive if self._is_lost(stage.round, i, j)}
        came = [j for j, to, _ in stage.mail if to == i and j in effect.receive and j not in lost]
        if len(came) + len(lost) < len(effect.receive) and (effect.enough is None or len(came) < effect.enough):
            return None
        vectors = {j: stage.mail[j, i, 0].clone() for j in came}
        assert all(vectors[j].numel() == effect.receive[j] for j in came)
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


class _Stage:
    """One round under way. mail[i, j, phase]: what peer i sent to peer j, in the order of sending."""

    def __init__(self, round: int, scores: Sequence[Score]) -> None:
        self.round = round
        self.steps: list[Effect | Update] = [Update(Accumulated(torch.zeros(0), 0, 0, 0.0, (), ""))] * len(scores)
        self.mail: dict[tuple[int, int, int], Tensor] = {}
        self._scores = scores

    def advance(self, i: int, answer: Answer | None) -> None:
        self.steps[i] = step = advance(self._scores[i], answer)
        effect = step.exchange if isinstance(step, Both) else step
        if isinstance(effect, Exchange):
            make_all(effect)
        phase, sent = self._sent(i)
        for j, vector in sent.items():
            assert (i, j, phase) not in self.mail
            self.mail[i, j, phase] = vector.clone()

    def check_unchanged(self, i: int) -> None:
        phase, sent = self._sent(i)
        for j, vector in sent.items():
            mailed = self.mail[i, j, phase]
            assert torch.equal(bits(vector), bits(mailed)), "a payload changed while its exchange was under way"

    def _sent(self, i: int) -> tuple[int, Mapping[int, Tensor]]:
        step = self.steps[i]
        exchange = step.exchange if isinstance(step, Both) else step
        if isinstance(exchange, Exchange):
            return exchange.phase, exchange.send
        return 0, exchange.send if isinstance(exchange, Reply) else {}


def bits(vector: Tensor) -> Tensor:
    """Its bytes: a NaN is equal to itself."""
    return vector.contiguous().view(torch.uint8)
