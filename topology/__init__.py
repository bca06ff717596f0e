"""WHO talks to whom, when, with what weight. Pure mathematics; imports nothing of the daemon."""

from topology.describe import describe, draw_facts, draw_schedule
from topology.graph import (
    RANDOM_TOPOLOGIES,
    TOPOLOGIES,
    Edge,
    Matching,
    Topology,
    TopologyError,
    build,
    from_file,
    star,
)
from topology.matcha import MatchaPlan, periodic_rho, solve
from topology.matching import decompose, misra_gries
from topology.mixing import MIXINGS, MixingMatrix, best_constant, metropolis, metropolis_row
from topology.randomness import stable_seed, stable_uniform
from topology.schedule import FixedSchedule, MatchaSchedule, PairSchedule, RandomGraphSchedule, RoundPlan, Schedule

__all__ = [
    "MIXINGS",
    "RANDOM_TOPOLOGIES",
    "TOPOLOGIES",
    "Edge",
    "FixedSchedule",
    "MatchaPlan",
    "MatchaSchedule",
    "Matching",
    "MixingMatrix",
    "PairSchedule",
    "RandomGraphSchedule",
    "RoundPlan",
    "Schedule",
    "Topology",
    "TopologyError",
    "best_constant",
    "build",
    "decompose",
    "describe",
    "draw_facts",
    "draw_schedule",
    "from_file",
    "metropolis",
    "metropolis_row",
    "misra_gries",
    "periodic_rho",
    "solve",
    "stable_seed",
    "stable_uniform",
    "star",
]
