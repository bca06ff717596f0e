"""The thread that computes chunks beside the asyncio loop.

It and its host meet at chunk boundaries only. The host says `open` (here are the parameters of round k) and `close`
(give me what counts); the trainer says `notify` after each chunk. What counts where is decided by the `Accumulator`;
this file is one thread, one condition and the pacing of emulated time.

Rules
- Everything mutable is read and written under `_condition`, except the computer, which belongs to the thread. What the host asks
  from its event loop is shown in one frozen value, so that it never waits while a gradient is added.
- `notify` is called from the thread without the condition held, so it may call back.
- A chunk starts only if its round is still open after its parameters were copied: the copy then is x_k, whole.
- `close` never waits for a chunk; at most for one addition of a chunk's gradient [d] to the sum and one local step. A host with a
  large model calls it, and `open`, from a worker thread.
- With local steps (`peer/training/local_steps.py`) chunks are computed at y, which is the accumulator's: copied with the condition
  held when a round has opened and after every step.

Emulation: a chunk lasts chunk_seconds * factor(batch started in), or as long as it really takes if that is longer; with
chunk_seconds 0 the real time is stretched by the factor. Pauses come on top. A chunk that follows another without a gap
starts, nominally, when that one was to end: small oversleeps do not add up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from peer.gossip.effects import Accumulated
from peer.training.accumulator import Accumulator, Samples, Verdict
from peer.training.chunk import Chunk
from peer.training.data import Indices, SampleStream
from peer.training.stragglers import Slowness


@dataclass(frozen=True, slots=True)
class ChunkEvent:
    """What the trainer reports after each chunk.

    round: whose parameters it was computed at. verdict: what became of it, None if it failed. staleness: rounds between
    these parameters and the round it counts in. quota_done: the round it counts in has its quota. seconds: from started
    to finished, both on the trainer's clock (perf_counter). error: what the task raised; the trainer has stopped then.
    """

    round: int
    verdict: Verdict | None
    quota_done: bool
    staleness: int
    nonfinite_in_a_row: int
    num_samples: int
    loss_sum: float
    started: float
    finished: float
    error: BaseException | None = None

    @property
    def seconds(self) -> float:
        return self.finished - self.started


class Clock(Protocol):
    """Time as the trainer knows it; a test brings its own."""

    def now(self) -> float:
        """Seconds, never going back."""
        ...

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Wait, with the condition held, until it is notified or the seconds are over (None: no limit)."""
        ...


class Computer(Protocol):
    """What computes chunks: `ChunkComputer`, here or in a process of its own."""

    def load(self, params: Tensor) -> None: ...

    def compute(self, indices: Indices) -> Chunk: ...

    def close(self) -> None:
        """End what can be ended; called once nothing more is asked of it."""


class RealClock:
    """perf_counter."""

    def now(self) -> float:
        return time.perf_counter()

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        condition.wait(seconds)


@dataclass(frozen=True, slots=True)
class _Seconds:
    """Seconds computing and idle; one of the two goes on from the first `switched` until it is switched to None. `begin`: the time
    of that first one, or that it was given."""

    computing: float = 0.0
    idle: float = 0.0
    begin: float | None = None
    _state: str | None = None
    _since: float = 0.0

    def switched(self, state: str | None, now: float) -> _Seconds:
        computing, idle = self.until(now)
        return _Seconds(computing, idle, now if self.begin is None else self.begin, state, now)

    def until(self, now: float) -> tuple[float, float]:
        """(computing, idle) up to that time."""
        going_on = now - self._since
        return (
            self.computing + (going_on if self._state == "computing" else 0.0),
            self.idle + (going_on if self._state == "idle" else 0.0),
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the host may ask without waiting: as it was when the condition was last released."""

    quota_done: bool
    in_flight: bool
    samples: Samples
    seconds: _Seconds


@dataclass(frozen=True, slots=True)
class _Published:
    """Parameters [d] to be copied under their lock."""

    params: Tensor
    lock: AbstractContextManager[object]


@dataclass(frozen=True, slots=True)
class _Work:
    """A chunk that has been started. `begin` is its nominal start, `started` the real one; `number`: chunks started before it;
    `batch`: batches of full rounds before its own."""

    number: int
    round: int
    batch: int
    indices: Indices
    begin: float
    started: float


class Trainer:
    """Computes the chunks of open rounds in its own thread and keeps their sums; see the head of this file.

    chunk_seconds: nominal seconds per chunk, 0 for real time. notify: called from the thread after each chunk.
    """

    def __init__(
        self,
        computer: Computer,
        stream: SampleStream,
        accumulator: Accumulator,
        slowness: Slowness,
        chunk_seconds: float,
        notify: Callable[[ChunkEvent], None],
        clock: Clock | None = None,
    ) -> None:
        self._computer = computer
        self._stream = stream
        self._accumulator = accumulator
        self._slowness = slowness
        self._chunk_seconds = chunk_seconds
        self._notify = notify
        self._clock = clock or RealClock()
        self._condition = threading.Condition()
        self._seconds = _Seconds()
        self._origin: float | None = None
        self._show()
        self._published: _Published | None = None
        self._nominal_end: float | None = None
        self._holding = False
        self._num_started = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="trainer", daemon=True)

    def start(self) -> None:
        """Start the thread; it waits for the first `open`."""
        self._thread.start()

    def begin(self) -> None:
        """Training begins now: `seconds` count from here, and pauses. Without it, from the first `open`."""
        self._origin = self._clock.now()

    def stop(self, timeout: float) -> bool:
        """Interrupt an emulated chunk, abandon what was not handed out, and join; whether the thread has ended.

        A real computation can be interrupted only in a process of its own: else, if it outlasts `timeout` seconds, the daemon thread drops
        it later.
        """
        with self._held():
            self._halt()
            self._accumulator.abandon()
        self._computer.close()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def open(self, round: int, params: Tensor, lock: AbstractContextManager[object], samples_clock: int = 0) -> None:
        """Round `round` is open with these params [d], copied under `lock` when the next chunk starts; local steps copy them at once.

        They must stay as they are until the round is closed. A carried chunk in flight goes on undisturbed. samples_clock: of the
        learning rate, at these parameters.
        """
        with self._held():
            self._accumulator.open(round, params, samples_clock)
            self._publish(params, lock)
            self._holding = False
            if self._seconds.begin is None and not self._stopping:
                self._seconds = self._seconds.switched(
                    "idle", self._clock.now() if self._origin is None else self._origin
                )
            self._condition.notify_all()

    def close(self, round: int, reason: str) -> Accumulated:
        """End the round and take what counts in it, without waiting for a chunk in flight.

        carry: that chunk goes on. redo: it stops at once if it only sleeps, and its samples are computed again. drain:
        call `hold` first and wait until nothing is `in_flight`, else RuntimeError.
        """
        with self._held():
            accumulated = self._accumulator.close(round, reason)
            self._condition.notify_all()
            return accumulated

    def hold(self) -> bool:
        """Start no new chunk until the next `open`; whether one is in flight, whose event is still to come."""
        with self._condition:
            self._holding = True
            return self._accumulator.in_flight

    @property
    def in_flight(self) -> bool:
        return self._seen.in_flight

    @property
    def quota_chunks(self) -> int:
        """Chunks of a full round."""
        return self._accumulator.quota_chunks

    @property
    def quota_done(self) -> bool:
        """Whether the open round has its quota."""
        return self._seen.quota_done

    def revoke(self, num_samples: int, fate: str = "abandoned") -> None:
        """What the last `close` handed out was not applied after all: the exchange it was for is broken, or the step did without it."""
        with self._held():
            self._accumulator.revoke(num_samples, fate)

    @property
    def samples(self) -> Samples:
        """Samples by fate."""
        return self._seen.samples

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds (computing, idle), 0 before the first `open`; then they add up to the time since `begin` until now or until `stop`."""
        return self._seen.seconds.until(self._clock.now())

    def _run(self) -> None:
        while (work := self._next()) is not None:
            event = self._train(work)
            if event is not None:
                self._notify(event)

    def _next(self) -> _Work | None:
        """Wait until there is a chunk to compute and start it, with its parameters in place; None: stop."""
        while (begin := self._wait_for_work()) is not None:
            with self._condition:
                published, self._published = self._published, None
            if published is not None:
                with published.lock:
                    self._computer.load(published.params)
            with self._held():
                if self._has_work() and self._published is None:  # still the round that was copied
                    indices = self._stream.next()
                    self._accumulator.start_chunk(len(indices))
                    self._num_started += 1
                    number, round = self._num_started - 1, self._accumulator.round
                    batch = self._accumulator.batch(self._accumulator.pending_chunks)
                    return _Work(number, round, batch, indices, begin, self._clock.now())
        return None

    def _wait_for_work(self) -> float | None:
        """Idle until a chunk may start; its nominal start, or None: stop."""
        with self._held():
            while not self._stopping and not self._has_work():
                self._nominal_end = None
                if self._seconds.begin is not None:
                    self._switch("idle")
                self._show()
                self._clock.wait(self._condition, None)
            if self._stopping:
                return None
            if self._nominal_end is not None:
                return self._nominal_end
            return self._switch("computing")

    def _publish(self, params: Tensor, lock: AbstractContextManager[object]) -> None:
        """The next chunk is computed at these, or with local steps at y."""
        y = self._accumulator.local_params
        self._published = _Published(params, lock) if y is None else _Published(y, self._condition)

    def _has_work(self) -> bool:
        open_ = self._accumulator.is_open and not self._accumulator.quota_done
        return open_ and not self._holding and not self._stopping

    def _train(self, work: _Work) -> ChunkEvent | None:
        """Compute the chunk, let emulated time pass, and give it to the accumulator; None: stopped meanwhile."""
        try:
            chunk = self._computer.compute(work.indices)
            seconds = self._seconds_of(work, self._clock.now())
        except BaseException as error:  # whatever the task raises must reach the host
            with self._held():
                if self._stopping:
                    return None
                self._halt()
                self._accumulator.abandon_in_flight()
                return self._event(work, None, staleness=0, loss_sum=0.0, error=error)
        with self._held():
            self._emulate(work, seconds, self._clock.now())
            if self._stopping:
                return None
            staleness = self._accumulator.staleness
            verdict = self._accumulator.finish(chunk)
            if (y := self._accumulator.local_params) is not None and self._accumulator.between_batches:
                self._publish(y, self._condition)
            if verdict is Verdict.REDO:
                self._stream.push_back(work.indices)
                self._nominal_end = None
            return self._event(work, verdict, staleness, chunk.loss_sum)

    def _seconds_of(self, work: _Work, computed: float) -> float:
        """How long the chunk is to take. Raises TraceEnded."""
        return self._slowness.chunk_seconds(self._chunk_seconds or computed - work.started, work.batch, work.number)

    def _emulate(self, work: _Work, seconds: float, computed: float) -> None:
        """Sleep, interruptibly, until the chunk is to end."""
        origin = self._seconds.begin or 0.0
        deadline = origin + self._slowness.finish(work.begin - origin, seconds)
        self._nominal_end = max(deadline, computed)
        while not self._stopping and not self._accumulator.outlived:
            left = deadline - self._clock.now()
            if left <= 0:
                return
            self._clock.wait(self._condition, left)

    def _event(
        self, work: _Work, verdict: Verdict | None, staleness: int, loss_sum: float, error: BaseException | None = None
    ) -> ChunkEvent:
        return ChunkEvent(
            round=work.round,
            verdict=verdict,
            quota_done=self._accumulator.quota_done,
            staleness=staleness,
            nonfinite_in_a_row=self._accumulator.nonfinite_in_a_row,
            num_samples=len(work.indices),
            loss_sum=loss_sum,
            started=work.started,
            finished=self._clock.now(),
            error=error,
        )

    def _halt(self) -> None:
        """No chunk starts or counts any more; time stands still in the ledger."""
        self._stopping = True
        if self._seconds.begin is not None:
            self._switch(None)
        self._condition.notify_all()

    def _switch(self, state: str | None) -> float:
        """What the seconds from now on are; returns now."""
        now = self._clock.now()
        self._seconds = self._seconds.switched(state, now)
        return now

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The condition; what changed under it is shown when it is released."""
        with self._condition:
            try:
                yield
            finally:
                self._show()

    def _show(self) -> None:
        accumulator = self._accumulator
        self._seen = _Seen(accumulator.quota_done, accumulator.in_flight, accumulator.samples, self._seconds)
