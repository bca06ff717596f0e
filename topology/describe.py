"""What `grapevine plan` prints: the facts of a topology and a drawing of its schedule, as plain values and text."""

from __future__ import annotations

from typing import Any

from topology.graph import Topology
from topology.matcha import solve
from topology.mixing import metropolis
from topology.schedule import MatchaSchedule
from topology.varying import VaryingSchedule


def describe(topology: Topology, budget: float) -> dict[str, Any]:
    """JSON-able. spectral_gap is that of the Metropolis weights; lambda2, alpha and rho are MATCHA's at this budget."""
    plan = solve(topology, budget)
    return {
        "num_peers": topology.num_peers,
        "num_edges": len(topology.edges),
        "matchings": [[list(edge) for edge in matching] for matching in plan.matchings],
        "activation_probabilities": list(plan.activation_probabilities),
        "lambda2": plan.lambda2,
        "alpha": plan.alpha,
        "rho": plan.rho,
        "spectral_gap": metropolis(topology).spectral_gap,
        "expected_matchings_per_round": sum(plan.activation_probabilities),
    }


def describe_varying(schedule: VaryingSchedule, rounds: int) -> dict[str, Any]:
    """JSON-able. num_edges and max_degree are those of the union of all rounds; the rounds are the first ones, as edges [i, j, weight]."""
    union = schedule.base(0)
    plans = [[schedule.plan(k, i) for i in range(schedule.num_peers)] for k in range(rounds)]
    return {
        "num_peers": schedule.num_peers,
        "num_edges": len(union.edges),
        "max_degree": union.max_degree,
        "max_degree_in_a_round": max((len(plan.neighbors) for plans_k in plans for plan in plans_k), default=0),
        "rounds_to_consensus": schedule.period,
        "contraction": schedule.contraction,
        "rounds": [
            [[p.peer, j, w] for p in plans_k for j, w in zip(p.neighbors, p.weights, strict=True) if p.peer < j]
            for plans_k in plans
        ],
    }


def draw_rounds(facts: dict[str, Any], width: int = 110) -> str:
    """A line per round of `describe_varying`: its edges, those of one weight together."""
    lines = []
    for number, edges in enumerate(facts["rounds"]):
        by_weight: dict[str, list[str]] = {}
        for i, j, w in edges:
            by_weight.setdefault(f"{w:.4g}", []).append(f"{i}-{j}")
        parts = [f"{' '.join(pairs)} ({weight})" for weight, pairs in by_weight.items()]
        lines.append(f"{number:>5}  {_shorten('  '.join(parts) or 'nobody talks', width)}")
    return "\n".join(["round  who talks (with what weight)", *lines])


def draw_facts(facts: dict[str, Any]) -> str:
    """The numbers of `describe` as a plain table; the matchings are in `draw_schedule`."""
    shown = {"matchings": len(facts["matchings"])} | {key: v for key, v in facts.items() if isinstance(v, int | float)}
    names = {key: key.replace("_", " ") for key in facts if key in shown}
    column = max(map(len, names.values()))
    values = {key: v if isinstance(v := shown[key], int) else f"{v:.6f}" for key in names}
    return "\n".join(f"{name:{column}}  {values[key]}" for key, name in names.items())


def draw_schedule(schedule: MatchaSchedule, rounds: int, width: int = 36) -> str:
    """A row per matching with its probability, a column per round: a block where it talks. The last row counts the blocks (9: or more)."""
    plan = schedule.solution
    active = [schedule.active(k) for k in range(rounds)]
    labels = [_shorten(" ".join(f"{i}-{j}" for i, j in matching), width) for matching in plan.matchings]
    column = max(len("talking at once"), *map(len, labels))
    lines = [f"{'matching':{column}}  {'p':>5}  rounds 0 .. {rounds - 1}"]
    for index, (label, p) in enumerate(zip(labels, plan.activation_probabilities, strict=True)):
        blocks = "".join("█" if index in now else "·" for now in active)
        lines.append(f"{label:{column}}  {p:5.3f}  {blocks}")
    counts = "".join(str(min(len(now), 9)) for now in active)
    lines.append(f"{'talking at once':{column}}  {'':5}  {counts}")
    return "\n".join(lines)


def _shorten(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    kept = text[: width - 4].rsplit(" ", 1)[0]
    return f"{kept} ..."
