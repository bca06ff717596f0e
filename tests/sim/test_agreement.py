"""Simulator equals daemon: the same configuration through both, equal bit for bit.

Without rounds real peers meet in the order of real time, so only two of them do so in one order: tests/daemon/test_central.py.
"""

from __future__ import annotations

import pytest
import torch

from peer.gossip.algorithms import ALGORITHMS
from peer.sim.simulator import Simulation
from tests.daemon.rig import Rig, config

VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "adam and non-iid data": {
        "task": "digits",
        "optimizer": "adam",
        "lr": 0.001,
        "partition": "shards",
        "in_flight": "redo",
        "weighting": "samples",
        "max_rounds": 3,
        "peers": 2,
    },
    "slow, with a network": {"straggler": ("1=3x", "all=exp:0.5"), "scenario": "wan", "chunk_seconds": 0.0005},
}


@pytest.mark.parametrize(
    ("algorithm", "variant"),
    [(name, variant) for name, kind in ALGORITHMS.items() if kind.has_rounds for variant in VARIANTS]
    + [(name, "batchnorm") for name, kind in ALGORITHMS.items() if kind.why_plain_sgd],  # these tell buffers apart
)
async def test_every_algorithm_ends_with_the_same_bits_as_the_daemon(algorithm: str, variant: str) -> None:
    options = {
        "chunks": 2,
        "max_rounds": 5,
        **VARIANTS.get(variant, {"task": "digits-cnn", "peers": 2, "max_rounds": 3}),
    }
    if ALGORITHMS[algorithm].why_plain_sgd:
        options.update(optimizer="sgd", lr=0.02)
    settings = config(algorithm=algorithm, closing="barrier", **options)
    rig = Rig(settings)
    real = await rig.run()
    simulated = Simulation(settings, exact=True)
    simulated.run()
    assert torch.equal(simulated.models(), torch.stack([peer.player.master.params for peer in rig.peers]))
    for mine, theirs in zip(simulated.summaries(), real, strict=True):
        assert mine["rounds"] == theirs.rounds
        assert mine["samples"] == theirs.samples
        assert mine["rounds_by_reason"] == theirs.rounds_by_reason


@pytest.mark.parametrize(
    ("algorithm", "wire"),
    [
        ("ring-all-reduce", "bf16"),
        ("ring-all-reduce", "fp16"),
        ("ring-all-reduce", "int8"),
        ("dpsgd", "bf16"),
        ("dpsgd", "int8"),
        ("dpsgd", "top-k:0.25"),
        ("matcha", "fp16"),
        ("matcha", "top-k:0.25"),
    ],
)
async def test_every_format_on_the_wire_ends_with_the_same_bits_as_the_daemon(algorithm: str, wire: str) -> None:
    settings = config(algorithm=algorithm, wire_dtype=wire, closing="barrier", chunks=2, max_rounds=4, task="digits")
    rig = Rig(settings)
    real = await rig.run()
    simulated = Simulation(settings, exact=True)
    simulated.run()
    assert torch.equal(simulated.models(), torch.stack([peer.player.master.params for peer in rig.peers]))
    for mine, theirs in zip(simulated.summaries(), real, strict=True):
        assert mine["samples"] == theirs.samples
        assert mine["edges_lost"] == theirs.edges_lost == {}


async def test_random_graphs_end_with_the_same_bits_as_the_daemon() -> None:
    settings = config(
        algorithm="dpsgd",
        closing="barrier",
        max_rounds=12,
        topology="random-regular",
        degree=2,
        random_graph_every=6,
        peers=6,
    )
    rig = Rig(settings)
    await rig.run()
    simulated = Simulation(settings, exact=True)
    simulated.run()
    assert torch.equal(simulated.models(), torch.stack([peer.player.master.params for peer in rig.peers]))


@pytest.mark.parametrize(
    "options",
    [
        {"topology": "base", "peers": 5},
        {"topology": "base", "peers": 7, "base_k": 2},
        {"topology": "one-peer-exponential", "wire_dtype": "int8"},
        {"topology": "equidyn", "peers": 5},
    ],
    ids=lambda options: options["topology"],
)
async def test_topologies_that_vary_end_with_the_same_bits_as_the_daemon(options: dict[str, object]) -> None:
    settings = config(**options, closing="barrier", max_rounds=12)
    rig = Rig(settings)
    real = await rig.run()
    simulated = Simulation(settings, exact=True)
    simulated.run()
    assert torch.equal(simulated.models(), torch.stack([peer.player.master.params for peer in rig.peers]))
    assert [summary.edges_lost for summary in real] == [{}] * settings.peers


@pytest.mark.parametrize("task", ["digits-cnn", "digits"])
def test_fused_chunks_are_the_same_sums_up_to_rounding_and_batchnorm_is_never_fused(task: str) -> None:
    settings = config(task=task, closing="barrier", max_rounds=3, peers=2)
    exact, fused = Simulation(settings, exact=True), Simulation(settings)
    exact.run()
    fused.run()
    torch.testing.assert_close(fused.models(), exact.models(), rtol=1e-4, atol=1e-6)
    assert torch.equal(fused.models(), exact.models()) == (task == "digits-cnn")


def test_one_seed_one_result() -> None:
    settings = config(
        algorithm="matcha", max_rounds=20, straggler=("all=exp:1", "0=pareto:2"), scenario="wan", chunk_seconds=0.004
    )
    runs = [Simulation(settings) for _ in range(2)]
    for run in runs:
        run.run()
    assert torch.equal(runs[0].models(), runs[1].models())
    assert runs[0].agenda.now == runs[1].agenda.now
    assert runs[0].summaries() == runs[1].summaries()
    other = Simulation(settings.model_copy(update={"seed": 1}))
    other.run()
    assert other.agenda.now != runs[0].agenda.now
