"""A peer's rounds as OpenTelemetry spans. Imported only by a peer that traces; nobody else needs the package.

    round                          one trace each
      mix                          the algorithm's own mathematics, each time an effect is over
      chunk                        where its parameters are from, so it may end after its round
      exchange                     with one neighbour, in one phase; linked to that neighbour's span of it

An exchange is told to the other end by the W3C traceparent of its span, on the control lane, as soon as it is opened. The other end's word
may come before this end opens it, while it is under way, or after it is over: then the span has waited for it, at most until the round
after the next one begins. All methods but `chunk` are called on the event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from peer import __version__
from peer.gossip.effects import Exchange
from peer.gossip.round import RoundReport
from peer.training.trainer import ChunkEvent
from peer.transport.base import ExchangeHandle, ExchangeKey, Outcome

MOST_EARLY: Final = 256
"""Spans of neighbours kept for exchanges that are not open here yet."""

ROUNDS: Final = 64
"""A chunk that outlasts so many rounds has no parent."""

FLUSH_SECONDS: Final = 2.0
"""How long the end of a peer waits for its last spans to be exported."""

_W3C = TraceContextTextMapPropagator()
_Edge = tuple[int, ExchangeKey]


@dataclass(slots=True)
class _Exchange:
    """The span of an exchange. ended: when it was over, in ns; None while it is not. linked: to the other end's."""

    span: trace.Span
    outcome: asyncio.Future[Outcome]
    ended: int | None = None
    linked: bool = False


class PeerSpans:
    """Spans of one peer, made by `provider`. say: how a neighbour is told of an exchange's span."""

    def __init__(self, provider: TracerProvider) -> None:
        self.say: Callable[[int, ExchangeKey, str], object] = lambda peer, key, traceparent: None
        self._provider = provider
        self._tracer = provider.get_tracer("grapevine", __version__)
        self._epoch = time.time_ns() - time.perf_counter_ns()  # one clock for all: it never jumps within a trace
        self._round: trace.Span = trace.INVALID_SPAN
        self._inside = Context()  # of the round
        self._recent: dict[int, Context] = {}
        self._exchanges: dict[_Edge, _Exchange] = {}
        self._early: dict[_Edge, SpanContext] = {}

    def now(self) -> int:
        """Nanoseconds since 1970, as spans count."""
        return self._epoch + time.perf_counter_ns()

    # rounds

    def round_begins(self, round: int) -> None:
        self._round = self._tracer.start_span(
            "round", Context(), attributes={"grapevine.round": round}, start_time=self.now()
        )
        self._inside = trace.set_span_in_context(self._round, Context())
        self._recent[round] = self._inside
        self._recent.pop(round - ROUNDS, None)
        for edge, exchange in list(self._exchanges.items()):
            if edge[1].round < round - 1:
                self._end(edge, exchange)
        self._early = {edge: told for edge, told in self._early.items() if edge[1].round >= round}

    def round_ends(self, report: RoundReport) -> None:
        self._round.set_attributes(
            {
                "grapevine.close_reason": report.close_reason,
                "grapevine.samples": report.num_samples,
                "grapevine.chunks": report.num_chunks,
                "grapevine.staleness": max(report.staleness, default=0),
                "grapevine.received": report.num_received,
                "grapevine.lost": [f"{peer}: {reason}" for peer, reason in sorted(report.lost.items())],
            }
        )
        now = self.now()
        for exchange in self._exchanges.values():  # those of which the loop has not told yet
            if exchange.ended is None and exchange.outcome.done():
                exchange.ended = now
        self._round.end(now)

    def round_broken(self, error: Exception) -> None:
        """It was not finished."""
        self._round.set_status(Status(StatusCode.ERROR, f"{type(error).__name__} {error}".strip()))
        self._round.end(self.now())

    def mixed(self, began: int) -> None:
        """The algorithm computed, from `began` (`now`) until now."""
        self._tracer.start_span("mix", self._inside, start_time=began).end(self.now())

    # chunks; on the trainer's thread

    def chunk(self, event: ChunkEvent) -> None:
        span = self._tracer.start_span(
            "chunk",
            self._recent.get(event.round, Context()),
            attributes={
                "grapevine.round": event.round,
                "grapevine.verdict": str(event.verdict) if event.verdict is not None else "failed",
                "grapevine.staleness": event.staleness,
                "grapevine.samples": event.num_samples,
            },
            start_time=self._epoch + nanoseconds(event.started),
        )
        if event.error is not None:
            span.record_exception(event.error)
            span.set_status(Status(StatusCode.ERROR, str(event.error)))
        span.end(self._epoch + nanoseconds(event.finished))

    # exchanges

    def exchange(self, peer: int, key: ExchangeKey, effect: Exchange, handle: ExchangeHandle) -> None:
        """An exchange with that neighbour has been opened."""
        sent, asked = effect.send.get(peer), effect.receive.get(peer, 0)
        span = self._tracer.start_span(
            "exchange",
            self._inside,
            attributes={
                "grapevine.neighbor": peer,
                "grapevine.round": key.round,
                "grapevine.phase": key.phase,
                "grapevine.send_bytes": 0 if sent is None else sent.nbytes,
                "grapevine.receive_bytes": asked * effect.dtype.itemsize,
            },
            start_time=self.now(),
        )
        edge = (peer, key)
        self._exchanges[edge] = _Exchange(span, handle.outcome)
        if span.get_span_context().trace_flags.sampled:
            carrier: dict[str, str] = {}
            _W3C.inject(carrier, trace.set_span_in_context(span, Context()))
            self.say(peer, key, carrier["traceparent"])
        if (told := self._early.pop(edge, None)) is not None:
            self._link(edge, self._exchanges[edge], told)
        handle.outcome.add_done_callback(partial(self._over, edge))

    def heard(self, peer: int, key: ExchangeKey, traceparent: str) -> None:
        """That neighbour says which span the exchange is at its end. What is no traceparent is dropped."""
        told = trace.get_current_span(_W3C.extract({"traceparent": traceparent}, Context())).get_span_context()
        if not told.is_valid:
            return
        edge = (peer, key)
        exchange = self._exchanges.get(edge)
        if exchange is not None:
            self._link(edge, exchange, told)
            return
        while len(self._early) >= MOST_EARLY:
            del self._early[next(iter(self._early))]
        self._early[edge] = told

    def _over(self, edge: _Edge, outcome: asyncio.Future[Outcome]) -> None:
        exchange = self._exchanges.get(edge)
        if exchange is None:
            return
        exchange.ended = exchange.ended or self.now()
        lost = outcome.result().lost
        if lost is not None:
            exchange.span.set_attribute("grapevine.lost", str(lost))
            exchange.span.set_status(Status(StatusCode.ERROR, str(lost)))
        if exchange.linked or lost is not None:
            self._end(edge, exchange)

    def _link(self, edge: _Edge, exchange: _Exchange, told: SpanContext) -> None:
        if exchange.linked:
            return
        exchange.linked = True
        exchange.span.add_link(told, {"grapevine.peer": edge[0]})
        if exchange.ended is not None:
            self._end(edge, exchange)

    def _end(self, edge: _Edge, exchange: _Exchange) -> None:
        self._exchanges.pop(edge, None)
        exchange.span.end(exchange.ended or self.now())

    async def close(self) -> None:
        """Export what there is, for at most FLUSH_SECONDS: a collector that does not answer must not hold a peer."""
        for edge, exchange in list(self._exchanges.items()):
            self._end(edge, exchange)
        loop, flushed = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(flushed.set)

        threading.Thread(target=shut_down, name="last spans", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await flushed.wait()


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
