"""Partitions are disjoint, covering, stable and skewed as told; streams have every sample once per pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.training.data import PartitionError, SampleStream, partition, partition_dataset
from peer.training.task import TaskError, load_task
from tests.training.counting import Counting

LABELS = np.arange(1000) % 10


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=80),
    st.integers(1, 12),
    st.sampled_from(["iid", "shards", "dirichlet"]),
    st.floats(1e-3, 1e3),
    st.integers(-(2**40), 2**40),
)
def test_partitions_are_disjoint_and_cover(labels: list[int], peers: int, scheme: str, alpha: float, seed: int) -> None:
    array = np.array(labels)
    try:
        parts = partition(array, peers, scheme, alpha, seed)
    except PartitionError:
        assert len(labels) < (2 * peers if scheme == "shards" else peers)
        return
    assert len(parts) == peers
    assert min(map(len, parts)) >= 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    again = partition(array, peers, scheme, alpha, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    if scheme != "shards":
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def _skew(scheme: str, alpha: float = 1.0) -> float:
    """Mean share of a peer's commonest class: 0.1 is iid, 1 is one class."""
    parts = partition(LABELS, 10, scheme, alpha, seed=3)
    return float(np.mean([np.bincount(LABELS[p]).max() / len(p) for p in parts]))


def test_schemes_are_as_skewed_as_told() -> None:
    assert _skew("iid") < 0.25
    assert _skew("shards") >= 0.5
    assert max(len(np.unique(LABELS[p])) for p in partition(LABELS, 10, "shards", 1.0, seed=3)) <= 2
    assert _skew("dirichlet", 1000) < 0.25 < _skew("dirichlet", 1.0) < _skew("dirichlet", 0.05)
    assert _skew("dirichlet", 1e-3) > 0.9


def test_a_partition_is_the_same_on_every_machine_and_differs_by_seed() -> None:
    assert partition(LABELS[:12], 3, "iid", 1.0, seed=7)[0].tolist() == [8, 11, 1, 3]
    assert partition(LABELS, 3, "iid", 1.0, seed=7)[0].tolist() != partition(LABELS, 3, "iid", 1.0, seed=8)[0].tolist()


def test_bad_requests_are_told() -> None:
    for arguments, told in (
        ((LABELS, 2, "shard", 1.0, 0), "did you mean 'shards'"),
        ((LABELS[:3], 4, "iid", 1.0, 0), "3 samples cannot be divided among 4 peers"),
        ((LABELS, 4, "dirichlet", 0.0, 0), "alpha is 0.0"),
    ):
        with pytest.raises(PartitionError, match=told):
            partition(*arguments)
    with pytest.raises(PartitionError, match="cannot draw chunks"):
        SampleStream(np.arange(0), seed=0, peer=0, chunk_samples=2)


def test_only_partitions_by_label_need_labels() -> None:
    counting, digits = Counting(), load_task("digits")
    assert len(partition_dataset(counting, counting.train_data(), 3)) == 3
    with pytest.raises(TaskError, match="no integer class labels"):
        partition_dataset(counting, counting.train_data(), 3, "shards")
    assert sum(map(len, partition_dataset(digits, digits.train_data(), 8, "dirichlet", 0.1))) == 1437


@given(st.integers(1, 20), st.integers(1, 50), st.integers(0, 5))
def test_each_pass_has_every_sample_once_even_in_chunks_that_straddle(size: int, chunk: int, peer: int) -> None:
    indices = np.arange(100, 100 + size)
    stream = SampleStream(indices, seed=1, peer=peer, chunk_samples=chunk)
    drawn = np.concatenate([stream.next() for _ in range(3 * size)])
    assert stream.position == len(drawn) == 3 * size * chunk
    for one_pass in drawn.reshape(-1, size):
        assert sorted(one_pass.tolist()) == indices.tolist()


def test_streams_are_deterministic_and_differ_by_peer_and_pass() -> None:
    first, again, other = (SampleStream(np.arange(50), 1, peer, 50) for peer in (0, 0, 1))
    one = first.next().tolist()
    assert one == again.next().tolist() != other.next().tolist()
    assert one != first.next().tolist()


@given(st.lists(st.booleans(), max_size=40))
def test_a_chunk_put_back_comes_next_and_seek_goes_on_from_a_position(put_back: list[bool]) -> None:
    stream, plain = (SampleStream(np.arange(7), 1, 0, 3) for _ in range(2))
    for again in put_back:
        chunk = stream.next()
        resumed = SampleStream(np.arange(7), 1, 0, 3)
        if again:
            stream.push_back(chunk)
            resumed.seek(stream.position)
            assert resumed.next().tolist() == chunk.tolist()
            chunk = stream.next()
        assert chunk.tolist() == plain.next().tolist()
        resumed.seek(stream.position)
        expected = SampleStream(np.arange(7), 1, 0, 3)
        expected.seek(plain.position)
        assert resumed.next().tolist() == expected.next().tolist()
