"""The protocol without I/O: several `Talk`s whose words are carried by hand, in any order that a network may choose."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.gossip.closing import CLOSINGS, CloseReason, Deadline, OwnQuota, make_closing
from peer.gossip.membership import PeerStatus
from peer.gossip.talk import Talk
from peer.gossip.words import Word, WordKind
from topology import FixedSchedule, RandomGraphSchedule, Schedule, build


@dataclass
class Cluster:
    """Links are queues of words, first in first out."""

    schedule: Schedule
    closing: str = "barrier"
    talks: list[Talk] = field(default_factory=list)
    links: dict[tuple[int, int], deque[Word]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i in range(self.schedule.num_peers):
            self.talks.append(self._talk(i))
        for round in (0, 10**6):
            for i, j in self.schedule.base(round).edges:
                self.link(i, j)
        self.carry()
        for talk in self.talks:
            talk.open(0.0)

    def _talk(self, i: int) -> Talk:
        def tell(to: int, word: Word) -> None:
            if (i, to) in self.links:
                self.links[i, to].append(word)

        policy = make_closing(self.closing, seconds=None)
        return Talk(i, self.schedule, policy, tell, payload_means_closed=False, round_timeout=300.0)

    def link(self, i: int, j: int) -> None:
        for here, there in ((i, j), (j, i)):
            self.links.setdefault((here, there), deque())
        self.talks[i].link_up(j)
        self.talks[j].link_up(i)

    def cut(self, i: int, j: int) -> None:
        for here, there in ((i, j), (j, i)):
            if self.links.pop((here, there), None) is not None:
                self.talks[here].link_down(there)

    def kill(self, i: int) -> None:
        for j in list(self.talks[i].linked):
            self.links.pop((i, j), None)
            self.links.pop((j, i), None)
        for j in list(self.talks[i].linked):
            self.talks[j].link_down(i)

    def carry(self, chance: random.Random | None = None, most: int = 10**6) -> None:
        """Deliver words until none is under way, always from a link that chance picks."""
        for _ in range(most):
            full = [link for link, words in self.links.items() if words]
            if not full:
                return
            here, there = chance.choice(full) if chance else full[0]
            self.talks[there].hear(here, self.links[here, there].popleft(), now=1.0)

    def closes_a_barrier(self, peers: list[int]) -> bool:
        """Whether those peers, done, need nobody else to end their round."""
        for i in peers:
            self.talks[i].decide(True, 1.0)
        self.carry()
        return all(self.talks[i].decide(True, 1.0)[0] is CloseReason.BARRIER for i in peers)

    def next_round(self, peers: list[int]) -> None:
        for i in peers:
            self.talks[i].round += 1
            self.talks[i].open(float(self.talks[i].round))


def ring(n: int) -> FixedSchedule:
    return FixedSchedule(build("ring", n))


def test_a_barrier_closes_when_everybody_is_done_and_not_before() -> None:
    cluster = Cluster(ring(6))
    for i in range(5):
        assert cluster.talks[i].decide(True, 1.0)[0] is None
    cluster.carry()
    assert all(cluster.talks[i].decide(True, 1.0)[0] is None for i in range(5)), "peer 5 is not done"
    assert cluster.talks[5].decide(True, 1.0)[0] is CloseReason.BARRIER
    cluster.carry()
    assert all(cluster.talks[i].decide(True, 1.0)[0] is CloseReason.BARRIER for i in range(5))


def test_a_killed_peer_is_not_waited_for_by_anybody_though_only_its_neighbors_saw_it_die() -> None:
    cluster = Cluster(ring(8))
    cluster.kill(4)
    cluster.carry()
    rest = [i for i in range(8) if i != 4]
    assert all(cluster.talks[i].directory.status(4) is PeerStatus.SUSPECT for i in rest)
    assert cluster.closes_a_barrier(rest)


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.booleans(), st.sets(st.integers(0, 11)))
def test_whatever_the_order_of_words_a_dead_peer_ends_as_a_suspect_everywhere(
    chance: random.Random, spoke: bool, suspicious: set[int]
) -> None:
    """It may have told one neighbour, and not the other, that it closed the round, just before it died; and some may have gone on
    without it before, for a deadline that it missed."""
    cluster = Cluster(FixedSchedule(build("torus", 12)))
    if spoke:
        cluster.talks[5].decide(True, 1.0)
        cluster.carry(chance, most=chance.randrange(30))
    for i in suspicious:
        cluster.talks[i].missed(5)
    cluster.kill(5)
    cluster.carry(chance)
    assert all(cluster.talks[i].directory.status(5) is PeerStatus.SUSPECT for i in range(12) if i != 5)


def test_who_was_silent_before_its_links_went_down_is_not_waited_for_by_those_behind_either() -> None:
    """Cut off silently it misses the deadline of an exchange long before a link is known to be down; of that nobody else is told."""
    cluster = Cluster(ring(8))
    for i in (3, 5):
        assert cluster.talks[i].missed(4)
    cluster.carry()
    assert cluster.talks[0].directory.status(4) is PeerStatus.ALIVE, "that it is slow is what its neighbours believe"
    for j in (3, 5):
        cluster.links.pop((4, j), None)
        cluster.links.pop((j, 4), None)
        assert not cluster.talks[j].link_down(4), "no news to itself"
    cluster.carry()
    rest = [i for i in range(8) if i != 4]
    assert cluster.closes_a_barrier(rest)


def test_that_a_peer_is_lost_is_passed_on_once_and_again_after_it_was_back() -> None:
    said: list[tuple[int, Word]] = []
    talk = Talk(
        0, ring(4), OwnQuota(), lambda to, word: said.append((to, word)), payload_means_closed=False, round_timeout=9.0
    )
    for j in (1, 3):
        talk.link_up(j)
    talk.missed(2)
    word = Word(WordKind.LOST, 2, 0)
    for _ in range(2):  # the second life of peer 2 is told by peer 3
        said.clear()
        assert talk.hear(1, word, 1.0) == (True, "new")
        assert said == [(3, word)]
        assert talk.hear(3, word, 1.0) == (False, "known")
        assert said == [(3, word)]
        talk.hear(3, Word(WordKind.CLOSED, 2, word.round), 1.0)
        assert talk.directory.status(2) is PeerStatus.ALIVE
        word = Word(WordKind.LOST, 2, 1)


def test_a_barrier_tells_who_was_first_and_whom_it_waited_for() -> None:
    cluster = Cluster(ring(4))
    for done in (2, 0, 3, 1):
        cluster.talks[done].decide(True, 1.0)
        cluster.carry()
    assert not cluster.talks[1].is_open, "it came last, and waited for nobody"
    assert (cluster.talks[1].closed_by, cluster.talks[1].waited_for) == (2, ())
    for i in (0, 2, 3):
        assert cluster.talks[i].decide(True, 2.0)[0] is CloseReason.BARRIER
        assert (cluster.talks[i].closed_by, cluster.talks[i].waited_for) == (2, (1,))


def test_a_peer_that_is_lost_was_the_one_waited_for() -> None:
    cluster = Cluster(ring(4))
    for i in range(3):
        assert cluster.talks[i].decide(True, 1.0)[0] is None
    cluster.carry()
    cluster.kill(3)
    cluster.carry()
    for i in range(3):
        assert cluster.talks[i].decide(True, 2.0)[0] is CloseReason.BARRIER
        assert cluster.talks[i].waited_for == (3,)


def test_the_silent_are_those_that_a_timeout_has_waited_for() -> None:
    cluster = Cluster(ring(4))
    cluster.talks[1].decide(True, 1.0)
    cluster.carry()
    assert cluster.talks[0].decide(True, 1.0)[0] is None
    assert cluster.talks[0].decide(True, 301.0)[0] is CloseReason.TIMEOUT
    assert cluster.talks[0].closed_by == 1
    assert cluster.talks[0].waited_for == (2, 3)


def test_without_a_barrier_nobody_is_waited_for() -> None:
    cluster = Cluster(ring(4), "first")
    for round in range(3):
        assert cluster.talks[2].decide(True, 1.0)[0] is CloseReason.QUOTA
        cluster.carry()
        for talk in cluster.talks:
            if talk.peer != 2:
                assert talk.decide(False, 1.0)[0] is CloseReason.WORD
            assert (talk.closed_by, talk.waited_for) == (2, ()), round
        cluster.next_round([0, 1, 2, 3])


def test_one_cut_edge_kills_nobody() -> None:
    """The other neighbours still have their links, and those that believed it for a moment hear of its next round."""
    cluster = Cluster(ring(6))
    cluster.cut(2, 3)
    cluster.carry()
    assert cluster.talks[4].directory.status(3) is PeerStatus.ALIVE
    for talk in cluster.talks:
        talk.decide(True, 1.0)
    cluster.carry()
    assert all(talk.decide(True, 1.0)[0] is CloseReason.BARRIER for talk in cluster.talks)
    for i in (0, 1, 2, 4, 5):
        assert cluster.talks[i].directory.status(3) is PeerStatus.ALIVE


def test_nobody_waits_for_peers_beyond_a_cut_of_whom_nobody_could_say_that_they_are_lost() -> None:
    """Two halves of a ring of 8. Peers 5 and 6 had no link across, so no LOST is said of them on the other side."""
    cluster = Cluster(ring(8))
    cluster.cut(0, 7)
    cluster.cut(3, 4)
    cluster.carry()
    for half in ([0, 1, 2, 3], [4, 5, 6, 7]):
        assert cluster.closes_a_barrier(half)
        cluster.next_round(half)
    cluster.link(0, 7)
    cluster.carry()
    assert cluster.talks[1].decide(True, 1.0)[0] is None
    for i in range(8):
        if i != 5:
            cluster.talks[i].decide(True, 1.0)
    cluster.carry()
    assert cluster.talks[1].decide(True, 1.0)[0] is None, "after the healing peer 5 is waited for again"
    cluster.talks[5].decide(True, 1.0)
    cluster.carry()
    assert all(talk.decide(True, 1.0)[0] is CloseReason.BARRIER for talk in cluster.talks)


@pytest.mark.parametrize("n", [4, 6, 9])
def test_nobody_waits_for_peers_beyond_two_cuts_one_after_the_other(n: int) -> None:
    """After the first, both its ends hear of each other by the others, and live; the second takes that away, from everybody."""
    cluster = Cluster(ring(n))

    def play(rounds: int) -> None:
        for _ in range(rounds):
            for talk in cluster.talks:
                talk.decide(True, 1.0)
            cluster.carry()
            assert all(talk.decide(True, 1.0)[0] is CloseReason.BARRIER for talk in cluster.talks)
            cluster.next_round(list(range(n)))

    cluster.cut(0, 1)
    cluster.carry()
    play(3)
    assert cluster.talks[0].directory.status(1) is cluster.talks[1].directory.status(0) is PeerStatus.ALIVE
    cluster.cut(n // 2, n // 2 + 1)
    cluster.carry()
    play(3)
    beyond = set(range(1, n // 2 + 1))
    for i, talk in enumerate(cluster.talks):
        assert talk.silent() == (beyond if i in beyond else set(range(n)) - beyond) - {i}
    cluster.link(0, 1)
    cluster.carry()
    play(2)
    assert all(talk.silent() == set(range(n)) - {i} for i, talk in enumerate(cluster.talks)), "one graph again"


@pytest.mark.parametrize("n", [6, 8])
def test_nobody_waits_for_peers_behind_two_that_said_goodbye(n: int) -> None:
    """What lies between them can't be heard from the other side."""
    cluster = Cluster(ring(n))
    gone = (0, n // 2)
    for i in gone:
        cluster.talks[i].say_leaving(0)
    cluster.carry()
    for i in gone:
        cluster.kill(i)
    cluster.carry()
    rest = [i for i in range(n) if i not in gone]
    for _ in range(3):
        assert cluster.closes_a_barrier(rest)
        cluster.next_round(rest)


def test_after_a_cut_a_goodbye_parts_a_ring_as_well() -> None:
    cluster = Cluster(ring(8))
    cluster.cut(0, 7)
    cluster.carry()
    for talk in cluster.talks:
        talk.decide(True, 1.0)
    cluster.carry()
    assert all(talk.decide(True, 1.0)[0] is CloseReason.BARRIER for talk in cluster.talks)
    cluster.next_round(list(range(8)))
    cluster.talks[4].say_leaving(1)
    cluster.carry()
    cluster.kill(4)
    cluster.carry()
    rest = [i for i in range(8) if i != 4]
    assert cluster.closes_a_barrier(rest)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10**6), st.sampled_from([(8, 2), (10, 3)]), st.integers(5, 400))
def test_a_death_stalls_no_barrier_however_slow_words_are_while_the_graph_changes(
    seed: int, shape: tuple[int, int], killed_at: int
) -> None:
    """A late CLOSED of the dead may be heard after its LOST, which must not leave it alive anywhere."""
    n, degree = shape
    chance, schedule = random.Random(seed), RandomGraphSchedule("random-regular", n, every=1, seed=seed, degree=degree)
    cluster, last = Cluster(schedule), 12
    for round in range(last + 1):
        for i in range(n):
            for j in schedule.links(round, i):
                if (i, j) not in cluster.links:
                    cluster.link(i, j)
    living, step = list(range(n)), 0
    while any(cluster.talks[i].round < last for i in living):
        step += 1
        if step == killed_at:
            cluster.kill(living.pop(chance.randrange(n)))
        if any(cluster.links.values()) and chance.random() < 0.85:
            cluster.carry(chance, most=1)
            continue
        before = [cluster.talks[i].round for i in living]
        for i in chance.sample(living, len(living)):
            if cluster.talks[i].round < last and cluster.talks[i].decide(True, 1.0)[0] is not None:
                cluster.next_round([i])
        went_on = any(cluster.links.values()) or before != [cluster.talks[i].round for i in living]
        assert went_on or (len(living) == n and step < killed_at), "nobody says or does anything any more"


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 100), st.integers(20, 200), st.integers(0, 40))
def test_who_says_goodbye_and_still_passes_words_on_leaves_nobody_waited_for_whom_it_parts(
    seed: int, cut_at: int, left_after: int, gone_after: int
) -> None:
    """Ring of 8, cut between 0 and 7, from which peer 4 goes: a word that comes through it after its goodbye is the last."""
    chance, cluster, living = random.Random(seed), Cluster(ring(8)), list(range(8))
    leaves_at = cut_at + left_after
    for step in range(leaves_at + gone_after + 600):
        if step == cut_at:
            cluster.cut(0, 7)
        if step == leaves_at:
            cluster.talks[4].say_leaving(cluster.talks[4].round)
            living.remove(4)
        if step == leaves_at + gone_after:
            cluster.kill(4)
        if any(cluster.links.values()) and chance.random() < 0.85:
            cluster.carry(chance, most=1)
            continue
        for i in chance.sample(living, len(living)):
            if cluster.talks[i].decide(True, 1.0)[0] is not None:
                cluster.next_round([i])
    cluster.carry()
    for side, other in (({0, 1, 2, 3}, {5, 6, 7}), ({5, 6, 7}, {0, 1, 2, 3})):
        assert all(not cluster.talks[i].silent() & other for i in side)


@pytest.mark.parametrize("closing", ["barrier", "first"])
def test_who_has_a_link_again_is_alive_to_all_who_were_told_that_it_is_lost(closing: str) -> None:
    """Also where only the first word of a round goes on, and it is never the first."""
    cluster = Cluster(ring(8), closing)
    cluster.talks[3].missed(4)
    cluster.cut(3, 4)
    cluster.link(3, 4)
    cluster.carry()
    assert cluster.talks[0].directory.status(4) is PeerStatus.SUSPECT
    for _ in range(3):
        for i in (0, 1, 2, 3, 5, 6, 7, 4):
            cluster.talks[i].decide(True, 1.0)
        cluster.carry()
        for talk in cluster.talks:
            talk.decide(True, 1.0)
        cluster.carry()
        cluster.next_round(list(range(8)))
    assert all(cluster.talks[i].directory.status(4) is PeerStatus.ALIVE for i in range(8) if i != 4)


def test_that_one_missed_a_deadline_of_one_neighbor_is_told_to_nobody() -> None:
    """Not to who gets a link either."""
    cluster = Cluster(ring(8))
    cluster.talks[3].missed(4)
    cluster.cut(2, 3)
    cluster.link(2, 3)
    cluster.carry()
    assert [i for i in range(8) if i != 4 and not cluster.talks[i].directory.is_alive(4)] == [3]


def test_news_of_a_loss_that_nobody_waited_for_is_not_what_was_waited_for() -> None:
    talk = Cluster(ring(8)).talks[0]
    talk.missed(5)
    talk.decide(True, 1.0)
    for origin in (1, 2, 4, 6, 7, 3):
        talk.hear(1, Word(WordKind.CLOSED, origin, 0), 1.0)
    assert talk.hear(1, Word(WordKind.LOST, 5, 0), 1.0) == (True, "new")
    assert talk.decide(True, 1.0)[0] is CloseReason.BARRIER
    assert talk.waited_for == (3,)


def test_nobody_can_be_talked_into_its_own_death_or_that_of_a_linked_peer() -> None:
    cluster = Cluster(ring(5))
    stirs, why = cluster.talks[0].hear(1, Word(WordKind.LOST, 4, 10**9), now=1.0)
    assert (stirs, why) == (False, "known")
    assert cluster.talks[0].directory.status(4) is PeerStatus.ALIVE
    assert cluster.talks[0].hear(1, Word(WordKind.LOST, 0, 0), now=1.0) == (False, "own")
    assert cluster.talks[0].hear(1, Word(WordKind.CLOSED, 0, 3), now=1.0) == (False, "own")
    assert cluster.talks[0].hear(1, Word(WordKind.CLOSED, 99, 3), now=1.0) == (False, "bad_origin")
    assert not any(cluster.links.values()), "nothing of that goes on"


def test_a_peer_that_was_away_for_long_catches_up_and_is_waited_for_again() -> None:
    """It believes what it is told only as far as the window, so it must be told again until it has caught up."""
    n, far = 4, 200
    cluster = Cluster(ring(n))
    cluster.cut(3, 0)
    cluster.cut(3, 2)
    rest = [0, 1, 2]
    for _ in range(far):
        for i in rest:
            cluster.talks[i].decide(True, 1.0)
        cluster.carry()
        assert all(cluster.talks[i].decide(True, 1.0)[0] is not None for i in rest)
        cluster.next_round(rest)
    cluster.link(3, 0)
    cluster.link(3, 2)
    computed = 0
    while cluster.talks[3].round < far:
        cluster.carry()
        if cluster.talks[3].decide(False, 1.0)[0] is None:  # as far as it knows: compute this round
            computed += 1
            assert computed <= 2 + far // 16
            assert cluster.talks[3].decide(True, 1.0)[0] in (None, CloseReason.BARRIER)
            cluster.carry()
            assert cluster.talks[3].decide(True, 1.0)[0] is not None
        cluster.next_round([3])
    for i in range(n):
        cluster.talks[i].decide(True, 1.0)
    cluster.carry()
    assert all(talk.decide(True, 1.0)[0] is CloseReason.BARRIER for talk in cluster.talks)


@pytest.mark.parametrize("seed", range(60))
def test_a_barrier_never_stalls_while_the_random_graph_changes(seed: int) -> None:
    """Every word floods the graph of its own round, so it reaches peers that are still at the graph before."""
    chance, n, last = random.Random(seed), 8, 10
    schedule = RandomGraphSchedule("random-regular", n, every=1, seed=seed, degree=2)
    cluster = Cluster(schedule)
    for round in range(last + 1):
        for i, j in schedule.base(round).edges:
            if (i, j) not in cluster.links:
                cluster.link(i, j)
    at_end = 0
    while at_end < n:
        if any(cluster.links.values()) and chance.random() < 0.9:
            cluster.carry(chance, most=1)
            continue
        before, at_end = [talk.round for talk in cluster.talks], 0
        for i in chance.sample(range(n), n):
            if cluster.talks[i].round == last:
                at_end += 1
            elif cluster.talks[i].decide(True, 1.0)[0] is not None:
                cluster.next_round([i])
        stalled = not any(cluster.links.values()) and before == [talk.round for talk in cluster.talks]
        assert not stalled or at_end == n, f"everybody waits: rounds {before}"


@pytest.mark.parametrize("closing", CLOSINGS)
def test_everybody_else_gone_ahead_ends_a_round_under_every_policy(closing: str) -> None:
    cluster = Cluster(ring(4), closing)
    talk = cluster.talks[0]
    assert talk.decide(False, 1.0)[0] is None
    talk.hear(1, Word(WordKind.CLOSED, 1, 5), now=1.0)
    reason = talk.decide(False, 1.0)[0]
    assert reason in ({CloseReason.QUORUM} if closing == "quorum" else {CloseReason.WORD})


def test_only_new_words_of_the_current_round_steer_the_adaptive_deadline() -> None:
    policy, said = Deadline(None, warm_up=1), []
    schedule = ring(4)
    talk = Talk(0, schedule, policy, lambda to, word: said.append(word), payload_means_closed=False, round_timeout=9.0)
    talk.round = 5
    talk.hear(1, Word(WordKind.CLOSED, 1, 5), now=0.5)
    assert policy.timeout() is None, "before the round is open here there is nothing to measure from"
    talk.open(1.0)
    for origin, round in ((1, 5), (2, 4), (2, 6), (3, 10**6)):
        talk.hear(1, Word(WordKind.CLOSED, origin, round), now=50.0)
    assert policy.timeout() is None
    talk.hear(1, Word(WordKind.CLOSED, 3, 5), now=4.0)
    assert policy.timeout() is None, "it claimed far more before, so this is no news"
    talk.hear(3, Word(WordKind.CLOSED, 1, 5), now=4.0)
    assert policy.timeout() is None
    fresh = Talk(0, schedule, policy, lambda to, word: None, payload_means_closed=False, round_timeout=9.0)
    fresh.open(1.0)
    fresh.hear(1, Word(WordKind.CLOSED, 1, 0), now=4.0)
    assert policy.timeout() == pytest.approx(3.0 + 4 * 0.15)


def test_where_nobody_tells_a_suspect_is_asked_again_after_pauses_that_double() -> None:
    schedule = FixedSchedule(build("ring", 3))
    talk = Talk(0, schedule, OwnQuota(), lambda to, word: None, payload_means_closed=False, round_timeout=300.0)
    talk.link_up(1)
    talk.open(0.0)
    now, silences = 0.0, []
    for _ in range(9):
        talk.missed(1)
        talk.missed(2)  # without a link: whoever comes back says so
        began = now
        while not talk.directory.is_alive(1):
            talk.decide(False, now)
            now += 0.25
        silences.append(now - began)
    assert [round(seconds) for seconds in silences] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert not talk.directory.is_alive(2)
    talk.payload(1, 5, now)
    talk.missed(1)
    talk.decide(False, now)
    talk.decide(False, now + 1.0)
    assert talk.directory.is_alive(1), "the pauses begin anew when it was heard"


def test_who_has_a_link_again_is_not_asked_in_the_rhythm_of_before() -> None:
    """Its silence of before was that of a link that is gone."""
    schedule = FixedSchedule(build("ring", 3))
    talk = Talk(0, schedule, OwnQuota(), lambda to, word: None, payload_means_closed=False, round_timeout=300.0)
    talk.link_up(1)
    talk.open(0.0)
    for now in (0.0, 1.0, 1.0, 3.0, 3.0):  # asked again after 1 s, after 2 s; then a pause of 4 s begins
        talk.missed(1)
        talk.decide(False, now)
    talk.link_down(1)
    talk.link_up(1)
    talk.missed(1)
    talk.decide(False, 50.0)
    assert not talk.directory.is_alive(1), "the pause of before is over, but not its own"
    talk.decide(False, 51.0)
    assert talk.directory.is_alive(1)


def test_where_words_are_told_a_suspect_is_not_waited_for_until_it_is_heard() -> None:
    cluster = Cluster(ring(3))
    cluster.talks[0].missed(1)
    for now in (1.0, 100.0, 200.0):
        cluster.talks[0].decide(False, now)
    assert not cluster.talks[0].directory.is_alive(1)


def test_nobody_waits_for_a_peer_that_computes_nothing() -> None:
    """Under a barrier the head closes when all others have: they must not wait for it, nor find it silent at the timeout."""
    schedule = FixedSchedule(build("star", 4))
    talks = [
        Talk(
            i,
            schedule,
            make_closing("barrier", seconds=None),
            lambda to, word: None,
            payload_means_closed=True,
            round_timeout=5.0,
            idle={0},
        )
        for i in range(4)
    ]
    for talk in talks:
        talk.open(0.0)
    worker = talks[1]
    worker.linked.add(0)
    for other in (2, 3):
        assert worker.decide(True, 1.0)[0] is None
        worker.flood.note_ready(other)
        worker.hear(0, Word(WordKind.CLOSED, other, 0), 1.0)
    assert worker.decide(True, 1.0)[0] is CloseReason.BARRIER
    late = talks[3]
    late.flood.note_ready(1)
    late.hear(0, Word(WordKind.CLOSED, 1, 0), 1.0)
    assert late.decide(True, 6.0)[0] is CloseReason.TIMEOUT
    assert late.directory.suspects.keys() == {2}
