"""The round that D-PSGD and MATCHA share, the other order of its two halves, and both halves for those who put something between them.
D-PSGD and MATCHA differ in who talks to whom with what weight, which the plan says.

x_i(k+1) = W_ii x_i(k) + sum_j W_ij x_j(k) - lr * g_i(k), g_i the gradient at x_i(k), before mixing (Lian et al. 2017, arXiv
1705.09056, algorithm 1). The exchange of x_i(k) needs nothing of this round's computation, so it hides behind it. With local steps the
last term is the trainer's displacement y - x_i(k), of steps that began at x_i(k) as well. How x_i travels and mixes when it is not
float32 on the wire is in mixing.py.
"""

from __future__ import annotations

from collections.abc import Generator

from peer.gossip.algorithm import Algorithm, Score, Update
from peer.gossip.effects import Accumulate, Accumulated, Answer, Both, Effect, Exchange, Inbox, Meanwhile
from peer.gossip.mixing import GossipAlgorithm, Mixed
from topology import RoundPlan


def gossip_round(algorithm: GossipAlgorithm, plan: RoundPlan) -> Score:
    """One round over the edges of the plan; without any it is a local step and nothing is sent."""
    exchange = algorithm.mixing.exchange(plan) if plan.neighbors else None
    done, inbox = yield from accumulate_beside(exchange)
    mixed = algorithm.mixing.mix_(plan, inbox)
    local_step(algorithm, done)
    return Update(done, mixed.lost, mixed.num_received, mixed.distance)


def accumulate_beside(exchange: Exchange | None) -> Generator[Effect, Answer, tuple[Accumulated, Inbox]]:
    """Compute while the exchange, if there is one, is under way."""
    if exchange is None:
        local = yield Accumulate()
        assert isinstance(local, Accumulated)
        return local, Inbox({})
    answer = yield Both(Accumulate(), exchange)
    assert not isinstance(answer, Accumulated | Inbox | Meanwhile)
    return answer


def adapt_then_combine(algorithm: GossipAlgorithm, plan: RoundPlan) -> Score:
    """The other order: x_i(k+1) = sum_j W_ij (x_j(k) - lr * g_j(k)). What is sent is the result of this round's computation, so the
    exchange begins when the round is closed."""
    done = yield Accumulate()
    assert isinstance(done, Accumulated)
    local_step(algorithm, done)
    mixed = yield from mix_with_neighbors(algorithm, plan)
    return Update(done, mixed.lost, mixed.num_received, mixed.distance)


def local_step(algorithm: Algorithm, done: Accumulated) -> None:
    """x_i <- x_i - lr * g_i, or + the trainer's displacement; nothing if nothing was finished. Counts the samples."""
    state = algorithm.state
    state.samples_clock += done.num_samples * state.num_peers
    if done.displacement is not None:
        state.params.add_(done.displacement)
    elif done.num_samples:
        state.optimizer.step(done.grad_sum, state.samples_clock, algorithm.contribution_scale(done))


def mix_with_neighbors(algorithm: GossipAlgorithm, plan: RoundPlan) -> Generator[Effect, Answer, Mixed]:
    """Exchange x_i as it is now, and x_i <- sum_j W_ij x_j. Without an edge nothing is sent."""
    inbox = Inbox({})
    if plan.neighbors:
        answer = yield algorithm.mixing.exchange(plan)
        assert isinstance(answer, Inbox)
        inbox = answer
    return algorithm.mixing.mix_(plan, inbox)
