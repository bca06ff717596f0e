"""`--wire-dtype` through whole daemons: bytes that are really sent, and what is refused before anything starts."""

from __future__ import annotations

import pytest
import torch

from peer.assembly import in_effect, make_schedule, make_wire
from peer.config import ConfigError, flag, validated
from peer.daemon.assembly import identity
from peer.gossip.compression import wire_format
from peer.gossip.mixing import payload_bytes
from peer.gossip.wire_dtype import WireDtype
from peer.sim.simulator import Simulation
from peer.training.flat import FlatModel
from peer.training.task import build_model, load_task
from peer.transport.codec import FRAME_BYTES
from peer.transport.exchange import Exchange
from peer.transport.handshake import check_hello
from tests.daemon.rig import Rig, config

ROUNDS = 6
OTHER: dict[str, object] = {
    "wire_dtype": "bf16",
    "weighting": "peers",
    "consensus_step": 0.5,
    "outer_lr": 0.9,
    "outer_momentum": 0.6,
}


def promised(algorithm: str, wire: str, peers: int) -> int:
    """Bytes of payload of all peers in a run on a ring, from the formats' own sizes."""
    made = wire_format(WireDtype.parse(wire))
    d = FlatModel(build_model(load_task("digits"), 0)).vector.numel()
    if algorithm == "dpsgd":
        return ROUNDS * peers * 2 * payload_bytes(made, d)
    if wire == "fp32":  # small enough to travel whole
        return ROUNDS * peers * (peers - 1) * 4 * (d + 1)
    shards = [shard.numel() for shard in torch.empty(d + 1).tensor_split(peers)]
    payloads = [made.num_bytes(d) for d in (*shards[:-1], shards[-1] - 1)]
    return ROUNDS * 2 * (peers - 1) * (sum(payloads) + 4)


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ("dpsgd", {"wire_dtype": "fp32"}),
        ("ring-all-reduce", {"weighting": "samples"}),
        ("choco-sgd", {"consensus_step": 1.0}),
        ("slowmo", {"outer_lr": 1.0, "outer_momentum": 0.7, "weighting": "samples"}),
        ("noloco", {"consensus_step": 1.0}),
    ],
)
def test_who_says_what_is_meant_without_a_word_is_not_refused_for_it(algorithm: str, said: dict[str, object]) -> None:
    """And what is told of a run is what is meant."""
    settings = [config(algorithm=algorithm, **said), config(algorithm=algorithm)]
    mine, theirs = (identity(settings[i], i, make_schedule(settings[i]), "same") for i in range(2))
    assert check_hello(mine, theirs, 1) is None
    meant = {name: None if name == "consensus_step" else value for name, value in said.items()}
    for name, value in meant.items():
        assert getattr(in_effect(settings[0]), name) == getattr(in_effect(settings[1]), name) == value
    others = [config(algorithm=algorithm, **{name: OTHER[name]}) for name in said]
    for other, name in zip(others, said, strict=True):
        refusal = check_hello(mine, identity(other, 1, make_schedule(other), "same"), 1)
        assert refusal is not None
        assert refusal.sentence == f"peer 1 has {flag(name)} {OTHER[name]}, this peer {meant[name] or 'none'}"


@pytest.mark.parametrize(
    ("algorithm", "wire", "ratio"),
    [
        ("dpsgd", "bf16", 1 / 2),
        ("dpsgd", "fp16", 0.501),
        ("dpsgd", "int8", 0.251),
        ("dpsgd", "top-k:0.2", 0.2),
        ("ring-all-reduce", "bf16", 1 / 3),
        ("ring-all-reduce", "int8", 0.251 * 2 / 3),
    ],
)
async def test_the_bytes_sent_over_grpc_fall_as_promised(algorithm: str, wire: str, ratio: float) -> None:
    """All that the transport hands to gRPC: payloads, frame headers, votes and words; within 2 %."""
    sent = {}
    for name in ("fp32", wire):
        settings = config(
            algorithm=algorithm, wire_dtype=name, task="digits", closing="barrier", max_rounds=ROUNDS, peers=3
        )
        summaries = await Rig(settings, "grpc").run()
        sent[name] = sum(summary.bytes_sent for summary in summaries)
        assert sent[name] == pytest.approx(promised(algorithm, name, 3), rel=0.02)
        simulated = Simulation(settings)
        simulated.run()
        assert sum(peer.bytes_sent for peer in simulated.peers) == promised(algorithm, name, 3)
    assert sent[wire] / sent["fp32"] == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize("algorithm", ["dpsgd", "matcha", "ring-all-reduce"])
def test_the_task_without_vectors_sends_as_many_bytes_as_vectors_would(algorithm: str) -> None:
    d, sent = 50_826, {}
    for wire in ("fp32", "bf16", "int8"):
        settings = config(algorithm=algorithm, task="timing", wire_dtype=wire, max_rounds=20, peers=8)
        simulated = Simulation(settings, num_parameters=d)
        simulated.run()
        sent[wire] = sum(peer.bytes_sent for peer in simulated.peers)
    for wire in ("bf16", "int8"):
        assert sent[wire] / sent["fp32"] == pytest.approx(wire_format(WireDtype(wire)).num_bytes(d) / (4 * d), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"algorithm": "ring-all-reduce", "wire_dtype": "top-k:0.1"},
            "--wire-dtype: ring-all-reduce can't send top-k:0.1: every hop would drop",
        ),
        (
            {"wire_dtype": "int8", "topology": "random-regular", "random_graph_every": 5},
            "--wire-dtype: int8 keeps two vectors for each edge",
        ),
        ({"wire_dtype": "bf16", "consensus_step": 0.5}, "--consensus-step: dpsgd with --wire-dtype bf16 has none"),
        (
            {"algorithm": "ring-all-reduce", "wire_dtype": "int8", "consensus_step": 0.5},
            "--consensus-step: ring-all-reduce with --wire-dtype int8 has none",
        ),
    ],
)
def test_what_is_not_correct_is_refused_at_the_start(options: dict[str, object], sentence: str) -> None:
    def build() -> None:
        made = validated(options)
        make_schedule(made)
        make_wire(made)

    with pytest.raises(ConfigError, match=sentence) as error:
        build()
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=sentence):
        Simulation(config(**options))


def test_a_wrong_name_is_refused_by_the_config() -> None:
    with pytest.raises(ConfigError, match=r"^--wire-dtype: unknown format 'bf61'; did you mean bf16\?"):
        validated({"wire_dtype": "bf61"})
    assert validated({"wire_dtype": "top-k:0.10"}).wire_dtype == "top-k:0.1"


@pytest.mark.parametrize(("algorithm", "wire"), [("matcha", "fp16"), ("matcha", "int8"), ("dpsgd", "top-k:0.2")])
async def test_formats_play_with_stragglers_and_words_over_grpc(algorithm: str, wire: str) -> None:
    """Non-blocking, with a slow peer: samples are conserved and no edge is lost by the format."""
    settings = config(
        algorithm=algorithm, wire_dtype=wire, closing="first", chunk_seconds=0.002, straggler=("0=4x",), max_rounds=25
    )
    rig = Rig(settings, "grpc")
    for summary in await rig.run():
        assert summary.rounds == 25
        assert not {"corrupt", "restarted"} & set(summary.edges_lost)
        assert summary.samples_started == (
            summary.samples + summary.samples_redone + summary.samples_nonfinite + summary.samples_abandoned
        )
    for peer in rig.peers:
        assert peer.player.num_inboxes <= 2


@pytest.mark.parametrize(
    ("over", "algorithm", "wire", "task"),
    [
        ("memory", "dpsgd", "fp16", "Wide16"),
        pytest.param("grpc", "dpsgd", "bf16", "Wide16", marks=pytest.mark.slow),
        pytest.param("memory", "dpsgd", "top-k:0.5", "Wide16", marks=pytest.mark.slow),
        pytest.param("memory", "matcha", "int8", "Wide", marks=pytest.mark.slow),
        pytest.param("memory", "ring-all-reduce", "bf16", "Wide", marks=pytest.mark.slow),
    ],
)
async def test_a_vector_is_sent_while_it_is_encoded_with_the_same_bits_as_the_simulator(
    over: str, algorithm: str, wire: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several frames: some are on their way before the last part of the vector is made."""
    options = {"chunks": 1, "closing": "barrier", "peers": 2, "max_rounds": 3}
    settings = config(task=f"tests.daemon.tasks:{task}", algorithm=algorithm, wire_dtype=wire, **options)
    sent_before: dict[Exchange, int] = {}
    early: list[bool] = []
    made = Exchange.made

    def seen(self: Exchange, num_bytes: int) -> None:
        sent = self._link.traffic.bytes_sent  # type: ignore[attr-defined]
        if self.payload is not None and num_bytes == len(self.payload):
            early.append(sent - sent_before.get(self, sent) >= FRAME_BYTES)
        sent_before.setdefault(self, sent)
        made(self, num_bytes)

    monkeypatch.setattr(Exchange, "made", seen)
    rig = Rig(settings, over)
    assert [summary.edges_lost for summary in await rig.run()] == [{}, {}]
    simulated = Simulation(settings, exact=True)
    simulated.run()
    assert torch.equal(simulated.models(), torch.stack([peer.player.master.params for peer in rig.peers]))
    assert any(early), "no frame left before the vector was whole"
