"""A cluster of real processes, watched from outside: its log as JSON, and `grapevine top`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from typing import Any, TextIO

import pytest

from peer.cluster.crawl import Crawl
from tests.cluster.test_up import DONE_WITHIN, assert_no_orphans, wait_for, warm

pytestmark = pytest.mark.processes


class Log:
    """Lines of JSON as they come. All that was said is kept."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.said: list[dict[str, Any]] = []

    def until(self, event: str) -> dict[str, Any]:
        for line in self._stream:
            self.said.append(json.loads(line))
            if self.said[-1]["event"] == event:
                return self.said[-1]
        raise AssertionError(f"{event} was never said, but {self.said}")

    def events(self, peer: int | None) -> set[str]:
        return {entry["event"] for entry in self.said if entry["peer"] == peer}


def top(address: str) -> list[str]:
    with warm("top", address, "--once", "--timeout", "5") as process:
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 0, out + err
    return out.splitlines()


async def pid_of(peer: int, address: str) -> int:
    crawl = Crawl(address, 5.0)
    try:
        await crawl.look()
        status = crawl.rows[peer].status
        assert status is not None
        return status.pid
    finally:
        await crawl.close()


def test_all_that_a_cluster_says_is_json_and_top_shows_it() -> None:
    words = ["--peers", "3", "--chunk-seconds", "0.005", "--log-format", "json", "--log-level", "info"]
    with warm("up", *words) as process:
        log = Log(process.stderr)
        address = log.until("ready")["address"]
        log.until("progress")
        lines = top(address)
        assert lines[0] == "run 'grapevine': 3 peers, dpsgd on a ring, task digits"
        assert "3 of 3 peers answer" in lines[1]
        assert [line.split()[0] for line in lines[2:6]] == ["peer", "0", "1", "2"]
        assert all("%" in line for line in lines[3:6]), "bars"
        os.kill(asyncio.run(pid_of(2, address)), signal.SIGKILL)
        died = log.until("peer-died")
        assert (died["level"], died["logger"], died["peer"]) == ("warning", "grapevine.cluster", None)
        assert (died["about"], died["reason"]) == (2, "killed by signal 9")
        lines = top(address)
        assert "2 of 3 peers answer" in lines[1]
        assert "no answer" in lines[5]
        process.send_signal(signal.SIGINT)
        summary = log.until("summary")
        assert summary["rounds"] > 0
        assert summary["error"] is None
        out, err = process.communicate(timeout=DONE_WITHIN)
        log.said += [json.loads(line) for line in err.splitlines()]
        assert (process.returncode, out) == (0, "")
        assert_no_orphans(process.pid)
    assert {"start", "said", "ready", "progress", "peer-died", "summary"} <= log.events(None)
    for peer in (0, 1):
        assert "word" in log.events(peer)
        missed = [entry for entry in log.said if entry["peer"] == peer and "neighbor" in entry]
        assert missed[0]["event"] in ("link-lost", "neighbor-silent"), "whichever it noticed first"
        assert missed[0]["neighbor"] == 2


@pytest.mark.timeout(150)
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0", "localhost:0", "[::]:0"])
def test_the_address_that_up_names_is_one_to_watch_from_another_terminal(listen: str) -> None:
    if "::" in listen and not has_ipv6():
        pytest.skip("there is no IPv6 loopback here")
    with warm("up", "--peers", "2", "--chunk-seconds", "0.004", GRAPEVINE_LISTEN=listen) as process:
        named = re.search(r"from elsewhere: grapevine top (\S+)", wait_for(process, "to watch them"))
        assert named
        assert "2 of 2 peers answer" in "\n".join(top(named[1]))
        assert not re.match(r"0\.0\.0\.0|\[::\]|:", named[1]), "no address to connect to, though some systems do"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 0, out + err
        assert_no_orphans(process.pid)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True
