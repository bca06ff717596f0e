"""The launcher and its children's ends, with real processes that are no peers; the child's end of it without any process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from peer.cluster import line as lines
from peer.cluster.child import child_main
from peer.cluster.forkserver import context
from peer.cluster.launcher import PATIENCE, Child, Launcher
from peer.cluster.line import Line
from peer.config import validated
from peer.daemon.peer import GOODBYE_SECONDS, TRAINER_SECONDS
from peer.daemon.process import stop_on_signals
from peer.exit_codes import ExitCode
from peer.transport.linked import READ_SECONDS
from tests.cluster.stubborn import does_not_listen, hangs_up_and_lives_on, solves_nothing, takes_breath


def start(target: Callable[..., None], *more: socket.socket) -> Child:
    ours, theirs = socket.socketpair()
    process = context().Process(
        target=target, args=(theirs, *more), daemon=True
    )  # a test that fails leaves nobody behind
    process.start()
    for end in (theirs, *more):
        end.close()
    return Child(0, process, Line(ours))


async def changes_until(launcher: Launcher, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            launcher.changed.clear()
            await launcher.changed.wait()


@pytest.mark.slow
@pytest.mark.processes
async def test_a_child_that_does_not_end_is_killed_and_let_go() -> None:
    launcher = Launcher(validated({}))
    child = start(does_not_listen)
    launcher.adopt(child)
    await changes_until(launcher, lambda: child.ready_at is not None)
    line, sentinel = child.line.fileno(), child.process.sentinel
    await launcher.stop("enough", patience=0.1)
    assert (child.ended, child.died, child.process.exitcode) == (True, True, -signal.SIGKILL)
    assert launcher.lost() == {0: "did not end when it was told to, and was killed"}
    assert_let_go(child, line, sentinel)
    await launcher.stop("enough, again")


@pytest.mark.processes
async def test_a_child_that_even_survives_is_not_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line is closed while it could still say something: nobody may read what has that number next."""
    launcher = Launcher(validated({}))
    child = start(does_not_listen)
    launcher.adopt(child)
    await changes_until(launcher, lambda: child.ready_at is not None)
    line, sentinel = child.line.fileno(), child.process.sentinel
    with monkeypatch.context() as patched:
        patched.setattr(Launcher, "kill", lambda self: None)
        patched.setattr("peer.cluster.launcher.KILLED_WITHIN", 0.1)
        await launcher.stop("enough", patience=0.1)
    assert not child.ended
    assert_let_go(child, line, sentinel)
    launcher.kill()
    await asyncio.to_thread(child.process.join, 10)
    assert child.process.exitcode == -signal.SIGKILL


def assert_let_go(child: Child, line: int, sentinel: int) -> None:
    assert child.line.closed
    loop = asyncio.get_running_loop()
    assert not loop.remove_reader(line), "the number of a closed socket is still read from"
    assert not loop.remove_reader(sentinel)


@pytest.mark.processes
async def test_how_a_child_ended_is_known_without_holding_up_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Between its last word and its end a process may take its time; it has not ended until it has."""
    launcher = Launcher(validated({}))
    hung_up, theirs = socket.socketpair()
    child = start(hangs_up_and_lives_on, theirs)
    launcher.adopt(child)
    await asyncio.to_thread(hung_up.recv, 6)
    before = asyncio.get_running_loop().time()
    await asyncio.sleep(0)  # the closed line is read now
    assert asyncio.get_running_loop().time() - before < 0.5, "the loop stood still"
    assert not child.ended
    assert child.process.pid is not None
    os.kill(child.process.pid, signal.SIGKILL)
    await changes_until(launcher, lambda: child.ended)
    assert "peer 0 died (killed by signal 9)" in caplog.text
    await launcher.stop("enough")
    hung_up.close()


@pytest.mark.processes
def test_a_long_last_word_is_heard_whole_on_the_loop_of_up() -> None:
    """uvloop makes what it watches non-blocking: half a message is no hang-up."""

    async def heard() -> Child:
        launcher = Launcher(validated({}))
        child = start(takes_breath)
        launcher.adopt(child)
        await changes_until(launcher, lambda: child.ended)
        await launcher.stop("enough")
        return child

    child = uvloop.run(heard())
    assert not child.died
    assert child.summary == {"rounds": "x" * 300_000}


@pytest.mark.processes
@pytest.mark.parametrize("algorithm", ["matcha", "al-matcha"])
async def test_no_peer_computes_a_schedule_that_the_launcher_has(
    monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    monkeypatch.setattr("peer.cluster.launcher._enter", solves_nothing)
    launcher = Launcher(validated({"peers": 3, "algorithm": algorithm, "metrics_port": -1, "chunk_seconds": 0.01}))
    launcher.start()
    try:
        await launcher.introduce()
        await launcher.all_ready()
    finally:
        await launcher.stop("enough")
    assert [child.summary is not None for child in launcher.children] == [True] * 3


def test_a_line_says_and_hears_whole_messages_and_no_more_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = socket.socketpair()
    one, other = (Line(end) for end in ends)
    assert other.heard() == []
    one.say("stop", "enough")
    one.say("addresses", ["a\nb"])
    assert [message["content"] for message in other.heard()] == ["enough", ["a\nb"]]
    monkeypatch.setattr(lines, "LONGEST", 10)
    ends[0].send(b"x" * 11)
    with pytest.raises(OSError, match="more than 10 bytes"):
        other.heard()
    one.close()
    other.close()


def test_a_line_to_nobody_or_to_who_does_not_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (Line(end) for end in socket.socketpair())
    monkeypatch.setattr(lines, "SAID_WITHIN", 0.05)
    with pytest.raises(TimeoutError):
        one.say("summary", "x" * (8 << 20))
    other.close()
    with pytest.raises(BrokenPipeError):
        one.say("stop", "enough")
    with pytest.raises(EOFError):
        one.heard()
    one.close()


def test_the_launcher_is_more_patient_than_a_peer_is_slow() -> None:
    assert PATIENCE >= TRAINER_SECONDS + GOODBYE_SECONDS + READ_SECONDS + 10


def test_a_config_that_a_child_can_not_read_ends_it_as_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    codes: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "_exit", codes.append)
    child_main('{"peers": 0}', 0, theirs, {})
    assert codes == [ExitCode.BUG]
    assert theirs.fileno() < 0
    ours.close()


class Host:
    """Stands for a peer; `asked` fills as it is told to stop."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[str] = asyncio.Queue()

    def request_stop(self, reason: str) -> None:
        self.asked.put_nowait(reason)


async def test_only_a_second_sigint_ends_a_standalone_peer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host: Any = Host()
    ended: asyncio.Queue[int] = asyncio.Queue()
    monkeypatch.setattr(os, "_exit", ended.put_nowait)
    stop_on_signals(host)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(10):
            for sign in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), sign)
                assert await host.asked.get() == sign.name
            assert ended.empty()
            os.kill(os.getpid(), signal.SIGINT)
            assert await ended.get() == ExitCode.INTERRUPTED
    finally:
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(sign)
