"""CHOCO-SGD: gossip of compressed differences with error feedback (Koloskova, Stich, Jaggi 2019, arXiv 1902.00340, algorithm 2; with deep
models Koloskova, Lin, Stich, Jaggi 2019, arXiv 1907.09356).

With g_i the gradient at x_i(k), C the compression (--wire-dtype int8 or top-k:R), gamma the consensus step and a replica x^_i of each model
that its neighbours hold as well:

    x_i(k+1/2) = x_i(k) - lr * g_i(k)
    q_i        = C(x_i(k+1/2) - x^_i)          sent
    x^_j      += q_j                           at every peer that holds it
    x_i(k+1)   = x_i(k+1/2) + gamma sum_j W_ij (x^_j - x^_i)

What C left out is in the next difference: the error feedback, with which the order of the rate is that of uncompressed SGD (theorem 4).
The step comes first, so that this round's is in what is sent; the exchange can't hide behind the computation. D-PSGD and MATCHA with the
same formats take the step beside the exchange.

The paper needs every message, or replicas differ for ever. Here they are kept for each edge, change only where the edge counts on both
ends, and are stamped (replicas.py): what was lost is in the next difference, and an edge whose ends disagree starts anew. Without losses
all replicas of a peer are equal, and this is the paper's algorithm.

On the wire: one payload of the format and 8 bytes to each neighbour and round. Memory beside D-PSGD's: two vectors [d] and two payloads
for each edge instead of an inbox, and one vector from which replicas start.
"""

from __future__ import annotations

from typing import ClassVar

from peer.gossip.algorithm import ScheduleOptions, Score
from peer.gossip.delivery import Delivery
from peer.gossip.gossip_round import adapt_then_combine
from peer.gossip.mixing import GossipAlgorithm
from topology import RoundPlan, Schedule


class ChocoSGD(GossipAlgorithm):
    name: ClassVar[str] = "choco-sgd"
    delivery: ClassVar[Delivery] = Delivery.EDGE_ATOMIC
    sends_after_close: ClassVar[bool] = True
    wire_dtypes: ClassVar[tuple[str, ...]] = ("int8", "top-k")
    why_not_others: ClassVar[str] = (
        "it is gossip of compressed differences, and these leave nothing out worth keeping for later"
    )
    takes_varying: ClassVar[bool] = True
    takes_mixing: ClassVar[bool] = True
    why_no_random_graphs: ClassVar[str] = "it keeps two vectors for each edge, and edges would come without end"

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        return options.over_its_edges()

    def round(self, plan: RoundPlan) -> Score:
        return adapt_then_combine(self, plan)
