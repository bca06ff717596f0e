"""What is checked of a computer in a process of its own; each runs in a fresh process, because a computer is forked before threads are.

Imports what it needs only; an assertion that fails is the exit code of that process.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from peer.training.chunk import ChunkComputer
from peer.training.flat import FlatModel
from peer.training.remote import ComputerDied, ComputerFailed, ComputerProcess, shared_memory
from peer.training.task import Task, build_model, load_task
from tests.training.counting import Counting


def both(task: Task) -> tuple[ChunkComputer, ComputerProcess]:
    """The same computer here and elsewhere."""
    torch.set_num_threads(1)
    data = task.train_data()
    model = FlatModel(build_model(task, 0), memory=shared_memory)
    elsewhere = ComputerProcess(ChunkComputer(task, model, data), model)
    return ChunkComputer(task, FlatModel(build_model(task, 0)), data), elsewhere


def equal_bits() -> None:
    """BatchNorm's buffers among them."""
    warnings.simplefilter("error")
    here, elsewhere = both(load_task("digits-cnn"))
    assert here.dim == elsewhere.dim
    params = build_vector("digits-cnn")
    for step in range(4):
        indices = np.arange(3 * step, 3 * step + 2 + step)
        if step != 2:  # the third chunk is computed at the parameters of the second
            for computer in (here, elsewhere):
                computer.load(params)
        mine, theirs = here.compute(indices), elsewhere.compute(indices)
        assert torch.equal(mine.gradient, theirs.gradient)
        assert (mine.num_samples, mine.loss_sum, mine.finite) == (theirs.num_samples, theirs.loss_sum, theirs.finite)
        params = params - 0.01 * mine.gradient
    elsewhere.close()
    elsewhere.close()


def build_vector(name: str) -> Tensor:
    return FlatModel(build_model(load_task(name), 0)).vector


class Picky(Counting):
    """Refuses sample 7, takes for ever over sample 8, and works for half a second on sample 9."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert targets is not None
        if outputs.detach().eq(7).any():
            raise ValueError("no sevens")
        while outputs.detach().eq(8).any():
            time.sleep(1)
        until = time.process_time() + 0.5
        while outputs.detach().eq(9).any() and time.process_time() < until:
            pass
        return super().loss(outputs, targets)


def picky() -> ComputerProcess:
    _, elsewhere = both(Picky())
    elsewhere.load(torch.arange(30.0))  # so that the output of sample i is i
    return elsewhere


def a_task_that_raises_is_told_and_goes_on() -> None:
    elsewhere = picky()
    with pytest.raises(ComputerFailed, match=r"^ValueError: no sevens$"):
        elsewhere.compute(np.array([6, 7]))
    assert elsewhere.compute(np.array([5, 6])).loss_sum == 11.0
    elsewhere.close()


def a_process_that_dies_says_how() -> None:
    elsewhere = picky()
    os.kill(elsewhere.pid, signal.SIGKILL)
    with pytest.raises(ComputerDied, match="was killed by signal 9"):
        elsewhere.compute(np.array([1]))
    elsewhere.close()


def a_chunk_under_way_can_be_interrupted() -> None:
    elsewhere = picky()
    threading.Timer(0.3, elsewhere.close).start()
    with pytest.raises(ComputerDied):
        elsewhere.compute(np.array([8]))
    with pytest.raises(ProcessLookupError):
        os.kill(elsewhere.pid, 0)


def a_process_that_stands_still_is_told_from_one_that_works() -> None:
    elsewhere = picky()
    with pytest.raises(TimeoutError):
        elsewhere.prove(np.array([8]), 0.1, 30.0)
    elsewhere.close()
    elsewhere = picky()
    elsewhere.prove(
        np.array([9]), 30.0, 0.1
    )  # takes longer than that, and is believed; what it tells then is forgotten
    assert elsewhere.compute(np.array([5, 6])).loss_sum == 11.0
    elsewhere.prove(np.array([5, 6]), 30.0, 30.0)
    assert elsewhere.compute(np.array([5, 6])).loss_sum == 11.0
    elsewhere.close()


class Keeping(Counting):
    """Has opened a file and a socket, and fails if it finds them otherwise."""

    def __init__(self) -> None:
        self.file, self.sockets = tempfile.TemporaryFile(), socket.socketpair()  # noqa: SIM115
        self.file.write(b"data")
        self.file.flush()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert os.pread(self.file.fileno(), 4, 0) == b"data"
        with pytest.raises(OSError, match="Bad file descriptor"):
            self.sockets[0].send(b"data")
        return super().loss(outputs, targets)


def files_of_the_task_stay_open_and_sockets_do_not() -> None:
    _, elsewhere = both(Keeping())
    elsewhere.load(torch.ones(30))
    assert elsewhere.compute(np.array([1, 2])).loss_sum == 2.0
    elsewhere.close()


def other_devices_are_refused() -> None:
    model = FlatModel(build_model(Counting(), 0))
    computer = ChunkComputer(Counting(), model, Counting().train_data())
    model.vector = model.vector.to("meta")
    with pytest.raises(ValueError, match="works on the CPU"):
        ComputerProcess(computer, model)
