"""What a peer serves, to whom, and what nobody can make it do: over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import time
from base64 import b64encode
from hashlib import sha256

import pytest

from peer.daemon.counts import PeerMetrics
from peer.web import server as served
from peer.web import streams
from peer.web.page import page
from peer.web.server import MAX_CONNECTIONS, WebServer
from peer.web.streams import MAX_STREAMS
from tests.web.rig import Site, digest, site, understood, watch

NEW_WORDS = 'grapevine_closed_words_total{run="run",peer="0",kind="new"} 3'
#: Headers of every answer.
SAFE = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "server": "grapevine",
}
#: What the end may take, with whoever is connected; see GRACE_SECONDS.
ENDED_WITHIN = 5.0


async def test_a_scrape_the_page_and_the_state() -> None:
    async with site() as at:
        both = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
        status, headers, body = await at.get("/metrics", Accept=both)
        assert (status, NEW_WORDS in body) == (200, True)
        assert headers["content-type"].startswith("text/plain; version=")
        status, headers, body = await at.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert headers["content-type"].startswith("application/openmetrics-text")
        assert body.endswith("# EOF\n")
        status, headers, body = await at.get("/")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "<title>grapevine</title>" in body
        status, headers, body = await at.get("/state")
        assert (status, headers["x-content-type-options"]) == (200, "nosniff")
        state = json.loads(body)
        assert state["about"]["num_peers"] == 4
        assert [row["peer"] for row in state["peers"]] == [0, 1, 2, 3]
        assert state["edges"] == [[0, 1], [0, 3], [1, 2], [2, 3]]
        assert state["reasons"] == {"quota": 36, "word": 12}
        assert state["curve"] == [[3.0, 0.5, 0.5, 0.5, 0.5]] * 2
        assert (await at.get("/nothing"))[0] == 404


async def test_the_page_needs_nothing_else_and_runs_nothing_else() -> None:
    html = page().html.decode()
    assert set(re.findall(r"https?://[^\"' ]*", html)) == {"http://www.w3.org/2000/svg"}, "a name, not an address"
    assert not re.search(r"(?:src|href)=\"(?!data:|/metrics|/state)", html)
    assert "innerHTML" not in html
    async with site() as at:
        _, headers, body = await at.get("/")
    policy = headers["content-security-policy"]
    for kind in ("style", "script"):
        source = re.search(rf"<{kind}>(.*?)</{kind}>", body, re.DOTALL)
        assert source
        assert f"{kind}-src 'sha256-{b64encode(sha256(source[1].encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:1", 200),
        ("peer.localhost:80", 200),
        ("127.0.0.1:9100", 200),
        ("[::1]:9100", 200),
        ("evil.example", 403),
        ("evil.example:9100", 403),
        ("127.0.0.1.evil.example", 403),
        ("peer-3:9100", 200),
        (socket.gethostname(), 200),
        ("Gpu3.Cluster.Example:9100", 200),
        ("gpu3.cluster.example.evil.example", 403),
        ("", 400),
    ],
)
@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0"])
async def test_a_foreign_name_is_refused(listen: str, host: str, status: int) -> None:
    async with site(host=listen, names=["gpu3.cluster.example"]) as at:
        assert (await at.get("/metrics", Host=host))[0] == status


async def test_refusals_say_as_little_as_answers() -> None:
    async with site() as at:
        for status, path, told in (
            (200, "/state", {}),
            (404, "/nothing", {}),
            (403, "/state", {"Host": "evil.example"}),
            (403, "/events", {"Sec_Fetch_Site": "cross-site"}),
        ):
            answered, headers, _ = await at.get(path, **told)
            assert answered == status
            assert {name: headers[name] for name in SAFE} == SAFE


NO_HTTP = "this is not HTTP that this peer understands; see docs/page.md\n"
TOO_LONG = "a line or a header of this request is longer than this peer reads\n"
ASKED = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", NO_HTTP),  # TLS
        (b"what is <b>this</b>\r\n\r\n", NO_HTTP),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", NO_HTTP),
        (b"GET / HTTP/1.1\r\n\r\n", NO_HTTP),
        (ASKED + b"Content-Length: some\r\n\r\n", NO_HTTP),
        (ASKED + b"<b>\x00: 1\r\n\r\n", NO_HTTP),
        (ASKED + b"X: " + 9000 * b"x" + b"\r\n\r\n", TOO_LONG),
        (b"GET /" + 9000 * b"x" + b" HTTP/1.1\r\n\r\n", TOO_LONG),
        (ASKED + b"".join(b"X%d: 1\r\n" % i for i in range(200)) + b"\r\n", NO_HTTP),
    ],
    ids=["tls", "garbage", "version", "no host", "length", "header name", "long header", "long line", "many headers"],
)
async def test_what_is_no_http_is_answered_in_a_sentence_and_counted(
    said: bytes, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "grapevine")
    async with site() as at:
        status, headers, told = understood(await at.says(said))
        counted = at.metrics.text().decode()
    assert (status, told) == (400, body)
    assert {name: headers[name] for name in SAFE} == SAFE
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert 'grapevine_http_answers_total{run="run",peer="0",status="400"} 1\n' in counted
    (record,) = (record for record in caplog.records if record.name.startswith("grapevine"))
    assert (record.levelno, record.exc_info) == (logging.DEBUG, None)
    assert record.getMessage().startswith("not HTTP, from 127.0.0.1: ")


async def test_a_body_that_breaks_off_or_makes_no_sense_is_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    posted = ASKED.replace(b"GET", b"POST")
    async with site() as at:
        for head, body in ((b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n"), (b"Content-Length: 9\r\n\r\n", b"x")):
            assert (await at.says(posted + head, body)).startswith(b"HTTP/1.1 405 ")
        assert (await at.get("/"))[0] == 200
    assert caplog.text == ""


async def test_answers_are_counted_by_status() -> None:
    async with site() as at:
        for path, told in (("/", {}), ("/state", {}), ("/nothing", {}), ("/", {"Host": "evil.example"})):
            await at.get(path, **told)
        _, _, page = await at.get("/metrics")
    counted = dict(re.findall(r'grapevine_http_answers_total{run="run",peer="0",status="(\d+)"} (\d+)', page))
    assert counted == {"200": "2", "400": "0", "403": "1", "404": "1", "405": "0", "503": "0"}


async def test_foreign_pages_open_no_streams_where_others_may_come() -> None:
    async with site(host="0.0.0.0") as at:
        for path in ("/events", "/metrics", "/state"):
            assert (await at.get(path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors"))[0] == 403
        for path in ("/", "/metrics"):  # a link from elsewhere may lead here
            assert (await at.get(path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate"))[0] == 200


async def test_a_browser_gets_all_at_first_and_then_what_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "UPDATE_SECONDS", 0.02)
    watched = watch()
    async with site(watched) as at:
        stream = await at.stream()
        first = await stream.event("whole")
        assert {"about", "peers", "edges", "reasons", "events", "curve"} <= first.keys()
        watched.heard(1, [digest(2, stamp=11, round=99, lost_links=(3,))])
        rounds = 0
        while rounds != 99:
            update = await stream.event("update")
            rounds = update["peers"][2]["round"]
        assert "about" not in update
        assert [event["text"] for event in update["events"]][-1] == "peer 2 lost its edge to peer 3"
        stream.close()


async def test_who_goes_in_the_middle_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(served, "UPDATE_SECONDS", 0.001)
    async with site() as at:
        for _ in range(20):
            stream = await at.stream()
            await stream.event("update")
            stream.close()
        async with asyncio.timeout(10):
            while len(at.server._streams):
                await asyncio.sleep(0.002)
    assert caplog.text == ""


async def test_two_hundred_pages_and_no_more() -> None:
    async with site() as at:
        open_streams = await asyncio.gather(*(at.stream() for _ in range(MAX_STREAMS)))
        for stream in open_streams:
            await stream.event("whole")
        status, headers, body = await at.get("/events")
        assert (status, headers["content-type"]) == (503, "text/plain; charset=utf-8")
        assert body.startswith("200 pages of this peer are open")
        assert (await at.get("/metrics"))[0] == 200
        assert (await at.get("/"))[0] == 200
        at.server._tick()
        for stream in open_streams:
            await stream.event("update")
        open_streams.pop().close()
        async with asyncio.timeout(10):
            while True:  # until the server has noticed
                another = await at.stream()
                if await another.status() == 200:
                    break
                another.close()
        for stream in (*open_streams, another):
            stream.close()


async def test_connections_are_bounded_whatever_they_say() -> None:
    async with site() as at:
        callers = [await asyncio.open_connection("127.0.0.1", at.port) for _ in range(MAX_CONNECTIONS)]
        status, headers, body = await at.get("/metrics")
        assert (status, body) == (
            503,
            f"{MAX_CONNECTIONS} connections are open, which is as many as this peer serves\n",
        )
        assert {name: headers[name] for name in SAFE} == SAFE
        assert 'grapevine_http_answers_total{run="run",peer="0",status="503"} 1\n' in at.metrics.text().decode()
        for _, writer in callers:
            writer.transport.abort()
        async with asyncio.timeout(10):
            while (await at.get("/metrics"))[0] != 200:
                pass


async def test_who_asks_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "REQUEST_SECONDS", 0.05)
    async with site() as at:
        for begun in (b"", b"GET / HT", ASKED, ASKED + b"X: "):
            assert await at.says(begun) == b""


async def test_who_sends_half_a_request_byte_by_byte_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes does not put the end off."""
    monkeypatch.setattr(served, "REQUEST_SECONDS", 0.2)
    async with site() as at, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
        writer.write(ASKED + b"X: ")
        began = time.monotonic()
        ended = asyncio.create_task(reader.read())
        while not ended.done():
            writer.write(b"x")
            await asyncio.wait((ended,), timeout=0.01)
        assert ended.exception() is None or isinstance(ended.exception(), ConnectionResetError)
        assert time.monotonic() - began >= 0.15
        writer.transport.abort()


def waiting_bytes(at: Site) -> int:
    """In this process, for all readers."""
    return sum(transport.get_write_buffer_size() for transport in at.server._transports())


async def test_a_browser_that_reads_nothing_costs_one_picture_and_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """While others get every update. 200 peers make a picture of about 70 kB."""
    monkeypatch.setattr(served, "UPDATE_SECONDS", 0.002)
    monkeypatch.setattr(served, "WRITE_SECONDS", 1.0)
    watched = watch(200)
    watched.heard(1, [digest(peer) for peer in range(1, 200)])
    async with site(watched) as at, asyncio.timeout(30):
        picture = len((await at.get("/state"))[2])
        with at.deaf():
            reads = await at.stream()
            most, got = 0, 0
            began = time.monotonic()
            while len(at.server._transports()) == 2 or not most:
                await reads.event("update")
                got += 1
                most = max(most, waiting_bytes(at))
            assert time.monotonic() - began >= 1.0, "it had its time"
            assert most <= 2 * picture
            assert got > 20
            await reads.event("update")
            assert waiting_bytes(at) <= 2 * picture
            reads.close()


async def test_the_end_is_told_and_takes_a_bounded_time_with_everybody_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Browsers that read, one that does not and has a full buffer, one that has asked nothing, a scrape begun a moment before."""
    monkeypatch.setattr(served, "UPDATE_SECONDS", 0.002)
    watched = watch(200)
    async with site(watched) as at:
        reading = [await at.stream() for _ in range(10)]
        for stream in reading:
            await stream.event("whole")
        ends = [asyncio.create_task(stream.event("end")) for stream in reading]
        silent = await asyncio.open_connection("127.0.0.1", at.port)
        with at.deaf():
            async with asyncio.timeout(20):
                while not waiting_bytes(at):
                    await asyncio.sleep(0.002)
            scrape, scraper = await at.ask("/metrics")
            await asyncio.sleep(0)
            began = time.monotonic()
            await at.server.stop()
            assert time.monotonic() - began < ENDED_WITHIN
            for told in await asyncio.gather(*ends):
                assert told["about"]["peer"] == 0
            answer = await scrape.read()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 200"), "whole, or not at all"
            assert not answer or NEW_WORDS.encode() in answer
            scraper.close()
            assert await silent[0].read() == b""
            silent[1].close()
            with pytest.raises(ConnectionRefusedError):
                await at.get("/metrics")
            for stream in reading:
                assert await stream.ended()
                stream.close()


async def test_a_taken_port_is_told_in_the_words_of_the_system() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = WebServer(watch(), PeerMetrics("run", 0))
        with pytest.raises(OSError, match="Address already in use"):
            await server.start("127.0.0.1", taken.getsockname()[1])
        await server.stop()


def test_an_event_is_one_line_of_data() -> None:
    assert streams.event("update", '{"a":"b\\nc"}') == b'event: update\ndata: {"a":"b\\nc"}\n\n'
