"""The interface of an algorithm, and the table of all of them.

An algorithm is one paper in one file. Its `round` is a generator over effects that reads like the paper's listing; the host
carries the effects out. To add one: write `algorithms/<name>.py` with a class like those there, add a line to
`algorithms/__init__.py`, and the contract suite (tests/gossip/test_contract.py) runs over it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from peer.gossip.compression import FP32, WireFormat
from peer.gossip.delivery import Delivery
from peer.gossip.effects import Accumulated, Answer, Effect
from topology import FixedSchedule, RandomGraphSchedule, RoundPlan, Schedule, Topology, TopologyError

WEIGHTINGS = ("samples", "peers")


class Optimizer(Protocol):
    """The daemon's optimizer on the master vector."""

    def step(self, gradient: Tensor, samples_clock: int, scale: float = 1.0) -> None:
        """Apply one mean gradient, scale times `gradient` [d], which may be scaled in place. samples_clock: samples in all updates so far,
        which drives the learning rate."""

    def learning_rate(self, samples_clock: int) -> float:
        """eta of a plain SGD step at that clock. For algorithms that say `why_plain_sgd`; others have optimizers without one rate."""


class Outer(NamedTuple):
    """How far the mean displacement of a round moves the parameters, and how much of the last round's move is kept."""

    lr: float
    momentum: float


NO_OUTER_STEP = Outer(1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Central:
    """What methods with a head are told. head: its id. head_computes: whether it computes gradients as well. backup_workers: e, gradients
    that a step does without. simulate_staleness: tau, updates by which gradients are held back. staleness_aware_lr: lr / staleness."""

    head: int = 0
    head_computes: bool = True
    backup_workers: int = 0
    simulate_staleness: int = 0
    staleness_aware_lr: bool = False


@dataclass(slots=True)
class PeerState:
    """What an algorithm works on. params: the master vector x_i [d], changed in place between effects only.

    samples_clock counts the samples of the updates applied so far, of the whole cluster as far as this peer knows them. A full round is
    batch_size * local_steps samples; with several local steps the trainer makes them, and `optimizer` is not used. wire: the format
    of vectors on the wire. consensus_step: gamma of CHOCO-SGD, where the format needs it, or of NoLoCo. outer: of the methods with an
    outer step. num_params: elements of x_i that are parameters, before the float buffers; None: all. num_elements: of the model that
    x_i stands for, where it is empty as nothing is computed; None: those of x_i. learning_rate_factor(samples): of the base learning rate.
    """

    peer: int
    num_peers: int
    params: Tensor
    optimizer: Optimizer
    batch_size: int
    weighting: str
    samples_clock: int = 0
    local_steps: int = 1
    wire: WireFormat = FP32
    consensus_step: float = 1.0
    outer: Outer = NO_OUTER_STEP
    central: Central = Central()
    num_params: int | None = None
    num_elements: int | None = None
    learning_rate_factor: Callable[[int], float] = lambda samples_clock: 1.0

    @property
    def num_parameters(self) -> int:
        return self.params.numel() if self.num_params is None else self.num_params

    @property
    def size_on_wire(self) -> int:
        return self.params.numel() if self.num_elements is None else self.num_elements


class Update(NamedTuple):
    """What a round did. neighbor_distance: sqrt(mean over received x_j of ||x_j - x_i||^2) before mixing, None without any. dropped:
    samples that were handed out and are in no update, because it was made without them; they are not in `accumulated`."""

    accumulated: Accumulated
    lost: Mapping[int, str] = MappingProxyType({})
    num_received: int = 0
    neighbor_distance: float | None = None
    dropped: int = 0


Score: TypeAlias = Generator[Effect, Answer, Update]


@dataclass(frozen=True, slots=True)
class ScheduleOptions:
    """What a schedule is made from. random_graph_every = 0: one graph for all time. varying: where the topology has other edges in each
    round, its schedule; `topology` is their union then."""

    topology: Topology
    random_graph_every: int
    degree: int | None
    probability: float | None
    radius: float | None
    mixing: str
    budget: float
    seed: int
    head: int = 0
    varying: Schedule | None = None

    def over_its_edges(self) -> Schedule:
        """For an algorithm that may mix over any symmetric, doubly stochastic weights (`takes_mixing`): the graph's, new random graphs',
        or those that vary. Raises TopologyError."""
        if self.varying is not None:
            if self.random_graph_every:
                raise TopologyError(
                    f"--random-graph-every: {self.topology.name} changes in every round already; leave one of the two out"
                )
            if self.mixing != "metropolis":
                raise TopologyError(
                    f"--mixing: the weights of {self.topology.name} are its own; leave {self.mixing} out"
                )
            return self.varying
        if self.random_graph_every == 0:
            return FixedSchedule(self.topology, self.mixing)
        if self.mixing != "metropolis":
            raise TopologyError(
                f"--mixing: new random graphs are not solved for {self.mixing} weights; leave it out, or --random-graph-every"
            )
        return RandomGraphSchedule(
            name=self.topology.name,
            num_peers=self.topology.num_peers,
            every=self.random_graph_every,
            seed=self.seed,
            degree=self.degree,
            probability=self.probability,
            radius=self.radius,
        )


class RoundBroken(Exception):
    """The round can't be completed without that peer. needs: whom the algorithm needs, in words."""

    def __init__(self, peer: int, reason: str, needs: str = "every peer") -> None:
        super().__init__(f"peer {peer} was lost in the middle of a round ({reason})")
        self.peer = peer
        self.reason = reason
        self.needs = needs

    def sentence(self, algorithm: str) -> str:
        """What ends the run, and what to do."""
        return f"{self}; {way_out(algorithm, self.needs)}"


def way_out(algorithm: str, needs: str) -> str:
    """What to do when somebody was lost. dpsgd and matcha go on whoever is."""
    return f"{algorithm} needs {needs}: restart the run, or use dpsgd or matcha"


class Algorithm(ABC):
    """One peer's side of a distributed training algorithm."""

    name: ClassVar[str]
    delivery: ClassVar[Delivery]
    #: A payload of round k says that its sender has closed round k (True) or only k-1, because it is sent at the opening (False).
    sends_after_close: ClassVar[bool]

    #: What a user who says nothing gets. Where sums are divided by sum n, weighting by samples costs no step size.
    default_weighting: ClassVar[str] = "peers"

    #: The step is sum G / sum n over all peers (with displacements: their mean), not each peer's own.
    sums_gradients: ClassVar[bool] = False

    #: Peers do the same rounds, each stamped with its number; else a peer's rounds are its own, and nobody waits for others' to close.
    has_rounds: ClassVar[bool] = True

    #: The vector may change between the opening and the close of a round, so that gradients are of a copy.
    moves_while_computing: ClassVar[bool] = False

    #: The model is one peer's, the head's; the others take it over.
    has_head: ClassVar[bool] = False

    #: Kinds of --wire-dtype with which this algorithm is known to be correct, and half a sentence on why not the others.
    wire_dtypes: ClassVar[tuple[str, ...]] = ("fp32",)
    why_not_others: ClassVar[str] = "nobody has shown that it converges with rounded vectors"

    #: Whether mixing alone keeps the mean of all peers' vectors, with edges lost that `delivery` allows to be lost.
    keeps_mean: ClassVar[bool] = True

    #: Vectors [d] in each payload of a round's exchange.
    vectors_in_payload: ClassVar[int] = 1

    #: Half a sentence on why the trainer may not make the steps (--local-steps above 1); empty if it may.
    why_no_local_steps: ClassVar[str] = ""

    #: Half a sentence on why the graph may not be drawn anew (--random-graph-every); empty if it may.
    why_no_random_graphs: ClassVar[str] = ""

    #: Half a sentence on why each step has to be plain SGD, x <- x - eta g; empty if any optimizer will do.
    why_plain_sgd: ClassVar[str] = ""
    #: Whether it is correct on a topology with other edges in each round (topology/varying.py), and half a sentence on why not.
    takes_varying: ClassVar[bool] = False
    why_not_varying: ClassVar[str] = "nobody has shown that it converges where the edges change from round to round"

    #: Its rounds are made of the trainer's own steps, one of them with --local-steps 1: `Accumulated.displacement` is always there.
    steps_locally: ClassVar[bool] = False
    #: Its --outer-lr and --outer-momentum if the user says nothing; None: it has no outer step.
    outer: ClassVar[Outer | None] = None
    #: Whether --consensus-step is its own, whatever the format on the wire.
    takes_consensus_step: ClassVar[bool] = False
    #: Whether it keeps a replica for each edge with the formats that leave too much out (int8, top-k), and so has a consensus step there.
    keeps_replicas: ClassVar[bool] = False
    #: Whether its schedule is made with --mixing, and with --budget. Who does not take one refuses it.
    takes_mixing: ClassVar[bool] = False
    takes_budget: ClassVar[bool] = False

    def __init__(self, state: PeerState) -> None:
        self.state = state

    @classmethod
    def why_not_outer(cls, outer: Outer, consensus_step: float, num_peers: int) -> str | None:
        """A sentence if it diverges with these for sure."""
        return None

    @classmethod
    def num_shards(cls, num_peers: int, num_elements: int, wire: WireFormat) -> int:
        """How many vectors on the wire make one of a model of so many elements."""
        return 1

    @classmethod
    @abstractmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        """Who talks to whom. Raises TopologyError if the options do not suit this algorithm."""

    @abstractmethod
    def round(self, plan: RoundPlan) -> Score:
        """One round, top to bottom. Raises RoundBroken if a peer that can't be done without was lost."""

    @property
    def samples_of_workers(self) -> Mapping[int, int]:
        """Of a head whose workers can't know it before they are told: by worker, its samples that are in updates."""
        return {}

    @property
    def idle_peers(self) -> frozenset[int]:
        """Peers that compute nothing, for whose quota nobody waits."""
        return frozenset()

    def answers_to(self, peer: int) -> bool:
        """Whether all that comes from that peer is for a `Gather`."""
        return False

    def needed(self, peer: int) -> str:
        """What that peer is called if this one can't complete a round without it; else nothing."""
        if self.has_head:
            return f"its head, peer {peer}" if peer == self.state.central.head else ""
        return f"peer {peer}" if self.delivery is Delivery.EVERY_MESSAGE else ""

    def is_patient_with(self, peer: int) -> bool:
        """Whether that peer is waited for as long as a round may last: slow is not lost, and a dead link ends it at once."""
        return self.delivery is Delivery.EVERY_MESSAGE

    def contribution_scale(self, done: Accumulated) -> float:
        """Factor that makes a gradient of grad_sum G_i [d]: `samples` 1/B, proportional to finished work; `peers` 1/n_i, the
        mean of the finished samples. 0 when nothing was finished."""
        if done.num_samples == 0:
            return 0.0
        return 1.0 / (self.state.batch_size if self.state.weighting == "samples" else done.num_samples)


def mix_(
    params: Tensor, self_weight: float, weights: Mapping[int, float], vectors: Mapping[int, Tensor]
) -> float | None:
    """params <- self_weight * params + sum_j w_j x_j, in place, in the order of ids, so that arrival order changes no bit.

    params, vectors[j]: [d]. Returns sqrt(mean_j ||x_j - params||^2) before mixing; None without vectors. Works through pieces
    that fit the cache, so it needs no vector of its own. The distance is for the eye: its last digits depend on the machine.
    """
    order = sorted(vectors)
    squares = 0.0
    for start in range(0, params.numel(), PIECE):
        piece = params[start : start + PIECE]
        difference = torch.empty_like(piece)
        theirs = [vectors[j][start : start + PIECE] for j in order]
        for x in theirs:
            torch.sub(x, piece, out=difference)
            squares += float(torch.dot(difference, difference))
        piece.mul_(self_weight)
        for j, x in zip(order, theirs, strict=True):
            piece.add_(x, alpha=weights[j])
    return math.sqrt(squares / len(order)) if order else None


def is_finite(vector: Tensor) -> bool:
    """Whether the sum of a vector [k] is finite: inf or NaN among the addends makes it so. One read, no mask of k bools."""
    return not vector.numel() or math.isfinite(float(vector.sum()))


PIECE = 1 << 18  # elements worked on at a time: 1 MiB of float32


def scaled(gradient: Tensor, factor: float) -> Tensor:
    """gradient [d] times factor, in place."""
    return gradient.mul_(factor) if factor != 1.0 and gradient.numel() else gradient


def zeros(num_elements: int) -> Tensor:
    return torch.zeros(num_elements, dtype=torch.float32)
