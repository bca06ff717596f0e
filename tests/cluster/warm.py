"""`grapevine WORDS` in a process and a session of its own that starts warm: forked from a server that has imported torch.

What runs is the same, and so is who is whose child; only `exec` is missing, of the launcher and of the server that its peers are forked
from, and with it three seconds of imports. Some tests of tests/cluster/test_up.py start cold.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import util
from typing import Any, TextIO

from peer.cluster.forkserver import context


class Warm:
    """A started command. Has what the tests use of subprocess.Popen."""

    def __init__(self, words: Sequence[str], **environment: str) -> None:
        out, their_out = socket.socketpair()
        err, their_err = socket.socketpair()
        self._process = context().Process(target=_enter, args=(list(words), environment, their_out, their_err))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdout, self.stderr = _text(out), _text(err)
        their_out.close()
        their_err.close()

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join()
        self.stdout.close()
        self.stderr.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, sign: signal.Signals) -> None:
        os.kill(self.pid, sign)

    def wait(self, timeout: float) -> None:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("grapevine", timeout)

    def communicate(self, timeout: float) -> tuple[str, str]:
        with ThreadPoolExecutor(2) as readers:
            said = readers.map(lambda end: end.read(), (self.stdout, self.stderr))
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)  # or the readers would wait for ever
                raise
            out, err = said
        return out, err


def instead_of_popen(command: Sequence[str], **_: object) -> Warm:
    """The command line `python -m peer WORDS`, as product code starts it, started warm."""
    assert list(command[:3]) == [sys.executable, "-m", "peer"]
    return Warm(command[3:])


def _text(end: socket.socket) -> TextIO:
    with end:
        return end.makefile("r")


def _enter(words: list[str], environment: dict[str, str], out: socket.socket, err: socket.socket) -> None:
    os.setsid()
    os.environ.update(environment)
    for end, number in ((out, 1), (err, 2)):
        os.dup2(end.fileno(), number)
        end.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    util.spawnv_passfds = _fork_instead
    sys.argv = ["grapevine", *words]
    from peer.cli import main

    main()


def _fork_instead(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """Stands for multiprocessing.util.spawnv_passfds, with which forkserver starts `python -c COMMAND`."""
    pid = os.fork()
    if pid:
        return pid
    kept = sorted({0, 1, 2, *passfds})
    for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)
    try:
        exec(args[-1], {})
    finally:
        os._exit(0)  # not back into the launcher's frames
