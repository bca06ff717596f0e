"""What a peer tells at a scrape beside what it counts for it (counts.py): read off its ledger, trainer, links and membership.

Nothing here takes a lock or waits, and nothing breaks if a number grows meanwhile, so a scrape may come on any thread.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from peer import __version__, metrics
from peer.assembly import in_effect
from peer.config import Config
from peer.daemon.computing import TrainerKind
from peer.daemon.conversation import Conversation
from peer.daemon.player import RoundPlayer
from peer.gossip.closing import CloseReason
from peer.gossip.membership import PeerStatus
from peer.metrics import Distribution, Sheet
from peer.training.trainer import Trainer
from peer.transport.base import Transport
from topology import Schedule

STATES = ("starting", "training", "finished", "draining")


def identity(config: Config, trainer: TrainerKind) -> Callable[[Sheet], None]:
    """What does not change. trainer: what `--trainer` came to."""
    told = in_effect(config).model_copy(update={"trainer": trainer})
    run = (str(config.peers), *(str(getattr(told, name)) for name in metrics.OPTIONS))

    def fill(sheet: Sheet) -> None:
        sheet.put(metrics.BUILD, 1, __version__, platform.python_version(), str(torch.__version__))
        sheet.put(metrics.RUN, 1, *run)

    return fill


@dataclass(frozen=True, slots=True)
class Readings:
    """seconds: of training so far. fates: chunks by what became of them."""

    schedule: Schedule
    trainer: Trainer
    transport: Transport
    player: RoundPlayer
    said: Conversation
    state: Callable[[], str]
    seconds: Callable[[], float]
    fates: Mapping[str, int]

    def fill(self, sheet: Sheet) -> None:
        """A source of the peer's metrics."""
        sheet.choose(metrics.STATE, self.state(), STATES)
        sheet.put(metrics.TRAINING_SECONDS, self.seconds())
        self._fill_work(sheet)
        self._fill_membership(sheet)
        self._fill_neighbors(sheet)

    def _fill_work(self, sheet: Sheet) -> None:
        ledger = self.player.ledger
        sheet.put(metrics.ROUND, ledger.rounds)
        for reason in map(str, CloseReason):
            sheet.put(metrics.ROUNDS, ledger.rounds_by_reason[reason], reason)
        for fate in metrics.FATES:
            sheet.put(metrics.CHUNKS, self.fates.get(fate, 0), fate)
        samples = self.trainer.samples
        for fate, number in (
            ("applied", ledger.samples),
            ("redone", samples.redone),
            ("nonfinite", samples.nonfinite),
            ("dropped", samples.dropped),
            ("abandoned", samples.abandoned),
        ):
            sheet.put(metrics.SAMPLES, number, fate)
        staleness = Distribution(metrics.STALENESS)
        for updates, chunks in list(ledger.staleness.items()):
            staleness.observe(updates, chunks)
        sheet.spread(metrics.STALENESS, staleness)
        loss = ledger.train_loss
        if not math.isnan(loss):
            sheet.put(metrics.TRAIN_LOSS, loss)
        computing, idle = self.trainer.seconds
        sheet.put(metrics.TRAINER, computing, "computing")
        sheet.put(metrics.TRAINER, idle, "idle")
        if computing + idle:
            sheet.put(metrics.IDLE, idle / (computing + idle))
        nobody = dict.fromkeys(self.schedule.links(self.said.round, self.said.peer), 0.0)
        for peer, seconds in (nobody | self.player.exchanges.waited).items():
            sheet.put(metrics.WAITED, seconds, str(peer), "exchanging")

    def _fill_membership(self, sheet: Sheet) -> None:
        directory = self.said.directory
        suspects, left = len(directory.suspects), len(directory.leaving)
        alive = self.schedule.num_peers - suspects - left
        for state, number in ((PeerStatus.ALIVE, alive), (PeerStatus.SUSPECT, suspects), (PeerStatus.LEFT, left)):
            sheet.put(metrics.PEERS, number, str(state))

    def _fill_neighbors(self, sheet: Sheet) -> None:
        """Totals of all peers that ever were neighbours; what is now, of those that are."""
        traffic, exchanges = dict(self.transport.traffic()), self.player.exchanges
        for peer in sorted(traffic):
            name, moved = str(peer), traffic[peer]
            sheet.put(metrics.SENT, moved.bytes_sent, name)
            sheet.put(metrics.RECEIVED, moved.bytes_received, name)
            sheet.put(metrics.LATE, moved.late_payloads, name)
            sheet.summarize(metrics.EXCHANGE, exchanges.seconds.get(peer, 0.0), exchanges.number[peer], name)
        states = tuple(map(str, PeerStatus))
        for peer in self.schedule.links(self.said.round, self.said.peer):
            name, moved_now = str(peer), traffic.get(peer)
            sheet.choose(metrics.NEIGHBOR_STATE, str(self.said.directory.status(peer)), states, name)
            sheet.put(metrics.DEADLINE, self.player.deadline_seconds(peer), name)
            if moved_now is None:
                continue
            sheet.put(metrics.NEIGHBOR_INFO, 1, name, moved_now.data_plane)
            if not math.isnan(moved_now.round_trip_seconds):
                sheet.put(metrics.ROUND_TRIP, moved_now.round_trip_seconds, name)
