"""A second process that computes gradients ahead of the simulation, on another core.

The gradient that a peer takes at the close of a round is that of the parameters which it had at the opening, and nothing changes them in
between. So it can be asked for when the round opens, and taken when it closes. Both processes compute the same function of the same
bits, with one thread each: who computed a gradient changes no bit of the result, so it may depend on the clock.

Requests wait here, in order, and only a few are with the assistant at a time; one that is still waiting when it is needed is computed by
the simulation itself, and the two share the work whatever their speeds. Parameters, indices and gradients are handed over in slots of
memory that both see. The assistant is started when a run turns out to be long, and is not waited for. If it ends, or can't begin, the
simulation goes on alone; if the simulation ends, however it does, the assistant reads the end of its pipe and ends too.
"""

from __future__ import annotations

import json
import math
import mmap
import multiprocessing
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from peer.training.chunk import Chunk, ChunkComputer
from peer.training.data import Indices
from peer.training.flat import FlatModel
from peer.training.task import BUILT_IN, Task, build_model, load_task

START_AFTER: Final = 4.0
"""Seconds that a run lasts before the assistant is started, which takes some seconds of a core: short runs are better off alone."""
AT_ONCE: Final = 3
"""Requests with the assistant: the one it computes, and enough to go on with until the simulation looks again."""
SLOT_BYTES: Final = 1 << 28
MOST_SLOTS: Final = 64

_ASK = struct.Struct("=qq")  # slot, number of samples
_ANSWER = struct.Struct("=qdqd")  # slot, sum of the losses, whether all is finite, processor seconds
_READY: Final = -1  # as a slot: the assistant has begun


#: The program itself comes from where this file lies, and then a task from where the simulation would have found it.
_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from peer.sim.assistant import serve; serve(sys.argv[2])"
)


def is_of_use(task: Task) -> bool:
    """Whether a second process may and can take a part of the work: the task is repeatable, there is a second core, and this process is
    not itself one of several that simulate side by side."""
    if not (task.repeatable and hasattr(os, "memfd_create") and hasattr(os, "sched_getaffinity")):
        return False
    alone = multiprocessing.parent_process() is None
    return alone and len(os.sched_getaffinity(0)) > 1 and torch.get_num_threads() == 1


def is_busy() -> bool:
    """Whether others use the cores, so that a second process would only get in the way of the first."""
    return os.getloadavg()[0] > len(os.sched_getaffinity(0)) - 0.5


def source_of(task: str) -> str | None:
    """The file that a task has been loaded from."""
    return getattr(sys.modules.get(BUILT_IN.get(task, task).partition(":")[0]), "__file__", None)


class Slots:
    """Memory that both processes see. params, gradients: [slots, d]; indices: [slots, samples]."""

    def __init__(self, memory: int, slots: int, dim: int, samples: int) -> None:
        indices, vectors = 8 * slots * samples, slots * dim
        size = indices + 8 * vectors
        os.ftruncate(memory, size)
        shared = mmap.mmap(memory, size)
        self.indices = np.frombuffer(shared, np.int64, slots * samples).reshape(slots, samples)
        floats = torch.from_numpy(np.frombuffer(shared, np.float32, 2 * vectors, offset=indices)).view(2, slots, dim)
        self.params, self.gradients = floats.unbind()


@dataclass(slots=True, eq=False)
class Request:
    """A gradient that will be needed. params: [d], unchanged until it is taken or dropped. slot: once the assistant has it."""

    params: Tensor
    indices: Indices
    slot: int | None = None
    chunk: Chunk | None = None
    dropped: bool = False


class Assistant:
    """The simulation's side. task: its name. dim: d. samples: at most so many in a request."""

    def __init__(self, task: str, seed: int, dim: int, samples: int, *, start_after: float = START_AFTER) -> None:
        self.num_computed = 0  # gradients that the assistant has computed
        self._task = task
        self._seed = seed
        self._dim = dim
        self._samples = samples
        self._num_slots = max(AT_ONCE + 1, min(MOST_SLOTS, SLOT_BYTES // (8 * dim)))
        self._start_at = time.monotonic() + start_after
        self._process: subprocess.Popen[bytes] | None = None
        self._requests_end = self._answers_end = -1
        self._slots: Slots | None = None
        self._free: list[int] = []
        self._waiting: deque[Request] = deque()
        self._sent: dict[int, Request] = {}
        self._lent: int | None = None
        self._typical = 0.0  # processor seconds of the last gradient
        self._ready = self._over = False

    def ask(self, params: Tensor, indices: Indices) -> Request | None:
        """This gradient will be needed. None: nobody computes it."""
        if self._over or (self._process is None and not self._starts()):
            return None
        request = Request(params, indices)
        self._waiting.append(request)
        self._collect()
        return request

    def take(self, request: Request) -> Chunk | None:
        """The gradient, valid until the next call; None if it is still to be computed, which the caller does."""
        self._collect()
        if request.slot in self._sent:
            # Wait as long as computing it would take, and no longer: who knows what the other core does.
            until = time.monotonic() + self._typical
            while request.slot in self._sent and (left := until - time.monotonic()) > 0:
                select.select([self._answers_end], [], [], left)
                self._collect()
        if request.chunk is None:
            request.dropped = True
        else:
            self._lent = request.slot
        return request.chunk

    def drop(self, request: Request) -> None:
        """It is not needed after all."""
        request.dropped = True
        if request.chunk is not None and request.slot is not None:
            self._free.append(request.slot)

    def close(self) -> None:
        """End the process. Nothing is computed ahead any more."""
        self._over = True
        if self._process is None:
            return
        self._process.terminate()
        self._process.wait()
        self._process = None
        os.close(self._requests_end)
        os.close(self._answers_end)

    def _starts(self) -> bool:
        """Now, or not yet."""
        if time.monotonic() < self._start_at:
            return False
        if is_busy():
            self._start_at = time.monotonic() + START_AFTER
            return False
        try:
            self._start()
        except OSError:  # no memory, no process, not allowed: then without
            self._over = True
        return not self._over

    def _start(self) -> None:
        requests, self._requests_end = os.pipe()
        self._answers_end, answers = os.pipe()
        memory = os.memfd_create("grapevine")
        self._slots = Slots(memory, self._num_slots, self._dim, self._samples)
        self._free = list(range(self._num_slots))
        numbers = [self._seed, self._num_slots, self._samples, requests, answers, memory]
        told = json.dumps([sys.path, self._task, source_of(self._task), *numbers])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(Path(__file__).parents[2]), told],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # what goes wrong there goes wrong here too, where it is told
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            pass_fds=(requests, answers, memory),
            process_group=0,  # ctrl-C is for the simulation
        )
        for end in (requests, answers, memory):
            os.close(end)
        os.set_blocking(self._answers_end, False)

    def _collect(self) -> None:
        """Take what the assistant has done, and give it something to do. The last gradient that was taken is no longer valid."""
        if self._over:
            return
        if self._lent is not None:
            self._free.append(self._lent)
            self._lent = None
        try:
            answers = os.read(self._answers_end, 64 * _ANSWER.size)
        except BlockingIOError:
            answers = None
        if answers == b"":
            self._give_up()
            return
        for slot, loss_sum, finite, self._typical in _ANSWER.iter_unpack(answers or b""):
            if slot == _READY:
                self._ready = True
            else:
                self._done(slot, loss_sum, bool(finite))
        if self._ready:
            self._send()

    def _done(self, slot: int, loss_sum: float, finite: bool) -> None:
        request = self._sent.pop(slot)
        self.num_computed += 1
        if request.dropped:
            self._free.append(slot)
        else:
            assert self._slots is not None
            request.chunk = Chunk(self._slots.gradients[slot], len(request.indices), loss_sum, finite)

    def _send(self) -> None:
        assert self._slots is not None
        while self._waiting and self._free and len(self._sent) < AT_ONCE:
            request = self._waiting.popleft()
            if request.dropped:
                continue
            slot = request.slot = self._free.pop()
            self._slots.params[slot].copy_(request.params)
            self._slots.indices[slot, : len(request.indices)] = request.indices
            self._sent[slot] = request
            try:
                os.write(self._requests_end, _ASK.pack(slot, len(request.indices)))
            except BrokenPipeError:
                self._give_up()
                return

    def _give_up(self) -> None:
        """The assistant has ended: the simulation computes what is under way, and all that follows."""
        self._sent.clear()
        self._waiting.clear()
        self.close()


def serve(told: str) -> None:
    """The assistant's side: compute what comes, until nothing can come any more."""
    sys.path[:], name, source, *numbers = json.loads(told)
    seed, num_slots, samples, requests, answers, memory = numbers
    torch.set_num_threads(1)
    task = load_task(name, check=False)
    if source_of(name) != source:
        return  # another of the same name
    model = FlatModel(build_model(task, seed))
    computer = ChunkComputer(task, model, task.train_data())
    slots = Slots(memory, num_slots, model.layout.dim, samples)
    os.write(answers, _ANSWER.pack(_READY, math.nan, 0, 0.0))
    while len(asked := os.read(requests, _ASK.size)) == _ASK.size:
        slot, num_samples = _ASK.unpack(asked)
        began = time.process_time()
        computer.load(slots.params[slot])
        chunk = computer.compute(slots.indices[slot, :num_samples])
        slots.gradients[slot].copy_(chunk.gradient)
        os.write(answers, _ANSWER.pack(slot, chunk.loss_sum, chunk.finite, time.process_time() - began))
