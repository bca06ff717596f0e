"""Asynchronous SGD with a parameter server (M. Gormley, CMU 10-425/625, lecture 24, algorithms 2 and 3).

The head has x. There are no rounds that peers share:

    worker   sends [G | n] of one batch at the x that it read last, receives x as the answer, goes on
    head     whoever's comes first: x <- x - lr * G / n, answers, waits for the next

A round of a worker is one gradient; a round of the head is one update. Staleness (definition 24.1): the head's updates between the x that a
gradient is of and its own; one entry for each update, in the head's reports. N - 1 workers that are alike have staleness N - 2. A worker
reads x(0) without being sent it, as all peers start from the same.

simulate_staleness tau: gradients wait in a queue at the head until tau more have come, and the answers do not wait: staleness is tau more
than it would be with so many workers, and tau with one. staleness_aware_lr: lr / max(staleness, 1) (Zhang, Gupta, Lian, Liu 2016, arXiv
1511.05950), by scaling the gradient.

Which gradients are in an update only the head knows. It tells each worker with every answer how many of its samples are, and the worker
reports them then; what it has not been told of when it stops was never applied, as far as it knows (`samples_of_workers`: the head).

The head is needed, any worker may be lost. Messages, float32: [d + 4] both ways: G and n; x, the samples of all updates so far, and those
of them that were this worker's, each in two digits of 2^24. A gradient moves 8 d bytes. Vectors of d floats beside those that every peer
has: a worker two; the head one a worker, in which the answer goes out, one for what it applies and tau for those that wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor

from peer.gossip.algorithm import Algorithm, PeerState, RoundBroken, ScheduleOptions, Score, Update, zeros
from peer.gossip.central import read_clock, read_count, take_model, write_clock
from peer.gossip.closing import CloseReason
from peer.gossip.delivery import Delivery
from peer.gossip.effects import Accumulate, Accumulated, Answer, Effect, Exchange, Gather, Inbox, Reply
from topology import FixedSchedule, RoundPlan, Schedule, star


class _Held(NamedTuple):
    """A gradient that has come. read: updates that were in the x it is of."""

    worker: int
    gradient: Tensor
    num_samples: int
    read: int


#: Gradients more than tau of which a worker may not have been told, before its head makes no sense.
MOST_UNTOLD = 1000


class _Books:
    """A worker's: what it has sent, and what of that it knows to be in updates. most: gradients that it may not know of."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sent: deque[Accumulated] = deque()  # not known to be in an update, in the order in which they were sent
        self._samples_sent = 0
        self._samples_used = 0

    def send(self, done: Accumulated) -> None:
        if done.num_samples:
            self._sent.append(done._replace(grad_sum=zeros(0)))
            self._samples_sent += done.num_samples

    def hear(self, samples_used: int, done: Accumulated) -> Accumulated | None:
        """What is in updates since the last answer, closed as `done` was; None if it can't be. samples_used: since the beginning. Gradients
        are applied in the order in which they are sent; where the head refused one, the books are behind until others make up for it."""
        if not self._samples_used <= samples_used <= self._samples_sent:
            return None
        chunks, loss_sum, before = 0, 0.0, self._samples_used
        while self._sent and self._samples_used + self._sent[0].num_samples <= samples_used:
            used = self._sent.popleft()
            self._samples_used += used.num_samples
            chunks += used.num_chunks
            loss_sum += used.loss_sum
        if len(self._sent) > self._most:
            return None
        return Accumulated(zeros(0), self._samples_used - before, chunks, loss_sum, (), done.close_reason)


class AsyncSGD(Algorithm):
    name: ClassVar[str] = "async-sgd"
    delivery: ClassVar[Delivery] = Delivery.FRESHEST
    sends_after_close: ClassVar[bool] = False
    has_rounds: ClassVar[bool] = False
    has_head: ClassVar[bool] = True
    keeps_mean: ClassVar[bool] = False
    why_not_varying: ClassVar[str] = "every worker talks to the head alone"
    why_no_random_graphs: ClassVar[str] = "every worker talks to the head alone"
    why_no_local_steps: ClassVar[str] = "the head takes each gradient as it comes"

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self._head = state.central.head
        self._size = state.params.numel() + 4
        leads = state.peer == self._head
        self._out = zeros(0 if leads else self._size)
        self._books = _Books(state.central.simulate_staleness + MOST_UNTOLD)
        self._held: deque[_Held] = deque()
        self._free: list[Tensor] = []
        self._updates = 0
        self._read: dict[int, int] = {}  # by worker: updates in the x it has
        self._answered: dict[int, int] = {}  # by worker
        self._gone: dict[int, str] = {}
        self._used: dict[int, int] = {}  # by worker

    @property
    def samples_of_workers(self) -> Mapping[int, int]:
        return self._used

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        return FixedSchedule(star(options.topology, options.head, cls.name))

    def answers_to(self, peer: int) -> bool:
        return self.state.peer == self._head

    def is_patient_with(self, peer: int) -> bool:
        return True

    def round(self, plan: RoundPlan) -> Score:
        return self._lead(plan) if plan.peer == self._head else self._work()

    # a worker

    def _work(self) -> Score:
        answer = yield Accumulate()
        assert isinstance(answer, Accumulated)
        state, done, d = self.state, answer, self.state.params.numel()
        self._out.zero_()
        if done.num_samples:
            self._out[:d].copy_(done.grad_sum)
            self._out[d] = done.num_samples
        self._books.send(done)
        inbox = yield Exchange(0, {self._head: self._out}, {self._head: self._size}, atomic=False)
        assert isinstance(inbox, Inbox)
        for why in inbox.lost.values():
            raise RoundBroken(self._head, why, needs="its head")
        sent_back = inbox.vectors[self._head]
        used = self._books.hear(read_clock(sent_back[d + 2 :]), done)
        if used is None:
            raise RoundBroken(self._head, "corrupt", needs="its head")
        state.samples_clock = take_model(self._head, sent_back, state.params)
        return Update(used, num_received=1)

    # the head

    def _lead(self, plan: RoundPlan) -> Score:
        """Until one gradient is applied."""
        lost: dict[int, str] = {}
        while True:
            worker, message = yield from self._next(plan, lost)
            if not self._take(worker, message):
                lost[worker] = "corrupt"
            due = len(self._held) > self.state.central.simulate_staleness
            staleness = self._apply(self._held.popleft()) if due else 0
            self._answer(worker, message)
            yield Reply({worker: message}, waits=False)
            if due:
                done = Accumulated(zeros(0), 0, 0, 0.0, (staleness,), str(CloseReason.GRADIENT))
                return Update(done, lost, num_received=1)

    def _next(self, plan: RoundPlan, lost: dict[int, str]) -> Generator[Effect, Answer, tuple[int, Tensor]]:
        """Whose vector came first, of those that are not answered. Adds to `lost`."""
        while True:
            here = [j for j in plan.neighbors if j not in self._gone]
            if not here:
                raise RoundBroken(*next(reversed(self._gone.items())), needs="a worker")
            stamps = {j: self._answered.get(j, 0) for j in here}
            inbox = yield Gather(dict.fromkeys(here, self._size), enough=1, stamps=stamps)
            assert isinstance(inbox, Inbox)
            self._gone.update(inbox.lost)
            lost.update(inbox.lost)
            for worker, message in inbox.vectors.items():
                return worker, message

    def _take(self, worker: int, message: Tensor) -> bool:
        """Put its gradient, if there is one, into the queue, in a vector that stays when the message is written over. False if the message
        makes no sense."""
        d = self.state.params.numel()
        count = read_count(message[: d + 1])
        if count:
            gradient = self._free.pop() if self._free else zeros(d)
            self._held.append(_Held(worker, gradient.copy_(message[:d]), count, self._read.get(worker, 0)))
        return count is not None

    def _apply(self, held: _Held) -> int:
        """One update; returns its staleness."""
        state, staleness = self.state, self._updates - held.read
        whole = state.batch_size if state.weighting == "samples" else held.num_samples
        slower = max(staleness, 1) if state.central.staleness_aware_lr else 1
        state.samples_clock += held.num_samples
        state.optimizer.step(held.gradient, state.samples_clock, 1.0 / (whole * slower))
        self._updates += 1
        self._used[held.worker] = self._used.get(held.worker, 0) + held.num_samples
        self._free.append(held.gradient)
        return staleness

    def _answer(self, worker: int, message: Tensor) -> None:
        """x as it is now, into `message`."""
        state, d = self.state, self.state.params.numel()
        message[:d].copy_(state.params)
        write_clock(state.samples_clock, message[d:])
        write_clock(self._used.get(worker, 0), message[d + 2 :])
        self._read[worker] = self._updates
        self._answered[worker] = self._answered.get(worker, 0) + 1
