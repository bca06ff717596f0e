"""MATCHA: matching decomposition sampling (Wang, Sahu, Yang, Joshi, Kar 2019, arXiv 1905.09435).

The base graph is cut into matchings; in round k matching j talks with probability p_j, drawn from a seed that all peers share:
x_i(k+1) = (1 - alpha d_i(k)) x_i(k) + alpha sum_{j active} x_j(k) - lr * g_i(k). The plan holds these weights already. A peer
without an active edge takes a local step and sends nothing.
"""

from __future__ import annotations

from typing import ClassVar

from peer.gossip.algorithm import ScheduleOptions, Score
from peer.gossip.delivery import Delivery
from peer.gossip.gossip_round import gossip_round
from peer.gossip.mixing import GossipAlgorithm
from topology import MatchaSchedule, RoundPlan, Schedule


class Matcha(GossipAlgorithm):
    name: ClassVar[str] = "matcha"
    delivery: ClassVar[Delivery] = Delivery.EDGE_ATOMIC
    sends_after_close: ClassVar[bool] = False
    takes_budget: ClassVar[bool] = True
    why_no_random_graphs: ClassVar[str] = "its matchings and probabilities are solved for one graph"
    why_not_varying: ClassVar[str] = "it decides on its own which edges of one graph talk in a round"

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        return MatchaSchedule(options.topology, options.budget, options.seed)

    def round(self, plan: RoundPlan) -> Score:
        return gossip_round(self, plan)
