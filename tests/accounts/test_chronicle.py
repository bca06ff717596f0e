"""The event log: what is said once, what is counted, and that nobody can make it grow."""

from __future__ import annotations

from peer.accounts.chronicle import AGAIN_SECONDS, KEPT, STILL_TIMES, Chronicle
from peer.gossip.digest import Digest, Held


def texts(log: Chronicle) -> list[str]:
    return [event.text for event in log.events]


def test_the_same_again_is_counted_and_moves_to_the_end() -> None:
    log = Chronicle(0)
    log.note("refused", None, "no", 0.0)
    log.note("lost", 1, "gone", 1.0)
    log.note("refused", None, "no", 2.0)
    assert [(e.id, e.number, e.text, e.times, e.at) for e in log.events] == [
        (2, 2, "gone", 1, 1.0),
        (1, 3, "no", 2, 2.0),
    ]
    log.note("refused", None, "no", 3.0 + AGAIN_SECONDS)
    assert [e.times for e in log.events] == [1, 2, 1]


def test_the_log_is_bounded() -> None:
    log = Chronicle(0)
    for number in range(3 * KEPT):
        log.note("edge", number, f"event {number}", float(number))
    assert len(log.events) == KEPT
    assert texts(log)[-1] == f"event {3 * KEPT - 1}"


def test_what_digests_tell_of_links_states_and_stragglers() -> None:
    log, quick = Chronicle(0), Digest(2, round=5, state=2, finished_fraction=1.0)
    log.digest(None, quick, "training", 0.0)
    slow = quick._replace(finished_fraction=0.25, lost_links=(3,))
    log.digest(quick, slow, "training", 1.0)
    assert texts(log) == ["peer 2 lost its edge to peer 3"]
    log.digest(slow, slow, "training", 2.0)
    assert texts(log)[1:] == ["peer 2 is a straggler: it finishes 25% of its quota"]
    log.digest(slow, slow._replace(finished_fraction=0.6), "training", 3.0)  # between the two bounds nothing changes
    for at in (4.0, 5.0):
        log.digest(slow, quick, "training", at)
    assert texts(log)[2:4] == ["peer 2 has its edge to peer 3 again", "peer 2 keeps up again"]
    log.digest(quick, quick._replace(state=3), "finished", 6.0)
    assert texts(log)[-1] == "peer 2 is finished"
    log.digest(quick, Digest(2, state=1), "starting", 7.0)
    assert texts(log)[-1] == "peer 2 has started again"


def test_one_slow_round_makes_no_straggler_and_ones_own_links_are_told_elsewhere() -> None:
    log = Chronicle(0)
    for share in (0.2, 0.9, 0.2, 0.9):
        log.digest(Digest(1), Digest(1, round=1, finished_fraction=share), "training", 0.0)
    log.digest(Digest(0), Digest(0, round=1, finished_fraction=1.0, lost_links=(1,)), "training", 0.0)
    assert texts(log) == []


def test_a_standstill_is_noted_once_and_its_end() -> None:
    log, told = Chronicle(0), Digest(1, round=10, seconds=5.0, finished_fraction=1.0)

    def hear(round: int, seconds: float, state: str = "training") -> list[str]:
        log.digest(told, told._replace(round=round, seconds=seconds), state, seconds)
        return texts(log)

    assert hear(10, 5.0) == []
    assert hear(12, 15.0) == [], "rounds of 5 s"
    assert hear(12, 14.9 + STILL_TIMES * 5.0) == [], "a long round is no standstill"
    assert hear(12, 15.0 + STILL_TIMES * 5.0) == ["peer 1 has finished no round for 20 s"]
    assert len(hear(12, 100.0)) == 1
    assert hear(13, 101.0)[1:] == ["peer 1 finishes rounds again"]
    for seconds in (500.0, 900.0):
        assert len(hear(13, seconds, state="finished")) == 2, "who is done does not stand still"


def test_who_is_silent_is_noted_once_and_again_when_heard_of() -> None:
    log, digest = Chronicle(0), Digest(1, round=1, finished_fraction=1.0)
    held = {0: Held(Digest(0), 0.0), 1: Held(digest, 0.0), 2: Held(Digest(2), 0.0)}
    log.silence(held, {2}, 1.0, now=6.0, at=100.0)
    assert texts(log) == []
    for now in (7.0, 8.0):
        log.silence(held, {2}, 1.0, now=now, at=100.0)
    assert texts(log) == ["peer 1 has not been heard of for 7 s"]
    log.digest(digest, digest, "training", 101.0)
    assert texts(log)[1:] == ["peer 1 is heard of again"]
