"""The round that D-PSGD and MATCHA share; they differ in who talks to whom with what weight, which the plan says.

x_i(k+1) = W_ii x_i(k) + sum_j W_ij x_j(k) - lr * g_i(k), g_i the gradient at x_i(k), before mixing (Lian et al. 2017, arXiv
1705.09056, algorithm 1). The exchange of x_i(k) needs nothing of this round's computation, so it hides behind it. With local steps the
last term is the trainer's displacement y - x_i(k), of steps that began at x_i(k) as well.
"""

from __future__ import annotations

from peer.gossip.algorithm import Algorithm, Score, Update, mix_, scaled
from peer.gossip.delivery import mixing_weights
from peer.gossip.effects import Accumulate, Accumulated, Both, Exchange, Inbox
from topology import RoundPlan


def gossip_round(algorithm: Algorithm, plan: RoundPlan) -> Score:
    """One round over the edges of the plan; without any it is a local step and nothing is sent."""
    state, x = algorithm.state, algorithm.state.params
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
    if done.displacement is not None:
        state.params.add_(done.displacement)
    elif done.num_samples:
        gradient = scaled(done.grad_sum, algorithm.contribution_scale(done))
        state.optimizer.step(gradient, state.samples_clock)
    return Update(done, inbox.lost, len(inbox.vectors), distance)
