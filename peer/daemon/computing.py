"""Where a peer's chunks are computed: `--trainer`, and what `auto` comes to. docs/trainer.md has the figures.

`auto` takes the process for large vectors, and the thread wherever the process can't be had: on another device than the CPU, where the
system can't do it, where a fork would leave something of the task behind, and where the process was tried and its first chunk did not
come. What works in a thread works by default, then; only who asks for `process` is refused.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from peer.config import Config, ConfigError
from peer.logs import event
from peer.training.chunk import ChunkComputer
from peer.training.data import Indices
from peer.training.flat import FlatModel
from peer.training.remote import ComputerDied, ComputerFailed, ComputerProcess, shared_memory
from peer.training.task import Task, build_model, num_samples
from peer.training.trainer import Computer

log = logging.getLogger("grapevine.peer")

TrainerKind = Literal["thread", "process"]

PROCESS_FROM: Final = 2_000_000
"""Elements of a vector [d] from which on `auto` computes in a process. What an exchange takes from a trainer in the daemon's thread, the
cores and the interpreter lock, grows with the vector; what a process costs, a message each way for every chunk and one process more to
run, does not. Between 0.3 and 2.4 million elements neither trained more than the other (docs/trainer.md)."""

STALLED_SECONDS: Final = 5.0
"""A process whose first chunk has used no processor time for so long stands still, and `auto` computes in a thread."""


def make_computer(config: Config, peer: int, task: Task, data: Dataset[Any]) -> tuple[Computer, TrainerKind]:
    """What computes the peer's chunks, and where. To be called before threads are started, and before the peer has vectors of its own,
    of which a forked process would keep a copy. Raises ConfigError if it was to be a process and can't be."""
    model = FlatModel(build_model(task, config.seed))
    if trainer_kind(config, peer, model.layout.dim) == "process":
        try:
            model = FlatModel(model.module, memory=shared_memory)  # gives back the vector that it had
            return _process(config, task, model, data), "process"
        except (OSError, ComputerDied, ComputerFailed) as error:
            if config.trainer == "process":
                raise ConfigError(
                    f"--trainer: no process can be had that computes chunks: {_told(error)}; use thread"
                ) from None
            _say(logging.WARNING, peer, _told(error))
            model = FlatModel(model.module)
    if config.device != "cpu":
        model = FlatModel(model.module.to(config.device))
    return ChunkComputer(task, model, data), "thread"


def trainer_kind(config: Config, peer: int, num_elements: int) -> TrainerKind:
    """What `--trainer` comes to with a model of so many elements. Raises ConfigError if a process was asked for where there can be none."""
    if config.trainer == "process" and (why := _why_not_on_this_system()):
        raise ConfigError(f"--trainer: {why}; use thread")
    if config.trainer != "auto":
        return config.trainer
    computes = config.head_computes or peer != config.head
    if not computes or config.device != "cpu" or num_elements < PROCESS_FROM:
        return "thread"
    if why := why_no_process():
        _say(logging.INFO, peer, why)
    return "thread" if why else "process"


def why_no_process() -> str:
    """Why nothing should be forked from this process as it is that computes chunks, in words; "" if it can."""
    if why := _why_not_on_this_system():
        return why
    if num_threads() > 1:
        return "other threads run beside it, which a fork leaves behind"
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return "CUDA is open, which does not survive a fork"
    return ""


def num_threads() -> int:
    """Of this process: Python's, and those of libraries, of which Python does not know."""
    return len(os.listdir("/proc/self/task"))


def model_to_compute_with(config: Config, task: Task) -> FlatModel:
    """A copy of the model on the device that computes chunks; the master stays on the CPU."""
    return FlatModel(build_model(task, config.seed).to(config.device))


def first_chunk(config: Config, data: Dataset[Any]) -> Indices:
    """A chunk to warm up with."""
    return np.arange(min(config.chunk_samples, num_samples(data)))


def _process(config: Config, task: Task, model: FlatModel, data: Dataset[Any]) -> ComputerProcess:
    """Under `auto` it has computed a chunk; one that was asked for does so beside the rest of the start. Raises OSError, ComputerDied and
    ComputerFailed."""
    computer, first = ChunkComputer(task, model, data), first_chunk(config, data)
    if config.trainer == "process":
        return ComputerProcess(computer, model, first)
    process = ComputerProcess(computer, model)
    try:
        process.prove(first, STALLED_SECONDS, config.start_timeout / 2)
    except BaseException:
        process.close()
        raise
    return process


def _why_not_on_this_system() -> str:
    if sys.platform == "linux" and Path("/proc/self/fd").is_dir():
        return ""
    return "a process of its own needs Linux, with /proc"


def _say(level: int, peer: int, reason: str) -> None:
    said = event("computes-in-thread", reason=reason)
    log.log(level, "peer %d computes in a thread and not in a process of its own: %s", peer, reason, extra=said)


def _told(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"its first chunk stood still for {STALLED_SECONDS:g} s"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"it {error}" if isinstance(error, ComputerDied) else str(error)
