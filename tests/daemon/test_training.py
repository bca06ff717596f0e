"""The daemon against single-process mathematics, over memory and over gRPC."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from peer.assembly import make_schedule
from peer.config import Config
from peer.daemon.taken import Taken
from peer.training.data import SampleStream, partition_dataset
from peer.training.flat import FlatModel
from peer.training.task import build_model
from tests.daemon.rig import Rig, config
from tests.daemon.tasks import NUM_INPUTS, Linear

Array = NDArray[np.float64]


def samples(settings: Config) -> list[list[tuple[Array, Array]]]:
    """[round][peer] -> (inputs [B, D], targets [B]) in float64, as the peers' own streams deal them."""
    task = Linear()
    data = task.train_data()
    inputs, targets = (t.double().numpy() for t in data.tensors)  # type: ignore[attr-defined]
    shares = partition_dataset(task, data, settings.peers, settings.partition, settings.alpha, settings.seed)
    streams = [SampleStream(shares[i], settings.seed, i, settings.chunk_samples) for i in range(settings.peers)]
    rounds = []
    for _ in range(settings.max_rounds or 0):
        picked = [np.concatenate([stream.next() for _ in range(settings.chunks)]) for stream in streams]
        rounds.append([(inputs[index], targets[index]) for index in picked])
    return rounds


def gradient(x: Array, batch: tuple[Array, Array]) -> Array:
    """Sum over the batch of d/dx (w'a + b - y)^2, x = [w | b]."""
    inputs, targets = batch
    with_one = np.hstack([inputs, np.ones((len(inputs), 1))])
    return np.asarray(2 * with_one.T @ (with_one @ x - targets))


def start(settings: Config) -> Array:
    vector = FlatModel(build_model(Linear(), settings.seed)).vector
    assert vector.numel() == NUM_INPUTS + 1
    return vector.double().numpy()


def mixing(settings: Config, round: int) -> Array:
    schedule, matrix = make_schedule(settings), np.zeros((settings.peers, settings.peers))
    for i in range(settings.peers):
        plan = schedule.plan(round, i)
        matrix[i, i] = plan.self_weight
        matrix[i, list(plan.neighbors)] = plan.weights
    return matrix


@pytest.mark.parametrize("over", ["memory", "grpc"])
@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "dpsgd", "topology": "ring", "peers": 5},
        {"algorithm": "dpsgd", "topology": "random-regular", "degree": 2, "random_graph_every": 10, "peers": 6},
        {"algorithm": "matcha", "topology": "complete", "budget": 0.4},
    ],
    ids=["ring", "random-graphs", "matcha"],
)
async def test_blocking_gossip_is_the_matrix_recursion(over: str, options: dict[str, object]) -> None:
    """X <- W(k) X - lr G(X), in float64, over 20 rounds (Lian et al. 2017)."""
    settings = config(**options, closing="barrier", chunks=1, max_rounds=20)
    rig = Rig(settings, over)
    summaries = await rig.run()
    x = np.tile(start(settings), (settings.peers, 1))
    for k, batches in enumerate(samples(settings)):
        step = np.stack([gradient(x[i], batch) / settings.batch_size for i, batch in enumerate(batches)])
        x = mixing(settings, k) @ x - settings.lr * step
    got = torch.stack([peer.player.master.params for peer in rig.peers]).double().numpy()
    np.testing.assert_allclose(got, x, rtol=3e-5, atol=3e-6)
    assert [s.rounds for s in summaries] == [20] * settings.peers
    assert all(s.edges_lost == {} for s in summaries)
    assert np.abs(x - x.mean(0)).max() > 1e-3, "the peers must really differ, or nothing was mixed"


@pytest.mark.parametrize("over", ["memory", "grpc"])
@pytest.mark.parametrize("peers", [2, 5])
async def test_blocking_ring_all_reduce_is_large_batch_sgd_on_one_machine(over: str, peers: int) -> None:
    settings = config(algorithm="ring-all-reduce", closing="barrier", peers=peers, max_rounds=25)
    rig = Rig(settings, over)
    await rig.run()
    x = start(settings)
    for batches in samples(settings):
        total = sum((gradient(x, batch) for batch in batches), np.zeros_like(x))
        x = x - settings.lr * total / (peers * settings.batch_size)
    first = rig.peers[0].player.master.params
    np.testing.assert_allclose(first.double().numpy(), x, rtol=3e-5, atol=3e-6)
    assert all(torch.equal(peer.player.master.params, first) for peer in rig.peers), "bit-equal on all peers"


@pytest.mark.parametrize(
    ("over", "wire", "task"),
    [
        ("memory", "fp32", "Wide32"),
        ("grpc", "fp32", "Wide32"),
        # tests/gossip/test_wire.py has every format in pieces, without a daemon
        pytest.param("memory", "int8", "Wide", marks=pytest.mark.slow),
        pytest.param("memory", "fp16", "Wide16", marks=pytest.mark.slow),
    ],
)
async def test_shards_are_added_while_they_arrive_with_the_same_bits(
    over: str, wire: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(
        task=f"tests.daemon.tasks:{task}",
        chunks=1,
        algorithm="ring-all-reduce",
        closing="barrier",
        peers=3,
        max_rounds=2,
        wire_dtype=wire,
    )
    early: list[int] = []
    arrived = Taken.arrived

    def seen(self: Taken, num_bytes: int) -> None:
        arrived(self, num_bytes)
        early.append(self._at_work is not None or 0 < self._done < self._payload.numel())

    ends = []
    for patch in (seen, lambda self, num_bytes: None):
        monkeypatch.setattr(Taken, "arrived", patch)
        rig = Rig(settings, over)
        assert [summary.rounds for summary in await rig.run()] == [2, 2, 2]
        ends += [peer.player.master.params for peer in rig.peers]
    assert sum(early) > 0, "no shard came in more than one piece, so nothing was tested"
    assert all(torch.equal(end, ends[0]) for end in ends)
    assert not torch.equal(ends[0][:100], torch.zeros(100))


@pytest.mark.parametrize("algorithm", ["ring-all-reduce", "dpsgd", "matcha", "noloco"])
async def test_a_blocking_run_is_the_same_bits_over_memory_over_grpc_and_again(algorithm: str) -> None:
    ends = []
    for over in ("memory", "grpc", "memory"):
        rig = Rig(config(algorithm=algorithm, closing="barrier", max_rounds=10), over)
        await rig.run()
        ends.append(torch.stack([peer.player.master.params for peer in rig.peers]))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("in_flight", ["carry", "redo", "drain"])
@pytest.mark.parametrize("algorithm", ["ring-all-reduce", "dpsgd", "matcha"])
async def test_every_sample_is_accounted_for_under_stragglers(algorithm: str, in_flight: str) -> None:
    """started = in updates + redone + nonfinite + abandoned at the end, exactly, over a whole run."""
    settings = config(
        algorithm=algorithm,
        in_flight=in_flight,
        closing="first",
        chunk_seconds=0.002,
        straggler=("0=6x", "1=exp:1.0"),
        max_rounds=12,
    )
    rig = Rig(settings)
    summaries = await rig.run()
    for s in summaries:
        assert s.samples_started == s.samples + s.samples_redone + s.samples_nonfinite + s.samples_abandoned
        assert s.samples == s.chunks * settings.chunk_samples == sum(s.staleness.values()) * settings.chunk_samples
        assert s.samples_nonfinite == 0
        assert in_flight == "redo" or s.samples_redone == 0
        assert in_flight == "carry" or s.max_staleness == 0
    if algorithm == "ring-all-reduce":
        assert all(torch.equal(p.player.master.params, rig.peers[0].player.master.params) for p in rig.peers)
    # by how much depends on what else the machine does; tests/sim/test_closed_forms.py has it exactly
    assert summaries[0].finished_fraction < 1.0, "the straggler was never cut short"
    assert summaries[2].rounds == 12


CLOSED: list[tuple[str, dict[str, object], set[str]]] = [
    ("barrier", {}, {"barrier"}),
    ("first", {}, {"quota", "word"}),
    ("quorum", {"quorum": 1.0}, {"quota", "quorum"}),
    ("deadline", {"round_deadline": 0.012}, {"quota", "deadline"}),
    ("deadline", {}, {"quota", "deadline"}),
]
#: Their rounds are parts of those above: here only that they run, and every policy with all of them in the simulator.
MADE_OF_PARTS = ("qg-dsgdm", "gradient-tracking", "choco-sgd", "al-matcha")


@pytest.mark.parametrize(
    ("algorithm", "closing", "more", "reasons"),
    [(name, *closed) for name in ("ring-all-reduce", "dpsgd", "matcha", "noloco", "al-dsgd") for closed in CLOSED]
    + [(name, *CLOSED[1]) for name in MADE_OF_PARTS],
)
async def test_every_algorithm_runs_with_every_closing_policy(
    algorithm: str, closing: str, more: dict[str, object], reasons: set[str]
) -> None:
    settings = config(
        algorithm=algorithm, closing=closing, chunk_seconds=0.002, straggler=("0=5x",), max_rounds=8, **more
    )
    summaries = await Rig(settings).run()
    seen = {reason for s in summaries for reason in s.rounds_by_reason}
    if (algorithm, closing) in {("matcha", "deadline"), ("noloco", "deadline"), ("noloco", "quorum")}:
        reasons = reasons | {"word"}  # edges rest, so the straggler can fall rounds behind, and catches up
    assert seen <= reasons
    adaptive = (
        closing == "deadline" and not more
    )  # what it adapts to is the machine's; tests/gossip/test_closing.py has the rule
    if closing != "barrier" and not adaptive:
        assert seen & (reasons - {"quota"}), "the straggler's rounds end by another's word or by time"
    assert all(sum(s.rounds_by_reason.values()) == s.rounds == 8 for s in summaries)


async def test_a_chunk_with_nan_gradients_is_dropped_and_counted() -> None:
    settings = config(task="tests.daemon.tasks:Poisoned", closing="first", max_rounds=25, nonfinite_limit=50)
    rig = Rig(settings)
    summaries = await rig.run()
    assert sum(s.samples_nonfinite for s in summaries) > 0
    for s in summaries:
        assert s.samples_started == s.samples + s.samples_redone + s.samples_nonfinite + s.samples_abandoned
    for peer in rig.peers:
        assert torch.isfinite(peer.player.master.params).all()


async def test_memory_is_planned_one_inbox_a_neighbor_and_no_vector_a_round() -> None:
    rig = Rig(config(algorithm="dpsgd", max_rounds=10))
    await rig.run()
    for peer in rig.peers:
        assert peer.player.num_inboxes == 2
