"""A second process computes gradients ahead: the same bits, and none of its ends is the simulation's."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch
from torch import Tensor

from peer.cluster.forkserver import context
from peer.sim import assistant as module
from peer.sim.assistant import MOST_SLOTS, Assistant, Request
from peer.sim.simulator import Simulation
from peer.training.chunk import Chunk, ChunkComputer
from peer.training.data import Indices
from peer.training.flat import FlatModel
from peer.training.task import build_model, load_task
from tests.daemon.rig import config

DIM = 50_826


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Assistant]:
    load_task("digits")
    monkeypatch.setattr(module, "is_busy", lambda: False)
    made = Assistant("digits", 0, DIM, 16, start_after=0.0)
    yield made
    made.close()


def computed_ahead(assistant: Assistant, params: Tensor, indices: Indices) -> Chunk:
    """By the assistant, once it has begun."""
    for _ in range(600):
        request = assistant.ask(params, indices)
        assert request is not None
        chunk = assistant.take(request)
        if chunk is not None:
            return chunk
        time.sleep(0.1)
    raise AssertionError("the assistant did not begin")


def process_of(assistant: Assistant) -> subprocess.Popen[bytes]:
    assert assistant._process is not None
    return assistant._process


@pytest.mark.slow
@pytest.mark.processes
def test_it_computes_the_same_bits_until_it_dies(assistant: Assistant) -> None:
    task = load_task("digits")
    computer = ChunkComputer(task, FlatModel(build_model(task, 0)), task.train_data())
    rng = np.random.default_rng(0)
    computed_ahead(assistant, torch.zeros(DIM), np.arange(4))

    asked = []
    for _ in range(3 * MOST_SLOTS):
        params, indices = torch.from_numpy(rng.normal(0, 0.1, DIM)).float(), rng.integers(0, 1437, rng.integers(1, 17))
        request = assistant.ask(params, indices)
        assert request is not None
        asked.append((request, params, indices))
    for request, *_ in asked[1::3]:
        assistant.drop(request)
    num_ahead = 0
    for request, params, indices in asked[::3]:
        theirs = assistant.take(request)
        if theirs is not None:
            num_ahead += 1
            computer.load(params)
            mine = computer.compute(indices)
            assert torch.equal(theirs.gradient, mine.gradient)
            assert theirs[1:] == mine[1:]
    assert num_ahead > 0
    for request, *_ in asked[2::3]:
        assistant.drop(request)
    assert len(computed_ahead(assistant, torch.zeros(DIM), np.arange(4)).gradient) == DIM, "slots come back"

    left = [assistant.ask(torch.zeros(DIM), np.arange(16)) for _ in range(10)]
    process_of(assistant).send_signal(signal.SIGSTOP)  # else it may be done with all of them before it is killed
    left += [assistant.ask(torch.zeros(DIM), np.arange(16)) for _ in range(10)]
    assert left[-1] is not None
    process_of(assistant).kill()
    process_of(assistant).wait()
    assert [assistant.take(request) for request in left if request is not None][-1] is None
    assert assistant.ask(torch.zeros(DIM), np.arange(16)) is None, "from now on the simulation is alone"


def begin_and_wait(told: Connection) -> None:
    """A simulation whose assistant has been asked for something."""
    load_task("digits")
    module.is_busy = lambda: False
    made = Assistant("digits", 0, DIM, 16, start_after=0.0)
    made.ask(torch.zeros(DIM), np.arange(4))
    told.send(process_of(made).pid)
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.processes
def test_it_ends_when_the_simulation_is_killed() -> None:
    ours, theirs = context().Pipe(duplex=False)
    simulation = context().Process(target=begin_and_wait, args=(theirs,))
    simulation.start()
    theirs.close()
    assert ours.poll(60)
    pid = ours.recv()
    ours.close()
    simulation.kill()
    simulation.join()
    for _ in range(600):
        if not is_running(pid):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is still there")


def is_running(pid: int) -> bool:
    """A dead one that nobody waits for counts as ended."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Within:
    """An assistant in this process, at whose side a request may be found waiting, as by chance."""

    def __init__(self, task: str, seed: int, dim: int, samples: int) -> None:
        made = load_task(task)
        self.computer = ChunkComputer(made, FlatModel(build_model(made, seed)), made.train_data())
        self.chance = random.Random(seed)
        self.taken = self.dropped = self.under_way = 0

    def ask(self, params: Tensor, indices: Indices) -> Request:
        self.under_way += 1
        request = Request(params, indices)
        self.computer.load(params)
        chunk = self.computer.compute(indices)
        request.chunk = Chunk(chunk.gradient.clone(), *chunk[1:])
        return request

    def take(self, request: Request) -> Chunk | None:
        self.under_way -= 1
        late = self.chance.random() < 0.3
        self.taken += not late
        return None if late else request.chunk

    def drop(self, request: Request) -> None:
        self.under_way -= 1
        self.dropped += 1

    def close(self) -> None:
        assert self.under_way == 0


@pytest.mark.parametrize("in_flight", ["carry", "redo", "drain"])
@pytest.mark.parametrize("scenario", ["one-4x", "exp"])
def test_a_simulation_with_it_ends_with_the_same_bits(
    scenario: str, in_flight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, object] = {"task": "digits", "peers": 6, "max_rounds": 20, "closing": "first"}
    settings = config(**made, algorithm="dpsgd", scenario=scenario, in_flight=in_flight)
    monkeypatch.setattr(module, "is_of_use", lambda task: False)
    alone = Simulation(settings)
    alone.run()
    monkeypatch.setattr(module, "is_of_use", lambda task: True)
    monkeypatch.setattr("peer.sim.simulator.Assistant", Within)
    helped = Simulation(settings)
    helped.run()
    assert torch.equal(alone.models(), helped.models())
    assert alone.curve == helped.curve
    within = helped._assistant
    assert isinstance(within, Within)
    assert within.taken > 0
    assert within.dropped > 0 or scenario == "one-4x"


def test_it_is_not_started_while_others_use_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_busy", lambda: True)
    assistant = Assistant("digits", 0, DIM, 16, start_after=0.0)
    assert assistant.ask(torch.zeros(DIM), np.arange(4)) is None
    assert assistant._process is None


def test_it_is_not_used_where_gradients_depend_on_more_than_parameters_and_samples() -> None:
    task = load_task("digits")
    assert task.repeatable
    task.repeatable = False  # type: ignore[misc]
    assert not module.is_of_use(task)
