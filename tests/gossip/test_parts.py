"""Delivery, membership and flooding: the small pure parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.gossip.delivery import DeadlineBounds, NeighborDeadlines, mixing_weights
from peer.gossip.flooding import Flood
from peer.gossip.membership import PeerDirectory, PeerStatus
from topology import FixedSchedule, RoundPlan, build


def test_a_neighbor_is_waited_for_by_median_and_mad_within_bounds() -> None:
    deadlines = NeighborDeadlines(DeadlineBounds(least=0.5, most=10.0, mads=4.0, warm_up=3))
    assert deadlines.seconds(1, 0.0) == 10.0
    for seconds in (1.0, 1.2, 0.8):
        deadlines.observe(1, seconds)
    assert deadlines.seconds(1, 0.0) == pytest.approx(1.0 + 4 * 0.2)
    assert deadlines.seconds(1, 3.0) == 6.0, "a healthy neighbour may be a round behind"
    assert deadlines.seconds(1, 30.0) == 10.0
    for _ in range(40):
        deadlines.observe(2, 0.001)
    assert deadlines.seconds(2, 0.01) == 0.5


@given(st.sets(st.integers(0, 7)), st.sampled_from(["ring", "complete", "star", "exponential"]))
def test_a_lost_edge_gives_its_weight_back_to_self_on_both_ends(lost: set[int], name: str) -> None:
    schedule = FixedSchedule(build(name, 8), "metropolis")
    total_by_column = [0.0] * 8
    for i in range(8):
        plan: RoundPlan = schedule.plan(0, i)
        received = {j: None for j in plan.neighbors if not {i, j} & lost}
        self_weight, weights = mixing_weights(plan, received)
        assert self_weight + sum(weights.values()) == pytest.approx(1.0)
        total_by_column[i] += self_weight
        for j, w in weights.items():
            total_by_column[j] += w
    assert total_by_column == pytest.approx([1.0] * 8)


def test_a_silent_peer_is_suspected_until_heard_and_a_goodbye_is_for_good() -> None:
    directory = PeerDirectory(0, 3)
    assert directory.takes_part(1, 5) == (True, "alive")
    assert directory.missed(1, 4)
    assert not directory.missed(1, 4)
    assert directory.num_living == 1
    assert not directory.missed(0, 4), "a peer never suspects itself"
    assert directory.takes_part(1, 5) == (False, "suspect")
    assert directory.living() == {2}
    assert directory.heard(1)
    assert not directory.heard(1)
    assert directory.takes_part(1, 5) == (True, "alive")

    assert directory.leave(2, 7)
    assert not directory.leave(2, 9)
    assert directory.takes_part(2, 6) == (True, "leaving")
    assert directory.takes_part(2, 7) == (False, "left")
    assert not directory.heard(2)
    assert directory.status(2) is PeerStatus.LEFT
    assert directory.living() == {1}
    assert not directory.leave(9, 0), "unknown peers are ignored"


def test_old_news_does_not_revive_a_suspect() -> None:
    directory = PeerDirectory(0, 3)
    assert directory.missed(2, 7)
    assert not directory.closed(2, 6), "it closed that before it was lost"
    assert directory.status(2) is PeerStatus.SUSPECT
    assert directory.lost(2, 8), "somebody heard of it later, and lost it too"
    assert not directory.lost(2, 8), "everybody has been told"
    assert not directory.lost(0, 8), "it lives, whatever is said"
    assert not directory.closed(2, 7)
    assert directory.closed(2, 8)
    assert not directory.closed(2, 9), "no news: it was alive"
    assert directory.status(2) is PeerStatus.ALIVE


def test_first_closing_floods_one_word_a_round_and_barrier_every_word() -> None:
    one = Flood(0, 4, every_word=False)
    assert one.note_closed(1, 0, own_round=0) == (True, "new")
    assert one.note_closed(2, 0, own_round=0) == (False, "new")
    assert one.note_closed(2, 1, own_round=0) == (True, "new")
    every = Flood(0, 4, every_word=True)
    assert every.note_closed(1, 0, own_round=0)[0]
    assert every.note_closed(2, 0, own_round=0)[0]
    assert not every.note_closed(2, 0, own_round=0)[0]
    assert every.recipients([1, 2, 3], origin=2, sender=3) == [1]


@given(st.sampled_from(["ring", "star", "torus", "exponential"]), st.integers(4, 24), st.integers(0, 100))
def test_a_word_reaches_everybody_and_then_dies_out(name: str, n: int, start: int) -> None:
    if name == "torus":
        n = 4 * max(2, n // 4)
    graph = build(name, n)
    floods = [Flood(i, n, every_word=True) for i in range(n)]
    origin = start % n
    assert floods[origin].say_closed(3)
    queue = [(j, origin) for j in graph.neighbors(origin)]
    hops = 0
    while queue:
        at, sender = queue.pop(0)
        hops += 1
        assert hops <= 2 * len(graph.edges) + n
        if at != origin and floods[at].note_closed(origin, 3, own_round=3)[0]:
            queue += [(j, at) for j in floods[at].recipients(graph.neighbors(at), origin, sender)]
    assert all(origin in flood.closed.closed(3) for i, flood in enumerate(floods) if i != origin)


def test_a_lying_word_is_not_passed_on_and_silences_nobody() -> None:
    flood = Flood(0, 4, every_word=False, window=5)
    assert flood.note_closed(3, 2**40, own_round=0) == (False, "future")
    assert flood.note_closed(1, 0, own_round=0) == (True, "new")
    assert flood.note_closed(1, 1, own_round=1) == (True, "new")
