"""QG-DSGDm: decentralized SGD with quasi-global momentum (Lin, Karimireddy, Stich, Jaggi 2021, arXiv 2102.04761, algorithm 1).

With g_i(k) the gradient at x_i(k), eta the learning rate, beta = mu = 0.9 and m_i(-1) = 0:

    x_i(k+1/2) = x_i(k) - eta (beta m_i(k-1) + g_i(k))
    x_i(k+1)   = sum_j W_ij x_j(k+1/2)
    m_i(k)     = mu m_i(k-1) + (1 - mu) (x_i(k) - x_i(k+1)) / eta

The momentum is not of the peer's own gradients, which on heterogeneous data pull the models apart round after round, but of how far its
model really went, with the neighbours' steps in it: an estimate of the global direction that costs no byte. The step comes first and is
then mixed, so the exchange can't hide behind the computation. A peer that finished nothing makes no step; mixing moves its model, and so
its momentum.

Momentum is of parameters; float buffers are mixed and change as in D-PSGD. On the wire: one vector [d] to each neighbour and round.
Memory beside D-PSGD's: m_i [p].
"""

from __future__ import annotations

from typing import ClassVar

from peer.gossip.algorithm import PeerState, ScheduleOptions, Score, Update, scaled, zeros
from peer.gossip.delivery import Delivery
from peer.gossip.effects import Accumulate, Accumulated
from peer.gossip.gossip_round import mix_with_neighbors
from peer.gossip.mixing import GossipAlgorithm
from topology import RoundPlan, Schedule

BETA = MU = 0.9


class QGDSGDm(GossipAlgorithm):
    name: ClassVar[str] = "qg-dsgdm"
    delivery: ClassVar[Delivery] = Delivery.EDGE_ATOMIC
    sends_after_close: ClassVar[bool] = True
    wire_dtypes: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16")
    why_not_others: ClassVar[str] = (
        "its momentum takes every change of the model for progress, so also the catching up of replicas"
    )
    takes_varying: ClassVar[bool] = True
    takes_mixing: ClassVar[bool] = True
    why_no_local_steps: ClassVar[str] = "its momentum is part of every step, and is only known where models are mixed"
    why_plain_sgd: ClassVar[str] = "quasi-global momentum is the optimizer"

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self.momentum = zeros(state.num_parameters)

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        return options.over_its_edges()

    def round(self, plan: RoundPlan) -> Score:
        done = yield Accumulate()
        assert isinstance(done, Accumulated)
        state, momentum = self.state, self.momentum
        params = state.params[: momentum.numel()]
        state.samples_clock += done.num_samples * state.num_peers
        eta = state.optimizer.learning_rate(state.samples_clock)
        went = (1 - MU) / eta if eta > 0 else 0.0  # a schedule may begin or end at 0: no direction to learn then

        direction = scaled(done.grad_sum, self.contribution_scale(done))
        if done.num_samples:
            direction[: momentum.numel()].add_(momentum, alpha=BETA)
        momentum.mul_(MU).add_(params, alpha=went)  # the rest of the difference below, so that x_i(k) needs no copy
        if done.num_samples:
            state.optimizer.step(direction, state.samples_clock)
        mixed = yield from mix_with_neighbors(self, plan)
        momentum.add_(params, alpha=-went)
        return Update(done, mixed.lost, mixed.num_received, mixed.distance)
