"""Things happen in the order of time, then of their making."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from peer.sim.events import Agenda


@given(st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, math.inf])), st.data())
def test_the_order_is_that_of_time_then_of_making(times: list[float], data: st.DataObject) -> None:
    agenda = Agenda()
    made: list[tuple[float, int]] = []
    happened: list[tuple[float, int]] = []

    def plan(when: float) -> None:
        made.append((when, len(made)))
        agenda.at(when, happen, *made[-1])

    def happen(when: float, number: int) -> None:
        assert agenda.now == when
        happened.append((when, number))
        if len(made) < 50 and data.draw(st.booleans()):
            plan(when + data.draw(st.sampled_from([0.0, 0.5, 3.0])))

    for when in times:
        plan(when)
    agenda.play()
    finite = [event for event in made if event[0] < math.inf]
    assert happened == sorted(finite)
    assert agenda.num_events == len(finite)
    assert len(agenda) == 0


def test_what_is_stopped_goes_on_where_it_was() -> None:
    agenda = Agenda()
    happened: list[int] = []

    def happen(number: int) -> None:
        happened.append(number)
        agenda.stopped = number in (1, 3)

    for number, when in enumerate((1.0, 1.0, 1.0, 2.0, 2.0)):
        agenda.at(when, happen, number)
    agenda.play()
    assert happened == [0, 1]
    assert (len(agenda), agenda.num_events, agenda.now) == (3, 5, 1.0)
    agenda.stopped = False
    agenda.play()
    assert happened == [0, 1, 2, 3]
    assert (len(agenda), agenda.now) == (1, 2.0)
