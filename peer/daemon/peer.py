"""One peer, put together: build, start, rounds, drain, stop."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from peer.accounts.summary import PeerSummary
from peer.assembly import max_rounds
from peer.config import Config
from peer.daemon.assembly import Parts, assemble
from peer.daemon.conversation import Conversation
from peer.daemon.counts import PeerMetrics
from peer.daemon.evaluation import Evaluation
from peer.daemon.lag import LoopLag
from peer.daemon.player import RoundPlayer
from peer.daemon.playing import ASKED, Rules, Stopped
from peer.daemon.readings import Readings, identity
from peer.daemon.status import neighbors_of, status_reply
from peer.daemon.watch import Watch
from peer.exit_codes import ExitCode, Fatal
from peer.gossip.algorithm import RoundBroken
from peer.gossip.delivery import PRESETS
from peer.gossip.digest import Digest
from peer.logs import event
from peer.training.accumulator import InFlight, Verdict
from peer.training.remote import ComputerDied, ComputerFailed
from peer.training.trainer import ChunkEvent
from peer.transport.base import ExchangeKey, Transport
from peer.wire.gossip_pb2 import State, StatusReply

if TYPE_CHECKING:
    from peer.daemon.spans import PeerSpans

log = logging.getLogger("grapevine.peer")


#: How long the computation of a chunk may go on after the end; then its thread is left behind.
TRAINER_SECONDS = 10.0
#: A round that nobody's will be: where rounds are a peer's own, others may be far ahead.
FOR_EVER = 1 << 62
#: How long the goodbye of a peer that broke off an exchange may be under way.
GOODBYE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Bound:
    """Where a started peer is found."""

    peer: int
    address: str
    metrics_port: int


#: Told where this peer listens, answers with the addresses of all peers in the order of ids.
AddressBook = Callable[[Bound], Awaitable[Sequence[str]]]


class Peer:
    """One peer of a run; also the `PeerService` that answers observers."""

    def __init__(self, config: Config, peer: int) -> None:
        self.config = config
        self.peer = peer
        self.state = "starting"
        self.bound = Bound(peer, "", -1)
        self.stop_reason = ""
        self.on_training: Callable[[], None] = lambda: None
        self.at_start: list[Callable[[], object]] = []
        self.spans: PeerSpans | None = None
        self._loop = asyncio.get_running_loop()
        self._parts: Parts = assemble(config, peer, notify=self._from_trainer)
        self.metrics = PeerMetrics(config.run, peer, self._parts.identity.settings)
        self.metrics.ask(identity(config, self._parts.trainer_kind))
        self._lag = LoopLag(self.metrics.lag)
        self._evaluation: Evaluation | None = None
        self.watch = Watch(peer, config, self._parts.schedule, self._digest)
        self._transport: Transport | None = None
        self._player: RoundPlayer | None = None
        self._said: Conversation | None = None
        self._fatal: Fatal | None = None
        self._started_at: float | None = None
        self._ended_at: float | None = None
        self._trainer_stopped = False
        self._fates: Counter[str] = Counter()  # of chunks; written by the trainer's thread alone
        self._released = asyncio.Event()
        self._wanted: set[int] = set()
        self._addresses: Mapping[int, str] = {}

    @property
    def parts(self) -> Parts:
        return self._parts

    @property
    def player(self) -> RoundPlayer:
        assert self._player is not None, "the peer has not been started"
        return self._player

    # life

    async def run(self, transport: Transport, address_book: AddressBook, *, linger: bool = False) -> PeerSummary:
        """Start, train until a limit or `request_stop`, say goodbye. Raises Fatal.

        linger: stay reachable after the last round until `request_stop`, so that observers can fetch the final model.
        """
        self._transport = transport
        parts = self._parts
        self._said = said = Conversation(
            self.peer,
            parts.schedule,
            parts.closing,
            transport,
            self.metrics,
            self.watch,
            payload_means_closed=parts.algorithm.sends_after_close,
            round_timeout=self.config.round_timeout,
            idle=parts.algorithm.idle_peers,
        )
        said.needed = parts.algorithm.needed
        rules = Rules(InFlight(self.config.in_flight), self.config.round_timeout, PRESETS[self.config.preset])
        self._player = RoundPlayer(parts.algorithm, parts.schedule, parts.trainer, transport, said, rules)
        if self.spans is not None:
            self._player.spans = said.spans = self.spans
            self.spans.say = transport.trace
        self._export(transport, said, self._player)
        try:
            self.watch.start(transport, said.directory)
            if self._evaluation is not None:
                await self._evaluation.prepare()
            await self._appear(transport, said, address_book)
            await self._train(said, transport)
            if linger and not self._released.is_set():
                self.state = "finished"
                last = said.round + 1 if parts.algorithm.has_rounds else FOR_EVER
                transport.advance(ExchangeKey(last, 0))  # who still sends is told at once
                said.say_leaving(said.round)
                await self._released.wait()
        finally:
            await self._leave(transport, said)
        return self.summary()

    def request_stop(self, reason: str) -> None:
        """End training as soon as possible and say goodbye. May be called again."""
        self._released.set()
        if not self.stop_reason:
            self.stop_reason = ASKED + reason
        if self._player is not None:
            self._player.request_stop()

    async def _appear(self, transport: Transport, said: Conversation, address_book: AddressBook) -> None:
        try:
            address = await transport.start(said)
        except OSError as error:
            raise Fatal(ExitCode.PORT, f"peer {self.peer} can't listen: {error.strerror or error}") from None
        self.bound = Bound(self.peer, address, self.bound.metrics_port)
        book = await address_book(self.bound)
        if self.stop_reason:
            return
        self._addresses = dict(enumerate(book))
        self._link_up(0)
        until = self._loop.time() + self.config.start_timeout
        wanted = set(self._parts.schedule.links(0, self.peer))
        said_ready = False
        while not said.everybody_ready():
            said.stirred.clear()
            self._check_refusals(said)
            if self.stop_reason:
                return
            if not said_ready and wanted <= set(transport.linked()):
                said_ready = True
                said.say_ready()
                continue
            if self._loop.time() >= until:
                raise Fatal(ExitCode.ABSENT, self._absence(wanted - set(transport.linked()), said))
            timer = self._loop.call_at(until, said.stirred.set)
            await said.stirred.wait()
            timer.cancel()

    async def _train(self, said: Conversation, transport: Transport) -> None:
        if self.stop_reason:
            return
        self.state = "training"
        self._started_at = self._loop.time()
        self.player.start()
        self._parts.trainer.begin()
        self.on_training()
        for begin in self.at_start:
            begin()
        self._parts.trainer.start()
        if self._evaluation is not None:
            self._evaluation.start()
        timer = None
        if self.config.max_seconds is not None:
            over = f"{self.config.max_seconds:g} s are over"
            timer = self._loop.call_later(self.config.max_seconds, self._limit, over)
        try:
            most = max_rounds(self.config, self.peer)
            while most is None or said.round < most:
                self._link_up(said.round)
                report = await self.player.play(said.round)
                self.metrics.round(report)
                self.watch.round(report)
                said.round += 1
            self._limit(f"{said.round} rounds are done")
            self._raise_fatal()
        except Stopped:
            self._raise_fatal()
        except RoundBroken as broken:
            self._raise_fatal()
            if await self._explained(said, broken.peer):
                self._limit(f"peer {broken.peer} left, and {self.config.algorithm} needs {broken.needs}")
            else:
                raise Fatal(ExitCode.LOST, broken.sentence(self.config.algorithm)) from None
        finally:
            self._ended_at = self._loop.time()
            if timer is not None:
                timer.cancel()
            await self._stop_trainer()
            trainer = self._parts.trainer
            trainer.revoke(trainer.samples.applied - self.player.ledger.samples)  # in no update that it knows of

    def _raise_fatal(self) -> None:
        if self._fatal is not None:
            raise self._fatal from None

    async def _explained(self, said: Conversation, lost: int) -> bool:
        """Whether a peer that broke off an exchange said goodbye, or this peer was told to stop; its word may come a moment later."""
        until = self._loop.time() + GOODBYE_SECONDS
        while not (said.directory.has_left(lost) or self.stop_reason) and self._loop.time() < until:
            said.stirred.clear()
            timer = self._loop.call_at(until, said.stirred.set)
            await said.stirred.wait()
            timer.cancel()
        return said.directory.has_left(lost) or bool(self.stop_reason)

    def _limit(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason
        self.player.request_stop()

    async def _leave(self, transport: Transport, said: Conversation) -> None:
        self.state = "draining"
        said.say_last_words()
        await self._stop_trainer()
        if self.stop_reason:
            await self._until_read(transport)
        await transport.stop()
        self.watch.stop()
        self._lag.stop()
        self.player.close()

    async def _until_read(self, transport: Transport) -> None:
        """A peer that has come to its end in order waits until its neighbours have what it sent them last, or it is told to stop: as
        long as a link may be slow. `Transport.stop` waits for no longer than who is asked to stop may take."""
        waits = (asyncio.ensure_future(transport.goodbye()), asyncio.ensure_future(self._released.wait()))
        try:
            await asyncio.wait(waits, timeout=PRESETS[self.config.preset].most, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in waits:
                waiting.cancel()

    async def close(self) -> None:
        """End what a peer has from its making on, if it never ran. May be called again."""
        await self._stop_trainer()

    async def _stop_trainer(self) -> None:
        """End the evaluations, the trainer's thread and its clock, once; what is under way is abandoned."""
        if self._trainer_stopped:
            return
        self._trainer_stopped = True
        if self._evaluation is not None:
            await self._evaluation.stop()
        if not await self._loop.run_in_executor(None, self._parts.trainer.stop, TRAINER_SECONDS):
            stuck = event("trainer-stuck", seconds=TRAINER_SECONDS)
            log.error("peer %d: the trainer did not stop within %g s", self.peer, TRAINER_SECONDS, extra=stuck)

    def _link_up(self, round: int) -> None:
        assert self._transport is not None
        wanted = {j: self._addresses[j] for j in self._parts.schedule.links(round, self.peer) if j not in self._wanted}
        if wanted:
            self._wanted |= wanted.keys()
            for j in wanted:
                self.metrics.neighbor(j)
            self._transport.connect(wanted)

    def _check_refusals(self, said: Conversation) -> None:
        wanted = set(self._parts.schedule.links(0, self.peer))
        for peer, field, sentence in said.refusals:
            if peer in wanted and field not in _HARMLESS:
                raise Fatal(ExitCode.REFUSED, f"peer {self.peer}: {sentence}")
        refused = {peer for peer, field, _ in said.refusals if peer is not None}
        if wanted and wanted <= refused - set(self._linked()):
            raise Fatal(ExitCode.REFUSED, f"peer {self.peer}: {said.refusals[0][2]}")

    def _linked(self) -> set[int]:
        assert self._transport is not None
        return set(self._transport.linked())

    def _absence(self, unlinked: set[int], said: Conversation) -> str:
        absent = sorted(unlinked) or said.missing()
        names = ", ".join(f"peer {j} ({self._addresses[j]})" for j in absent[:5])
        others = " and others" if len(absent) > 5 else ""
        return f"peer {self.peer}: {names}{others} did not appear within {self.config.start_timeout:g} s"

    # the trainer's thread speaks here

    def _from_trainer(self, event: ChunkEvent) -> None:
        """On that thread. The loop is woken by what may change something there: a chunk in the middle of a round does not, unless the
        round waits for the one in flight."""
        if self.spans is not None:
            self.spans.chunk(event)
        if event.verdict is not None:
            carried = event.staleness and event.verdict is Verdict.COUNTED
            self._fates["carried" if carried else _FATES[event.verdict]] += 1
        drains = self.config.in_flight == "drain"
        if event.quota_done or drains or event.verdict is not Verdict.COUNTED:
            self._loop.call_soon_threadsafe(self._on_chunk, event)

    def _on_chunk(self, event: ChunkEvent) -> None:
        if event.error is not None:
            self._die(self._fatal_of(event.error))
        else:
            in_a_row = event.nonfinite_in_a_row
            if in_a_row >= self.config.nonfinite_limit:
                told = f"{in_a_row} chunks in a row had NaN or infinite gradients; lower --lr or look at the data"
                self._die(Fatal(ExitCode.NONFINITE, f"peer {self.peer}: {told}"))
        if self._said is not None:
            self._said.stirred.set()

    def _fatal_of(self, error: BaseException) -> Fatal:
        if isinstance(error, ComputerDied):
            return Fatal(ExitCode.LOST, f"peer {self.peer}: the process of its trainer {error}")
        kind = "" if isinstance(error, ComputerFailed) else f"{type(error).__name__}: "
        return Fatal(ExitCode.TASK, f"peer {self.peer}: the task failed: {kind}{error}")

    def _die(self, fatal: Fatal) -> None:
        self._fatal = self._fatal or fatal
        self.player.request_stop()

    # what others may ask

    def seconds(self) -> float:
        """Seconds of training so far."""
        if self._started_at is None:
            return 0.0
        return (self._ended_at or self._loop.time()) - self._started_at

    def _export(self, transport: Transport, said: Conversation, player: RoundPlayer) -> None:
        """From now on a scrape tells of these."""
        readings = Readings(
            schedule=self._parts.schedule,
            trainer=self._parts.trainer,
            transport=transport,
            player=player,
            said=said,
            state=lambda: self.state,
            seconds=self.seconds,
            fates=self._fates,
        )
        self.metrics.ask(readings.fill)
        self._lag.start()
        if self.config.metrics_eval_every:
            self._evaluation = Evaluation(
                self._parts.task, self.config.seed, self.config.metrics_eval_every, player.snapshot
            )
            self.metrics.ask(self._evaluation.fill)

    @property
    def samples_of_workers(self) -> Mapping[int, int]:
        return self._parts.algorithm.samples_of_workers

    async def snapshot(self) -> tuple[int, Tensor]:
        """(rounds finished, a consistent copy of the parameters [d])."""
        return await self.player.snapshot()

    def _digest(self) -> Digest:
        """Of now; the watch adds what it knows of links."""
        known = self.watch.pulse.digest(self.peer, self.player.ledger, self.player.exchanges, self.seconds())
        state = State.Value(f"STATE_{self.state.upper()}")
        return known._replace(state=state, seconds=self.seconds(), **self.player.waits.told())

    def summary(self) -> PeerSummary:
        assert self._transport is not None
        return PeerSummary.of(self.player.ledger, self._parts.trainer, self._transport.traffic(), self)

    def status(self) -> StatusReply:
        assert self._transport is not None
        assert self._said is not None
        neighbors = neighbors_of(
            self._said,
            self._parts.schedule.base(self._said.round).neighbors(self.peer),
            self._addresses,
            self._transport.traffic(),
            self.player.ledger.lost_by_neighbor,
        )
        parts, port = self._parts, self.bound.metrics_port
        return status_reply(
            self.config, self.summary(), self.state, parts.fingerprint, parts.trainer_kind, port, neighbors
        )


#: Fields in which a stranger or a second claimant of an id may differ without harm; from all wanted peers they are fatal too.
_HARMLESS = {"run", "peer", "hello", "protocol", "duplicate"}
#: What metrics call the verdicts on chunks.
_FATES = {Verdict.COUNTED: "finished", Verdict.REDO: "redone", Verdict.NONFINITE: "nonfinite"}
