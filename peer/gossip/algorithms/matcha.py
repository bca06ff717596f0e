"""MATCHA: matching decomposition sampling (Wang, Sahu, Yang, Joshi, Kar 2019, arXiv 1905.09435).

The base graph is cut into matchings; in round k matching j talks with probability p_j, drawn from a seed that all peers share:
x_i(k+1) = (1 - alpha d_i(k)) x_i(k) + alpha sum_{j active} x_j(k) - lr * g_i(k). The plan holds these weights already. A peer
without an active edge takes a local step and sends nothing.
"""

from __future__ import annotations

from typing import ClassVar

from peer.gossip.algorithm import Algorithm, ScheduleOptions, Score, Update, mix_, scaled
from peer.gossip.delivery import Delivery, mixing_weights
from peer.gossip.effects import Accumulate, Accumulated, Both, Exchange, Inbox
from topology import MatchaSchedule, RoundPlan, Schedule


class Matcha(Algorithm):
    name: ClassVar[str] = "matcha"
    delivery: ClassVar[Delivery] = Delivery.EDGE_ATOMIC
    sends_after_close: ClassVar[bool] = False

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        return MatchaSchedule(options.topology, options.budget, options.seed)

    def round(self, plan: RoundPlan) -> Score:
        state, x = self.state, self.state.params
        if plan.neighbors:
            sends = dict.fromkeys(plan.neighbors, x)
            expects = dict.fromkeys(plan.neighbors, x.numel())
            answer = yield Both(Accumulate(), Exchange(phase=0, send=sends, receive=expects, atomic=True))
            assert isinstance(answer, tuple)
            done, inbox = answer
        else:
            local = yield Accumulate()
            assert isinstance(local, Accumulated)
            done, inbox = local, Inbox({})

        self_weight, weights = mixing_weights(plan, inbox.vectors)
        distance = mix_(x, self_weight, weights, inbox.vectors)
        state.samples_clock += done.num_samples * state.num_peers
        if done.num_samples:
            gradient = scaled(done.grad_sum, self.contribution_scale(done))
            state.optimizer.step(gradient, state.samples_clock)
        return Update(done, inbox.lost, len(inbox.vectors), distance)
