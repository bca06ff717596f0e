"""What an algorithm is not correct with is refused at the start, by daemon and simulator alike, in one sentence that says why."""

from __future__ import annotations

import pytest

from peer.assembly import BAD_INPUT
from peer.config import Config
from peer.daemon.assembly import Parts, assemble
from peer.gossip.algorithms import ALGORITHMS
from peer.sim.simulator import Simulation
from tests.daemon.rig import config

RANDOM: dict[str, object] = {"topology": "random-regular", "degree": 2, "random_graph_every": 5}
OWN_OPTIMIZER: dict[str, object] = {"task": "tests.gossip.tasks:OwnOptimizer"}

REFUSED: list[tuple[str, dict[str, object], str]] = [
    # topology
    ("ring-all-reduce", {"topology": "star"}, "use --topology ring, not star"),
    ("ring-all-reduce", RANDOM, "--random-graph-every: ring-all-reduce can't draw random graphs: it passes shards along"),
    ("slowmo", RANDOM, "slowmo can't draw random graphs: it passes shards along the ring"),
    ("diloco", RANDOM, "diloco can't draw random graphs: it passes shards along the ring"),
    ("noloco", RANDOM, "noloco can't draw random graphs: it pairs all peers at random on its own"),
    ("noloco", {"topology": "ring"}, "use --topology complete, not ring"),
    ("ring-all-reduce", {"topology": "base"}, "can't run on base: it passes shards along the ring of all peers"),
    ("matcha", {"topology": "base"}, "can't run on base: it decides on its own which edges of one graph talk"),
    ("al-dsgd", {"topology": "base"}, "can't run on base: it alternates between copies of one graph"),
    ("matcha", RANDOM, "matcha can't draw random graphs: its matchings and probabilities are solved for one graph"),
    ("al-dsgd", RANDOM, "al-dsgd can't draw random graphs: it alternates between copies of one graph"),
    ("al-matcha", RANDOM, "al-matcha can't draw random graphs"),
    ("gradient-tracking", RANDOM, "can't draw random graphs: it keeps a vector for each edge"),
    ("choco-sgd", RANDOM, "can't draw random graphs: it keeps two vectors for each edge"),
    ("dpsgd", {**RANDOM, "wire_dtype": "int8"}, "int8 keeps two vectors for each edge, and with --random-graph-every"),
    ("sync-sgd", RANDOM, "sync-sgd can't draw random graphs: every peer talks to the head"),
    ("sync-sgd", {"topology": "base"}, "can't run on base: every peer talks to the head"),
    ("async-sgd", RANDOM, "async-sgd can't draw random graphs: every worker talks to the head"),
    ("async-sgd", {"topology": "base"}, "can't run on base: every worker talks to the head"),
    ("ad-psgd", RANDOM, "ad-psgd can't draw random graphs: it averages along one graph"),
    ("ad-psgd", {"topology": "base"}, "can't run on base: it averages along one graph"),
    # compression
    ("ring-all-reduce", {"wire_dtype": "top-k:0.1"}, "can't send top-k:0.1: every hop would drop"),
    ("slowmo", {"wire_dtype": "top-k:0.1"}, "can't send top-k:0.1: every hop would drop"),
    ("diloco", {"wire_dtype": "top-k:0.1"}, "can't send top-k:0.1: every hop would drop"),
    ("noloco", {"wire_dtype": "int8"}, "noloco can't send int8"),
    ("qg-dsgdm", {"wire_dtype": "int8"}, "can't send int8: its momentum takes every change of the model for progress"),
    ("qg-dsgdm", {"wire_dtype": "top-k:0.1"}, "can't send top-k:0.1"),
    ("gradient-tracking", {"wire_dtype": "bf16"}, "can't send bf16: rounding puts a floor under the error"),
    ("gradient-tracking", {"wire_dtype": "top-k:0.1"}, "can't send top-k:0.1"),
    ("al-dsgd", {"wire_dtype": "fp16"}, "can't send fp16: nobody has shown"),
    ("al-matcha", {"wire_dtype": "int8"}, "can't send int8"),
    ("choco-sgd", {"wire_dtype": "fp32"}, "can't send fp32: it is gossip of compressed differences.*it takes int8, top-k"),
    ("choco-sgd", {"wire_dtype": "bf16"}, "can't send bf16"),
    ("sync-sgd", {"wire_dtype": "bf16"}, "can't send bf16: workers would compute at a rounded x"),
    ("async-sgd", {"wire_dtype": "int8"}, "can't send int8: nobody has shown"),
    ("ad-psgd", {"wire_dtype": "fp16"}, "can't send fp16: nobody has shown"),
    ("al-dsgd", {"consensus_step": 0.5}, "--consensus-step: al-dsgd with --wire-dtype fp32 has none"),
    # steps
    ("qg-dsgdm", {"local_steps": 2}, "--local-steps: qg-dsgdm makes one step between two exchanges: its momentum"),
    ("gradient-tracking", {"local_steps": 2}, "--local-steps: gradient-tracking makes one step between two exchanges"),
    ("async-sgd", {"local_steps": 2}, "async-sgd makes one step between two exchanges: the head takes each gradient as it comes"),
    ("ad-psgd", {"local_steps": 2}, "ad-psgd makes one step between two exchanges: a peer takes each gradient as it comes"),
    ("qg-dsgdm", {"optimizer": "momentum"}, "--optimizer: qg-dsgdm can't use momentum: quasi-global momentum is the"),
    ("gradient-tracking", {"optimizer": "adam"}, "--optimizer: gradient-tracking can't use adam: it steps along"),
    ("qg-dsgdm", OWN_OPTIMIZER, "--task: qg-dsgdm can't use the optimizer that tests.gossip.tasks:OwnOptimizer brings"),
    ("gradient-tracking", OWN_OPTIMIZER, "--task: gradient-tracking can't use the optimizer"),
]  # fmt: skip


def as_a_daemon(settings: Config) -> Parts:
    return assemble(settings, 0, notify=lambda event: None)


@pytest.mark.parametrize(("algorithm", "options", "sentence"), REFUSED, ids=[f"{a} {o}" for a, o, _ in REFUSED])
def test_it_is_refused_with_the_reason(algorithm: str, options: dict[str, object], sentence: str) -> None:
    settings = config(algorithm=algorithm, **options)
    for start in (Simulation, as_a_daemon):
        with pytest.raises(BAD_INPUT, match=sentence) as error:
            start(settings)
        assert "\n" not in str(error.value)


def test_every_reason_an_algorithm_gives_is_in_the_table() -> None:
    refused = {(algorithm, option) for algorithm, options, _ in REFUSED for option in options}
    for name, kind in ALGORITHMS.items():
        if kind.why_no_random_graphs:
            assert (name, "random_graph_every") in refused
        if kind.why_no_local_steps:
            assert (name, "local_steps") in refused
        if kind.why_plain_sgd:
            assert {(name, "optimizer"), (name, "task")} <= refused
        if len(kind.wire_dtypes) < 5:
            assert (name, "wire_dtype") in refused


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_not_refused_starts(algorithm: str) -> None:
    kind = ALGORITHMS[algorithm]
    options: dict[str, object] = {} if kind.why_no_random_graphs else RANDOM
    if kind.takes_varying:
        Simulation(config(algorithm=algorithm, topology="base"))
    wire = {"top-k": "top-k:0.1"}
    if not kind.why_no_local_steps:
        options = {**options, "local_steps": 2}
    for name in kind.wire_dtypes:
        if options.keys() & {"random_graph_every"} and name in ("int8", "top-k"):
            options = {key: value for key, value in options.items() if key not in RANDOM}
        Simulation(config(algorithm=algorithm, wire_dtype=wire.get(name, name), **options))
