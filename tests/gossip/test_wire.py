"""What every algorithm keeps when its vectors are rounded on the wire, and what CHOCO-SGD's replicas survive."""

from __future__ import annotations

import itertools
import math
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from peer.gossip.algorithm import Algorithm, RoundBroken
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.algorithms.choco_sgd import ChocoSGD
from peer.gossip.algorithms.dpsgd import DPSGD
from peer.gossip.algorithms.matcha import Matcha
from peer.gossip.algorithms.ring_all_reduce import RingAllReduce
from peer.gossip.compression import PIECE, pieces, wire_format
from peer.gossip.delivery import Delivery
from peer.gossip.effects import Accumulate, Accumulated, Exchange, Inbox, delivered
from peer.gossip.mixing import GossipAlgorithm
from peer.gossip.round import advance
from peer.gossip.wire_dtype import WireDtype
from tests.gossip.conductor import Conductor, PlainSGD
from tests.gossip.test_contract import (
    WITH_ROUNDS,
    RingOfShards,
    no_gradient,
    params,
    play_all,
    schedule_of,
    some_gradient,
)
from tests.gossip.test_papers import mixing_matrix, pick, quadratic

DOCS = Path(__file__).parents[2] / "docs"
N, D = 6, 300
FORMATS = ("fp32", "bf16", "fp16", "int8", "top-k:0.1")
REPLICAS = ("int8", "top-k:0.1")
COMBINATIONS = [
    (algorithm, wire)
    for algorithm in WITH_ROUNDS
    for wire in FORMATS
    if WireDtype.parse(wire).kind in algorithm.wire_dtypes and (wire == "fp32" or algorithm is not RingOfShards)
]
every_combination = pytest.mark.parametrize(
    ("algorithm", "wire"), COMBINATIONS, ids=[f"{algorithm.name} {wire}" for algorithm, wire in COMBINATIONS]
)
gossip = pytest.mark.parametrize("algorithm", [DPSGD, Matcha])
replicated = pytest.mark.parametrize("algorithm", [DPSGD, Matcha, ChocoSGD])


def spread(conductor: Conductor) -> float:
    """||X - mean||_F."""
    return float((conductor.params - conductor.params.mean(0)).norm())


def rounded(wire: str, x: Tensor) -> Tensor:
    """Q(x), [d]."""
    made, out = wire_format(WireDtype.parse(wire)), torch.empty_like(x)
    payload = made.encode(x, made.payload(x.numel()))
    for start, stop in pieces(x.numel()):
        made.piece(payload, start, out[start:stop])
    return out


def test_every_format_is_declared_by_somebody_and_a_new_algorithm_has_to_say_so() -> None:
    assert len(COMBINATIONS) == 15 + 4 + 4 + 1 + 8 + 1
    assert Algorithm.wire_dtypes == ("fp32",)


def test_the_table_for_people_says_what_the_algorithms_declare() -> None:
    rows = [line for line in (DOCS / "compression.md").read_text().splitlines() if line.startswith("| `")]
    told = {}
    for names, formats, *why in (row.strip("| ").split(" | ") for row in rows):
        for name in names.replace("`", "").split(", "):
            told[name] = tuple(formats.replace("`", "").split(", ")), (*why, "")[0]
    for name, algorithm in ALGORITHMS.items():
        all_of_them = len(algorithm.wire_dtypes) == 5
        assert told[name] == (algorithm.wire_dtypes, "" if all_of_them else algorithm.why_not_others)


@every_combination
def test_consensus_is_a_fixed_point(algorithm: type[Algorithm], wire: str) -> None:
    """Exactly, where rounding strikes all alike and only differences are added."""
    start = params(d=D)[0].expand(N, D)
    conductor = Conductor(algorithm, schedule_of(algorithm), start, wire=wire)
    play_all(conductor, 10)
    if wire == "fp32":
        assert torch.allclose(conductor.params, start, atol=1e-5)
    else:
        assert torch.equal(conductor.params, start)


@pytest.mark.parametrize(("algorithm", "wire"), [(a, wire) for a, wire in COMBINATIONS if a.keeps_mean])
def test_the_mean_of_all_peers_is_kept_whatever_is_rounded_and_lost(algorithm: type[Algorithm], wire: str) -> None:
    rng = random.Random(4)
    gone = {(k, i, j) for k in range(20) for i in range(N) for j in range(i + 1, N) if rng.random() < 0.3}
    needs_all = algorithm.delivery is Delivery.EVERY_MESSAGE
    losses = set() if needs_all else gone
    conductor = Conductor(
        algorithm, schedule_of(algorithm), params(d=D), lost=lambda k, i, j: (k, i, j) in losses, wire=wire
    )
    play_all(conductor, 20)
    assert torch.allclose(conductor.params.mean(0), params(d=D).mean(0), atol=2e-6)
    assert needs_all or 0 < spread(conductor) < float((params(d=D) - params(d=D).mean(0)).norm())


@every_combination
def test_arrival_order_changes_no_bit(algorithm: type[Algorithm], wire: str) -> None:
    played = []
    for shuffle in (None, 1):
        conductor = Conductor(algorithm, schedule_of(algorithm), params(d=D), shuffle=shuffle, wire=wire)
        for k in range(8):
            conductor.play(k, some_gradient)
        played.append(conductor.params)
    assert torch.equal(played[0], played[1])


@every_combination
def test_sample_counts_stay_exact(algorithm: type[Algorithm], wire: str) -> None:
    """1,000,003 a peer are not a number in bf16, fp16 or int8."""

    def gradient(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
        return torch.zeros_like(x), 1_000_003

    conductor = Conductor(algorithm, schedule_of(algorithm), params(d=D), wire=wire, weighting="samples")
    for k in range(3):
        conductor.play(k, gradient)
    assert {peer.state.samples_clock for peer in conductor.peers} == {3 * N * 1_000_003}


# ring all-reduce


@pytest.mark.parametrize("wire", RingAllReduce.wire_dtypes)
@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("d", [1, 7, 3000])
def test_a_ring_ends_with_equal_bits_everywhere_near_the_exact_step(wire: str, n: int, d: int) -> None:
    start = torch.randn(d, generator=torch.Generator().manual_seed(d))
    conductor = Conductor(
        RingAllReduce, schedule_of(RingAllReduce, n), start.expand(n, d), lr=1.0, weighting="samples", wire=wire
    )
    gradients = {i: (torch.randn(d, generator=torch.Generator().manual_seed(i)), 3 + i) for i in range(n)}
    conductor.play(0, partial(pick, gradients))
    assert all(torch.equal(row, conductor.params[0]) for row in conductor.params)
    exact = torch.stack([g for g, _ in gradients.values()]).sum(0) / sum(count for _, count in gradients.values())
    error = float((start - conductor.params[0] - exact).norm() / exact.norm())
    assert error < {"fp32": 1e-6, "bf16": 0.01, "fp16": 0.002, "int8": 0.05}[wire]


def test_fp16_does_not_overflow_in_a_ring_of_large_sums() -> None:
    gradients = {i: (torch.full((50,), 1e7 * (i + 1)), 1) for i in range(4)}
    conductor = Conductor(RingAllReduce, schedule_of(RingAllReduce, 4), torch.zeros(4, 50), lr=1.0, wire="fp16")
    conductor.play(0, partial(pick, gradients))
    torch.testing.assert_close(conductor.params, torch.full((4, 50), -2.5e7), rtol=1e-3, atol=0)


@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp16", "int8"])
def test_a_ring_payload_that_is_not_sound_breaks_the_round(wire: str) -> None:
    gradients = {i: (torch.full((50,), 3e38), 4) for i in range(4)}  # the sum is infinite
    conductor = Conductor(
        RingAllReduce, schedule_of(RingAllReduce, 4), torch.zeros(4, 50), weighting="samples", wire=wire
    )
    with pytest.raises(RoundBroken) as broken:
        conductor.play(0, partial(pick, gradients))
    assert broken.value.reason == "corrupt"


@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("n", [2, 3])
def test_a_shard_that_comes_in_pieces_is_read_as_one_that_comes_at_once(wire: str, n: int) -> None:
    d = 7 * PIECE + 5
    ends = []
    for shuffle in (None, 1, 2, 3):  # with one, the conductor cuts payloads anywhere
        start = torch.randn(n, d, generator=torch.Generator().manual_seed(1))[:1].expand(n, d)
        conductor = Conductor(
            RingAllReduce, schedule_of(RingAllReduce, n), start, weighting="samples", wire=wire, shuffle=shuffle
        )
        for k in range(2):
            conductor.play(k, lambda k, i, x: (torch.sin(x * (i + 1)), i + 1))
        ends.append(conductor.params)
    assert all(torch.equal(end, ends[0]) for end in ends)
    step = sum(torch.sin(start[0] * (i + 1)) for i in range(n)) / (n * (n + 1) / 2)
    assert not torch.equal(ends[0][0], start[0])
    assert isinstance(step, Tensor)
    if wire == "fp32":
        once = Conductor(RingAllReduce, schedule_of(RingAllReduce, n), start, weighting="samples")
        once.play(0, lambda k, i, x: (torch.sin(x * (i + 1)), i + 1))
        torch.testing.assert_close(once.params[0], start[0] - 0.1 * step)


@pytest.mark.parametrize("count", [math.nan, math.inf, -1.0])
def test_a_ring_count_that_makes_no_sense_breaks_the_round(count: float) -> None:
    peers = Conductor(RingAllReduce, schedule_of(RingAllReduce, 2), torch.zeros(2, 9), wire="bf16").peers
    shards = peers[0].ring._shards  # type: ignore[attr-defined]
    payload, make = shards.packed(1)
    while make() < payload.numel():
        pass
    for reader in (shards.adding(1), shards.taking(1)):
        reader(payload, payload.numel())
        assert reader.sound
    payload[:4] = torch.tensor([count]).view(torch.uint8)
    for reader in (shards.adding(1), shards.taking(1)):
        reader(payload, payload.numel())
        assert not reader.sound


@pytest.mark.parametrize("count", [math.nan, math.inf, -9.0])
def test_a_plain_ring_count_that_makes_no_sense_breaks_the_round(count: float) -> None:
    conductor = Conductor(RingAllReduce, schedule_of(RingAllReduce, 4), torch.zeros(4, 9), weighting="samples")
    first = conductor.peers[0]
    score = first.round(conductor.schedule.plan(0, 0))
    step = advance(score, None)
    assert isinstance(step, Accumulate)
    step = advance(score, Accumulated(torch.ones(9), 1, 1, 0.5, (0,), "quota"))

    def all_phases(step: object) -> None:
        while isinstance(step, Exchange):
            previous, size = next(iter(step.receive.items()))
            step = advance(score, delivered(step, {previous: torch.full((size,), count)}, {}))

    with pytest.raises(RoundBroken) as broken:
        all_phases(step)
    assert (broken.value.peer, broken.value.reason) == (1, "corrupt")


# bf16, fp16


@gossip
@pytest.mark.parametrize("wire", ["bf16", "fp16"])
def test_rounded_gossip_is_the_matrix_recursion_over_rounded_vectors(algorithm: type[Algorithm], wire: str) -> None:
    """X <- X + (W(k) - I) Q(X), in float64."""
    schedule = schedule_of(algorithm, 8, "complete")
    conductor = Conductor(algorithm, schedule, params(n=8, d=D), wire=wire)
    for k in range(10):
        x = conductor.params.double().numpy()
        q = torch.stack([rounded(wire, row) for row in conductor.params]).double().numpy()
        conductor.play(k, no_gradient)
        np.testing.assert_allclose(
            conductor.params.numpy(), x + (mixing_matrix(schedule, k) - np.eye(8)) @ q, rtol=1e-5, atol=1e-6
        )


@gossip
@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp16", "int8", "top-k:0.1"])
def test_a_peer_that_is_not_finite_infects_nobody(algorithm: type[Algorithm], wire: str) -> None:
    schedule = schedule_of(algorithm)
    conductor = Conductor(algorithm, schedule, params(d=D), wire=wire)
    play_all(conductor, 3)
    conductor.peers[2].state.params[7] = torch.nan
    for k in range(3, 30):
        updates = conductor.play(k, no_gradient)
        edges = {(i, j): why for i, update in enumerate(updates) for j, why in update.lost.items()}
        assert all(edges.get((j, i)) == why for (i, j), why in edges.items()), "both ends decide alike"
        assert all(edges.get((2, j)) == "corrupt" for j in schedule.plan(k, 2).neighbors)
    others = torch.stack([peer.state.params for i, peer in enumerate(conductor.peers) if i != 2])
    assert torch.isfinite(others).all()


# int8, top-k: CHOCO-SGD


@pytest.mark.parametrize("wire", REPLICAS)
@pytest.mark.parametrize("topology", ["ring", pytest.param("complete", marks=pytest.mark.slow), "star"])
@gossip
def test_random_vectors_agree_on_their_mean_linearly(algorithm: type[Algorithm], topology: str, wire: str) -> None:
    """The distance to the mean falls by the same factor again and again (Koloskova et al. 2019, theorem 2), down to rounding."""
    conductor = Conductor(algorithm, schedule_of(algorithm, N, topology), params(d=D), wire=wire)
    mean, distances = params(d=D).mean(0), [spread(conductor)]
    rounds = 8 if wire == "int8" else 20
    for stretch in range(4 if wire == "int8" or topology == "complete" else 8):
        for k in range(stretch * rounds, (stretch + 1) * rounds):
            conductor.play(k, no_gradient)
        distances.append(spread(conductor))
    factors = [after / before for before, after in itertools.pairwise(distances) if before > 1e-4]
    assert max(factors) < 0.85, factors
    assert distances[-1] < 0.2 * distances[0]
    assert torch.allclose(conductor.params.mean(0), mean, atol=1e-5)


@pytest.mark.parametrize("topology", ["ring", "complete", "star", "exponential"])
def test_the_default_step_has_a_margin_of_two(topology: str) -> None:
    schedule = schedule_of(DPSGD, N, topology)
    conductor = Conductor(DPSGD, schedule, params(d=D), wire="top-k:0.1", consensus_step=0.2)
    start = spread(conductor)
    play_all(conductor, 80)
    assert spread(conductor) < 0.5 * start


def test_replicas_of_all_edges_are_the_paper() -> None:
    """Without losses every edge has the replica that the paper has for a peer: algorithm 1 of arXiv 1902.00340, in float64."""
    schedule, wire, gamma, d, n = schedule_of(DPSGD, 8), "top-k:0.1", 0.1, 40, 8
    start = params(n=1, d=d).expand(n, d)  # equal starts, so the replicas begin there
    conductor = Conductor(DPSGD, schedule, start, lr=0.02, wire=wire)
    x, replica = start.double(), start.double()
    w = torch.tensor(mixing_matrix(schedule, 0))
    for k in range(60):
        gradients = {i: (4 * (conductor.params[i] - i), 4) for i in range(n)}
        q = torch.stack([rounded(wire, row) for row in (x - replica).float()]).double()
        replica = replica + q
        x = x + gamma * (w @ replica - replica) - 0.02 * torch.stack([g / 4 for g, _ in gradients.values()]).double()
        assert [update.lost for update in conductor.play(k, partial(pick, gradients))] == [{}] * n
        torch.testing.assert_close(conductor.params.double(), x, rtol=1e-4, atol=1e-5)


def replicas_agree(conductor: Conductor) -> bool:
    """Whether both ends of every edge keep the same two vectors."""
    kept = {i: peer.mixing._replicas._edges for i, peer in enumerate(conductor.peers)}  # type: ignore[attr-defined]
    pairs = [(edge, kept[j][i]) for i, edges in kept.items() for j, edge in edges.items()]
    assert pairs
    return all(torch.equal(a.mine, b.theirs) and a.stamp == b.stamp for a, b in pairs)


@replicated
@pytest.mark.parametrize("wire", REPLICAS)
def test_an_edge_that_counted_on_one_end_only_starts_again(algorithm: type[Algorithm], wire: str) -> None:
    """The window of the two generals: peer 1 never learns that the edge to peer 2 counted, nor, later, the other way round."""
    struck = {(5, 1, 2), (9, 2, 1), (13, 1, 2), (14, 2, 1), (15, 1, 2)}
    conductor = Conductor(
        algorithm, schedule_of(algorithm), params(d=D), wire=wire, deaf=lambda k, i, j: (k, i, j) in struck
    )
    lost = [dict(update.lost) for k in range(40) for update in conductor.play(k, no_gradient)]
    reasons = [why for losses in lost for why in losses.values()]
    assert reasons.count("restarted") >= 2 * N + 2, "all edges at first, since peers start apart, and this one again"
    assert replicas_agree(conductor)
    before = spread(conductor) + 1e-4  # int8 is at rounding by now
    assert [u.lost for k in range(40, 90) for u in conductor.play(k, no_gradient) if u.lost] == []
    assert spread(conductor) < 0.5 * before


@pytest.mark.parametrize("wire", REPLICAS)
def test_a_process_that_starts_anew_meets_its_neighbours_again(wire: str) -> None:
    start = params(d=D)[0].expand(N, D)
    conductor = Conductor(DPSGD, schedule_of(DPSGD), start, wire=wire)
    for k in range(10):
        conductor.play(k, some_gradient)
    old = conductor.peers[3].state
    state = type(old)(
        3,
        N,
        start[3].clone(),
        PlainSGD(start[3].clone(), 0.1),
        4,
        "peers",
        wire=old.wire,
        consensus_step=old.consensus_step,
    )
    conductor.peers[3] = DPSGD(state)
    assert [dict(u.lost) for u in conductor.play(10, no_gradient)][3] == {2: "restarted", 4: "restarted"}
    assert replicas_agree(conductor)
    before = spread(conductor)
    for k in range(11, 100):
        assert all(not u.lost for u in conductor.play(k, no_gradient))
    assert spread(conductor) < 0.5 * before


@gossip
@pytest.mark.parametrize("wire", ["bf16", "int8", "top-k:0.1"])
def test_a_payload_of_noise_changes_nothing(algorithm: type[GossipAlgorithm], wire: str) -> None:
    """Its checksum was right, so its sender is broken or hostile."""
    conductor = Conductor(algorithm, schedule_of(algorithm, 2), params(n=2, d=D), wire=wire)
    play_all(conductor, 5)
    me, plan = conductor.peers[0], next(p for k in range(99) if (p := conductor.schedule.plan(k, 0)).neighbors)
    assert isinstance(me, GossipAlgorithm)
    before = me.state.params.clone()
    payload = me.mixing.exchange(plan).send[1].clone()
    payload[8:] = 0xFF
    mixed = me.mixing.mix_(plan, Inbox({1: payload}))
    assert (mixed.lost, mixed.num_received, mixed.distance) == ({1: "corrupt"}, 0, None)
    assert torch.equal(me.state.params, before)


@pytest.mark.parametrize("wire", ["bf16", "fp16", "int8"])
def test_a_ring_finds_the_minimum_of_quadratics_that_disagree(wire: str) -> None:
    """The rounding does not vanish there: the gradients of the peers are large, and only their sum is 0."""
    rounded, exact = (
        Conductor(RingAllReduce, schedule_of(RingAllReduce, 4), torch.zeros(4, 5), lr=0.05, wire=name)
        for name in (wire, "fp32")
    )
    for k in range(100):
        rounded.play(k, quadratic)
        exact.play(k, quadratic)
    found, minimum = rounded.params[0], exact.params[0]
    assert float((found - minimum).norm() / minimum.norm()) < 0.02
