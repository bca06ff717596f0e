"""Gradient tracking: DIGing (Nedic, Olshevsky, Shi 2017, arXiv 1607.03218); with stochastic gradients GNSD (Lu, Zhang, Sun, Hong 2019).

Beside its model each peer has a tracker y_i, an estimate of the mean gradient of all peers. With g_i(k) the gradient at x_i(k), eta the
learning rate, y_i(-1) = g_i(-1) = 0:

    y_i(k)   = sum_j W_ij y_j(k-1) + g_i(k) - g_i(k-1)
    x_i(k+1) = sum_j W_ij x_j(k) - eta y_i(k)

As W is doubly stochastic, sum_i y_i(k) = sum_i g_i(k): the conservation law. Where models agree and every y_i is 0 so is the mean gradient,
so with a constant eta the peers go to the optimum of the mean objective however different theirs are, while D-PSGD stops at a distance of
order eta. Both vectors of a round are known at its opening, so the exchange hides behind the computation. A peer that finished nothing
leaves its last gradient in the sum.

What breaks the law stays for ever. So x_j and y_j are one payload, and an edge counts on both ends or on none (`edge_atomic`). For what
that can't promise (a peer that dies, an edge that one end alone believes in, peer/transport/exchange.py) each end keeps what ever came over
the edge, z_ij = sum over rounds of W_ij (y_j - y_i) = -z_ji, so that y_i = g_i + sum_j z_ij, and how often it counted, which travels
along. Where the ends have counted differently, and after PATIENCE losses in a row, z_ij is taken out of y_i and begins anew: the law holds
again, among those who are left.

Trackers are of parameters; float buffers are mixed and change as in D-PSGD. On the wire: [x_i | y_i | counts], d + p + n float32, to each
neighbour and round. Memory beside D-PSGD's: that vector, g_i [p], z_ij [p] for each edge, and inboxes twice as long. d: parameters and
buffers, p: parameters, n: peers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from torch import Tensor

from peer.gossip.algorithm import (
    Algorithm,
    PeerState,
    ScheduleOptions,
    Score,
    Update,
    is_finite,
    mix_,
    scaled,
    zeros,
)
from peer.gossip.delivery import Delivery, mixing_weights
from peer.gossip.effects import Accumulated, Exchange, Inbox
from peer.gossip.gossip_round import accumulate_beside
from topology import RoundPlan, Schedule

PATIENCE: Final = 3  # rounds in a row that an edge may be lost before the other end counts as gone
COUNTS: Final = 1 << 24  # a float32 counts exactly up to here, and begins anew


@dataclass(slots=True)
class _Flow:
    """What came over an edge: z_ij [p]. count: how often. missed: rounds in a row that it was lost."""

    z: Tensor
    count: int = 0
    missed: int = 0


class GradientTracking(Algorithm):
    name: ClassVar[str] = "gradient-tracking"
    delivery: ClassVar[Delivery] = Delivery.EDGE_ATOMIC
    sends_after_close: ClassVar[bool] = False
    vectors_in_payload: ClassVar[int] = 2
    why_not_others: ClassVar[str] = (
        "rounding puts a floor under the error, and to have none is what it sends two vectors for"
    )
    takes_varying: ClassVar[bool] = True
    takes_mixing: ClassVar[bool] = True
    why_no_random_graphs: ClassVar[str] = "it keeps a vector for each edge, and edges would come without end"
    why_no_local_steps: ClassVar[str] = "what it tracks is the gradient at the models that were mixed"
    why_plain_sgd: ClassVar[str] = (
        "it steps along the tracked gradient, which momentum or scaling would turn into another"
    )

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        d, p = state.params.numel(), state.num_parameters
        self._payload = zeros(d + p + state.num_peers)
        self._x = self._payload[:d]  # as it was at the opening
        self.tracker = self._payload[d : d + p]
        self._counts = self._payload[d + p :]
        self.gradient = zeros(p)
        self._flows: dict[int, _Flow] = {}

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        return options.over_its_edges()

    def round(self, plan: RoundPlan) -> Score:
        done, inbox = yield from accumulate_beside(self._exchange(plan))
        heard, lost = self._heard(inbox)
        self._flow(plan, heard, lost)
        self_weight, weights = mixing_weights(plan, heard)
        d = self._x.numel()
        distance = mix_(self.state.params, self_weight, weights, {j: vector[:d] for j, vector in heard.items()})
        self._track(done)
        return Update(done, lost, len(heard), distance)

    def _exchange(self, plan: RoundPlan) -> Exchange | None:
        if not plan.neighbors:
            return None
        self._x.copy_(self.state.params)
        for j in plan.neighbors:
            if j not in self._flows:
                self._flows[j] = _Flow(zeros(self.tracker.numel()))
            self._counts[j] = self._flows[j].count
        sends = dict.fromkeys(plan.neighbors, self._payload)
        return Exchange(0, sends, dict.fromkeys(plan.neighbors, self._payload.numel()), atomic=True)

    def _heard(self, inbox: Inbox) -> tuple[dict[int, Tensor], dict[int, str]]:
        """(vectors that count, in the order of ids; edges that do not, and why). Both ends have the same two payloads."""
        heard, lost = {}, dict(inbox.lost)
        mine_is_sound = is_finite(self._payload)
        at = self._x.numel() + self.tracker.numel() + self.state.peer
        for j in sorted(inbox.vectors):
            if not mine_is_sound or not is_finite(inbox.vectors[j]):
                lost[j] = "corrupt"
            elif inbox.vectors[j][at] != self._counts[j]:
                lost[j] = "restarted"
            else:
                heard[j] = inbox.vectors[j]
        return heard, lost

    def _flow(self, plan: RoundPlan, heard: Mapping[int, Tensor], lost: Mapping[int, str]) -> None:
        """y_i <- sum_j W_ij y_j over the edges that count, each by its z_ij."""
        d, p, y = self._x.numel(), self.tracker.numel(), self.tracker
        weights = dict(zip(plan.neighbors, plan.weights, strict=True))
        for j, vector in heard.items():
            flow = self._flows[j]
            flow.count, flow.missed = (flow.count + 1) % COUNTS, 0
            flow.z.add_(vector[d : d + p], alpha=weights[j]).sub_(y, alpha=weights[j])
        mix_(y, 1.0 - sum(weights[j] for j in heard), weights, {j: vector[d : d + p] for j, vector in heard.items()})
        for j, why in lost.items():
            flow = self._flows[j]
            flow.missed += 1
            if why == "restarted" or flow.missed == PATIENCE:
                y.sub_(flow.z)
                flow.z.zero_()
                flow.count = 0

    def _track(self, done: Accumulated) -> None:
        """y_i += g_i(k) - g_i(k-1), and a step along it."""
        state, tracker = self.state, self.tracker
        state.samples_clock += done.num_samples * state.num_peers
        direction = scaled(done.grad_sum, self.contribution_scale(done))
        g = direction[: tracker.numel()]
        if done.num_samples:
            tracker.add_(g).sub_(self.gradient)
            self.gradient.copy_(g)
        g.copy_(tracker)
        if done.num_samples or tracker.any():
            state.optimizer.step(direction, state.samples_clock)
