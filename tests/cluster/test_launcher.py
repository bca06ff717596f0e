"""The launcher and its children's ends, with real processes that are no peers; the child's end of it without any process."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

from peer.cluster.child import child_main
from peer.cluster.launcher import PATIENCE, Child, Launcher
from peer.config import validated
from peer.daemon.peer import GOODBYE_SECONDS, TRAINER_SECONDS
from peer.daemon.process import stop_on_signals
from peer.exit_codes import ExitCode
from tests.cluster.stubborn import does_not_listen, hangs_up_and_lives_on

PROCESSES = multiprocessing.get_context("forkserver")


def start(target: Callable[..., None], *more: Connection) -> Child:
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(
        target=target, args=(theirs, *more), daemon=True
    )  # a test that fails leaves nobody behind
    process.start()
    for pipe in (theirs, *more):
        pipe.close()
    return Child(0, process, ours)


async def changes_until(launcher: Launcher, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            launcher.changed.clear()
            await launcher.changed.wait()


@pytest.mark.processes
async def test_a_child_that_does_not_end_is_killed_and_let_go() -> None:
    launcher = Launcher(validated({}))
    child = start(does_not_listen)
    launcher.adopt(child)
    await changes_until(launcher, lambda: child.ready_at is not None)
    pipe, sentinel = child.pipe.fileno(), child.process.sentinel
    await launcher.stop("enough", patience=0.1)
    assert (child.ended, child.died, child.process.exitcode) == (True, True, -signal.SIGKILL)
    assert_let_go(child, pipe, sentinel)
    await launcher.stop("enough, again")


@pytest.mark.processes
async def test_a_child_that_even_survives_is_not_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipe is closed while it could still say something: nobody may read what has that number next."""
    launcher = Launcher(validated({}))
    child = start(does_not_listen)
    launcher.adopt(child)
    await changes_until(launcher, lambda: child.ready_at is not None)
    pipe, sentinel = child.pipe.fileno(), child.process.sentinel
    with monkeypatch.context() as patched:
        patched.setattr(Launcher, "kill", lambda self: None)
        patched.setattr("peer.cluster.launcher.KILLED_WITHIN", 0.1)
        await launcher.stop("enough", patience=0.1)
    assert not child.ended
    assert_let_go(child, pipe, sentinel)
    launcher.kill()
    await asyncio.to_thread(child.process.join, 10)
    assert child.process.exitcode == -signal.SIGKILL


def assert_let_go(child: Child, pipe: int, sentinel: int) -> None:
    assert child.pipe.closed
    loop = asyncio.get_running_loop()
    assert not loop.remove_reader(pipe), "the number of a closed pipe is still read from"
    assert not loop.remove_reader(sentinel)


@pytest.mark.processes
async def test_how_a_child_ended_is_known_without_holding_up_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Between its last word and its end a process may take its time; it has not ended until it has."""
    launcher = Launcher(validated({}))
    hung_up, theirs = PROCESSES.Pipe()
    child = start(hangs_up_and_lives_on, theirs)
    launcher.adopt(child)
    await asyncio.to_thread(hung_up.recv_bytes)
    before = asyncio.get_running_loop().time()
    await asyncio.sleep(0)  # the closed pipe is read now
    assert asyncio.get_running_loop().time() - before < 0.5, "the loop stood still"
    assert not child.ended
    assert child.process.pid is not None
    os.kill(child.process.pid, signal.SIGKILL)
    await changes_until(launcher, lambda: child.ended)
    assert "peer 0 died (killed by signal 9)" in caplog.text
    await launcher.stop("enough")
    hung_up.close()


def test_the_launcher_is_more_patient_than_a_peer_is_slow() -> None:
    assert PATIENCE >= TRAINER_SECONDS + GOODBYE_SECONDS + 10


def test_a_config_that_a_child_can_not_read_ends_it_as_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = multiprocessing.Pipe()
    codes: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "_exit", codes.append)
    child_main('{"peers": 0}', 0, theirs)
    assert codes == [ExitCode.BUG]
    assert theirs.closed
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
