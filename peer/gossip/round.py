"""The score: one round, top to bottom, and what is reported of it.

A host plays a round like this, in its own kind of time:

    score = algorithm.round(schedule.plan(k, peer))     # the paper's listing, as a generator
    step = advance(score, None)                         # runs until the first effect
    while not isinstance(step, Update):
        answer = ...                                    # open, accumulate, close; exchange: threads and gRPC, or virtual time
        step = advance(score, answer)                   # the mathematics between two effects; off the event loop if it is big
    report = RoundReport.of(plan, step, timing)         # metrics, log, live view and summary are folds over reports

Only `advance` changes a peer's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from peer.gossip.algorithm import Score, Update
from peer.gossip.effects import Answer, Effect
from peer.gossip.talk import Talk
from topology import RoundPlan


class Timing(NamedTuple):
    """Seconds of one round in the host's time. began: since the start of training. total: from there to the end. computing: from the
    opening until the own quota was done, or the close. accumulating: until the close. exchanging: from the close until the exchange
    was over, with what is encoded and looked at beside it. mixing: in the algorithm's own mathematics. No two of computing, waiting
    (accumulating - computing), exchanging and mixing are at the same time; what they leave of total is the host's."""

    began: float
    total: float
    computing: float
    accumulating: float
    exchanging: float
    mixing: float


class RoundReport(NamedTuple):
    """One finished round of one peer. closed_by: the first peer known here to have closed it. waited_for: whose words ended a wait
    after the own quota, nobody's if there was none. loss_sum over num_samples; staleness in updates, one entry a chunk; lost: neighbour
    -> why; neighbor_distance: sqrt(mean ||x_j - x_i||^2) over neighbours heard, None if none was. dropped: samples that were computed
    for the round and are in no update."""

    peer: int
    round: int
    close_reason: str
    closed_by: int
    waited_for: tuple[int, ...]
    num_chunks: int
    num_samples: int
    loss_sum: float
    staleness: tuple[int, ...]
    num_neighbors: int
    num_received: int
    lost: Mapping[int, str]
    neighbor_distance: float | None
    active_matchings: tuple[int, ...]
    timing: Timing
    dropped: int = 0

    @classmethod
    def of(cls, plan: RoundPlan, update: Update, talk: Talk, timing: Timing) -> RoundReport:
        done = update.accumulated
        return cls(
            plan.peer,
            plan.round,
            done.close_reason,
            talk.closed_by,
            talk.waited_for,
            done.num_chunks,
            done.num_samples,
            done.loss_sum,
            done.staleness,
            len(plan.neighbors),
            update.num_received,
            update.lost,
            update.neighbor_distance,
            plan.active_matchings,
            timing,
            update.dropped,
        )


def advance(score: Score, answer: Answer | None) -> Effect | Update:
    """Run a score to its next effect, or to its end. Raises RoundBroken if the round can't be completed."""
    try:
        return next(score) if answer is None else score.send(answer)
    except StopIteration as end:
        update: Update = end.value
        return update
