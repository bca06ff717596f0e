"""D-PSGD: decentralized parallel SGD (Lian et al. 2017, arXiv 1705.09056, algorithm 1).

x_i(k+1) = sum_j W_ij x_j(k) - lr * g_i(k), g_i the gradient at x_i(k), before mixing. So the exchange of x_i(k) needs nothing
of this round's computation and hides behind it. Fixed graphs, a new random one every R rounds, or topologies that vary.
"""

from __future__ import annotations

from typing import ClassVar

from peer.gossip.algorithm import ScheduleOptions, Score
from peer.gossip.delivery import Delivery
from peer.gossip.gossip_round import gossip_round
from peer.gossip.mixing import GossipAlgorithm
from topology import RoundPlan, Schedule


class DPSGD(GossipAlgorithm):
    name: ClassVar[str] = "dpsgd"
    delivery: ClassVar[Delivery] = Delivery.EDGE_ATOMIC
    sends_after_close: ClassVar[bool] = False
    takes_varying: ClassVar[bool] = True
    takes_mixing: ClassVar[bool] = True

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        return options.over_its_edges()

    def round(self, plan: RoundPlan) -> Score:
        return gossip_round(self, plan)
