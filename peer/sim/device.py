"""One peer's trainer in virtual time: which chunks are finished when, without an event for each of them.

The rules are those of peer/training/trainer.py. Chunks follow each other without a gap while the round is open and its quota is not
done; a chunk in flight at the close is carried, redone or drained. Because a device's speed within a round is known beforehand,
everything follows from two times: when the round opened and when it closed. Gradients are computed at the close, at the parameters
that were read at the opening, or with local steps at those that the peer's own steps lead to; sums and steps are those of the daemon's
own `Accumulator`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from peer.gossip.effects import Accumulated
from peer.sim.assistant import Assistant, Request
from peer.training.accumulator import Accumulator, InFlight, Samples
from peer.training.chunk import Chunk, ChunkComputer
from peer.training.data import Indices, SampleStream
from peer.training.stragglers import Slowness, TraceEnded


class Gradients(Protocol):
    """Where chunks come from. A chunk is valid until the next is computed, except that of `one`."""

    def expect(self, params: Tensor, num_chunks: int) -> None:
        """A round opens at these parameters [d], which do not change before its chunks are asked for: at most so many."""

    def chunks(self, params: Tensor, num_chunks: int) -> Iterable[tuple[int, Chunk]]:
        """The next chunks at these parameters [d], as (how many, their sum)."""

    def forget(self) -> None:
        """What was expected will not be asked for."""

    def one(self, params: Tensor) -> Chunk:
        """The next chunk, to be kept."""

    def skip(self) -> int:
        """The next chunk is begun and will be redone: its samples come again. Returns their number."""


class RealGradients:
    """Of a task. Without `fuse`, chunk by chunk and so bit for bit as the daemon computes them. With it, all chunks of a round that are
    begun at the same parameters in one pass: the same sum up to rounding, and much faster. Only then may an assistant compute them."""

    def __init__(
        self, computer: ChunkComputer, stream: SampleStream, *, fuse: bool, assistant: Assistant | None = None
    ) -> None:
        self._computer = computer
        self._stream = stream
        self._fuse = fuse
        self._assistant = assistant if fuse else None
        self._drawn: deque[Indices] = deque()  # the next chunks' samples, as far as they have been looked at
        self._asked: tuple[int, Request | None] = (0, None)
        self._last_two = (0, 0)  # how many chunks were done in each of the last two rounds

    def expect(self, params: Tensor, num_chunks: int) -> None:
        self.forget()
        before, last = self._last_two
        if self._assistant is not None and before == last and 0 < last <= num_chunks:
            while len(self._drawn) < last:
                self._drawn.append(self._stream.next())
            indices: Indices = np.concatenate(list(islice(self._drawn, last)))
            self._asked = last, self._assistant.ask(params, indices)

    def chunks(self, params: Tensor, num_chunks: int) -> Iterable[tuple[int, Chunk]]:
        self._last_two = self._last_two[1], num_chunks
        ahead = self._computed_ahead(num_chunks)
        if not num_chunks:
            return
        samples = [self._next() for _ in range(num_chunks)]
        if ahead is not None:
            yield num_chunks, ahead
            return
        self._computer.load(params)
        if self._fuse:
            yield num_chunks, self._computer.compute(np.concatenate(samples))
            return
        for indices in samples:
            yield 1, self._computer.compute(indices)

    def _computed_ahead(self, num_chunks: int) -> Chunk | None:
        (expected, request), self._asked = self._asked, (0, None)
        if self._assistant is None or request is None:
            return None
        if expected == num_chunks:
            return self._assistant.take(request)
        self._assistant.drop(request)
        return None

    def forget(self) -> None:
        self._computed_ahead(0)

    def one(self, params: Tensor) -> Chunk:
        self._computer.load(params)
        chunk = self._computer.compute(self._next())
        return Chunk(chunk.gradient.clone(), chunk.num_samples, chunk.loss_sum, chunk.finite)

    def skip(self) -> int:
        indices = self._next()
        self._drawn.appendleft(indices)
        return len(indices)

    def _next(self) -> Indices:
        return self._drawn.popleft() if self._drawn else self._stream.next()


class NoGradients:
    """Only time passes."""

    def __init__(self, chunk_samples: int) -> None:
        self._chunk_samples = chunk_samples
        self._nothing = torch.zeros(0)
        self._made: dict[int, list[tuple[int, Chunk]]] = {0: []}

    def expect(self, params: Tensor, num_chunks: int) -> None:
        return None

    def forget(self) -> None:
        return None

    def chunks(self, params: Tensor, num_chunks: int) -> Iterable[tuple[int, Chunk]]:
        made = self._made.get(num_chunks)
        if made is None:
            chunk = Chunk(self._nothing, num_chunks * self._chunk_samples, 0.0, True)
            made = self._made[num_chunks] = [(num_chunks, chunk)]
        return made

    def one(self, params: Tensor) -> Chunk:
        return Chunk(self._nothing, self._chunk_samples, 0.0, True)

    def skip(self) -> int:
        return self._chunk_samples


class Device:
    """Times in seconds since the run's start. chunk_seconds: nominal time of a chunk."""

    __slots__ = (
        "_accumulator",
        "_always_alike",
        "_begin",
        "_carried",
        "_carried_end",
        "_chunk_seconds",
        "_closed",
        "_computing",
        "_each",
        "_ends",
        "_gradients",
        "_held",
        "_need",
        "_num_started",
        "_opened",
        "_per_chunk",
        "_slowness",
        "_trace_ended",
        "quota_at",
    )

    def __init__(
        self, gradients: Gradients, accumulator: Accumulator, slowness: Slowness, chunk_seconds: float
    ) -> None:
        self.quota_at = math.inf
        self._gradients = gradients
        self._accumulator = accumulator
        self._slowness = slowness
        self._per_chunk = slowness.per_chunk or (accumulator.local_params is not None and slowness.per_batch)
        self._always_alike = slowness.always_alike
        self._chunk_seconds = chunk_seconds
        self._carried: Chunk | None = None  # the chunk in flight over a close; counted at the next close after its end
        self._carried_end = 0.0
        self._num_started = 0
        self._need = 0  # chunks wanted beside the carried one
        self._begin = 0.0  # of the first of them
        self._each = slowness.chunk_seconds(
            chunk_seconds, 0, 0
        )  # seconds of work of one, if all of the round are alike
        self._ends: list[float] | None = None  # of each, if not
        self._opened = self._closed = 0.0
        self._held = False
        self._trace_ended: TraceEnded | None = None  # if the quota needs more chunks than the trace has
        self._computing = 0.0

    def open(self, round: int, now: float, params: Tensor, samples_clock: int) -> float:
        """Returns when the quota will be done if the round stays open, or when a chunk is to be begun that the trace does not have.
        params: [d], unchanged until the close; samples_clock: of the learning rate, there."""
        self._accumulator.open(round, params, samples_clock)
        self._held = False
        self._need, self._begin = self._accumulator.quota_chunks, now
        if self._carried is not None:
            self._need, self._begin = self._need - 1, max(now, self._carried_end)
            self._computing += max(min(now, self._carried_end) - self._closed, 0.0)
        self._opened = now
        if not self._always_alike:
            self._plan()
        self.quota_at = self._end(self._need)
        if self._accumulator.local_params is None:  # else most chunks are computed elsewhere than at params
            self._gradients.expect(params, self._need)
        return self.quota_at

    def _plan(self) -> None:
        slowness, batch = self._slowness, self._accumulator.batch
        if not self._per_chunk:
            self._ends, self._each = None, slowness.chunk_seconds(self._chunk_seconds, batch(0), self._num_started)
            return
        end, self._ends = self._begin, []
        carried = self._accumulator.quota_chunks - self._need
        for chunk in range(self._need):
            try:
                seconds = slowness.chunk_seconds(self._chunk_seconds, batch(carried + chunk), self._num_started + chunk)
            except TraceEnded as error:
                self._trace_ended = error
                self._need = chunk
                return
            end = slowness.finish(end, seconds)
            self._ends.append(end)

    def quota_reached(self) -> None:
        """The round is still open at `quota_at`. Raises TraceEnded if that is not because the quota is done."""
        if self._trace_ended is not None:
            raise self._trace_ended

    def _end(self, chunks: int) -> float:
        """When so many new chunks are done."""
        if chunks <= 0:
            return self._begin
        if self._ends is not None:
            return self._ends[chunks - 1]
        return self._slowness.finish(self._begin, chunks * self._each)

    def _num_finished(self, now: float) -> int:
        """New chunks that are done."""
        if now >= self.quota_at:
            return self._need
        if self._ends is not None:
            return bisect_right(self._ends, now)
        count = min(int((now - self._begin) / self._each) + 1, self._need) if now > self._begin else 0
        while count and self._end(count) > now:
            count -= 1
        return count

    def hold(self, now: float) -> float:
        """Start no chunk after this; returns when the one in flight is done, `now` if there is none."""
        self._held = True
        if now >= self.quota_at:
            return now
        if self._carried is not None and self._carried_end > now:
            self.quota_at = self._carried_end
        else:
            self.quota_at = self._end(self._num_finished(now) + 1)
        return self.quota_at

    def close(self, round: int, now: float, reason: str, params: Tensor, mode: InFlight) -> Accumulated:
        """End the round and take what counts in it. params: [d], still those of the opening."""
        accumulator = self._accumulator
        self._computing += min(now, self.quota_at) - self._opened
        self._closed = now
        if self._carried is None or self._carried_end <= now:
            if self._carried is not None:
                accumulator.finish(self._carried)
                self._carried = None
            finished = self._num_finished(now) if not self._held else self._finished_when_held(now)
            self._num_started += finished
            self._count(finished, params)
            if finished < self._need and not self._held:
                y = accumulator.local_params
                self._leave_in_flight(finished, params if y is None else y, mode)
        done = accumulator.close(round, reason)
        if accumulator.in_flight and mode is InFlight.REDO:
            accumulator.drop()
        self.quota_at = math.inf
        return done

    def _finished_when_held(self, now: float) -> int:
        count = 0
        while count < self._need and self._end(count + 1) <= now:
            count += 1
        return count

    def _count(self, num_chunks: int, params: Tensor) -> None:
        accumulator, y = self._accumulator, self._accumulator.local_params
        while num_chunks > 0:
            alike = min(num_chunks, accumulator.chunks_to_step)
            for count, chunk in self._gradients.chunks(params if y is None else y, alike):
                if count == 1:
                    accumulator.start_chunk(chunk.num_samples)
                    accumulator.finish(chunk)
                else:
                    accumulator.count(count, chunk)
            num_chunks -= alike

    def _leave_in_flight(self, finished: int, params: Tensor, mode: InFlight) -> None:
        self._num_started += 1
        if mode is InFlight.REDO:
            self._accumulator.start_chunk(self._gradients.skip())
            return
        self._carried = self._gradients.one(params)
        self._carried_end = self._end(finished + 1)
        self._accumulator.start_chunk(self._carried.num_samples)

    def stop(self, now: float) -> None:
        """What is under way is abandoned."""
        if self.quota_at < math.inf:
            self._computing += max(min(now, self.quota_at) - self._opened, 0.0)
        elif self._carried is not None:
            self._computing += max(min(now, self._carried_end) - self._closed, 0.0)
        self.quota_at = math.inf
        self._gradients.forget()
        self._accumulator.abandon()

    def revoke(self, num_samples: int, fate: str = "abandoned") -> None:
        """What the last `close` handed out was not applied after all."""
        self._accumulator.revoke(num_samples, fate)

    @property
    def samples(self) -> Samples:
        return self._accumulator.samples

    @property
    def nonfinite_in_a_row(self) -> int:
        """Chunks with NaN or infinite gradients since the last that had none."""
        return self._accumulator.nonfinite_in_a_row

    @property
    def quota_chunks(self) -> int:
        return self._accumulator.quota_chunks

    @property
    def seconds_computing(self) -> float:
        """Up to the last close or stop."""
        return self._computing
