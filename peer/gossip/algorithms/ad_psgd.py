"""AD-PSGD: asynchronous decentralized parallel SGD (Lian, Zhang, Zhang, Liu 2018, arXiv 1710.06952).

There are no rounds that peers share. A round of peer i is one gradient:

    g at a copy of x_i, of one batch; meanwhile others may average with x_i
    x_i, x_j <- (x_i + x_j) / 2, atomically, with a random neighbour j
    x_i <- x_i - lr g

Averaging is one atomic exchange: it counts on both ends or on none, and both then compute the same bits, so the mean of all peers is kept
up to float32 rounding and W is doubly stochastic. Between sending x_i and that decision neither end does anything else.

No deadlock, on any connected graph: peer i asks neighbours of higher id only and answers those of lower id, at any time but while it waits
for an answer itself. Whoever waits, waits for a higher id; the highest of those that wait waits for one that does not, and is answered.
(The paper's rule, active and passive peers of a bipartite graph, is the special case where the passive ones have the higher ids.) The
price is that peers without a neighbour of higher id never ask and those without one of lower id are never asked.

Staleness: averagings of x_i between the copy that a gradient is of and its own step.

An edge that is lost costs its averaging; who waits in vain gives up at a deadline, and asks others for a while. A neighbour that is known
to be away is not asked, but another. Messages: [d] float32 both ways, 8 d bytes a round.
Vectors of d floats beside those that every peer has: an inbox for each neighbour of lower id, and one for the answer.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from peer.gossip.algorithm import Algorithm, PeerState, ScheduleOptions, Score, Update, is_finite
from peer.gossip.delivery import Delivery
from peer.gossip.effects import Accumulated, Either, Exchange, Gather, Inbox, Meanwhile, Reply
from topology import PairSchedule, RoundPlan, Schedule

#: Who is away: another neighbour is asked.
AWAY = ("suspect", "left", "link_down")


class ADPSGD(Algorithm):
    name: ClassVar[str] = "ad-psgd"
    delivery: ClassVar[Delivery] = Delivery.EDGE_ATOMIC
    sends_after_close: ClassVar[bool] = False
    has_rounds: ClassVar[bool] = False
    moves_while_computing: ClassVar[bool] = True
    why_not_varying: ClassVar[str] = "it averages along one graph, in rounds that peers do not share"
    why_no_random_graphs: ClassVar[str] = "it averages along one graph, in rounds that peers do not share"
    why_no_local_steps: ClassVar[str] = "a peer takes each gradient as it comes"

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self._averagings = 0

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        return PairSchedule(options.topology, options.seed)

    def answers_to(self, peer: int) -> bool:
        return peer < self.state.peer

    def round(self, plan: RoundPlan) -> Score:
        state, d = self.state, self.state.params.numel()
        lost: dict[int, str] = {}
        done: Accumulated | None = None
        received, read = 0, self._averagings
        asks = Gather(dict.fromkeys(plan.asked_by, d), enough=1, any_round=True, atomic=True)
        while done is None:
            answer = yield Either(asks)
            assert isinstance(answer, Meanwhile)
            done, inbox = answer
            lost.update(inbox.lost)
            for j, x_j in list(inbox.vectors.items())[:1]:  # the others stay for the next answer
                replied = yield Reply({j: state.params})
                assert isinstance(replied, Inbox)
                lost.update(replied.lost)
                if j not in replied.lost:
                    received += self._average(j, x_j, lost)
        for j in (*plan.neighbors, *plan.instead):
            came = yield Exchange(0, {j: state.params}, {j: d}, atomic=True)
            assert isinstance(came, Inbox)
            lost.update(came.lost)
            for x_j in came.vectors.values():
                received += self._average(j, x_j, lost)
            if came.lost.get(j) not in AWAY:
                break

        state.samples_clock += done.num_samples * state.num_peers
        if done.num_samples:
            state.optimizer.step(done.grad_sum, state.samples_clock, self.contribution_scale(done))
        done = done._replace(staleness=(self._averagings - read,) * done.num_chunks)
        return Update(done, lost, received)

    def _average(self, peer: int, theirs: Tensor, lost: dict[int, str]) -> bool:
        """x <- (x + theirs) / 2, unless one of the two makes no sense, which adds to `lost`: both ends have both and decide alike."""
        x = self.state.params
        if not (is_finite(x) and is_finite(theirs)):
            lost[peer] = "corrupt"
            return False
        torch.add(x, theirs, out=x).mul_(0.5)
        self._averagings += 1
        return True
