"""AD-PSGD has no deadlock: every interleaving of small graphs, played with the real scores (Lian et al. 2018, arXiv 1710.06952).

What can happen next is one of: a peer begins a round and chooses a partner; its own gradient is done; a request is taken by a peer that
computes; the answer arrives; its vote arrives; an edge is lost; a partner is known to be away, and another is asked. Scores are generators
and can't be copied, so a state is reached again by playing its events from the beginning.
"""

from __future__ import annotations

from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from peer.gossip.algorithm import PeerState, Score, Update
from peer.gossip.algorithms.ad_psgd import ADPSGD
from peer.gossip.effects import Accumulated, Answer, Effect, Either, Exchange, Inbox, Meanwhile, Reply
from peer.gossip.round import advance
from tests.gossip.conductor import PlainSGD
from topology import PairSchedule, RoundPlan, build

Event: TypeAlias = tuple[str, int, int]
Asks = dict[int, tuple[int, ...]]  # whom a peer may ask


class World:
    """Peers that have reached some point. Whoever has done its rounds computes for ever, and still answers."""

    def __init__(self, asks: Asks, rounds: int, losses: int) -> None:
        self.peers = [ADPSGD(_state(i, len(asks))) for i in range(len(asks))]
        self.rounds = [0] * len(asks)
        self.start = self.total()
        self._asks = asks
        self._num_rounds = rounds
        self._losses = losses
        self._scores: list[Score | None] = [None] * len(asks)
        self._steps: list[Effect | Update | None] = [None] * len(asks)
        self._votes: set[tuple[int, int]] = set()  # (asker, answerer): the answer has come, the vote not

    def total(self) -> Tensor:
        return torch.stack([peer.state.params for peer in self.peers]).double().sum(0)

    @property
    def over(self) -> bool:
        return all(done >= self._num_rounds for done in self.rounds) and all(
            isinstance(step, Either) for step in self._steps
        )

    @property
    def settled(self) -> bool:
        """Nobody has half of an averaging."""
        return not self._votes

    def key(self) -> tuple[object, ...]:
        names = tuple((type(step).__name__, self._partner(i)) for i, step in enumerate(self._steps))
        return names, tuple(self.rounds), tuple(sorted(self._votes)), self._losses

    def _partner(self, i: int) -> int:
        step = self._steps[i]
        return next(iter(step.send)) if isinstance(step, Exchange | Reply) else -1

    def events(self) -> list[Event]:
        found: list[Event] = []
        for i, step in enumerate(self._steps):
            if step is None:
                found += [("begin", i, j) for j in self._asks[i] or (-1,)]
            elif isinstance(step, Either) and self.rounds[i] < self._num_rounds:
                found.append(("done", i, -1))
            elif isinstance(step, Exchange):
                found += self._of_asker(i, self._partner(i))
        return found + [("vote", i, j) for i, j in self._votes]

    def _of_asker(self, i: int, j: int) -> list[Event]:
        found: list[Event] = [("lose", i, j)] if self._losses else []
        if isinstance(self._steps[j], Either):
            found.append(("take", i, j))
        if isinstance(self._steps[j], Reply) and self._partner(j) == i and (i, j) not in self._votes:
            found.append(("answer", i, j))
        elif self._losses:
            found.append(("away", i, j))
        return found

    def happens(self, event: Event) -> None:
        kind, i, j = event
        mine, theirs = self.peers[i].state.params, self.peers[j].state.params
        if kind == "begin":
            neighbors = (j,) if j >= 0 else ()
            instead = tuple(other for other in self._asks[i] if other != j)
            asked_by = tuple(other for other, asks in self._asks.items() if i in asks)
            plan = RoundPlan(self.rounds[i], i, neighbors, (0.5,) * len(neighbors), 0.5, (), instead, asked_by)
            self._scores[i] = self.peers[i].round(plan)
            self._go_on(i, None)
        elif kind == "done":
            nothing = Accumulated(torch.zeros(2), 0, 0, 0.0, (), "quota")
            self._go_on(i, Meanwhile(nothing, Inbox({})))
        elif kind == "take":
            waiting = self._steps[j]
            assert isinstance(waiting, Either)
            assert i in waiting.gather.receive, "whoever may ask is answered"
            self._go_on(j, Meanwhile(None, Inbox({i: mine.clone()})))
        elif kind == "answer":
            self._votes.add((i, j))
            self._go_on(i, Inbox({j: theirs.clone()}))
        elif kind == "vote":
            self._votes.discard((i, j))
            self._go_on(j, Inbox({}))
        elif kind == "away":
            self._losses -= 1
            self._go_on(i, Inbox({}, {j: "suspect"}))
        else:
            self._losses -= 1
            if isinstance(self._steps[j], Reply) and self._partner(j) == i and (i, j) not in self._votes:
                self._go_on(j, Inbox({}, {i: "declined"}))
            self._go_on(i, Inbox({}, {j: "deadline"}))

    def _go_on(self, i: int, answer: Answer | None) -> None:
        score = self._scores[i]
        assert score is not None
        step = self._steps[i] = advance(score, answer)
        if isinstance(step, Update):
            self.rounds[i] += 1
            self._steps[i] = None


def _state(i: int, n: int) -> PeerState:
    params = torch.randn(2, generator=torch.Generator().manual_seed(i))
    return PeerState(i, n, params, PlainSGD(params, 0.1), batch_size=4, weighting="peers")


def explore(asks: Asks, rounds: int, losses: int = 0) -> tuple[int, list[list[Event]]]:
    """(states, the events that led to each state in which nothing can happen any more and that is not the end)."""
    seen: set[tuple[object, ...]] = set()
    stuck, border = [], [[]]  # type: ignore[var-annotated]
    while border:
        played = border.pop()
        world = World(asks, rounds, losses)
        for event in played:
            world.happens(event)
        if world.key() in seen:
            continue
        seen.add(world.key())
        if world.settled:
            assert torch.allclose(world.total(), world.start, atol=1e-5), played
        events = world.events()
        if not events and not world.over:
            stuck.append(played)
        border += [[*played, event] for event in events]
    return len(seen), stuck


def asks_of(edges: list[tuple[int, int]], n: int) -> Asks:
    """By the rule: neighbours of higher id."""
    return {i: tuple(b for a, b in edges if a == i) for i in range(n)}


GRAPHS = {
    "triangle": (3, [(0, 1), (0, 2), (1, 2)]),
    "path": (3, [(0, 1), (1, 2)]),
    "path with the middle first": (3, [(0, 1), (0, 2)]),
    "ring of four": (4, [(0, 1), (0, 3), (1, 2), (2, 3)]),
    "star of four": (4, [(0, 3), (1, 3), (2, 3)]),
}


@pytest.mark.parametrize(
    "graph", [pytest.param(name, marks=pytest.mark.slow if n == 4 else ()) for name, (n, _) in GRAPHS.items()]
)
def test_no_interleaving_is_stuck_and_every_averaging_keeps_the_mean(graph: str) -> None:
    """With at most one edge lost."""
    n, edges = GRAPHS[graph]
    states, stuck = explore(asks_of(edges, n), rounds=2 if n == 3 else 1, losses=1)
    assert states > 30
    assert not stuck, stuck[0]


def test_without_the_order_of_ids_there_is_a_deadlock_and_it_is_found() -> None:
    _, stuck = explore({0: (1,), 1: (2,), 2: (0,)}, rounds=1)
    assert stuck
    assert any({("begin", 0, 1), ("begin", 1, 2), ("begin", 2, 0)} <= set(events) for events in stuck)


def test_in_the_place_of_who_is_away_another_is_asked_and_only_then() -> None:
    for reason, asked in [("suspect", 2), ("left", 2), ("deadline", -1), ("link_down", 2)]:
        world = World({0: (1, 2), 1: (), 2: ()}, 1, 0)
        world.happens(("begin", 0, 1))
        world.happens(("done", 0, -1))
        assert world._partner(0) == 1
        world._go_on(0, Inbox({}, {1: reason}))
        assert world._partner(0) == asked
        assert world.rounds[0] == (asked < 0)


@pytest.mark.parametrize("topology", ["ring", "star", "complete", "exponential", "torus"])
def test_whoever_asks_asks_a_neighbor_of_higher_id_and_in_time_all_of_them(topology: str) -> None:
    graph = build(topology, 9)
    schedule = PairSchedule(graph, seed=2)
    for peer in range(9):
        chosen = {j for k in range(200) for j in schedule.plan(k, peer).neighbors}
        assert chosen == {j for j in graph.neighbors(peer) if j > peer}
    assert schedule.digest() != PairSchedule(graph, seed=3).digest()


def test_a_vector_that_makes_no_sense_is_not_averaged_with_by_either() -> None:
    world = World({0: (1,), 1: ()}, 1, 0)
    world.peers[1].state.params[0] = torch.nan
    before = world.peers[0].state.params.clone()
    for event in [("begin", 0, 1), ("begin", 1, -1), ("done", 0, -1), ("take", 0, 1), ("answer", 0, 1), ("vote", 0, 1)]:
        world.happens(event)
    assert torch.equal(world.peers[0].state.params, before)
    assert world.rounds == [1, 0]
