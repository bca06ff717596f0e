"""Where chunks are computed: what `--trainer auto` comes to, and that it never costs what a thread would have done."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from peer.cluster.forkserver import context
from peer.config import Config, ConfigError
from peer.daemon import computing
from peer.daemon.assembly import assemble, warm_up
from peer.daemon.computing import PROCESS_FROM, make_computer, trainer_kind, why_no_process
from peer.daemon.process import fixed_addresses, run_loop, serve
from peer.exit_codes import Fatal
from peer.training.chunk import ChunkComputer
from peer.training.remote import ComputerProcess
from peer.training.task import TaskError
from tests.daemon.rig import config
from tests.daemon.tasks import Large

AUTO = config(trainer="auto")
WORKER, HEAD = 1, 0


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a daemon that has just begun; what runs tests has threads of its own."""
    monkeypatch.setattr(computing, "num_threads", lambda: 1)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("told", "peer", "size", "kind"),
    [
        (AUTO, WORKER, PROCESS_FROM, "process"),
        (AUTO, WORKER, PROCESS_FROM - 1, "thread"),
        (config(trainer="auto", device="cuda"), WORKER, PROCESS_FROM, "thread"),
        (config(trainer="thread"), WORKER, PROCESS_FROM, "thread"),
        (config(trainer="process"), WORKER, 1, "process"),
        (config(trainer="auto", algorithm="async-sgd"), HEAD, PROCESS_FROM, "thread"),
        (config(trainer="auto", algorithm="async-sgd"), WORKER, PROCESS_FROM, "process"),
        (config(trainer="auto", algorithm="sync-sgd"), HEAD, PROCESS_FROM, "process"),
    ],
    ids=lambda value: f"{value.trainer}-{value.device}-{value.algorithm}" if isinstance(value, Config) else str(value),
)
def test_what_it_comes_to(told: Config, peer: int, size: int, kind: str) -> None:
    assert trainer_kind(told, peer, size) == kind


def test_the_documented_size_is_the_one_that_counts() -> None:
    document = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text()
    assert f"at least {PROCESS_FROM:,} elements ({4 * PROCESS_FROM / 1e6:g} MB" in document


@pytest.mark.usefixtures("alone")
def test_another_system_has_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert trainer_kind(AUTO, WORKER, PROCESS_FROM) == "thread"
    with pytest.raises(ConfigError, match=r"^--trainer: a process of its own needs Linux, with /proc; use thread$"):
        trainer_kind(config(trainer="process"), WORKER, PROCESS_FROM)


def test_nothing_is_forked_from_what_would_not_survive_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()
    beside = threading.Thread(target=over.wait)
    beside.start()
    with caplog.at_level(logging.INFO):
        assert trainer_kind(AUTO, WORKER, PROCESS_FROM) == "thread"
    over.set()
    beside.join()
    assert "peer 1 computes in a thread and not in a process of its own: other threads run beside it" in caplog.text
    monkeypatch.setattr(computing, "num_threads", lambda: 1)
    assert why_no_process() == ""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert why_no_process().startswith("CUDA is open")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("what", ["peer.daemon.computing.shared_memory", "os.fork"])
def test_where_memory_or_processes_run_out_a_thread_computes(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(what, none_left)
    task = Large()
    computer, kind = make_computer(AUTO, WORKER, task, task.train_data())
    assert (type(computer), kind) == (ChunkComputer, "thread")
    assert "peer 1 computes in a thread and not in a process of its own: Cannot allocate memory" in caplog.text
    assert computer.compute(np.arange(2)).finite
    with pytest.raises(ConfigError, match=r"^--trainer: no process can be had that computes chunks: Cannot allocate"):
        make_computer(config(trainer="process"), WORKER, task, task.train_data())


class HereOnly(Large):
    """Computes in the process that has made it; elsewhere it does something else."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if os.getpid() != self.home:
            self.elsewhere()
        return super().loss(outputs, targets)

    def elsewhere(self) -> None:
        raise OSError(9, "Bad file descriptor")


class DiesElsewhere(HereOnly):
    def elsewhere(self) -> None:
        os.abort()


class HangsElsewhere(HereOnly):
    def elsewhere(self) -> None:
        time.sleep(1000)


class StartsALibrarysThreads(Large):
    """Those of OpenMP, that Python does not know of, and a fork leaves behind: computing with two threads would stand still."""

    def __init__(self) -> None:
        torch.set_num_threads(2)
        torch.ones(500, 500) @ torch.ones(500, 500)


def by_default(task: type[Large], told: Connection) -> None:
    """In a process without threads: what computes a chunk by default, the sum of its gradient, and whether another process lives."""
    torch.set_num_threads(1)
    computing.STALLED_SECONDS = 30.0 if task is not HangsElsewhere else 0.3  # type: ignore[misc]
    made = task()
    if task is StartsALibrarysThreads:
        computing.STALLED_SECONDS = math.inf  # type: ignore[misc]
    computer, kind = make_computer(AUTO, WORKER, made, made.train_data())
    computer.load(torch.full((computer.dim,), 1e-3))  # type: ignore[attr-defined]
    total = computer.compute(np.arange(4)).gradient.sum().item()
    forked = has_a_child()
    computer.close()
    told.send((type(computer), kind, total, forked))


def has_a_child() -> bool:
    """This process."""
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
        return True
    return False


@pytest.mark.processes
@pytest.mark.parametrize("task", [Large, HereOnly, DiesElsewhere, HangsElsewhere, StartsALibrarysThreads])
def test_a_process_whose_first_chunk_does_not_or_would_not_come_is_replaced_by_a_thread(task: type[Large]) -> None:
    ours, theirs = context().Pipe(duplex=False)
    process = context().Process(target=by_default, args=(task, theirs))
    process.start()
    try:
        assert ours.poll(60), "it is on standard error"
        computer, kind, total, forked = ours.recv()
        process.join(20)
    finally:
        process.kill()  # and with it what it has forked
    expected = (ComputerProcess, "process", True) if task is Large else (ChunkComputer, "thread", False)
    assert (computer, kind, forked) == expected
    made = Large()
    alike, _ = make_computer(config(trainer="thread"), WORKER, made, made.train_data())
    assert isinstance(alike, ChunkComputer)
    alike.load(torch.full((alike.dim,), 1e-3))
    assert total == pytest.approx(alike.compute(np.arange(4)).gradient.sum().item(), rel=1e-4)


def a_config_that_is_refused_after_the_fork() -> None:
    task = "tests.daemon.tasks:Large"
    with pytest.raises(TaskError, match="optimizer 'adamm' is unknown"):
        assemble(config(task=task, trainer="process", optimizer="adamm"), WORKER, lambda event: None)
    assert not has_a_child()


def a_peer_that_fails_before_it_runs() -> None:
    """In a program that lives on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = config(trainer="process", metrics_port=taken.getsockname()[1], peers=2)
        with pytest.raises(Fatal, match="can't serve metrics"):
            run_loop(serve(told, WORKER, fixed_addresses(told)))
    assert not has_a_child()


class Counted(Large):
    read = 0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        type(self).read += 1
        return super().loss(outputs, targets)


def the_daemons_warm_up() -> None:
    """It reads no data: a file that a data set reads from has one position for both processes."""
    torch.set_num_threads(1)
    told = config(task="tests.daemon.test_computing:Counted", trainer="auto")
    parts = assemble(told, WORKER, lambda event: None)
    assert parts.trainer_kind == "process"
    before = Counted.read
    warm_up(told, parts)
    assert Counted.read == before
    parts.trainer.stop(10.0)


@pytest.mark.processes
@pytest.mark.parametrize(
    "check",
    [a_config_that_is_refused_after_the_fork, a_peer_that_fails_before_it_runs, the_daemons_warm_up],
    ids=lambda check: check.__name__,
)
def test_what_a_process_leaves_to_the_daemon(check: Callable[[], None]) -> None:
    process = context().Process(target=check)
    process.start()
    process.join(60)
    assert process.exitcode == 0, "its traceback is on standard error"
