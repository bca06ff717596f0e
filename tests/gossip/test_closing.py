"""Closing policies: decisions as facts, time as an argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.gossip.closing import (
    Barrier,
    ClosedRounds,
    CloseReason,
    ClosingPolicy,
    Deadline,
    First,
    Quorum,
    RoundView,
    make_closing,
)


@dataclass(frozen=True)
class Facts:
    """A round as a policy sees it. newest: the newest round that each other peer closed, counted from the round looked at."""

    own_done: bool
    newest: Mapping[int, int]
    neighbors: set[int]
    living: set[int]
    opened_at: float = 100.0

    @property
    def ahead(self) -> int:
        return max(self.newest.values(), default=-1)

    def neighbors_ahead(self) -> int:
        return max((self.newest.get(j, -1) for j in self.neighbors), default=-1)

    def waits(self) -> bool:
        return any(self.newest.get(j, -1) < 0 for j in self.living)

    def heard_neighbors(self) -> tuple[int, int]:
        return sum(self.newest.get(j, -1) >= 0 for j in self.neighbors), len(self.neighbors)


def view(
    *,
    own: bool = False,
    closed: set[int] | None = None,
    ahead: int = 0,
    neighbors: set[int] | None = None,
    living: set[int] | None = None,
) -> Facts:
    return Facts(
        own_done=own,
        newest=dict.fromkeys(closed or (), ahead),
        neighbors={1, 7} if neighbors is None else neighbors,
        living={1, 2, 3, 4, 5, 6, 7} if living is None else living,
    )


@pytest.mark.parametrize(
    ("policy", "seen", "reason"),
    [
        (First(), view(), None),
        (First(), view(own=True), CloseReason.QUOTA),
        (First(), view(closed={4}), CloseReason.WORD),
        (Barrier(), view(own=True), None),
        (Barrier(), view(closed={1, 2, 3, 4, 5, 6, 7}), None),
        (Barrier(), view(own=True, closed={1, 2, 3, 4, 5, 6, 7}), CloseReason.BARRIER),
        (Barrier(), view(own=True, closed={1, 3}, living={1, 3}), CloseReason.BARRIER),
        (Barrier(), view(closed={4}, ahead=1), CloseReason.WORD),
        (Barrier(), view(own=True, closed={4}, ahead=1), CloseReason.BARRIER),
        (Quorum(0.5), view(closed={4}), None),
        (Quorum(1.0), view(closed={1, 4}, ahead=1), None),
        (Quorum(1.0), view(closed={1}, ahead=2), CloseReason.WORD),
        (Quorum(1.0), view(closed={4}, ahead=9), None),
        (Deadline(2.0), view(closed={1}, ahead=1), None),
        (Deadline(2.0), view(closed={1}, ahead=2), CloseReason.WORD),
        (Deadline(2.0), view(closed={4}, ahead=9), None),
        (Quorum(0.5), view(closed={1}), CloseReason.QUORUM),
        (Quorum(1.0), view(closed={1}), None),
        (Quorum(1.0), view(closed={1, 7}), CloseReason.QUORUM),
        (Quorum(0.1), view(), None),
        (Quorum(0.5), view(neighbors=set(), closed={4}), None),
        (Quorum(0.5), view(own=True), CloseReason.QUOTA),
        (Deadline(2.0), view(own=True), CloseReason.QUOTA),
        (Deadline(2.0), view(closed={1, 2, 3, 4, 5, 6, 7}), None),
    ],
)
def test_decisions(policy: ClosingPolicy, seen: RoundView, reason: CloseReason | None) -> None:
    assert policy.decide(seen, now=101.0) is reason


def test_fixed_deadline_asks_to_be_woken_and_closes_then() -> None:
    policy = Deadline(2.0)
    assert policy.wake_at(view()) == 102.0
    assert policy.decide(view(), now=101.999) is None
    assert policy.decide(view(), now=102.0) is CloseReason.DEADLINE


def test_adaptive_deadline_is_median_plus_mads_after_the_warm_up() -> None:
    policy = Deadline(None, mads=3.0, warm_up=5)
    for seconds in (1.0, 1.1, 0.9, 9.0):
        policy.observe(seconds)
    assert policy.wake_at(view()) is None
    policy.observe(1.2)  # median 1.1, deviations .1 0 .2 7.9 .1, MAD .1
    assert policy.timeout() == pytest.approx(1.1 + 3 * 0.1)
    assert policy.decide(view(), now=100 + 1.41) is CloseReason.DEADLINE


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10**15)), max_size=60))
def test_a_lying_word_hurries_a_peer_by_no_more_than_the_window(words: list[tuple[int, int]]) -> None:
    known, own_round = ClosedRounds(window=10), 5
    for origin, round in words:
        known.note(origin, round, own_round)
    assert not known.closed(own_round + 11)
    for origin, newest in known.newest().items():
        assert newest <= max(round for o, round in words if o == origin)


def test_words_are_news_once_and_stale_ones_are_told_apart() -> None:
    known = ClosedRounds(window=4)
    assert known.note(3, 7, own_round=7) == (True, "new")
    assert known.note(3, 7, own_round=7) == (False, "known")
    assert known.note(3, 6, own_round=7) == (False, "known")
    assert known.note(2, 5, own_round=7) == (True, "stale")
    assert known.note(2, 99, own_round=7) == (True, "future")
    assert known.closed(7) == {2, 3}
    assert known.closed(8) == {2}
    assert known.furthest == 11


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12), st.booleans()), max_size=80))
def test_the_first_to_close_a_round_is_the_one_heard_first(words: list[tuple[int, int, bool]]) -> None:
    known, own_round, heard = ClosedRounds(window=6), 0, list[tuple[int, int]]()
    for origin, round, moves_on in words:
        own_round += moves_on
        known.note(origin, round, own_round)
        heard.append((origin, min(round, own_round + 6)))
        first = next((who for who, closed in heard if closed >= own_round), None)
        assert known.first(own_round) == first
        assert len(known._firsts) <= 7


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12), st.booleans()), max_size=60))
def test_the_count_of_those_that_closed_a_round_is_kept_up_to_date(words: list[tuple[int, int, bool]]) -> None:
    known, own_round = ClosedRounds(window=6), 0
    for origin, round, moves_on in words:
        own_round += moves_on
        known.note(origin, round, own_round)
        assert (
            known.count(own_round)
            == len(known.closed(own_round))
            == sum(known.has_closed(j, own_round) for j in range(5))
        )


def test_every_name_makes_its_policy() -> None:
    assert isinstance(make_closing("first"), First)
    assert isinstance(make_closing("barrier"), Barrier)
    assert make_closing("quorum", quorum=0.25) == Quorum(0.25)
    assert isinstance(make_closing("deadline", seconds=1.0), Deadline)
    with pytest.raises(KeyError):
        make_closing("soon")
