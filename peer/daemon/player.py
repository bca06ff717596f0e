"""Plays one peer's rounds: carries out the effects of the score with the trainer thread and the transport.

The event loop never computes: mathematics between two effects runs on a worker thread, unless the vector is so small (worker.py) that
the hand-over would cost more. Nothing here waits for a peer without a deadline.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peer.accounts.exchanges import Exchanges
from peer.accounts.ledger import Ledger
from peer.daemon.conversation import Conversation
from peer.daemon.exchanging import Exchanging, UnderWay
from peer.daemon.gathering import Gathering
from peer.daemon.playing import Master, Rules, Stopped, Stopwatch
from peer.daemon.waits import Waits
from peer.daemon.worker import Worker
from peer.gossip.algorithm import Algorithm, RoundBroken, Score, Update, zeros
from peer.gossip.closing import CloseReason
from peer.gossip.delivery import NeighborDeadlines
from peer.gossip.effects import (
    Accumulate,
    Accumulated,
    Answer,
    Both,
    Effect,
    Either,
    Exchange,
    Gather,
    Inbox,
    Meanwhile,
    Reply,
)
from peer.gossip.round import RoundReport, advance
from peer.training.accumulator import InFlight
from peer.training.trainer import Trainer
from peer.transport.base import ExchangeHandle, ExchangeKey, LossReason, Outcome, Transport
from topology import Schedule

if TYPE_CHECKING:
    from peer.daemon.spans import PeerSpans


class RoundPlayer:
    """One peer's rounds, one after the other."""

    def __init__(
        self,
        algorithm: Algorithm,
        schedule: Schedule,
        trainer: Trainer,
        transport: Transport,
        said: Conversation,
        rules: Rules,
    ) -> None:
        self.ledger = Ledger(trainer.quota_chunks)
        self.spans: PeerSpans | None = None
        self.exchanges = Exchanges()
        self.waits = Waits()
        self.master = Master(algorithm.state.params, threading.Lock())
        self._algorithm = algorithm
        self._schedule = schedule
        self._trainer = trainer
        self._transport = transport
        self._said = said
        self._rules = rules
        self.off_loop = Worker(algorithm.state.params.numel(), algorithm.state.wire.work)
        self._deadlines = NeighborDeadlines(rules.bounds)
        self._handed_out = 0  # samples closed in this round, not yet applied
        self._loop = asyncio.get_running_loop()
        self._origin = time.monotonic()
        self._stop = False
        self._accumulating_since: float | None = None
        if not algorithm.has_rounds:
            said.asked = {}
        self._settled = asyncio.Event()  # wakes who waits for exchanges
        self._exchanging = Exchanging(transport, said, self.off_loop, algorithm.state.params.numel(), self._begun)
        self._gathering = Gathering(transport, said, said.stirred.set, self._begun)

    def request_stop(self) -> None:
        """End the current round as soon as possible; `play` raises Stopped."""
        self._stop = True
        self._gathering.abandon()  # who waits for an answer gets none
        self._settled.set()
        self._said.stirred.set()

    @property
    def num_inboxes(self) -> int:
        """Receive buffers made so far."""
        return self._exchanging.num_inboxes

    def close(self) -> None:
        self.off_loop.close()

    async def snapshot(self) -> tuple[int, Tensor]:
        """(rounds finished, a consistent copy [d] of the parameters)."""

        def copy() -> tuple[int, Tensor]:
            with self.master.lock:
                return self.master.rounds, self.master.params.clone()

        return await self.off_loop(copy)

    def start(self) -> None:
        """Training begins now: times in reports count from here."""
        self._origin = time.monotonic()

    async def play(self, round: int) -> RoundReport:
        """Play one round. Raises Stopped, or RoundBroken from the algorithm."""
        plan = self._schedule.plan(round, self._said.peer)
        self._said.round = round
        if self._algorithm.has_rounds:
            self._transport.advance(ExchangeKey(round, 0))
        clock = Stopwatch(self._origin)
        score = self._algorithm.round(plan)
        self._handed_out = 0
        if self.spans is not None:
            self.spans.round_begins(round)
        try:
            step = await self._advance(score, None, clock)
            while not isinstance(step, Update):
                answer = await self._carry_out(round, step, clock)
                step = await self._advance(score, answer, clock)
            if step.dropped:
                self._trainer.revoke(step.dropped, "dropped")
        except (Stopped, RoundBroken) as broken:
            self._trainer.revoke(self._handed_out)
            self._gathering.abandon()
            if self.spans is not None:
                self.spans.round_broken(broken)
            raise
        except BaseException:
            self._trainer.revoke(self._handed_out)
            self._gathering.abandon()
            raise
        report = RoundReport.of(plan, step, self._said.talk, clock.timing())
        self.ledger.add(report)
        if self.spans is not None:
            self.spans.round_ends(report)
        return report

    async def _advance(self, score: Score, answer: Answer | None, clock: Stopwatch) -> Effect | Update:
        def work() -> Effect | Update:
            with self.master.lock, torch.no_grad():
                step = advance(score, answer)
                effect = step.exchange if isinstance(step, Both) else step
                if isinstance(effect, Exchange):
                    self._exchanging.prepare(effect)
                self.master.rounds += isinstance(step, Update)
                return step

        spans = self.spans
        began = spans.now() if spans is not None else 0
        started = clock.now()
        step = await self.off_loop(work)
        clock.mixing += clock.now() - started
        if spans is not None:
            spans.mixed(began)
        return step

    async def _carry_out(self, round: int, effect: Effect, clock: Stopwatch) -> Answer:
        if isinstance(effect, Accumulate):
            return await self._accumulate(round, effect, clock)
        if isinstance(effect, Exchange):
            return await self._settle(effect, self._exchanging.open(round, effect), clock)
        if isinstance(effect, Gather):
            self._gathering.open(round, effect)
            return await self._gather(effect, clock)
        if isinstance(effect, Reply):
            return await self._reply(effect, clock)
        if isinstance(effect, Either):
            return await self._either(round, effect, clock)
        if isinstance(effect.exchange, Gather):
            self._gathering.open(round, effect.exchange)
            return await self._accumulate(round, effect.accumulate, clock), await self._gather(effect.exchange, clock)
        under_way = self._exchanging.open(round, effect.exchange)
        try:
            done = await self._accumulate(round, effect.accumulate, clock)
        except BaseException:
            under_way.abandon()
            raise
        return done, await self._settle(effect.exchange, under_way, clock)

    # Accumulate

    async def _accumulate(self, round: int, effect: Accumulate, clock: Stopwatch) -> Accumulated:
        self._said.open()
        opened_at = clock.now()
        if not effect.computes:
            reason, _ = await self._until_closed(clock, computes=False)
            clock.accumulating += clock.now() - opened_at
            return Accumulated(zeros(0), 0, 0, 0.0, (), str(reason))
        x, clock_at = self.master, self._algorithm.state.samples_clock
        await self.off_loop(lambda: self._trainer.open(round, x.params, x.lock, clock_at))
        reason, computed_until = await self._until_closed(clock)
        if self._rules.in_flight is InFlight.DRAIN and await self._drained():
            computed_until = clock.now()
        clock.computing += computed_until - opened_at
        clock.accumulating += clock.now() - opened_at
        done = await self.off_loop(lambda: self._trainer.close(round, str(reason)))
        self._handed_out = done.num_samples
        return done

    async def _either(self, round: int, effect: Either, clock: Stopwatch) -> Meanwhile:
        """Without a deadline but that of the round: nobody is waited for."""
        gathering = self._gathering
        if self._accumulating_since is None:
            self._said.open()
            self._accumulating_since = clock.now() - clock.mixing
            x, clock_at = self.master, self._algorithm.state.samples_clock
            await self.off_loop(lambda: self._trainer.open(round, x.params, x.lock, clock_at))
        while True:
            self._said.stirred.clear()
            self._check_stop()
            gathering.open(round, effect.gather)
            if gathering.has_any(effect.gather.enough):
                return Meanwhile(None, gathering.inbox())
            reason, ask_again_at = self._said.decide(self._trainer.quota_done)
            if reason is not None:
                break
            await self._stirred_until(ask_again_at)
        done = await self.off_loop(lambda: self._trainer.close(round, str(reason)))
        clock.accumulating = clock.now() - clock.mixing - self._accumulating_since
        clock.computing = clock.accumulating
        self._accumulating_since = None
        self._handed_out = done.num_samples
        return Meanwhile(done, gathering.losses())

    async def _until_closed(self, clock: Stopwatch, *, computes: bool = True) -> tuple[CloseReason, float]:
        """(why the round closes, when the own quota was done or, if it is not, now)."""
        computed_until: float | None = None
        with self.waits:
            while True:
                self._said.stirred.clear()
                self._check_stop()
                own_done = self._trainer.quota_done if computes else None
                if own_done is not False:
                    self.waits.on(self._said.talk.silent)
                    computed_until = (computed_until or clock.now()) if own_done else None
                reason, ask_again_at = self._said.decide(own_done)
                if reason is not None:
                    return reason, computed_until or clock.now()
                await self._stirred_until(ask_again_at)

    async def _drained(self) -> bool:
        """Wait until no chunk is in flight; whether one was."""
        was_in_flight = self._trainer.hold()
        while self._trainer.in_flight:
            self._said.stirred.clear()
            self._check_stop()
            if not self._trainer.in_flight:
                break
            await self._said.stirred.wait()
        return was_in_flight

    async def _stirred_until(self, when: float) -> None:
        timer = self._loop.call_at(when, self._said.stirred.set)
        try:
            await self._said.stirred.wait()
        finally:
            timer.cancel()

    def _check_stop(self) -> None:
        if self._stop:
            raise Stopped

    # Exchange

    def _begun(self, peer: int, key: ExchangeKey, effect: Exchange, handle: ExchangeHandle) -> None:
        def over(outcome: asyncio.Future[Outcome]) -> None:
            if outcome.result().lost is None:
                self.exchanges.done(peer, outcome.result().seconds)

        handle.outcome.add_done_callback(over)
        if self.spans is not None:
            self.spans.exchange(peer, key, effect, handle)

    async def _settle(self, effect: Exchange, under_way: UnderWay, clock: Stopwatch) -> Inbox:
        started = clock.now()
        try:
            await self._all_over(under_way.handles)
            await under_way.finish()
        except BaseException:
            under_way.abandon()
            raise
        vectors: dict[int, Tensor] = {}
        lost = dict(under_way.lost)
        last, longest = -1, -1.0
        for peer, handle in under_way.handles.items():
            outcome = handle.outcome.result()
            if outcome.seconds > longest:
                last, longest = peer, outcome.seconds
            if outcome.lost is None:
                if not self._algorithm.is_patient_with(peer):
                    self._deadlines.observe(peer, max(under_way.opened_at + outcome.seconds - started, 0.0))
                if peer in effect.receive:
                    vectors[peer] = under_way.inboxes[peer]
                continue
            lost[peer] = str(outcome.lost)
            self._said.lost(peer, outcome.lost)
        waited = clock.now() - started
        clock.exchanging += waited
        if last >= 0:
            self.exchanges.over(last, waited)
        self._check_stop()
        return Inbox(vectors, lost)

    async def _gather(self, effect: Gather, clock: Stopwatch) -> Inbox:
        """Wait for vectors enough; give up those whose deadline passes, and all of them on a stop."""
        gathering, started = self._gathering, clock.now()
        last = -1
        with self.waits.on(lambda: gathering.expected):
            while not gathering.has(effect.enough):
                self._said.stirred.clear()
                gathering.leave_out_who_left()
                gives_up = {j: started + self.deadline_seconds(j) for j in gathering.expected}
                now = clock.now()
                for peer in [j for j in gives_up if self._stop or now >= gives_up[j]]:
                    gathering.give_up(peer, LossReason.LEFT if self._stop else LossReason.DEADLINE)
                self._check_stop()
                if gathering.expected and not gathering.has(effect.enough):
                    await self._stirred_until(min(gives_up.values()))
        for peer, arrived_at in gathering.newly_arrived():
            self._deadlines.observe(peer, max(arrived_at - started, 0.0))
            last = peer
        waited = clock.now() - started
        clock.exchanging += waited
        if last >= 0:
            self.exchanges.over(last, waited)
        self._check_stop()
        return gathering.inbox()

    async def _reply(self, effect: Reply, clock: Stopwatch) -> Inbox:
        started = clock.now()
        handles = self._gathering.reply(effect)
        if effect.waits:
            await self._all_over(handles)
            self._gathering.settled(handles)
        if self._accumulating_since is None:  # else it hides behind the computation
            clock.exchanging += clock.now() - started
        self._check_stop()
        return self._gathering.losses()

    async def _all_over(self, handles: Mapping[int, ExchangeHandle]) -> None:
        """Wait until every exchange has its outcome; give up those whose deadline passes, and all of them on a stop."""
        closed_at = self._loop.time()
        until = {peer: closed_at + self.deadline_seconds(peer) for peer, h in handles.items() if not h.outcome.done()}
        waiting = len(until)

        def one_less(_: asyncio.Future[Outcome]) -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self._settled.set()

        for peer in until:
            handles[peer].outcome.add_done_callback(one_less)
        with self.waits.on(lambda: [peer for peer in handles if not handles[peer].outcome.done()]):
            while waiting:
                self._settled.clear()
                now = self._loop.time()
                for peer in [j for j in sorted(until) if self._stop or now >= until[j]]:
                    handles[peer].give_up(LossReason.LEFT if self._stop else LossReason.DEADLINE)
                    del until[peer]
                timer = self._loop.call_at(min(until.values()), self._settled.set) if until else None
                await self._settled.wait()
                if timer is not None:
                    timer.cancel()

    def deadline_seconds(self, peer: int) -> float:
        """How long that peer would be waited for if the round closed now."""
        if self._algorithm.is_patient_with(peer):
            return max(self._rules.bounds.most, self._rules.round_timeout)
        return self._deadlines.seconds(peer, self.ledger.typical_round_seconds)
