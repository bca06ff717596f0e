"""What one peer did, in numbers: part of the report, which is an interface (docs/report.md)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from peer.accounts.ledger import Ledger
from peer.training.accumulator import Samples


class Lived(Protocol):
    """What a summary asks of its peer."""

    @property
    def peer(self) -> int: ...

    @property
    def stop_reason(self) -> str: ...

    @property
    def samples_of_workers(self) -> Mapping[int, int]: ...

    def seconds(self) -> float: ...


class Trained(Protocol):
    """What a summary asks of the trainer. seconds: (computing, idle)."""

    @property
    def samples(self) -> Samples: ...

    @property
    def seconds(self) -> tuple[float, float]: ...


class Moved(Protocol):
    """Bytes moved with one neighbour."""

    @property
    def bytes_sent(self) -> int: ...

    @property
    def bytes_received(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PeerSummary:
    """Counts are totals over the run. samples_started = samples + samples_redone + samples_nonfinite + samples_dropped + samples_abandoned
    once the peer has stopped; `samples` is what is in updates, as far as the peer knows. samples_of_workers: of a head that knows more of
    its workers than they do, what it is of each. rounds_dropped: rounds whose update was made without this peer's samples.
    timeline: of each of the first rounds (begin, until the own quota or the close, until the close, until the end), seconds since the
    start of training. cpu_seconds: processor time of the process, from its start on."""

    peer: int
    pid: int
    cpu_seconds: float
    stop_reason: str
    seconds: float
    round: int
    rounds: int
    rounds_dropped: int
    chunks: int
    samples: int
    samples_started: int
    samples_redone: int
    samples_nonfinite: int
    samples_dropped: int
    samples_abandoned: int
    samples_of_workers: Mapping[str, int]
    train_loss: float
    neighbor_distance: float
    seconds_computing: float
    seconds_idle: float
    seconds_exchanging: float
    seconds_mixing: float
    idle_fraction: float
    finished_fraction: float
    max_staleness: int
    staleness: Mapping[str, int]
    rounds_by_reason: Mapping[str, int]
    edges_lost: Mapping[str, int]
    bytes_sent: int
    bytes_received: int
    timeline: Sequence[Sequence[float]]

    @classmethod
    def of(cls, ledger: Ledger, trainer: Trained, traffic: Mapping[int, Moved], lived: Lived) -> PeerSummary:
        samples = trainer.samples
        computing, idle = trainer.seconds
        return cls(
            peer=lived.peer,
            pid=os.getpid(),
            cpu_seconds=time.process_time(),
            stop_reason=lived.stop_reason,
            seconds=lived.seconds(),
            round=ledger.rounds,
            rounds=ledger.rounds,
            rounds_dropped=ledger.rounds_dropped,
            chunks=ledger.chunks,
            samples=ledger.samples,
            samples_started=samples.started,
            samples_redone=samples.redone,
            samples_nonfinite=samples.nonfinite,
            samples_dropped=samples.dropped,
            samples_abandoned=samples.abandoned,
            samples_of_workers={str(j): n for j, n in sorted(lived.samples_of_workers.items())},
            train_loss=ledger.train_loss,
            neighbor_distance=ledger.neighbor_distance,
            seconds_computing=computing,
            seconds_idle=idle,
            seconds_exchanging=ledger.seconds_exchanging,
            seconds_mixing=ledger.seconds_mixing,
            idle_fraction=idle / (computing + idle) if computing + idle else 0.0,
            finished_fraction=ledger.finished_fraction,
            max_staleness=ledger.max_staleness,
            staleness={str(k): n for k, n in sorted(ledger.staleness.items())},
            rounds_by_reason=dict(ledger.rounds_by_reason),
            edges_lost=dict(ledger.edges_lost),
            bytes_sent=sum(t.bytes_sent for t in traffic.values()),
            bytes_received=sum(t.bytes_received for t in traffic.values()),
            timeline=list(ledger.timeline),
        )

    @property
    def shares(self) -> dict[str, float]:
        """Seconds of training by what the trainer did: computing, or standing still for an exchange, for the algorithm's mathematics, or
        for the close of the round. They add up to all of them. A chunk that is computed during an exchange hides it."""
        exchanging = min(self.seconds_exchanging, self.seconds_idle)
        mixing = min(self.seconds_mixing, self.seconds_idle - exchanging)
        return {
            "seconds_computing": self.seconds_computing,
            "seconds_waiting": self.seconds_idle - exchanging - mixing,
            "seconds_exchanging": exchanging,
            "seconds_mixing": mixing,
        }

    def as_dict(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # asdict would copy every timeline
