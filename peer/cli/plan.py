"""`grapevine plan`: the topology and MATCHA's schedule on it, for people or as JSON."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from peer.config import Config
from topology import TOPOLOGIES, MatchaSchedule, build, describe, draw_schedule


def show_plan(config: Config, console: Console, *, as_json: bool, rounds: int) -> None:
    """Raises TopologyError."""
    topology = build(
        config.topology,
        _peers(config),
        seed=config.seed,
        degree=config.degree,
        probability=config.probability,
        radius=config.radius,
    )
    facts = describe(topology, config.budget)
    if as_json:
        print(json.dumps(facts))  # noqa: T201
        return
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim")
    table.add_column()
    rows = {
        "topology": f"{topology.name}, {facts['num_peers']} peers, {facts['num_edges']} edges, max degree {topology.max_degree}",
        "spectral gap": f"{facts['spectral_gap']:.6f}  of the Metropolis weights (D-PSGD)",
        "budget": f"{config.budget:g}  expects {facts['expected_matchings_per_round']:.3f} of {len(facts['matchings'])} matchings a round",
        "lambda2": f"{facts['lambda2']:.6f}  of the expected Laplacian",
        "alpha": f"{facts['alpha']:.6f}  mixing parameter",
        "rho": f"{facts['rho']:.6f}  contraction a round, less is faster",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print()
    console.print(
        Text(draw_schedule(MatchaSchedule(topology, config.budget, config.seed), rounds=rounds)), soft_wrap=True
    )


def _peers(config: Config) -> int | None:
    """A file says itself how many peers it has."""
    named = config.topology in TOPOLOGIES
    return config.peers if named or "peers" in config.model_fields_set else None
