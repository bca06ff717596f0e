"""The bookkeeping of one peer's rounds: which chunk counts where. No thread, no clock; daemon and simulator share it.

A round is open from `open` to `close`. Chunks start only in an open round whose quota is not done, one at a time, and
finish whenever they do:

    finished in the round it started in       counts, staleness 0
    round closed meanwhile, carry             counts in the round that is (or will be) open, staleness >= 1
    round closed meanwhile, redo              dropped; the caller puts its samples back and computes them again
    drain                                     does not happen: the caller waits for the chunk before it closes
    gradient or loss inf or nan               dropped, counted

With `LocalSteps`, every m chunks that counted are one step of the peer's own copy y, made as soon as they are there (a chunk carried over
the end of a round is of the next round's first batch, so that step waits for the opening), and a round hands out the displacement of y.

Every sample has one fate, at any moment:
started = applied + redone + nonfinite + dropped + abandoned + pending (finished, waiting for the close) + in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from peer.gossip.effects import Accumulated
from peer.training.chunk import Chunk
from peer.training.local_steps import LocalSteps


class InFlight(StrEnum):
    """What becomes of the chunk that is being computed when the round closes: it is carried into the next round, with staleness 1 or more;
    dropped, and its samples computed again; or finished first."""

    CARRY = "carry"
    REDO = "redo"
    DRAIN = "drain"


class Verdict(StrEnum):
    """What became of a chunk."""

    COUNTED = "counted"
    REDO = "redo"
    NONFINITE = "nonfinite"


class Samples(NamedTuple):
    """Samples by fate since the beginning. applied: handed out by `close`, for the algorithm to apply. dropped: handed out, but the
    algorithm's step went on without them."""

    started: int = 0
    applied: int = 0
    redone: int = 0
    nonfinite: int = 0
    dropped: int = 0
    abandoned: int = 0


@dataclass(slots=True)
class _Running:
    """The chunk in flight."""

    num_samples: int
    read_round: int
    outlived: bool = False


@dataclass(slots=True)
class _Pending:
    """Chunks that counted since the last close. The sum of the gradients of those that are in no local step yet, the batch, is in the
    front buffer."""

    batch_chunks: int = 0
    batch_samples: int = 0
    num_samples: int = 0
    loss_sum: float = 0.0
    read_rounds: list[int] = field(default_factory=list)


class Accumulator:
    """Sums finished chunks round by round, in two buffers [d] that change places at every close. quota_chunks: of a full round, all
    its local steps together."""

    def __init__(self, dim: int, quota_chunks: int, in_flight: InFlight, local: LocalSteps | None = None) -> None:
        if quota_chunks < 1:
            raise ValueError(f"quota_chunks is {quota_chunks}, but a round needs at least 1 chunk.")
        self.quota_chunks = quota_chunks
        self.mode = InFlight(in_flight)
        self.nonfinite_in_a_row = 0
        self._dim = dim
        self._local = local
        self._nothing = torch.zeros(0)
        self._front = torch.zeros(dim)
        self._back = torch.zeros(dim)
        self._round = -1
        self._is_open = False
        self._pending = _Pending()
        self._running: _Running | None = None
        self._samples = dict.fromkeys(Samples._fields, 0)

    @property
    def round(self) -> int:
        """The open round, or the one that chunks finishing now are kept for."""
        return self._round if self._is_open else self._round + 1

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def quota_done(self) -> bool:
        """Whether the chunks that count for the round fill its quota. A carried chunk is one of them."""
        return len(self._pending.read_rounds) >= self.quota_chunks

    @property
    def in_flight(self) -> bool:
        return self._running is not None

    @property
    def outlived(self) -> bool:
        """Whether the chunk in flight is to be redone: its round is over and the mode is redo. It may stop at once."""
        return self._running is not None and self._running.outlived and self.mode is InFlight.REDO

    @property
    def staleness(self) -> int:
        """Rounds between the parameters of the chunk in flight and the round it counts in if it finishes now."""
        return self.round - self._running.read_round if self._running else 0

    @property
    def samples(self) -> Samples:
        return Samples(*self._samples.values())

    @property
    def pending_chunks(self) -> int:
        return len(self._pending.read_rounds)

    @property
    def pending_samples(self) -> int:
        return self._pending.num_samples

    @property
    def in_flight_samples(self) -> int:
        return self._running.num_samples if self._running else 0

    @property
    def local_params(self) -> Tensor | None:
        """y [d], at which chunks are computed; None: at the round's own parameters."""
        return self._local.params if self._local else None

    @property
    def between_batches(self) -> bool:
        """Whether every chunk that counted is in a local step: a new batch begins."""
        return self._pending.batch_chunks == 0

    @property
    def chunks_to_step(self) -> int:
        """Chunks that will be computed at the same parameters if nothing is closed before."""
        return self._local.batch_chunks - self._pending.batch_chunks if self._local else self.quota_chunks

    def batch(self, chunks: int) -> int:
        """Number since the beginning, of full rounds, of the batch that a chunk is in which follows so many others of this round. A
        random slowness is drawn for each batch."""
        if self._local is None:
            return self._round
        return self._round * self._local.steps + min(chunks // self._local.batch_chunks, self._local.steps - 1)

    def open(self, round: int, params: Tensor | None = None, samples_clock: int = 0) -> None:
        """Chunks may start; their parameters are those of this round. Rounds may be skipped, never repeated.

        params: x_i(k) [d], unchanged until the close, and the learning rate's clock there: where local steps begin.
        """
        if self._is_open or round <= self._round:
            raise RuntimeError(f"round {round} cannot open: round {self._round} is open or over.")
        self._round, self._is_open = round, True
        if self._local is not None:
            assert params is not None, "local steps begin at the round's parameters"
            self._local.open(params, samples_clock)
            self._step_if_due()

    def start_chunk(self, num_samples: int) -> None:
        """A chunk of so many samples is being computed at the open round's parameters."""
        if not self._is_open or self._running is not None:
            raise RuntimeError("a chunk can start only in an open round, and one at a time.")
        self._running = _Running(num_samples, self._round)
        self._samples["started"] += num_samples

    def finish(self, chunk: Chunk) -> Verdict:
        """The chunk in flight is computed: count it or drop it. Adds its gradient, d additions, and steps if that fills a batch."""
        if self._running is None or self._running.num_samples != chunk.num_samples:
            raise RuntimeError(f"a chunk of {chunk.num_samples} samples is finished that was not started.")
        if self.outlived:
            return self.drop()
        running, self._running = self._running, None
        if not chunk.finite:
            self._samples["nonfinite"] += running.num_samples
            self.nonfinite_in_a_row += 1
            return Verdict.NONFINITE
        self._add(chunk, [running.read_round])
        return Verdict.COUNTED

    def count(self, num_chunks: int, fused: Chunk) -> Verdict:
        """So many chunks of the open round at once, computed in one pass at its parameters: their summed gradient [d], samples and
        losses. What a simulator may do, which knows beforehand how many will be finished. At most `chunks_to_step`."""
        if not self._is_open or self._running is not None:
            raise RuntimeError("chunks can be counted only in an open round, and while none is in flight.")
        self._samples["started"] += fused.num_samples
        if not fused.finite:
            self._samples["nonfinite"] += fused.num_samples
            self.nonfinite_in_a_row += num_chunks
            return Verdict.NONFINITE
        self._add(fused, [self._round] * num_chunks)
        return Verdict.COUNTED

    def _add(self, chunk: Chunk, read_rounds: list[int]) -> None:
        self.nonfinite_in_a_row = 0
        pending = self._pending
        if (
            self._dim
        ):  # a simulation without gradients has none, and calling torch for nothing takes as long as the rest
            if pending.batch_chunks:
                self._front.add_(chunk.gradient)
            else:
                self._front.copy_(chunk.gradient)
        pending.batch_chunks += len(read_rounds)
        pending.batch_samples += chunk.num_samples
        pending.num_samples += chunk.num_samples
        pending.loss_sum += chunk.loss_sum
        pending.read_rounds += read_rounds
        if self._local is not None:
            self._step_if_due()

    def _step_if_due(self) -> None:
        if self._local is not None and self._is_open and self.chunks_to_step <= 0:
            self._step(self._local)

    def _step(self, local: LocalSteps) -> None:
        pending = self._pending
        local.step(self._front, pending.batch_samples, pending.num_samples)
        pending.batch_chunks = pending.batch_samples = 0

    def drop(self) -> Verdict:
        """Drop the chunk in flight, computed or not; the caller recomputes its samples."""
        self._samples["redone"] += self.in_flight_samples
        self._running = None
        return Verdict.REDO

    def close(self, round: int, reason: str) -> Accumulated:
        """What counts in this round. The buffer handed out is not written until the next round closes."""
        if not self._is_open or round != self._round:
            raise RuntimeError(f"round {round} cannot close: it is not open.")
        if self._running is not None:
            if self.mode is InFlight.DRAIN:
                raise RuntimeError(f"round {round} cannot close: a chunk is in flight and the mode is drain.")
            self._running.outlived = True
        local = self._local
        if local is not None and self._pending.batch_chunks:
            self._step(local)
        done, self._pending = self._pending, _Pending()
        if not done.read_rounds:
            self._front.zero_()
        elif local is not None:
            local.displacement(out=self._front)
        self._front, self._back = self._back, self._front
        self._is_open = False
        self._samples["applied"] += done.num_samples
        num_chunks = len(done.read_rounds)
        fresh = done.read_rounds.count(round) == num_chunks
        staleness = (0,) * num_chunks if fresh else tuple([round - read for read in done.read_rounds])
        grad_sum, displacement = (self._back, None) if local is None else (self._nothing, self._back)
        return Accumulated(grad_sum, done.num_samples, num_chunks, done.loss_sum, staleness, reason, displacement)

    def revoke(self, num_samples: int, fate: str = "abandoned") -> None:
        """So many samples that `close` handed out were never applied: they count as abandoned, or dropped."""
        self._samples["applied"] -= num_samples
        self._samples[fate] += num_samples

    def abandon_in_flight(self) -> None:
        """Give up the chunk in flight for good: nobody recomputes it."""
        self._samples["abandoned"] += self.in_flight_samples
        self._running = None

    def abandon(self) -> None:
        """The end of the run: what is in flight or waits for a close will never be applied."""
        self.abandon_in_flight()
        self._samples["abandoned"] += self._pending.num_samples
        self._pending = _Pending()
