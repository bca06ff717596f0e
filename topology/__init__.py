"""WHO talks to whom, when, with what weight. Pure mathematics; imports nothing of the daemon."""

from topology.describe import describe, describe_varying, draw_facts, draw_rounds, draw_schedule
from topology.graph import (
    RANDOM_TOPOLOGIES,
    TOPOLOGIES,
    VARYING,
    Edge,
    Matching,
    Topology,
    TopologyError,
    build,
    from_file,
    star,
)
from topology.matcha import MatchaPlan, Solutions, learn, periodic_rho, solve
from topology.matching import decompose, misra_gries
from topology.mixing import MIXINGS, MixingMatrix, best_constant, metropolis, metropolis_row
from topology.randomness import stable_seed, stable_uniform
from topology.schedule import (
    AlternatingSchedule,
    FixedSchedule,
    MatchaSchedule,
    PairSchedule,
    RandomGraphSchedule,
    RoundPlan,
    Schedule,
    solutions,
)
from topology.varying import RandomPairsSchedule, VaryingSchedule, build_varying

__all__ = [
    "MIXINGS",
    "RANDOM_TOPOLOGIES",
    "TOPOLOGIES",
    "VARYING",
    "AlternatingSchedule",
    "Edge",
    "FixedSchedule",
    "MatchaPlan",
    "MatchaSchedule",
    "Matching",
    "MixingMatrix",
    "PairSchedule",
    "RandomGraphSchedule",
    "RandomPairsSchedule",
    "RoundPlan",
    "Schedule",
    "Solutions",
    "Topology",
    "TopologyError",
    "VaryingSchedule",
    "best_constant",
    "build",
    "build_varying",
    "decompose",
    "describe",
    "describe_varying",
    "draw_facts",
    "draw_rounds",
    "draw_schedule",
    "from_file",
    "learn",
    "metropolis",
    "metropolis_row",
    "misra_gries",
    "periodic_rho",
    "solutions",
    "solve",
    "stable_seed",
    "stable_uniform",
    "star",
]
