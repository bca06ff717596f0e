"""AL-DSGD: adjacent leader decentralized SGD (He, Wang, Choromanska 2024, arXiv 2405.11389), over the schedules of D-PSGD and of MATCHA.

After the local step, among itself and its neighbours of the round, a peer i leans on two leaders: b, of the least training loss, and h, of
the greatest degree.

    x_i   = x_i(k) - lr * g_i(k)                                          at every peer, then sent with its loss and degree
    y     = (1 - c1 - c2) sum_j W_ij x_j + c1 x_b + c2 x_h                 c1 = 0.3, c2 = 0.1
    x_i(k+1) = y - p1 (y - x_b) - p2 (y - x_h)                            p1 = p2 = 0.2

Graphs alternate: round k uses copy k mod 3 of the graph, with its places dealt anew to the peers (the first as it is), so that nobody
stays at the rim and a peer hears of more others at the same degree. Links to the neighbours in all copies are open.

The loss is smoothed, l <- 0.9 l + 0.1 (mean loss of the round's samples): that of one batch is noise, and the leader would be who drew
the easy one. Among equals a peer follows itself, then the lowest id: on a regular graph h is i. A peer that has finished nothing yet has
infinite loss.

x_i(k+1) is a convex combination of what was sent (if no W_ij is negative), but not with doubly stochastic weights: the mean of all models
is not kept (`keeps_mean`), it moves towards the leaders'. On data that differ between peers the least loss may be that of the easiest data.

The step comes first, so the exchange can't hide behind the computation. On the wire: [x_i | loss | degree], d + 2 float32, to each
neighbour and round. Memory beside D-PSGD's: that vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Final

from torch import Tensor

from peer.gossip.algorithm import Algorithm, PeerState, ScheduleOptions, Score, Update, is_finite, mix_, zeros
from peer.gossip.delivery import Delivery, mixing_weights
from peer.gossip.effects import Accumulate, Accumulated, Exchange, Inbox
from peer.gossip.gossip_round import local_step
from topology import AlternatingSchedule, FixedSchedule, MatchaSchedule, RoundPlan, Schedule, Topology, stable_seed

C1: Final = 0.3
C2: Final = 0.1
P1 = P2 = 0.2
SMOOTHING: Final = 0.9
NUM_GRAPHS: Final = 3


class ALDSGD(Algorithm):
    name: ClassVar[str] = "al-dsgd"
    delivery: ClassVar[Delivery] = Delivery.EDGE_ATOMIC
    sends_after_close: ClassVar[bool] = True
    keeps_mean: ClassVar[bool] = False
    takes_mixing: ClassVar[bool] = True
    why_not_others: ClassVar[str] = "nobody has shown that leaders seen through rounding lead anywhere"
    why_not_varying: ClassVar[str] = "it alternates between copies of one graph"
    why_no_random_graphs: ClassVar[str] = "it alternates between copies of one graph"

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self._payload = zeros(state.params.numel() + 2)
        self._sent, self._header = self._payload[:-2], self._payload[-2:]
        self.loss = math.inf

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        return AlternatingSchedule(tuple(FixedSchedule(graph, options.mixing) for graph in copies(options)))

    def round(self, plan: RoundPlan) -> Score:
        done = yield Accumulate()
        assert isinstance(done, Accumulated)
        local_step(self, done)
        self._smooth(done)
        if not plan.neighbors:
            return Update(done)

        self._sent.copy_(self.state.params)
        self._header[0], self._header[1] = self.loss, len(plan.neighbors)
        sends = dict.fromkeys(plan.neighbors, self._payload)
        inbox = yield Exchange(0, sends, dict.fromkeys(plan.neighbors, self._payload.numel()), atomic=True)
        assert isinstance(inbox, Inbox)
        heard = self._heard(inbox)
        lost = {**inbox.lost, **dict.fromkeys(inbox.vectors.keys() - heard.keys(), "corrupt")}
        weights = self.weights(plan, heard)
        vectors = {j: vector[:-2] for j, vector in heard.items()}
        distance = mix_(self.state.params, weights.pop(plan.peer), weights, vectors)
        return Update(done, lost, len(heard), distance)

    def weights(self, plan: RoundPlan, heard: Mapping[int, Tensor]) -> dict[int, float]:
        """a_j with x_i(k+1) = sum_j a_j x_j, over i and those heard of. heard[j]: [x_j | loss | degree]."""
        i = plan.peer
        self_weight, weights = mixing_weights(plan, heard)
        told = {j: (float(vector[-2]), float(vector[-1])) for j, vector in {**heard, i: self._payload}.items()}
        best = min(told, key=lambda j: (told[j][0], j != i, j))
        hub = min(told, key=lambda j: (-told[j][1], j != i, j))
        rest = 1.0 - P1 - P2
        made = {j: rest * (1.0 - C1 - C2) * w for j, w in {**weights, i: self_weight}.items()}
        made[best] += rest * C1 + P1
        made[hub] += rest * C2 + P2
        return made

    def _smooth(self, done: Accumulated) -> None:
        if done.num_samples:
            mean = done.loss_sum / done.num_samples
            self.loss = mean if math.isinf(self.loss) else SMOOTHING * self.loss + (1.0 - SMOOTHING) * mean

    def _heard(self, inbox: Inbox) -> dict[int, Tensor]:
        """Payloads that make sense, in the order of ids. Both ends look at the same two, so both decide alike."""
        mine = self._is_sound(self._payload)
        return {j: inbox.vectors[j] for j in sorted(inbox.vectors) if mine and self._is_sound(inbox.vectors[j])}

    def _is_sound(self, payload: Tensor) -> bool:
        loss, degree = payload[-2:].tolist()
        return loss > -math.inf and 1 <= degree < self.state.num_peers and is_finite(payload[:-2])


class ALMatcha(ALDSGD):
    """The same over MATCHA's random matchings, of the budget. The degree is that of the round: the matchings a peer is active in."""

    name: ClassVar[str] = "al-matcha"
    takes_mixing: ClassVar[bool] = False
    takes_budget: ClassVar[bool] = True

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        return AlternatingSchedule(
            tuple(MatchaSchedule(graph, options.budget, options.seed) for graph in copies(options))
        )


def copies(options: ScheduleOptions) -> list[Topology]:
    """The graph, and the same with its places dealt anew."""
    graph = options.topology
    return [graph, *(graph.relabelled(stable_seed(options.seed, "al-dsgd", copy)) for copy in range(1, NUM_GRAPHS))]
