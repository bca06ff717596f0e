"""Local steps through the whole daemon, against torch in a single process, and against the simulator."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from peer.assembly import make_accumulator, make_optimizer, make_schedule
from peer.config import Config
from peer.daemon.assembly import identity
from peer.gossip.algorithm import Optimizer
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.delivery import Delivery
from peer.sim.simulator import Simulation
from peer.training.accumulator import Accumulator, InFlight
from peer.training.data import SampleStream, partition_dataset
from peer.training.flat import FlatModel
from peer.training.local_steps import LocalSteps
from peer.training.task import OPTIMIZERS, build_model, load_task
from peer.transport.handshake import check_hello
from tests.daemon.rig import Rig, config


class Copies:
    """One independently trained copy a peer, on the peer's own samples."""

    def __init__(self, settings: Config) -> None:
        self.task, self.settings = load_task(settings.task), settings
        self.models = [FlatModel(build_model(self.task, settings.seed)) for _ in range(settings.peers)]
        self._optimizers = [OPTIMIZERS[settings.optimizer](m.parameters(), settings.lr) for m in self.models]
        data = self.task.train_data()
        self._data = data.tensors  # type: ignore[attr-defined]
        shares = partition_dataset(self.task, data, settings.peers, settings.partition, settings.alpha, settings.seed)
        size = settings.batch_size
        self._streams = [SampleStream(share, settings.seed, i, size) for i, share in enumerate(shares)]

    @property
    def params(self) -> Tensor:
        """[n, d]"""
        return torch.stack([m.vector for m in self.models])

    def set(self, params: Tensor) -> None:
        for model, vector in zip(self.models, params, strict=True):
            model.vector.copy_(vector)

    def train(self, steps: int) -> None:
        inputs, targets = self._data
        for model, optimizer, stream in zip(self.models, self._optimizers, self._streams, strict=True):
            for _ in range(steps):
                rows = torch.from_numpy(stream.next())
                optimizer.zero_grad()
                self.task.loss(model.module(inputs[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()


def played(rig: Rig) -> Tensor:
    return torch.stack([peer.player.master.params for peer in rig.peers])


@pytest.mark.parametrize("weighting", ["samples", "peers"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
async def test_ring_all_reduce_is_the_mean_of_independently_trained_copies(optimizer: str, weighting: str) -> None:
    settings = config(
        algorithm="ring-all-reduce",
        closing="barrier",
        chunks=2,
        local_steps=4,
        max_rounds=4,
        optimizer=optimizer,
        weighting=weighting,
    )
    rig = Rig(settings)
    summaries = await rig.run()
    copies = Copies(settings)
    for _ in range(4):
        copies.train(4)
        assert (copies.params[0] - copies.params[1]).norm() > 1e-3
        copies.set(copies.params.mean(0).expand_as(copies.params))
    torch.testing.assert_close(played(rig), copies.params, rtol=2e-5, atol=2e-6)
    assert torch.equal(played(rig)[0].expand_as(played(rig)), played(rig)), "bit-equal on all peers"
    assert [(s.rounds, s.chunks, s.samples) for s in summaries] == [(4, 4 * 8, 4 * 32)] * 4
    assert all(s.finished_fraction == 1.0 for s in summaries)


@pytest.mark.parametrize(
    "options", [{"algorithm": "dpsgd"}, {"algorithm": "matcha", "topology": "complete", "budget": 0.4}]
)
async def test_gossip_mixes_the_starting_points_and_adds_the_displacement(options: dict[str, object]) -> None:
    """X(k+1) = W(k) X(k) + Delta(X(k))."""
    settings = config(**options, closing="barrier", chunks=2, local_steps=3, max_rounds=6, optimizer="momentum")
    rig = Rig(settings, "grpc")
    await rig.run()
    copies, schedule = Copies(settings), make_schedule(settings)
    for k in range(6):
        before = copies.params
        copies.train(3)
        moved = copies.params - before
        for i in range(4):
            plan = schedule.plan(k, i)
            moved[i] += plan.self_weight * before[i]
            for j, weight in zip(plan.neighbors, plan.weights, strict=True):
                moved[i] += weight * before[j]
        copies.set(moved)
    torch.testing.assert_close(played(rig), copies.params, rtol=2e-5, atol=2e-6)


async def test_one_local_step_of_plain_sgd_is_the_step_on_the_summed_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to rounding: the displacement is -lr times the mean gradient."""
    settings = config(algorithm="ring-all-reduce", closing="barrier", max_rounds=15)
    today = Rig(settings)
    await today.run()

    def displaced(config: Config, start: Tensor, optimizer: partial[Optimizer]) -> Accumulator:
        y = start.clone()
        local = LocalSteps(
            y,
            optimizer(y),
            steps=1,
            batch_chunks=config.chunks,
            batch_size=config.batch_size,
            weighting="samples",
            num_peers=config.peers,
        )
        return Accumulator(y.numel(), config.chunks, InFlight(config.in_flight), local)

    monkeypatch.setattr("peer.daemon.assembly.make_accumulator", displaced)
    rig = Rig(settings)
    await rig.run()
    torch.testing.assert_close(played(rig), played(today), rtol=1e-5, atol=1e-6)


def test_one_step_a_round_has_no_copy_of_its_own() -> None:
    settings, task = config(), load_task(config().task)
    model = FlatModel(build_model(task, 0))
    make = partial(make_optimizer, settings, task, model)
    assert make_accumulator(settings, model.vector, make).local_params is None


VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "adam and non-iid data": {
        "task": "digits",
        "optimizer": "adam",
        "lr": 0.001,
        "partition": "shards",
        "in_flight": "redo",
        "weighting": "samples",
        "max_rounds": 4,
        "peers": 3,
    },
    "batchnorm": {"task": "digits-cnn", "optimizer": "momentum", "max_rounds": 3, "peers": 2},
    "slow, with a network": {"straggler": ("1=3x", "all=exp:0.5"), "scenario": "wan", "chunk_seconds": 0.0005},
}


#: A subclass has its parent's round over another schedule.
LOCAL = [n for n, a in ALGORITHMS.items() if not a.why_no_local_steps and a.__base__ not in ALGORITHMS.values()]


@pytest.mark.parametrize(
    ("algorithm", "variant"),
    [
        (algorithm, variant)
        for algorithm in LOCAL
        for variant, options in VARIANTS.items()
        if algorithm in ("ring-all-reduce", "dpsgd", "matcha", "sync-sgd")
        or "task" not in options  # of whose parts the others are
    ],
)
async def test_the_simulator_ends_with_the_same_bits(algorithm: str, variant: str) -> None:
    values = {"closing": "barrier", "chunks": 2, "max_rounds": 4, "local_steps": 3, **VARIANTS[variant]}
    settings = config(algorithm=algorithm, **values)
    rig = Rig(settings)
    real = await rig.run()
    simulated = Simulation(settings, exact=True)
    simulated.run()
    assert torch.equal(simulated.models(), played(rig))
    for mine, theirs in zip(simulated.summaries(), real, strict=True):
        for name in ("rounds", "chunks", "samples", "finished_fraction", "rounds_by_reason"):
            assert mine[name] == getattr(theirs, name)


@pytest.mark.parametrize("in_flight", ["carry", "redo", "drain"])
@pytest.mark.parametrize("algorithm", LOCAL)
async def test_every_sample_is_accounted_for_under_stragglers(algorithm: str, in_flight: str) -> None:
    settings = config(
        algorithm=algorithm,
        in_flight=in_flight,
        closing="first",
        local_steps=2,
        chunk_seconds=0.001,
        straggler=("0=6x", "1=exp:1.0"),
        max_rounds=5,
    )
    rig = Rig(settings)
    summaries = await rig.run()
    for s in summaries:
        assert s.samples_started == s.samples + s.samples_redone + s.samples_nonfinite + s.samples_abandoned
        assert s.samples == s.chunks * settings.chunk_samples == sum(s.staleness.values()) * settings.chunk_samples
        assert in_flight == "redo" or s.samples_redone == 0
        assert in_flight == "carry" or s.max_staleness == 0
    assert torch.isfinite(played(rig)).all()
    if ALGORITHMS[algorithm].delivery is Delivery.EVERY_MESSAGE:
        assert torch.equal(played(rig)[0].expand_as(played(rig)), played(rig))
    # by how much depends on what else the machine does; tests/sim/test_closed_forms.py has it exactly
    assert summaries[0].finished_fraction < 1.0, "the straggler was never cut short"
    assert summaries[2].rounds == 5


@pytest.mark.parametrize("algorithm", ["slowmo", "diloco"])
@pytest.mark.parametrize(("task", "steps"), [("digits", 1), ("digits-cnn", 3)])
def test_an_outer_step_of_one_without_momentum_is_local_sgd_bit_for_bit(algorithm: str, task: str, steps: int) -> None:
    """With BatchNorm's statistics, under a straggler whose rounds are cut short. One local step in each round is the step of the mean
    gradient, up to rounding, where all rounds are full."""
    closing = "first" if steps > 1 else "barrier"
    values = {"task": task, "local_steps": steps, "straggler": ("0=3x",), "max_rounds": 3, "chunk_seconds": 0.01}
    outer = Simulation(config(algorithm=algorithm, outer_lr=1.0, outer_momentum=0.0, closing=closing, **values))
    plain = Simulation(config(algorithm="ring-all-reduce", closing=closing, **values))
    outer.run()
    plain.run()
    assert outer.samples() == plain.samples()
    if steps > 1:
        assert torch.equal(outer.models(), plain.models())
    else:
        torch.testing.assert_close(outer.models(), plain.models(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("closing", "in_flight"),
    [
        ("first", "carry"),
        pytest.param("quorum", "redo", marks=pytest.mark.slow),
        pytest.param("deadline", "drain", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("algorithm", LOCAL)
def test_fused_local_steps_are_the_same_up_to_rounding(algorithm: str, closing: str, in_flight: str) -> None:
    """Under every policy, with a straggler, in virtual time; and the mean model learns."""
    settings = config(
        algorithm=algorithm,
        closing=closing,
        in_flight=in_flight,
        local_steps=3,
        straggler=("0=3x", "all=exp:0.5"),
        chunk_seconds=0.01,
        max_rounds=8,
    )
    exact, fused = Simulation(settings, exact=True), Simulation(settings)
    exact.run()
    fused.run()
    torch.testing.assert_close(fused.models(), exact.models(), rtol=1e-3, atol=1e-4)
    assert not torch.equal(fused.models(), exact.models())
    assert fused.agenda.now == exact.agenda.now
    assert exact.curve[-1].loss < 0.95 * exact.curve[0].loss


def test_a_device_is_as_slow_however_often_its_peer_talks() -> None:
    """Twelve batches of the peer that all wait for are as long in twelve rounds as in four: a slowness is drawn for each batch."""
    ends = []
    for steps in (1, 3):
        settings = config(
            task="timing",
            closing="barrier",
            straggler=("0=10x", "0=exp:1"),
            chunk_seconds=0.01,
            local_steps=steps,
            max_rounds=12 // steps,
        )
        run = Simulation(settings)
        run.run()
        ends.append(run.agenda.now)
    assert ends[0] == pytest.approx(ends[1])


def test_peers_with_different_local_steps_refuse_each_other() -> None:
    settings = [config(local_steps=steps) for steps in (1, 3)]
    mine, theirs = (identity(settings[i], i, make_schedule(settings[i]), "same") for i in range(2))
    found = check_hello(mine, theirs, 1)
    assert found is not None
    assert found.field == "--local-steps"
