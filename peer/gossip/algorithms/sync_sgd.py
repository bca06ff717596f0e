"""Distributed synchronous mini-batch SGD with a head (M. Gormley, CMU 10-425/625, lecture 24, algorithm 1), and with backup workers (Chen,
Pan, Monga, Bengio, Jozefowicz 2017, arXiv 1604.00981).

Round k, n_i samples with gradient sum G_i at x(k) at peer i:

    worker i   sends [G_i | n_i] to the head and receives x(k+1) as the answer
    head       x(k+1) = x(k) - lr * sum G_i / sum n_i, its own G among them if it computes

so that it is SGD on one machine with the samples of all peers as mini-batch, up to the order of float32 sums; sums are in the order of
ids. All peers start from the same x(0), and end every round with the head's bits. Closing `barrier` is the classic method; with the
others a peer sends what it has finished when the round ends.

Backup workers: with e of them the head steps on the first N - e of N gradients that come, drops the others, and tells their senders. A
gradient is of x(k) because its exchange is stamped k. Nothing of another round counts, so chunks are not carried over.

A worker that gets no x(k+1), because the head gave it up, computes nothing in round k+1 (`missed`), and has x(k+2) after it. The head
goes on without a worker that is lost, under every closing policy: sum n is then of those that came. Without the head there is no round.

With local steps peers send displacements D_i = y - x(k) instead: `samples` x(k+1) = x(k) + sum D_i / (N - e), `peers` divides by the number
of those that finished anything.

Messages, float32: [d + 1] to the head, [d + 2 + N] back: x(k+1), the samples of all updates so far in two digits of 2^24, whose gradient
was used. A round moves 8 d bytes on each worker's link, so 8 d (N - 1) through the head. Vectors of d floats beside those that every
peer has: a worker two, the head N (one a worker and one for the sum).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import ClassVar

from torch import Tensor

from peer.gossip.algorithm import Algorithm, PeerState, RoundBroken, ScheduleOptions, Score, Update, zeros
from peer.gossip.central import read_count, take_model, write_clock
from peer.gossip.closing import CloseReason
from peer.gossip.delivery import Delivery
from peer.gossip.effects import Accumulate, Accumulated, Answer, Both, Effect, Exchange, Gather, Inbox, Meanwhile, Reply
from topology import FixedSchedule, RoundPlan, Schedule, star

#: What a worker may lose an exchange to while the head lives: it gave this worker up, or is past the round.
HEAD_LIVES = ("declined", "stale")
NOTHING = Accumulated(zeros(0), 0, 0, 0.0, (), str(CloseReason.MISSED))


class SyncSGD(Algorithm):
    name: ClassVar[str] = "sync-sgd"
    delivery: ClassVar[Delivery] = Delivery.FRESHEST
    sends_after_close: ClassVar[bool] = True
    default_weighting: ClassVar[str] = "samples"
    sums_gradients: ClassVar[bool] = True
    has_head: ClassVar[bool] = True
    keeps_mean: ClassVar[bool] = False
    why_not_varying: ClassVar[str] = "every peer talks to the head in every round"
    why_no_random_graphs: ClassVar[str] = "every peer talks to the head in every round"
    why_not_others: ClassVar[str] = (
        "workers would compute at a rounded x, and it would not be the SGD of one machine any more"
    )

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self._head = state.central.head
        self._num_used = state.num_peers - (not state.central.head_computes) - state.central.backup_workers
        self._version: int | None = None  # the round whose x(k) is in state.params; None: the first, whichever it is
        d = state.params.numel()
        self._sizes = d + 1, d + 2 + state.num_peers
        self._out = zeros(self._sizes[state.peer == self._head])

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        return FixedSchedule(star(options.topology, options.head, cls.name))

    @property
    def idle_peers(self) -> frozenset[int]:
        return frozenset() if self.state.central.head_computes else frozenset({self._head})

    def answers_to(self, peer: int) -> bool:
        return self.state.peer == self._head

    def is_patient_with(self, peer: int) -> bool:
        return peer == self._head

    def round(self, plan: RoundPlan) -> Score:
        return self._lead(plan) if plan.peer == self._head else self._work(plan)

    # a worker

    def _work(self, plan: RoundPlan) -> Score:
        done = NOTHING
        if self._version in (None, plan.round):
            answer = yield Accumulate()
            assert isinstance(answer, Accumulated)
            done = answer
        if done.num_samples and self._counts(done):
            self._out[:-1].copy_(_vector(done))
            self._out[-1] = done.num_samples
        else:
            self._out.zero_()
        inbox = yield Exchange(0, {self._head: self._out}, {self._head: self._sizes[1]}, atomic=False)
        assert isinstance(inbox, Inbox)
        for why in inbox.lost.values():
            if why not in HEAD_LIVES:
                raise RoundBroken(self._head, why, needs="its head")
        used = False
        for message in inbox.vectors.values():
            used = self._take_over(message, plan.round)
        if used or not done.num_samples:
            return Update(done, inbox.lost, len(inbox.vectors))
        return Update(_without(done), inbox.lost, len(inbox.vectors), dropped=done.num_samples)

    def _take_over(self, message: Tensor, round: int) -> bool:
        """x(k+1), and whether this peer's gradient is in it."""
        state, d = self.state, self.state.params.numel()
        state.samples_clock = take_model(self._head, message, state.params)
        self._version = round + 1
        return bool(message[d + 2 + state.peer])

    # the head

    def _lead(self, plan: RoundPlan) -> Score:
        state, expected = self.state, dict.fromkeys(plan.neighbors, self._sizes[0])
        answer = yield Both(Accumulate(state.central.head_computes), Gather(expected, enough=0))
        assert not isinstance(answer, Accumulated | Inbox | Meanwhile)
        done, inbox = answer
        lost = dict(inbox.lost)  # of these no exchange is under way
        came = yield from self._gather({j: size for j, size in expected.items() if j not in lost}, done, lost)
        counts = {j: read_count(sent) for j, sent in came.items()}
        sound = {j: (came[j][:-1], count) for j, count in counts.items() if count is not None}
        lost.update(dict.fromkeys(came.keys() - sound.keys(), "corrupt"))
        if not sound and not state.central.head_computes and len(lost) == len(plan.neighbors):
            raise RoundBroken(*next(iter(lost.items())), needs="a worker")

        used = self._step(self._chosen(done, sound))
        self._out[: state.params.numel()].copy_(state.params)
        answered = yield Reply(dict.fromkeys((j for j in plan.neighbors if j in came or j not in lost), self._out))
        assert isinstance(answered, Inbox)
        lost.update(answered.lost)
        if used[state.peer] or not done.num_samples:
            return Update(done, lost, len(sound))
        return Update(_without(done), lost, len(sound), dropped=done.num_samples)

    def _gather(
        self, expected: Mapping[int, int], done: Accumulated, lost: dict[int, str]
    ) -> Generator[Effect, Answer, Mapping[int, Tensor]]:
        """What the workers send, in the order of arrival: of all, or until there are gradients enough. Adds to `lost`."""
        backups = self.state.central.backup_workers
        needed = self._num_used - (done.num_samples > 0 and self._counts(done))
        enough = needed
        while True:
            inbox = yield Gather(expected, enough if backups else None)
            assert isinstance(inbox, Inbox)
            lost.update(inbox.lost)
            expected = {j: size for j, size in expected.items() if j not in lost}
            empty = sum(float(sent[-1]) == 0 for sent in inbox.vectors.values())
            if not backups or len(inbox.vectors) - empty >= needed or len(inbox.vectors) == len(expected):
                return inbox.vectors
            enough = needed + empty

    def _counts(self, done: Accumulated) -> bool:
        """With backup workers only a whole batch is a gradient."""
        state = self.state
        return not state.central.backup_workers or done.num_samples >= state.batch_size * state.local_steps

    def _chosen(self, done: Accumulated, sound: Mapping[int, tuple[Tensor, int]]) -> dict[int, tuple[Tensor, int]]:
        """(vector [d], samples) of the peers whose work counts, by id. sound: the same of all that came, in the order of arrival."""
        came = [(j, vector, count) for j, (vector, count) in sound.items() if count]
        if done.num_samples and self._counts(done):
            came.insert(0, (self.state.peer, _vector(done), done.num_samples))
        if self.state.central.backup_workers:
            came = came[: self._num_used]
        return {j: (vector, count) for j, vector, count in sorted(came, key=lambda row: row[0])}

    def _step(self, chosen: Mapping[int, tuple[Tensor, int]]) -> Tensor:
        """x(k) -> x(k+1). Returns, by peer, whether its work is in it, [N], as it goes into the message."""
        state, d = self.state, self.state.params.numel()
        total, tail = self._out[:d], self._out[d:].zero_()
        total.zero_()
        by_samples, moved = state.weighting == "samples", state.local_steps > 1
        for j, (vector, count) in chosen.items():
            total.add_(vector, alpha=1.0 if by_samples or moved else 1.0 / count)
            tail[2 + j] = 1.0
        num_samples = sum(count for _, count in chosen.values())
        state.samples_clock += num_samples
        if chosen and moved:
            state.params.add_(total, alpha=1.0 / (self._num_used if by_samples else len(chosen)))
        elif chosen:
            state.optimizer.step(total, state.samples_clock, 1.0 / (num_samples if by_samples else len(chosen)))
        write_clock(state.samples_clock, tail[:2])
        return tail[2:]


def _vector(done: Accumulated) -> Tensor:
    return done.grad_sum if done.displacement is None else done.displacement


def _without(done: Accumulated) -> Accumulated:
    """The same round, with nothing of it in an update."""
    return done._replace(num_samples=0, num_chunks=0, loss_sum=0.0, staleness=())
