"""The part of a simulated peer that accumulates: from the opening of a round to its close, as its closing policy decides."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from peer.gossip.algorithm import Algorithm, zeros
from peer.gossip.closing import ClosingPolicy, Deadline
from peer.gossip.effects import Accumulate, Accumulated
from peer.gossip.talk import Talk
from peer.gossip.words import Word
from peer.sim.device import Device
from peer.sim.world import World
from peer.training.accumulator import InFlight


class Accumulating(ABC):
    """gone: finished, stopped or dead: nothing happens to it any more."""

    __slots__ = (
        *("_accumulating", "_agenda", "_at", "_closed_at", "_computing", "_done", "_in_flight", "_opened_at"),
        *("_quota_seen", "_read", "_round_timeout", "_timed", "_wake_at", "_world"),
        *("algorithm", "device", "gone", "peer", "round", "talk"),
    )

    def __init__(
        self,
        peer: int,
        world: World,
        algorithm: Algorithm,
        device: Device,
        closing: ClosingPolicy,
        in_flight: InFlight,
        round_timeout: float,
    ) -> None:
        self.peer = peer
        self.round = 0
        self.gone = False
        self.device = device
        self.algorithm = algorithm
        self._world = world
        self._agenda = world.agenda
        self._at = world.agenda.at
        self._in_flight = in_flight
        self._round_timeout = round_timeout
        self._timed = isinstance(closing, Deadline)
        self.talk = Talk(
            peer,
            world.schedule,
            closing,
            self._tell,
            payload_means_closed=algorithm.sends_after_close,
            round_timeout=round_timeout,
            idle=algorithm.idle_peers,
        )
        self._read: Tensor = algorithm.state.params  # at which the round computes
        self._done: Accumulated | None = None
        self._wake_at = math.inf
        self._quota_seen: bool | None = False
        self._opened_at = self._closed_at = 0.0
        self._computing = self._accumulating = 0.0

    @abstractmethod
    def _tell(self, to: int, word: Word) -> bool: ...

    @abstractmethod
    def _is_away(self) -> bool:
        """Whether the score is at something else while the accumulation goes on."""

    @abstractmethod
    def _closed(self, done: Accumulated) -> None:
        """The round is closed."""

    def _accumulate(self, effect: Accumulate) -> None:
        now = self._opened_at = self._agenda.now
        self.talk.open(now)
        if not effect.computes:
            self._quota_seen = None
            self._decide()
            return
        self._quota_seen = False
        state = self.algorithm.state
        self._read = state.params.clone() if self.algorithm.moves_while_computing else state.params
        quota_at = self.device.open(self.round, now, self._read, state.samples_clock)
        self._at(quota_at if quota_at > now else now, self._quota, self.round)
        if self.talk.ahead >= 0 or self._timed or self._wake_at > now + self._round_timeout:
            self._decide()  # else nothing has happened yet that could end the round, and the next wake-up is set

    def _quota(self, round: int) -> None:
        if round == self.round and self.talk.is_open and not self.gone:
            self.device.quota_reached()
            self._quota_seen = True
            self._decide()

    def _wake(self, when: float) -> None:
        if when != self._wake_at or self.gone:
            return
        self._wake_at = math.inf
        if self.talk.is_open:
            self._decide()

    def _decide(self) -> None:
        if self._is_away():
            return  # asked again when it is back
        now = self._agenda.now
        reason, again = self.talk.decide(self._quota_seen, now)
        if reason is None:
            if again < self._wake_at:
                self._wake_at = again
                self._at(again, self._wake, again)
            return
        if self._in_flight is InFlight.DRAIN and self._quota_seen is not None:
            self._at(self.device.hold(now), self._close, self.round, str(reason))
        else:
            self._close(self.round, str(reason))

    def _close(self, round: int, reason: str) -> None:
        if self.gone:
            return
        now = self._closed_at = self._agenda.now
        self._accumulating += now - self._opened_at
        if self._quota_seen is None:
            done = Accumulated(zeros(0), 0, 0, 0.0, (), reason)
        else:
            self._computing += min(self.device.quota_at, now) - self._opened_at
            done = self.device.close(round, now, reason, self._read, self._in_flight)
        self._done = done
        if self.device.nonfinite_in_a_row and self._world.diverged(self):
            return
        self._closed(done)
