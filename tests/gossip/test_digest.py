"""Digests spread over every graph, through loss, cuts and new lives, at a bounded rate; ages are right without a common clock."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.gossip.digest import (
    DIGESTS_A_SECOND,
    MAX_AGE_SECONDS,
    MAX_IN_MESSAGE,
    MAX_LOST_LINKS,
    MAX_OWN_STAMP,
    MAX_SHARES,
    MAX_STAMP,
    Digest,
    DigestBook,
    nonsense,
    say_every,
)
from topology import Topology, build

TICK = 0.25


@dataclass
class Cluster:
    """Books whose messages are carried by hand. Every peer's clock has an offset of its own; a message takes no time."""

    graph: Topology
    now: float = 0.0
    books: list[DigestBook] = field(default_factory=list)
    cut: set[frozenset[int]] = field(default_factory=set)
    carried: int = 0

    def __post_init__(self) -> None:
        for peer in range(self.graph.num_peers):
            self.books.append(DigestBook(peer, self.graph.num_peers, self.graph.neighbors, first_stamp=100))
        for i, j in self.graph.edges:
            self.link(i, j)

    def clock(self, peer: int) -> float:
        return self.now + 1000.0 * peer

    def link(self, i: int, j: int) -> None:
        self.books[i].link_up(j)
        self.books[j].link_up(i)

    def sever(self, i: int, j: int) -> None:
        self.cut.add(frozenset((i, j)))
        self.books[i].link_down(j)
        self.books[j].link_down(i)

    def heal(self, i: int, j: int) -> None:
        self.cut.remove(frozenset((i, j)))
        self.link(i, j)

    def say(self, peer: int, round: int = 0) -> Digest:
        lost = tuple(j for j in self.graph.neighbors(peer) if frozenset((peer, j)) in self.cut)
        return self.books[peer].say(Digest(peer, round=round, lost_links=lost), self.clock(peer))

    def tick(self, refuses: float = 0.0, dice: random.Random | None = None) -> None:
        """Every peer tells its neighbours the news. refuses: the share of messages that a transport does not take."""
        self.now += TICK
        for i, book in enumerate(self.books):
            for j in self.graph.neighbors(i):
                digests = book.news_for(j, self.clock(i))
                assert len(digests) <= MAX_IN_MESSAGE
                if not digests or frozenset((i, j)) in self.cut or (dice is not None and dice.random() < refuses):
                    continue
                self.carried += len(digests)
                book.told(j, digests)
                self.books[j].hear(i, digests, self.clock(j))

    def agreed(self) -> bool:
        """Everybody holds everybody's newest."""
        newest = {i: book.held[i].digest.stamp for i, book in enumerate(self.books) if i in book.held}
        return all({i: held.digest.stamp for i, held in book.held.items()} == newest for book in self.books)


@pytest.mark.parametrize("name", ["ring", "torus", "complete", "star", "exponential", "random-regular"])
def test_everybody_hears_of_everybody_and_the_ages_are_right(name: str) -> None:
    cluster = Cluster(build(name, 9, seed=1))
    for peer in range(9):
        cluster.say(peer)
    ticks = 0
    while not cluster.agreed():
        cluster.tick()
        ticks += 1
        assert ticks <= 9
    for i, book in enumerate(cluster.books):
        for held in book.held.values():
            assert held.said_at == pytest.approx(cluster.clock(i) - cluster.now)  # all were said at 0
    cluster.tick()  # some are still told what they heard from others in the last tick
    before = cluster.carried
    cluster.tick()
    assert cluster.carried == before, "what is no news is not told again"


def test_where_everybody_hears_everybody_nothing_is_passed_on() -> None:
    cluster = Cluster(build("complete", 8))
    for peer in range(8):
        cluster.say(peer)
    for _ in range(4):
        cluster.tick()
    assert cluster.agreed()
    assert cluster.carried == 8 * 7
    cluster.sever(0, 1)
    cluster.say(0)
    for _ in range(4):
        cluster.tick()
    assert cluster.agreed(), "behind a broken link it is passed on"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), refuses=st.sampled_from([0.0, 0.5, 0.9]))
def test_through_full_queues_cuts_and_repairs_the_newest_arrives(seed: int, refuses: float) -> None:
    dice = random.Random(seed)
    cluster = Cluster(build("random-regular", 8, seed=seed % 7))
    for step in range(40):
        cluster.say(dice.randrange(8), round=step)
        edge = cluster.graph.edges[dice.randrange(len(cluster.graph.edges))]
        if frozenset(edge) in cluster.cut:
            cluster.heal(*edge)
        elif dice.random() < 0.3:
            cluster.sever(*edge)
        cluster.tick(refuses, dice)
    for i, j in list(map(tuple, cluster.cut)):
        cluster.heal(i, j)
    for peer in range(8):
        cluster.say(peer, round=99)
    for _ in range(12):
        cluster.tick()
    assert cluster.agreed()
    assert all(held.digest.round == 99 for book in cluster.books for held in book.held.values())


def test_a_link_carries_a_bounded_number_however_many_come_in() -> None:
    book = DigestBook(0, 1000, lambda peer: ())
    book.link_up(1)
    for stamp in range(1, 4):
        book.hear(2, [Digest(origin, stamp=stamp) for origin in range(3, 1000)], now=float(stamp))
    told = book.news_for(1, now=10.0)
    assert len(told) == MAX_IN_MESSAGE
    assert {digest.stamp for digest in told} == {3}, "only the newest of an origin is told"
    assert len(book.held) == 997
    assert say_every(8) == 1.0
    assert 1000 / say_every(1000) <= DIGESTS_A_SECOND


def test_a_peer_that_started_again_or_was_lied_about_is_believed_again() -> None:
    cluster = Cluster(build("ring", 4))
    cluster.say(2, round=7)
    for _ in range(3):
        cluster.tick()
    liar = Digest(2, stamp=MAX_OWN_STAMP, round=10**6)
    cluster.books[1].hear(0, [liar], cluster.clock(1))
    cluster.books[2] = DigestBook(2, 4, cluster.graph.neighbors, first_stamp=1)  # its clock went back, too
    cluster.link(1, 2)
    cluster.link(3, 2)
    for _ in range(3):
        cluster.tick()
    cluster.say(2, round=1)
    for _ in range(3):
        cluster.tick()
    assert cluster.agreed()
    assert {book.held[2].digest.round for book in cluster.books} == {1}


@pytest.mark.parametrize("stamp", [MAX_OWN_STAMP, MAX_OWN_STAMP + 1, MAX_STAMP - 1])
def test_no_lie_makes_an_honest_peer_say_what_is_refused(stamp: int) -> None:
    book = DigestBook(0, 4, lambda peer: ())
    for _ in range(3):
        lie = Digest(0, stamp=stamp)
        assert nonsense(lie, 4) is None
        assert book.hear(1, [lie], 0.0) == [], "a peer knows itself better"
        assert nonsense(book.say(Digest(0), 0.0), 4) is None


def test_an_old_digest_is_no_news_and_is_not_told_to_who_has_it() -> None:
    book = DigestBook(0, 4, lambda peer: ())
    book.link_up(1)
    assert book.hear(2, [Digest(3, stamp=5)], 0.0) == [(None, Digest(3, stamp=5))]
    assert book.hear(2, [Digest(3, stamp=4), Digest(3, stamp=5)], 1.0) == []
    assert book.held[3].said_at == 0.0
    book.hear(1, [Digest(3, stamp=5)], 1.0)
    assert book.news_for(1, 2.0) == []
    book.hear(2, [Digest(3, stamp=6, age_seconds=1.5)], 2.0)
    assert [digest.age_seconds for digest in book.news_for(1, 3.0)] == [2.5]
    assert book.news_for(2, 3.0) == [], "there is no link to it"


def test_neighbours_are_told_the_same_objects_at_one_moment_and_newer_ones_later() -> None:
    book = DigestBook(0, 4, lambda peer: ())
    for link in (1, 2):
        book.link_up(link)
    book.hear(3, [Digest(3, stamp=5)], 1.0)
    (one,), (other,) = book.news_for(1, 2.0), book.news_for(2, 2.0)
    assert one is other
    assert one.age_seconds == 1.0
    book.hear(3, [Digest(3, stamp=6)], 2.0)
    assert [(digest.stamp, digest.age_seconds) for digest in book.news_for(1, 2.0)] == [(6, 0.0)]
    assert [digest.age_seconds for digest in book.news_for(1, 2.5)] == [0.5]


SOUND = Digest(
    1, stamp=3, train_loss=math.inf, lost_links=(0,), waited_for={2: 0.5}, closed_by={1: 1.0}, closed_rounds={"word": 3}
)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("origin", {"origin": 4}),
        ("stamp", {"stamp": MAX_STAMP}),
        ("age_seconds", {"age_seconds": -1.0}),
        ("age_seconds", {"age_seconds": math.nan}),
        ("age_seconds", {"age_seconds": 2 * MAX_AGE_SECONDS}),
        ("seconds", {"seconds": math.inf}),
        ("seconds", {"samples_per_second": -1.0}),
        ("counts", {"round": 1 << 60}),
        ("counts", {"closed_rounds": {"word": 1 << 60}}),
        ("shares", {"computing": 1.5}),
        ("shares", {"finished_fraction": math.nan}),
        ("shares", {"waited_for": {2: -0.5}}),
        ("peers", {"lost_links": (4,)}),
        ("peers", {"closed_by": {17: 0.5}}),
        ("peers", {"waits_for": (4,)}),
        ("seconds", {"waits_seconds": math.nan}),
        ("seconds", {"waits_seconds": -1.0}),
        ("lengths", {"waits_for": (0,) * (MAX_SHARES + 1)}),
        ("lengths", {"lost_links": (0,) * (MAX_LOST_LINKS + 1)}),
        ("lengths", {"closed_by": dict.fromkeys(range(MAX_SHARES + 1), 0.1)}),
    ],
)
def test_nonsense_is_named(field: str, changes: dict[str, object]) -> None:
    num_peers = 4 if field != "lengths" else 100
    assert nonsense(SOUND, num_peers) is None
    assert nonsense(SOUND._replace(**changes), num_peers) == field  # type: ignore[arg-type]
