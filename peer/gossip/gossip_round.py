"""The round that D-PSGD and MATCHA share; they differ in who talks to whom with what weight, which the plan says.

x_i(k+1) = W_ii x_i(k) + sum_j W_ij x_j(k) - lr * g_i(k), g_i the gradient at x_i(k), before mixing (Lian et al. 2017, arXiv
1705.09056, algorithm 1). The exchange of x_i(k) needs nothing of this round's computation, so it hides behind it. With local steps the
last term is the trainer's displacement y - x_i(k), of steps that began at x_i(k) as well. How x_i travels and mixes when it is not
float32 on the wire is in mixing.py.
"""

from __future__ import annotations

from peer.gossip.algorithm import Score, Update, scaled
from peer.gossip.effects import Accumulate, Accumulated, Both, Inbox, Meanwhile
from peer.gossip.mixing import GossipAlgorithm
from topology import RoundPlan


def gossip_round(algorithm: GossipAlgorithm, plan: RoundPlan) -> Score:
    """One round over the edges of the plan; without any it is a local step and nothing is sent."""
    state = algorithm.state
    if plan.neighbors:
        answer = yield Both(Accumulate(), algorithm.mixing.exchange(plan))
        assert not isinstance(answer, Accumulated | Inbox | Meanwhile)
        done, inbox = answer
    else:
        local = yield Accumulate()
        assert isinstance(local, Accumulated)
        done, inbox = local, Inbox({})

    mixed = algorithm.mixing.mix_(plan, inbox)
    state.samples_clock += done.num_samples * state.num_peers
    if done.displacement is not None:
        state.params.add_(done.displacement)
    elif done.num_samples:
        gradient = scaled(done.grad_sum, algorithm.contribution_scale(done))
        state.optimizer.step(gradient, state.samples_clock)
    return Update(done, mixed.lost, mixed.num_received, mixed.distance)
