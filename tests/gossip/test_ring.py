"""Sums along the ring: small vectors travel whole, large ones as shards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from peer.gossip.algorithm import PeerState, RoundBroken
from peer.gossip.central import DIGIT
from peer.gossip.compression import wire_format
from peer.gossip.effects import Exchange, Inbox
from peer.gossip.ring import WHOLE_BYTES, Ring, passes_whole
from peer.gossip.wire_dtype import WireDtype
from tests.gossip.conductor import PlainSGD

D = 13
FP32 = wire_format(WireDtype.parse("fp32"))
BF16 = wire_format(WireDtype.parse("bf16"))


def ring(n: int, i: int, whole_bytes: int) -> Ring:
    x = torch.zeros(D)
    return Ring(PeerState(i, n, x, PlainSGD(x, 0.1), batch_size=4, weighting="samples"), whole_bytes)


def brought(i: int) -> Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(i))


def summed(n: int, whole_bytes: int) -> tuple[list[tuple[Tensor, float]], int, list[int]]:
    """What every peer has in the end, steps, and bytes that each sent."""
    scores = [ring(n, i, whole_bytes).sum(brought(i), float(i)) for i in range(n)]
    steps, sent, ends = [next(score) for score in scores], [0] * n, dict[int, tuple[Tensor, float]]()
    count = 0
    while len(ends) < n:
        count += 1
        mail = {}
        for i, step in enumerate(steps):
            assert isinstance(step, Exchange)
            assert step.phase == count - 1
            for j, vector in step.send.items():
                mail[i, j] = vector.clone()
                sent[i] += 4 * vector.numel()
        for i, step in enumerate(steps):
            assert isinstance(step, Exchange)
            vectors = {}
            for j, size in step.receive.items():
                assert mail[j, i].numel() == size
                vectors[j] = step.into[j].copy_(mail[j, i]) if j in step.into else mail[j, i]
                if j in step.take:
                    step.take[j](vectors[j], size)
            try:
                steps[i] = scores[i].send(Inbox(vectors))
            except StopIteration as end:
                ends[i] = end.value
    return [ends[i] for i in range(n)], count, sent


@pytest.mark.parametrize("n", range(2, 10))
@pytest.mark.parametrize("whole", [True, False])
def test_steps_and_bytes_and_the_same_bits_for_all(n: int, whole: bool) -> None:
    ends, steps, sent = summed(n, WHOLE_BYTES if whole else -1)
    assert steps == (n // 2 if whole else 2 * (n - 1))
    if whole:
        assert sent == [4 * (D + 1) * vectors(n)] * n
    else:
        assert sum(sent) == 4 * (D + 1) * (n - 1) * 2
    expected = sum((brought(i).double() for i in range(n)), torch.zeros(D))
    for total, weight in ends:
        assert weight == n * (n - 1) / 2
        assert torch.equal(total, ends[0][0])
    torch.testing.assert_close(ends[0][0].double(), expected, rtol=1e-5, atol=1e-6)


def vectors(n: int) -> int:
    """That a peer sends where they travel whole."""
    return n - 1 if n % 2 else n // 2


def test_only_small_vectors_travel_whole() -> None:
    assert [n for n in range(2, 65) if passes_whole(n, 50_826, FP32)] == [2, 3, 4, 6]
    for n in (2, 3, 8, 9, 64):
        d = WHOLE_BYTES // (4 * vectors(n)) - 1
        assert passes_whole(n, d, FP32)
        assert not passes_whole(n, d + 1, FP32)
        assert not passes_whole(n, d, BF16)


BAD = pytest.mark.parametrize("bad", [(3, math.nan), (3, math.inf), (D, -1.0), (D, 0.5), (D, math.inf), (D, 1e30)])


@BAD
def test_a_vector_that_makes_no_sense_breaks_the_round_and_names_who_sent_it(bad: tuple[int, float]) -> None:
    score = ring(5, 0, WHOLE_BYTES).sum(brought(0), 1.0)
    step = next(score)
    assert isinstance(step, Exchange)
    assert step.receive.keys() == {4, 1}
    row = torch.ones(D + 1)
    row[bad[0]] = bad[1]
    step.into[1].copy_(row)
    with pytest.raises(RoundBroken, match="corrupt") as broken:
        score.send(Inbox({4: step.into[4].fill_(1.0), 1: step.into[1]}))
    assert broken.value.peer == 1


@pytest.mark.parametrize("count", [-2.0, 0.5, 1e30, math.inf])
def test_shards_whose_counts_add_up_to_what_no_peers_have_break_the_round(count: float) -> None:
    """The count is in the last element of the last shard, which peer 0 of two gets finished."""

    def play() -> None:
        score = ring(2, 0, -1).sum(brought(0), 1.0)
        step = next(score)
        while True:
            assert isinstance(step, Exchange)
            (size,) = step.receive.values()
            came = step.into.get(1, torch.empty(size))
            came.fill_(1.0)[-1] = count
            step.take[1](came, size)
            step = score.send(Inbox({1: came}))

    with pytest.raises(RoundBroken, match="corrupt") as broken:
        play()
    assert broken.value.peer == 1


@BAD
def test_so_does_the_sum_of_a_pair(bad: tuple[int, float]) -> None:
    score = ring(6, 1, WHOLE_BYTES).sum(brought(0), 1.0)
    step = next(score)
    assert isinstance(step, Exchange)
    assert step.receive.keys() == {0}
    step = score.send(Inbox({0: step.into[0].fill_(1.0)}))
    assert isinstance(step, Exchange)
    assert step.receive.keys() == {2}
    row = step.into[2].fill_(1.0)
    row[bad[0]] = bad[1]
    with pytest.raises(RoundBroken, match="corrupt") as broken:
        score.send(Inbox({2: row}))
    assert broken.value.peer == 2


def test_even_rings_pass_what_may_be_in_the_sums_own_room() -> None:
    scores, room = [], []
    for i in range(4):
        made = ring(4, i, WHOLE_BYTES)
        room.append(made.room.copy_(brought(i)))
        scores.append(made.sum(made.room, 1.0))
    steps = [next(score) for score in scores]
    for _ in range(2):
        swaps = [step for step in steps if isinstance(step, Exchange)]
        mail = {(i, j): vector.clone() for i, swap in enumerate(swaps) for j, vector in swap.send.items()}
        inboxes = [Inbox({j: swap.into[j].copy_(mail[j, i]) for j in swap.into}) for i, swap in enumerate(swaps)]
        ends = []
        for i, inbox in enumerate(inboxes):
            try:
                steps[i] = scores[i].send(inbox)
            except StopIteration as end:
                ends.append(end.value)
    expected = (brought(0) + brought(1)) + (brought(2) + brought(3))
    assert [(torch.equal(total, expected), weight) for total, weight in ends] == [(True, 4.0)] * 4


@pytest.mark.parametrize("step", [0, 1])
def test_a_pair_may_count_twice_what_a_peer_may(step: int) -> None:
    """Peer 1 of six swaps with peer 0, and then the sum of its pair with peer 2."""
    score = ring(6, 1, WHOLE_BYTES).sum(brought(0), 1.0)
    effect = next(score)
    for phase, other in enumerate((0, 2)):
        assert isinstance(effect, Exchange)
        row = effect.into[other].fill_(1.0)
        row[-1] = 1.5 * DIGIT if phase == step else 1.0
        if phase == step == 0:
            with pytest.raises(RoundBroken, match="corrupt"):
                score.send(Inbox({other: row}))
            return
        effect = score.send(Inbox({other: row}))
