"""The computation of chunks in a process of its own, beside the daemon: `ChunkComputer` behind a socket.

Small steps and gRPC fight for the interpreter lock when they share a process; docs/trainer.md has the figures. The process is forked
from the daemon before any thread is started, so it costs no import and shares the pages of a data set's tensors and arrays; the vector
[d] and the gradient [d] lie in memory that both have mapped, so that a chunk costs one message each way and no copy of its own.

Whatever happens to it, a task that crashes takes this process along and not the daemon, which says so, says goodbye to its neighbours and
ends in order. A chunk under way can be interrupted. When the daemon is gone, the kernel ends it (PR_SET_PDEATHSIG). Files that the task
has opened stay open in it; sockets and pipes, which are the daemon's, do not.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
import torch
from torch import Tensor

from peer.training.chunk import Chunk, ChunkComputer
from peer.training.data import Indices
from peer.training.flat import FlatModel

_ASKED: Final = struct.Struct("<?I")  # new parameters; number of samples, whose indices follow as int64
_TOLD: Final = struct.Struct(
    "<?d?I"
)  # well; sum of losses; finite; bytes of the sentence that follows when it went ill
_PR_SET_PDEATHSIG: Final = 1


DAEMON_NICENESS: Final = 5
"""By so much the daemon is nicer than its computer: where both want all of a core, the computer has three quarters of it."""


class ComputerFailed(Exception):
    """What the task raised in the other process."""


class ComputerDied(Exception):
    """How the other process ended."""


class ComputerStalled(Exception):
    """The other process stands still."""


def give_way() -> None:
    """From now on this thread, and those that it starts, get out of the way of a computer that was forked before: exchanges slow down
    before training does, on a machine that is busy. It can't be taken back."""
    with suppress(OSError):  # a sandbox may forbid it
        os.nice(DAEMON_NICENESS)


def shared_memory(num_elements: int) -> Tensor:
    """[num_elements] float32, zeros, that this process and those forked from it later have in common."""
    memory = mmap.mmap(-1, max(4 * num_elements, 1))
    return torch.frombuffer(memory, dtype=torch.float32, count=num_elements)


class ComputerProcess:
    """Has what a trainer asks of a `ChunkComputer`, and computes the same bits with it elsewhere.

    computer, model: the computer and its model, made with `FlatModel(module, memory=shared_memory)`. Forks at once, so make it before
    threads are started. Its methods are called by one thread, `close` by any. first: indices of a chunk to be computed and forgotten at
    once, so that torch's first-call costs are paid before the run begins. Raises ValueError if the model is not on the CPU, and OSError if
    memory or processes run out.
    """

    def __init__(self, computer: ChunkComputer, model: FlatModel, first: Indices | None = None) -> None:
        if model.vector.device.type != "cpu":
            raise ValueError("a computer in a process of its own works on the CPU")
        self._vector, self._gradient = model.vector, model.gradient
        self._loaded = False
        self._owed = False  # the answer to a chunk that is to be forgotten
        self._socket, theirs = socket.socketpair()
        daemon = os.getpid()
        for said in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or whatever a task has put in its place
                said.flush()  # else it would be said twice
        try:
            self.pid = os.fork()
        except OSError:
            self._socket.close()
            theirs.close()
            raise
        if self.pid == 0:
            _serve(computer, theirs, daemon, first)
        theirs.close()
        self._ended: int | None = None

    @property
    def dim(self) -> int:
        return self._vector.numel()

    def load(self, params: Tensor) -> None:
        """Take over parameters and buffers [d]; the following chunks are computed there."""
        self._vector.copy_(params)
        self._loaded = True

    def compute(self, indices: Indices) -> Chunk:
        """The chunk of the samples at these dataset indices [b]; its gradient [d] is valid until the next. Raises ComputerFailed and
        ComputerDied."""
        loaded, self._loaded = self._loaded, False
        try:
            self._ask(loaded, indices)
            if self._owed:
                self._owed = False
                with suppress(ComputerFailed):
                    self._hear()
            loss_sum, finite = self._hear()
        except OSError:
            raise ComputerDied(self._how_it_ended()) from None
        return Chunk(self._gradient, len(indices), loss_sum, finite)

    def prove(self, indices: Indices, stalled: float, at_most: float) -> None:
        """Compute a chunk and forget it, so that it is known to work here. Raises ComputerFailed, ComputerDied, and TimeoutError if the
        process has used no processor time for `stalled` seconds, as one that waits for what its fork left behind; after that it can only
        be closed. One that is still at work after `at_most` seconds is believed."""
        try:
            self._ask(False, indices)
            begun = time.monotonic()
            used, since = processor_ticks(self.pid), begun
            while not select.select((self._socket,), (), (), 0.05)[0]:
                now, uses = time.monotonic(), processor_ticks(self.pid)
                if uses != used:
                    used, since = uses, now
                if now - since > stalled:
                    raise ComputerStalled
                if now - begun > at_most:
                    self._owed = True
                    return
            self._hear()
        except ComputerStalled:
            raise TimeoutError from None
        except OSError:
            raise ComputerDied(self._how_it_ended()) from None

    def _ask(self, loaded: bool, indices: Indices) -> None:
        self._socket.sendall(_ASKED.pack(loaded, len(indices)) + np.ascontiguousarray(indices, np.int64).tobytes())

    def _hear(self) -> tuple[float, bool]:
        """Raises OSError and ComputerFailed."""
        well, loss_sum, finite, length = _TOLD.unpack(_receive(self._socket, _TOLD.size))
        told = _receive(self._socket, length).decode() if length else ""
        if not well:
            raise ComputerFailed(told)
        return loss_sum, finite

    def close(self) -> None:
        """End the process, in the middle of a chunk too; `compute` then raises. May be called again."""
        if self._ended is None:
            with suppress(ProcessLookupError):  # the thread that computes has seen it end meanwhile
                os.kill(self.pid, signal.SIGKILL)
            self._wait()
        self._socket.close()

    def _how_it_ended(self) -> str:
        self._wait()
        ended = os.waitstatus_to_exitcode(self._ended or 0)
        return f"was killed by signal {-ended}" if ended < 0 else f"ended with exit code {ended}"

    def _wait(self) -> None:
        if self._ended is None:
            try:
                self._ended = os.waitpid(self.pid, 0)[1]
            except ChildProcessError:  # the thread that computes and the one that closes have met here
                self._ended = self._ended or 0


def processor_ticks(pid: int) -> int:
    """Of all threads of a process, its own and the kernel's for it; -1 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return int(fields[11]) + int(fields[12])


def _receive(end: socket.socket, size: int) -> bytearray:
    """Exactly so many bytes. Raises OSError when the other end is gone."""
    found = bytearray()
    while len(found) < size:
        piece = end.recv(size - len(found))
        if not piece:
            raise ConnectionResetError("the other end is gone")
        found += piece
    return found


def _serve(computer: ChunkComputer, end: socket.socket, daemon: int, first: Indices | None) -> NoReturn:
    """The forked process, to its end. Nothing of the daemon's may be touched: its loop, its sockets, its signals."""
    try:
        _leave_the_daemon(daemon, end.fileno())
        if first is not None:
            with suppress(Exception):  # a task that fails is reported by its first real chunk
                computer.compute(first)
        while True:
            _answer(computer, end)
    except OSError:
        os._exit(0)  # the daemon is gone
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _leave_the_daemon(daemon: int, kept: int) -> None:
    signal.set_wakeup_fd(-1)
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.SIG_IGN)  # the daemon decides
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise RuntimeError("this system does not say when a parent dies")
    with suppress(Exception):  # whatever a task has put in its place; a process that is killed flushes nothing
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if os.getppid() != daemon:
        raise ConnectionResetError("the daemon is gone already")
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != kept and _is_the_daemons(number):
            os.close(number)


def _is_the_daemons(number: int) -> bool:
    """Sockets, pipes, and what has no kind: those of an event loop. A file or a device is the task's: of a data set that is read piece by
    piece, say, which would else find another file under its number."""
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        return False  # the listing's own
    return stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) or not stat.S_IFMT(mode)


def _answer(computer: ChunkComputer, end: socket.socket) -> None:
    loaded, num_samples = _ASKED.unpack(_receive(end, _ASKED.size))
    indices = np.frombuffer(_receive(end, 8 * num_samples), np.int64)
    try:
        if loaded:
            computer.take_over()
        chunk = computer.compute(indices)
    except BaseException as error:  # sys.exit in a task too
        told = f"{type(error).__name__}: {error}".encode()
        end.sendall(_TOLD.pack(False, 0.0, False, len(told)) + told)
        return
    end.sendall(_TOLD.pack(True, chunk.loss_sum, chunk.finite, 0))
