"""Votes and aborts that come before their exchange is opened."""

from __future__ import annotations

from peer.transport.base import ExchangeKey as K
from peer.transport.base import LossReason
from peer.transport.early import MAX_EARLY, Early


def test_what_came_early_is_taken_once_and_what_lies_before_is_forgotten() -> None:
    early = Early()
    for round_ in range(3):
        assert early.vote(K(round_, 0))
        assert early.abort(K(round_, 1), LossReason.DECLINED)
    assert early.take(K(1, 1)) == (LossReason.DECLINED, False)
    assert early.take(K(1, 0)) == (None, False)
    assert not early.is_aborted(K(0, 1))
    assert early.take(K(2, 0)) == (None, True)
    assert early.take(K(2, 1)) == (LossReason.DECLINED, False)
    assert early.take(K(2, 1)) == (None, False)


def test_it_is_bounded() -> None:
    early = Early()
    for round_ in range(MAX_EARLY):
        assert early.vote(K(round_, 0))
        assert early.abort(K(round_, 0), LossReason.STALE)
    assert not early.vote(K(MAX_EARLY, 0))
    assert not early.abort(K(MAX_EARLY, 0), LossReason.STALE)
    early.forget(before=K(1, 0))
    assert early.vote(K(MAX_EARLY, 0))
    early.clear()
    assert early.take(K(MAX_EARLY, 0)) == (None, False)
