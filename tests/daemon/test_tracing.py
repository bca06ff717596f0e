"""Spans of real rounds: they nest, they are linked across peers, they cost nothing when nobody asked, and no collector holds a peer."""

from __future__ import annotations

import asyncio
import http.server
import importlib.util
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from peer.cluster.forkserver import context
from peer.config import validated
from peer.daemon import spans
from peer.daemon.spans import MOST_EARLY, PeerSpans
from peer.daemon.tracing import check_tracing, open_tracing
from peer.exit_codes import ExitCode, Fatal
from peer.transport.base import ExchangeKey
from tests.cluster.warm import Warm
from tests.conftest import Grapevine
from tests.daemon.rig import Rig, config
from tests.daemon.untraced import say_what_is_imported
from tests.transport.rig import Rig as Links

ROUNDS = 6
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def provider(exporter: SpanExporter, **options: Any) -> TracerProvider:
    made = TracerProvider(shutdown_on_exit=False, **options)
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


async def traced(over: str = "grpc", **values: object) -> tuple[Rig, list[tuple[ReadableSpan, ...]]]:
    """Three peers play ROUNDS rounds; the spans of each."""
    rig = Rig(config(peers=3, max_rounds=ROUNDS, **values), over=over).build()
    exporters = [InMemorySpanExporter() for _ in rig.peers]
    for peer, exporter in zip(rig.peers, exporters, strict=True):
        peer.spans = PeerSpans(provider(exporter))
    await rig.run()
    for peer in rig.peers:
        assert peer.spans is not None
        await peer.spans.close()
    return rig, [exporter.get_finished_spans() for exporter in exporters]


def named(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def facts(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("grapevine."): value for name, value in (span.attributes or {}).items()}


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def lasted(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


@pytest.mark.parametrize(("algorithm", "phases"), [("dpsgd", 1), ("ring-all-reduce", 1)])
async def test_spans_nest_and_are_linked_to_those_of_the_other_end(algorithm: str, phases: int) -> None:
    rig, found = await traced(algorithm=algorithm)
    owner = {id_of(span): (peer, span) for peer, spans in enumerate(found) for span in spans}
    for peer, mine in enumerate(found):
        rounds = {id_of(span): span for span in named(mine, "round")}
        assert [facts(span)["round"] for span in rounds.values()] == list(range(ROUNDS))
        assert all(span.parent is None for span in rounds.values())
        assert sum(facts(span)["samples"] for span in rounds.values()) == rig.peers[peer].player.ledger.samples
        for span in set(mine) - set(rounds.values()):
            assert span.parent is not None, span.name
            around = rounds[span.parent.span_id]
            assert span.context is not None
            assert around.context is not None
            assert span.context.trace_id == around.context.trace_id
            (began, ended), (first, last) = lasted(span), lasted(around)
            assert first <= began <= ended
            assert ended <= last or span.name == "chunk", "a chunk may outlast its round"
        assert sum(facts(span)["verdict"] == "counted" for span in named(mine, "chunk")) >= sum(
            facts(span)["chunks"] for span in rounds.values()
        )
        exchanges = named(mine, "exchange")
        assert len(exchanges) == ROUNDS * 2 * phases
        for span in exchanges:
            (link,) = span.links
            theirs, other = owner[link.context.span_id]
            assert other.name == "exchange"
            assert (theirs, facts(other)["neighbor"]) == (facts(span)["neighbor"], peer)
            assert [facts(other)[key] for key in ("round", "phase")] == [facts(span)[key] for key in ("round", "phase")]
            assert facts(other)["send_bytes"] == facts(span)["receive_bytes"]
            assert link.context.is_remote
        mixed = 2 if algorithm == "dpsgd" else 1 + 1 + phases
        assert len(named(mine, "mix")) == ROUNDS * mixed


async def test_a_peer_that_traces_harms_none_that_does_not() -> None:
    rig = Rig(config(peers=2, max_rounds=ROUNDS), over="grpc").build()
    exporter = InMemorySpanExporter()
    rig.peers[0].spans = PeerSpans(provider(exporter))
    await rig.run()
    assert [peer.player.ledger.rounds for peer in rig.peers] == [ROUNDS] * 2
    await rig.peers[0].spans.close()
    exchanges = named(exporter.get_finished_spans(), "exchange")
    assert len(exchanges) == ROUNDS
    assert not any(span.links for span in exchanges)


async def test_what_is_not_sampled_is_not_told() -> None:
    rig = Rig(config(peers=2, max_rounds=2), over="memory").build()
    exporter, told = InMemorySpanExporter(), []
    rig.peers[0].spans = PeerSpans(provider(exporter, sampler=ALWAYS_OFF))
    opened = PeerSpans.exchange

    def exchange(self: PeerSpans, *arguments: Any) -> None:
        self.say = lambda *said: told.append(said)
        opened(self, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PeerSpans, "exchange", exchange)
        await rig.run()
    assert not exporter.get_finished_spans()
    assert not told


async def test_what_neighbours_claim_is_bounded_and_checked() -> None:
    made = PeerSpans(provider(InMemorySpanExporter()))
    for nonsense in ("", "x" * 60_000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01", TRACEPARENT[:-3], "\x00"):
        made.heard(1, ExchangeKey(0, 0), nonsense)
    assert not made._early
    for round in range(10 * MOST_EARLY):
        made.heard(1, ExchangeKey(round, 0), TRACEPARENT)
    assert len(made._early) == MOST_EARLY
    made.round_begins(20 * MOST_EARLY)
    assert not made._early


@pytest.mark.parametrize("carrier", ["memory", "grpc"])
async def test_a_trace_crosses_a_link(carrier: str) -> None:
    links = Links(carrier)
    try:
        a, b = await links.pair()
        for key in (ExchangeKey(0, 0), ExchangeKey(2**63, 7)):
            a.transport.trace(1, key, TRACEPARENT)
        a.transport.trace(5, ExchangeKey(0, 0), TRACEPARENT)  # no such link
        await b.recorder.until(lambda: len(b.recorder.traces) == 2)
        assert b.recorder.traces == [(0, ExchangeKey(0, 0), TRACEPARENT), (0, ExchangeKey(2**63, 7), TRACEPARENT)]
        assert not b.recorder.dropped
    finally:
        await links.stop()


class Stuck(SpanExporter):
    """A collector that does not answer."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.go_on.wait(30)


async def test_a_collector_that_does_not_answer_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "FLUSH_SECONDS", 0.05)
    stuck = Stuck()
    made = PeerSpans(provider(stuck))
    async with asyncio.timeout(20):
        await made.close()
    stuck.go_on.set()
    for thread in threading.enumerate():
        if thread.name == "last spans":
            await asyncio.to_thread(thread.join, 10)


# what is asked for


@pytest.mark.processes
def test_nothing_of_opentelemetry_is_imported_without_the_option() -> None:
    reader, writer = context().Pipe(duplex=False)
    process = context().Process(target=say_what_is_imported, args=(writer,))
    process.start()
    writer.close()
    assert reader.poll(50)
    assert json.loads(reader.recv_bytes()) == []
    process.join(20)
    assert process.exitcode == 0
    reader.close()


def test_a_missing_package_is_a_sentence(grapevine: Grapevine, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("peer.cluster.forkserver.start_early", lambda config: None)
    monkeypatch.setattr("peer.daemon.tracing.find_spec", lambda name: None if "sdk" in name else find(name))
    for words in (
        ("up", "--peers", "2"),
        ("peer", "--peer", "0", "--peers", "2", "--address", "127.0.0.1:1", "--address", "127.0.0.1:2"),
    ):
        done = grapevine(*words, "--tracing", "--metrics-port", "-1")
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert "--tracing: OpenTelemetry is not installed; install it with pip install 'grapevine[tracing]'" in done.err
    check_tracing(validated({}))


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"OTEL_TRACES_EXPORTER": "jager"}, "OTEL_TRACES_EXPORTER names jager, but jager is not installed; there are"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "names otlp, but otlp_proto_grpc is not installed"),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "-3"}, "an OTEL_.* variable makes no sense"),
    ],
)
def test_an_exporter_that_can_not_be_had_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sentence: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Fatal, match=sentence) as fatal:
        open_tracing(validated({"tracing": True}), 0)
    assert fatal.value.code is ExitCode.CONFIG


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP collector on loopback: its endpoint, and what it was sent."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", got
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.processes
def test_a_cluster_of_processes_sends_its_spans_to_a_collector() -> None:
    words = ["up", "--peers", "2", "--tracing", "--max-rounds", "4", "--metrics-port", "-1"]
    with collector() as (endpoint, got):
        process = Warm(words, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
        out, err = process.communicate(timeout=50)
    process.stdout.close()
    process.stderr.close()
    assert process.returncode == 0, out + err
    spans = [(r, s) for request in got for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
    said = [{a.key: a.value.string_value or a.value.int_value for a in r.resource.attributes} for r, _ in spans]
    assert {entry["service.name"] for entry in said} == {"grapevine"}
    assert {entry["grapevine.peer"] for entry in said} == {0, 1}
    names = Counter((entry["grapevine.peer"], span.name) for entry, (_, span) in zip(said, spans, strict=True))
    assert [names[peer, "round"] for peer in (0, 1)] == [4, 4]
    assert [names[peer, "exchange"] for peer in (0, 1)] == [4, 4]
    ids = {span.span_id for _, span in spans}
    linked = [link.span_id for _, span in spans if span.name == "exchange" for link in span.links]
    assert len(linked) == 8
    assert set(linked) <= ids
    now = time.time_ns()
    assert all(now - 300e9 < span.start_time_unix_nano <= span.end_time_unix_nano <= now for _, span in spans)
