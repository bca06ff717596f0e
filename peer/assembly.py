"""What a config says, as parts: schedule, algorithm, devices. Daemon and simulator build theirs from here.

Everything that can be wrong with a config, a topology, a scenario or a task is found here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from peer.config import Config, ConfigError
from peer.gossip.algorithm import NO_OUTER_STEP, Algorithm, Central, Optimizer, Outer, PeerState, ScheduleOptions
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.closing import Backups, ClosingPolicy, make_closing
from peer.gossip.compression import WireFormat, wire_format
from peer.gossip.replicas import default_step
from peer.refusals import check_method, keeps_replicas, wire_dtype
from peer.scenario import Scenario, load_scenario, spec_error
from peer.training.accumulator import Accumulator, InFlight
from peer.training.data import Indices, PartitionError, partition_dataset
from peer.training.flat import FlatModel
from peer.training.local_steps import LocalSteps
from peer.training.optimizer import MasterOptimizer
from peer.training.stragglers import StragglerError, Stragglers, parse
from peer.training.task import Task, TaskError, build_model
from topology import VARYING, Schedule, Topology, TopologyError, VaryingSchedule, build, build_varying

#: What a config, a topology, a task or data can be refused with; each is one sentence.
BAD_INPUT = (ConfigError, TopologyError, TaskError, PartitionError, StragglerError)


def make_schedule(config: Config) -> Schedule:
    """Who talks to whom. Raises TopologyError, or ConfigError if the algorithm is not correct with the other options."""
    check_method(config)
    kind, varying = ALGORITHMS[config.algorithm], _make_varying(config)
    if varying is not None and not kind.takes_varying:
        raise TopologyError(
            f"--topology: {config.algorithm} can't run on {config.topology}: {kind.why_not_varying}; dpsgd can"
        )
    topology = varying.base(0) if varying is not None else _make_graph(config)
    options = ScheduleOptions(
        topology=topology,
        random_graph_every=config.random_graph_every,
        degree=config.degree,
        probability=config.probability,
        radius=config.radius,
        mixing=config.mixing,
        budget=config.budget,
        seed=config.seed,
        head=config.head,
        varying=varying,
    )
    return kind.make_schedule(options)


def _make_varying(config: Config) -> VaryingSchedule | None:
    """The topology, if it has other edges in each round. Raises TopologyError."""
    if config.topology not in VARYING:
        return None
    return build_varying(config.topology, config.peers, seed=config.seed, k=config.base_k)


def _make_graph(config: Config) -> Topology:
    return build(
        config.topology,
        config.peers,
        seed=config.seed,
        degree=config.degree,
        probability=config.probability,
        radius=config.radius,
    )


def make_wire(config: Config) -> WireFormat:
    """The format of vectors on the wire. Raises ConfigError if it is not correct with the algorithm, or with random graphs."""
    name, kind = wire_dtype(config), ALGORITHMS[config.algorithm]
    if name.kind not in kind.wire_dtypes:
        raise ConfigError(
            f"--wire-dtype: {config.algorithm} can't send {name}: {kind.why_not_others}; "
            f"it takes {', '.join(kind.wire_dtypes)}"
        )
    if keeps_replicas(config) and config.random_graph_every:
        raise ConfigError(
            f"--wire-dtype: {name} keeps two vectors for each edge, and with --random-graph-every edges come without end; "
            "use bf16 or fp16, or a graph that stays"
        )
    try:
        return wire_format(name)
    except ValueError as error:
        raise ConfigError(f"--wire-dtype: {error}") from None


def make_outer(config: Config) -> Outer:
    """The outer step. Raises ConfigError if the algorithm diverges with it."""
    kind = ALGORITHMS[config.algorithm]
    if kind.outer is None:
        return NO_OUTER_STEP
    outer = Outer(
        kind.outer.lr if config.outer_lr is None else config.outer_lr,
        kind.outer.momentum if config.outer_momentum is None else config.outer_momentum,
    )
    if (why := kind.why_not_outer(outer, _consensus_step(config), config.peers)) is not None:
        raise ConfigError(why)
    return outer


def _consensus_step(config: Config) -> float:
    return config.consensus_step or default_step(wire_dtype(config).fraction)


def in_effect(config: Config) -> Config:
    """The same with what is meant where nobody says anything: to be told and compared, not to be asked what was given."""
    kind, outer = ALGORITHMS[config.algorithm], make_outer(config)
    own: dict[str, object] = {"wire_dtype": str(wire_dtype(config)), "weighting": weighting(config)}
    if kind.outer is not None:
        own |= {"outer_lr": outer.lr, "outer_momentum": outer.momentum}
    if config.consensus_step == default_step(wire_dtype(config).fraction):
        own["consensus_step"] = None  # of peers that differ in the format, that is what is named
    return config.model_copy(update=own)


def steps_locally(config: Config) -> bool:
    """Whether the trainer makes the steps, and rounds hand out displacements."""
    return config.local_steps > 1 or ALGORITHMS[config.algorithm].steps_locally


def head_of(config: Config) -> int | None:
    """Whose model is that of the run, where one peer has it."""
    return config.head if ALGORITHMS[config.algorithm].has_head else None


def max_rounds(config: Config, peer: int) -> int | None:
    """After how many of its own rounds that peer ends. Where a head has the model and rounds are not shared, only the head's are steps."""
    kind = ALGORITHMS[config.algorithm]
    return None if kind.has_head and not kind.has_rounds and peer != config.head else config.max_rounds


def make_policy(config: Config, peer: int) -> ClosingPolicy:
    """When a round of that peer ends. One for each: a policy may learn."""
    if config.backup_workers:
        return Backups(config.num_computing - config.backup_workers, peer == config.head)
    return make_closing(config.closing, quorum=config.quorum, seconds=config.round_deadline, mads=config.deadline_mads)


def make_scenario(config: Config) -> Scenario:
    """What the devices and the network are like. Raises ConfigError."""
    scenario = load_scenario(config.scenario, config.peers)
    for spec in scenario.straggler:
        try:
            parse([spec], config.peers)
        except StragglerError as error:
            raise spec_error(config.scenario, spec, str(error)) from None
    return scenario


def make_real_scenario(config: Config) -> Scenario:
    """The same, for real processes. Raises ConfigError for what only a simulator can play."""
    scenario = make_scenario(config)
    if (only := scenario.only_simulated) is not None:
        raise ConfigError(f"--scenario: {config.scenario} has {only}, which only `grapevine simulate` can play")
    return scenario


def make_stragglers(config: Config, scenario: Scenario) -> Stragglers:
    """The scenario's delays and those of the command line. Raises StragglerError."""
    return parse((*scenario.straggler, *config.straggler), config.peers, config.seed)


def nominal_chunk_seconds(config: Config, scenario: Scenario) -> float:
    """The config's, or else the scenario's; 0: as long as it takes."""
    return config.chunk_seconds or scenario.chunk_seconds or 0.0


def make_algorithm(
    config: Config, peer: int, params: Tensor, optimizer: Optimizer, num_elements: int | None = None
) -> Algorithm:
    """One peer's side, working on `params` [d], which are those that all peers start from. num_elements: of the model that they stand
    for, where they are empty. Raises ConfigError."""
    kind = ALGORITHMS[config.algorithm]
    state = PeerState(
        peer=peer,
        num_peers=config.peers,
        params=params,
        optimizer=optimizer,
        batch_size=config.batch_size,
        weighting=weighting(config),
        local_steps=config.local_steps,
        wire=make_wire(config),
        consensus_step=_consensus_step(config),
        outer=make_outer(config),
        num_elements=num_elements,
        central=Central(
            config.head,
            config.head_computes,
            config.backup_workers,
            config.simulate_staleness,
            config.staleness_aware_lr,
        ),
    )
    if isinstance(optimizer, MasterOptimizer):
        state.num_params, state.learning_rate_factor = optimizer.num_params, optimizer.learning_rate_factor
    return kind(state)


def make_shares(config: Config, task: Task, data: Dataset[Any]) -> list[Indices]:
    """Each peer's samples. Those of a head that computes nothing are never drawn: all of them go to the others. Raises PartitionError."""
    shares = partition_dataset(task, data, config.num_computing, config.partition, config.alpha, config.seed)
    if not config.head_computes:
        shares.insert(config.head, shares[0])
    return shares


def weighting(config: Config) -> str:
    """The config's, or else the algorithm's."""
    return config.weighting or ALGORITHMS[config.algorithm].default_weighting


def make_accumulator(config: Config, start: Tensor, optimizer: Callable[[Tensor], Optimizer]) -> Accumulator:
    """What keeps one peer's gradients. start [d]: the first parameters. optimizer: makes one on a vector [d] where steps are local."""
    local = None
    if steps_locally(config):
        y = start.clone()
        local = LocalSteps(
            y,
            optimizer(y),
            steps=config.local_steps,
            batch_chunks=config.chunks,
            batch_size=config.batch_size,
            weighting=weighting(config),
            num_peers=config.num_computing,
        )
    return Accumulator(start.numel(), config.round_chunks, InFlight(config.in_flight), local)


def make_optimizer(config: Config, task: Task, model: FlatModel, params: Tensor) -> MasterOptimizer:
    """The task's optimizer on a master vector [d] of the model's layout. Raises TaskError; ConfigError if the algorithm
    needs another."""
    made = MasterOptimizer(task, model.layout, params, config.optimizer, config.lr)
    if config.staleness_aware_lr and not made.scales_with_gradient:
        which = config.optimizer if made.is_builtin else f"the optimizer that {config.task} brings along"
        raise ConfigError(
            f"--staleness-aware-lr: it scales gradients, and {which} divides the scale out again; use sgd or momentum"
        )
    reason = ALGORITHMS[config.algorithm].why_plain_sgd
    if reason and not made.is_plain_sgd:
        raise ConfigError(
            f"--task: {config.algorithm} can't use the optimizer that {config.task} brings along: {reason}; take its optimizer() away"
        )
    return made


def make_model(config: Config, task: Task) -> FlatModel:
    """A copy of the model with the parameters that all peers start from. Raises TaskError."""
    return FlatModel(build_model(task, config.seed))
