"""What a head and its workers refuse of each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from peer.gossip.algorithm import Central, PeerState, RoundBroken, Update
from peer.gossip.algorithms.async_sgd import MOST_UNTOLD, AsyncSGD
from peer.gossip.algorithms.sync_sgd import SyncSGD
from peer.gossip.central import DIGIT, read_count, take_model, write_clock
from peer.gossip.effects import Accumulate, Accumulated, Both, Exchange, Gather, Inbox, Reply
from peer.gossip.round import advance
from tests.gossip.conductor import PlainSGD
from tests.gossip.test_contract import schedule_of

D = 5
NO_COUNTS = (0.5, -1.0, 1.5, math.nan, math.inf, 2.0 * DIGIT, 1e38)


@pytest.mark.parametrize("clock", [0, 1, DIGIT - 1, DIGIT, 123 * DIGIT + 7, DIGIT**2 - 1])
def test_a_clock_travels_exactly(clock: int) -> None:
    sent, params = torch.zeros(D + 2), torch.ones(D)
    write_clock(clock, sent[D:])
    assert take_model(0, sent, params) == clock
    assert torch.equal(params, torch.zeros(D))


@pytest.mark.parametrize("digits", [(-1.0, 0.0), (0.0, 0.5), (0.0, float(DIGIT)), (math.nan, 0.0), (0.0, math.inf)])
def test_what_is_no_clock_changes_nothing(digits: tuple[float, float]) -> None:
    params = torch.ones(D)
    with pytest.raises(RoundBroken, match="corrupt"):
        take_model(0, torch.tensor([0.0] * D + list(digits)), params)
    assert torch.equal(params, torch.ones(D))


@pytest.mark.parametrize("told", [(0, 9), (0, -1), (0, 0.5), (1, 0), (0, math.nan)])
def test_a_worker_believes_no_head_that_has_used_more_than_it_was_sent(told: tuple[float, float]) -> None:
    """8 samples were sent; and what a head has used does not become less."""
    params = torch.zeros(D)
    state = PeerState(1, 3, params, PlainSGD(params, 0.5), batch_size=4, weighting="peers")
    worker, schedule = AsyncSGD(state), schedule_of(AsyncSGD, 3)
    done = Accumulated(torch.ones(D), 4, 2, 6.0, (0, 0), "quota")
    for round, used in enumerate((0, 4)):
        score = worker.round(schedule.plan(round, 1))
        advance(score, None)
        advance(score, done)
        update = advance(score, Inbox({0: torch.tensor([1.0] * D + [0.0, 4.0, 0.0, used])}))
        assert isinstance(update, Update)
        assert update.accumulated[1:4] == ((4, 2, 6.0) if used else (0, 0, 0.0))
    score = worker.round(schedule.plan(2, 1))
    advance(score, None)
    advance(score, done._replace(num_samples=0))
    with pytest.raises(RoundBroken, match="corrupt"):
        advance(score, Inbox({0: torch.tensor([1.0] * D + [0.0, 4.0, *told])}))


@pytest.mark.parametrize("count", NO_COUNTS)
def test_what_is_no_count_is_none(count: float) -> None:
    assert read_count(torch.tensor([1.0, 2.0, count])) is None
    assert read_count(torch.tensor([math.nan, 2.0, 3.0])) is None
    assert read_count(torch.tensor([1.0, 2.0, 3.0])) == 3
    assert read_count(torch.tensor([1.0, 2.0, float(DIGIT)])) == DIGIT


@pytest.mark.parametrize("count", NO_COUNTS)
@pytest.mark.parametrize("weighting", ["samples", "peers"])
def test_a_head_of_rounds_steps_without_it(count: float, weighting: str) -> None:
    """Worker 2 sends a count that is none; the step is that of the others, and it is answered like them."""
    params = torch.zeros(D)
    state = PeerState(0, 3, params, PlainSGD(params, 0.5), batch_size=4, weighting=weighting)
    score = SyncSGD(state).round(schedule_of(SyncSGD, 3).plan(0, 0))
    step = advance(score, None)
    assert isinstance(step, Both)
    step = advance(score, (Accumulated(torch.full((D,), 4.0), 4, 4, 0.0, (0,), "quota"), Inbox({})))
    assert isinstance(step, Gather)
    good, bad = (torch.tensor([4.0] * D + [number]) for number in (4.0, count))
    step = advance(score, Inbox({2: bad, 1: good}))
    assert isinstance(step, Reply)
    assert step.send.keys() == {1, 2}
    assert step.send[2][D + 2 :].tolist() == [1, 1, 0], "it is told that its gradient was not used"
    step = advance(score, Inbox({}))
    assert isinstance(step, Update)
    assert step.lost == {2: "corrupt"}
    assert torch.equal(params, torch.full((D,), -0.5))
    assert state.samples_clock == 8


def leading() -> tuple[AsyncSGD, Tensor]:
    params = torch.zeros(D)
    state = PeerState(0, 3, params, PlainSGD(params, 0.5), batch_size=4, weighting="peers")
    return AsyncSGD(state), params


@pytest.mark.parametrize("count", NO_COUNTS)
@pytest.mark.parametrize("waiting", [0, 1])
def test_a_head_without_rounds_answers_and_does_not_step(count: float, waiting: int) -> None:
    head, params = leading()
    head.state.central = Central(simulate_staleness=waiting)
    score = head.round(schedule_of(AsyncSGD, 3).plan(0, 0))
    step = advance(score, None)
    good, bad = (torch.tensor([4.0] * D + [number, 0.0, 0.0, 0.0]) for number in (4.0, count))
    for worker, message in [(1, bad), (1, good), (2, good)]:
        assert isinstance(step, Gather)
        assert torch.equal(params, torch.zeros(D))
        step = advance(score, Inbox({worker: message.clone()}))
        assert isinstance(step, Reply)
        assert step.send[worker].isfinite().all()
        step = advance(score, Inbox({}))
        if isinstance(step, Update):
            break
    assert isinstance(step, Update)
    assert step.lost == {1: "corrupt"}
    assert torch.equal(params, torch.full((D,), -0.5))


def working() -> SyncSGD:
    params = torch.zeros(D)
    return SyncSGD(PeerState(1, 3, params, PlainSGD(params, 0.5), batch_size=4, weighting="samples"))


def sends_and_hears(worker: SyncSGD, round: int, answer: Inbox) -> object:
    """What is left of a round of a worker that computes and sends."""
    score = worker.round(schedule_of(SyncSGD, 3).plan(round, 1))
    assert isinstance(advance(score, None), Accumulate)
    assert isinstance(advance(score, Accumulated(torch.ones(D), 4, 4, 0.0, (0,), "quota")), Exchange)
    return advance(score, answer)


@pytest.mark.parametrize("why", ["declined", "stale"])
def test_a_worker_goes_on_if_its_head_is_past_the_round_or_gave_it_up(why: str) -> None:
    worker = working()
    update = sends_and_hears(worker, 0, Inbox({0: model_of(0)}))
    assert isinstance(update, Update)
    update = sends_and_hears(worker, 1, Inbox({}, {0: why}))
    assert isinstance(update, Update)
    assert (update.lost, update.dropped, update.accumulated.num_samples) == ({0: why}, 4, 0)
    missed = advance(worker.round(schedule_of(SyncSGD, 3).plan(2, 1)), None)
    assert isinstance(missed, Exchange), "without x(2) there is nothing to compute at"


@pytest.mark.parametrize("why", ["link_down", "deadline", "left", "suspect", "corrupt", "restarted"])
def test_a_worker_ends_if_its_head_is_lost(why: str) -> None:
    with pytest.raises(RoundBroken) as broken:
        sends_and_hears(working(), 0, Inbox({}, {0: why}))
    assert (broken.value.peer, broken.value.reason, broken.value.needs) == (0, why, "its head")


def model_of(round: int) -> Tensor:
    """What the head of three answers: x, the clock in two digits, whose gradient was used."""
    return torch.tensor([float(round)] * D + [0.0, 4.0] + [1.0, 1.0, 1.0])


@pytest.mark.parametrize(("told", "ends_after"), [(0, MOST_UNTOLD + 3), (4, None), (4 * 10**6, 1)])
def test_what_a_worker_keeps_of_its_gradients_is_bounded(told: int, ends_after: int | None) -> None:
    """Its head says of none, of each, or of more than were sent that they are in updates."""
    params = torch.zeros(D)
    central = Central(simulate_staleness=2)
    state = PeerState(1, 3, params, PlainSGD(params, 0.5), batch_size=4, weighting="samples", central=central)
    worker, samples = AsyncSGD(state), 0
    for round in range(1, MOST_UNTOLD + 10):
        score = worker.round(schedule_of(AsyncSGD, 3).plan(round, 1))
        assert isinstance(advance(score, None), Accumulate)
        assert isinstance(advance(score, Accumulated(torch.ones(D), 4, 4, 0.0, (0,), "quota")), Exchange)
        samples += told
        answer = torch.zeros(D + 4)
        write_clock(samples, answer[D + 2 :])
        if round == ends_after:
            with pytest.raises(RoundBroken, match="corrupt"):
                advance(score, Inbox({0: answer}))
            return
        update = advance(score, Inbox({0: answer}))
        assert isinstance(update, Update)
        assert update.accumulated.num_samples == told
    assert ends_after is None
