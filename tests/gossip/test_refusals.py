"""What an algorithm is not correct with is refused at the start, by daemon and simulator alike, in one sentence that says why."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peer.assembly import BAD_INPUT, make_outer, make_schedule, make_wire
from peer.config import OF_TOPOLOGY, Config, ConfigError, choices
from peer.daemon.assembly import Parts, assemble
from peer.gossip.algorithm import Algorithm, RoundBroken, ScheduleOptions
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.delivery import Delivery
from peer.gossip.wire_dtype import KINDS
from peer.methods import DEFAULTS_OF
from peer.refusals import OWN_OPTIONS
from peer.sim.simulator import Simulation
from tests.daemon.rig import config
from topology import TOPOLOGIES, VARYING, Schedule, build

RANDOM: dict[str, object] = {"topology": "random-regular", "degree": 2, "random_graph_every": 5}
OWN_OPTIMIZER: dict[str, object] = {"task": "tests.gossip.tasks:OwnOptimizer"}

BUDGET: dict[str, object] = {"budget": 0.3}
MIXING: dict[str, object] = {"mixing": "best-constant"}
NO_MATCHINGS = [name for name in ALGORITHMS if name not in ("matcha", "al-matcha")]
OWN_WEIGHTS = [
    *("ring-all-reduce", "slowmo", "diloco", "noloco", "matcha", "al-matcha"),
    *("sync-sgd", "async-sgd", "ad-psgd"),
]

REFUSED: list[tuple[str, dict[str, object], str]] = [
    # topology
    ("ring-all-reduce", {"topology": "star"}, "use --topology ring, not star"),
    ("ring-all-reduce", RANDOM, "--random-graph-every: ring-all-reduce can't draw random graphs: it passes shards along"),
    ("slowmo", RANDOM, "slowmo can't draw random graphs: it passes shards along the ring"),
    ("diloco", RANDOM, "diloco can't draw random graphs: it passes shards along the ring"),
    ("noloco", RANDOM, "noloco can't draw random graphs: it pairs all peers at random on its own"),
    ("noloco", {"topology": "ring"}, "use --topology complete, not ring"),
    ("ring-all-reduce", {"topology": "base"}, "can't run on base: it passes shards along the ring of all peers"),
    ("slowmo", {"topology": "base"}, "can't run on base: it passes shards along the ring of all peers"),
    ("diloco", {"topology": "base"}, "can't run on base: it passes shards along the ring of all peers"),
    ("noloco", {"topology": "base"}, "can't run on base: it pairs all peers at random on its own"),
    ("al-matcha", {"topology": "base"}, "can't run on base: it alternates between copies of one graph"),
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
    # what only others take notice of
    ("dpsgd", {"budget": 0.3}, "--budget: it is for matcha and al-matcha, and means nothing with dpsgd, which has no matchings"),
    *((name, BUDGET, f"--budget: .* means nothing with {name}") for name in NO_MATCHINGS),
    *((name, MIXING, f"--mixing: .* means nothing with {name}, which mixes by") for name in OWN_WEIGHTS),
    ("dpsgd", {**RANDOM, "mixing": "best-constant"}, "--mixing: new random graphs are not solved for best-constant weights"),
    ("qg-dsgdm", {**RANDOM, "mixing": "best-constant"}, "--mixing: new random graphs are not solved for best-constant"),
    ("dpsgd", {"topology": "base", "mixing": "best-constant"}, "--mixing: the weights of base are its own"),
    ("dpsgd", {"quorum": 0.7}, "--quorum: it is for --closing quorum, and means nothing with first"),
    ("matcha", {"quorum": 0.7, "closing": "deadline"}, "--quorum: it is for --closing quorum, and means nothing with dead"),
    ("ad-psgd", {"quorum": 0.7}, "--quorum: it is for --closing quorum, and means nothing with none"),
    ("dpsgd", {"round_deadline": 0.7}, "--round-deadline: it is for --closing deadline, and means nothing with first"),
    ("sync-sgd", {"deadline_mads": 2.0}, "--deadline-mads: it is for --closing deadline, and means nothing with first"),
    ("dpsgd", {"closing": "deadline", "round_deadline": 1.0, "deadline_mads": 2.0}, "--deadline-mads: with --round-deadline"),
    ("dpsgd", {"outer_lr": 0.5}, "--outer-lr: it is for slowmo, diloco and noloco, and .* dpsgd, which has no outer step"),
    ("matcha", {"outer_momentum": 0.5}, "--outer-momentum: it is for slowmo, diloco and noloco, and means nothing with"),
    ("dpsgd", {"consensus_step": 0.5}, "has none; it is for noloco, and for dpsgd, matcha and choco-sgd with int8 or top-k"),
    # steps
    ("qg-dsgdm", {"local_steps": 2}, "--local-steps: qg-dsgdm makes one step between two exchanges: its momentum"),
    ("gradient-tracking", {"local_steps": 2}, "--local-steps: gradient-tracking makes one step between two exchanges"),
    ("async-sgd", {"local_steps": 2}, "async-sgd makes one step between two exchanges: the head takes each gradient as it comes"),
    ("ad-psgd", {"local_steps": 2}, "ad-psgd makes one step between two exchanges: a peer takes each gradient as it comes"),
    ("slowmo", {"local_steps": 1 << 22}, "--local-steps: a round would have 33,554,432 samples of a peer, and slowmo counts to"),
    ("async-sgd", {"batch_size": 1 << 25}, "--batch-size: a round would have 33,554,432 samples of a peer, and async-sgd"),
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
    varying = {algorithm for algorithm, options, _ in REFUSED if options.get("topology") in VARYING}
    for name, kind in ALGORITHMS.items():
        if kind.why_no_random_graphs:
            assert (name, "random_graph_every") in refused
        if kind.why_no_local_steps:
            assert (name, "local_steps") in refused
        if kind.why_plain_sgd:
            assert {(name, "optimizer"), (name, "task")} <= refused
        if kind.why_not_others != Algorithm.why_not_others:
            assert (name, "wire_dtype") in refused or len(kind.wire_dtypes) == len(KINDS)
        if kind.why_not_varying != Algorithm.why_not_varying:
            assert name in varying
        if not kind.takes_mixing:
            assert (name, "mixing") in refused
        if not kind.takes_budget:
            assert (name, "budget") in refused


@pytest.mark.parametrize("topology", [name for name in TOPOLOGIES if name not in ("random-regular",)])
def test_an_option_of_another_topology_is_refused_by_the_config(topology: str) -> None:
    values = {"base_k": 2, "degree": 3, "probability": 0.5, "radius": 0.9}
    for name, of in OF_TOPOLOGY.items():
        if of == topology:
            assert getattr(config(topology=topology, **{name: values[name]}), name) == values[name]
            continue
        with pytest.raises(
            ConfigError, match=f"--{name.replace('_', '-')}: {topology} has none; it is for --topology {of}"
        ):
            config(topology=topology, **{name: values[name]})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_schedule_is_made_with_what_the_algorithm_says_it_takes(algorithm: str) -> None:
    kind, made = ALGORITHMS[algorithm], config(algorithm=algorithm, peers=5)
    options = ScheduleOptions(build(made.topology, 5), 0, None, None, None, "metropolis", 0.5, seed=1)
    digest = kind.make_schedule(options).digest()
    assert kind.takes_budget == (kind.make_schedule(replace(options, budget=0.3)).digest() != digest)
    star = (
        replace(options, topology=build("star", 5)) if kind.takes_mixing else options
    )  # of a ring both weights are alike
    weights = {mixing: weights_of(kind.make_schedule(replace(star, mixing=mixing))) for mixing in choices("mixing")}
    if kind.takes_mixing:
        assert weights["metropolis"] != weights["best-constant"]
    elif kind.delivery is not Delivery.EVERY_MESSAGE:  # those have a ring for its neighbours only
        assert weights["metropolis"] == weights["best-constant"]


def weights_of(schedule: Schedule) -> list[tuple[float, ...]]:
    return [schedule.plan(0, i).weights for i in range(5)]


def test_the_page_on_adding_an_algorithm_has_every_trait_and_no_other() -> None:
    declared = {name for name, kind in vars(Algorithm)["__annotations__"].items() if "ClassVar" in kind} - {"name"}
    overridden = {
        name
        for name in vars(Algorithm)
        if not name.startswith("_") and name not in ("make_schedule", "round", "contribution_scale")
    }
    page = (Path(__file__).parents[2] / "docs" / "add-an-algorithm.md").read_text()
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == declared | overridden


def test_what_stands_where_nobody_says_anything_follows_the_traits() -> None:
    assert tuple(ALGORITHMS) == choices("algorithm")
    assert DEFAULTS_OF.keys() <= ALGORITHMS.keys()
    for name, kind in ALGORITHMS.items():
        made, own = config(algorithm=name), DEFAULTS_OF.get(name, {})
        assert (made.closing == "none") is not kind.has_rounds
        assert (made.topology == "star") is kind.has_head
        assert (own.get("head_computes") is False) is (kind.has_head and not kind.has_rounds)
        make_schedule(made)
        make_wire(made)
        make_outer(made)


#: What the help says of an option before this is of the algorithms that take it, and names all of them.
OF_SOME: dict[str, Callable[[type[Algorithm]], bool]] = {
    **{name: own.takes for name, own in OWN_OPTIONS.items()},
    "head_computes": lambda kind: kind.has_head,  # and says what the other has
    "random_graph_every": lambda kind: not kind.why_no_random_graphs,
    "consensus_step": lambda kind: kind.takes_consensus_step or (kind.keeps_replicas and "int8" in kind.wire_dtypes),
    "closing": lambda kind: not kind.has_rounds,
    "weighting": lambda kind: kind.default_weighting == "samples",
    "wire_dtype": lambda kind: kind.wire_dtypes[0] != "fp32",
    "topology": lambda kind: config(algorithm=kind.name).topology != "ring",
}


@pytest.mark.parametrize("option", OF_SOME)
def test_the_help_names_the_algorithms_that_an_option_is_for(option: str) -> None:
    said = Config.model_fields[option].description or ""
    named = {name for name in ALGORITHMS if re.search(rf"(?<![\w-]){name}(?![\w-])", said)}
    assert named == {name for name, kind in ALGORITHMS.items() if OF_SOME[option](kind)}
    for name, kind in ALGORITHMS.items():
        if option in ("outer_lr", "outer_momentum") and kind.outer is not None:
            its_own = f"{getattr(kind.outer, option.removeprefix('outer_')):g}"
            assert f"{name} ({its_own})" in said or f"{name} (default {its_own})" in said


def test_who_is_named_as_a_way_out_goes_on_whoever_is_lost() -> None:
    said = RoundBroken(3, "link_down").sentence("slowmo")
    assert said.startswith(
        "peer 3 was lost in the middle of a round (link_down); slowmo needs every peer: restart the run, or use"
    )
    named = [name for name in ALGORITHMS if name in said and name != "slowmo"]
    assert named == ["dpsgd", "matcha"]
    for name in named:
        assert ALGORITHMS[name].delivery is not Delivery.EVERY_MESSAGE
        assert not ALGORITHMS[name].has_head


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
