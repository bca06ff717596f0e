"""`grapevine plan`: the topology and MATCHA's schedule on it, or its own if it varies, for people or as JSON."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from peer.config import Config
from topology import (
    TOPOLOGIES,
    VARYING,
    MatchaSchedule,
    build,
    build_varying,
    describe,
    describe_varying,
    draw_rounds,
    draw_schedule,
)


def show_plan(config: Config, console: Console, *, as_json: bool, rounds: int) -> None:
    """Raises TopologyError."""
    if config.topology in VARYING:
        _show_varying(config, console, as_json=as_json, rounds=rounds)
        return
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
    rows = {
        "topology": f"{topology.name}, {facts['num_peers']} peers, {facts['num_edges']} edges, max degree {topology.max_degree}",
        "spectral gap": f"{facts['spectral_gap']:.6f}  of the Metropolis weights (D-PSGD)",
        "budget": f"{config.budget:g}  expects {facts['expected_matchings_per_round']:.3f} of {len(facts['matchings'])} matchings a round",
        "lambda2": f"{facts['lambda2']:.6f}  of the expected Laplacian",
        "alpha": f"{facts['alpha']:.6f}  mixing parameter",
        "rho": f"{facts['rho']:.6f}  contraction a round, less is faster",
    }
    _print(console, rows, draw_schedule(MatchaSchedule(topology, config.budget, config.seed), rounds=rounds))


def _show_varying(config: Config, console: Console, *, as_json: bool, rounds: int) -> None:
    schedule = build_varying(config.topology, config.peers, seed=config.seed, k=config.base_k)
    facts = describe_varying(schedule, rounds if schedule.period is None else schedule.period)
    if as_json:
        print(json.dumps(facts))  # noqa: T201
        return
    rows = {
        "topology": f"{config.topology}, {facts['num_peers']} peers, max degree {facts['max_degree_in_a_round']} in a round",
        "links": f"{facts['num_edges']} edges in all rounds together, max degree {facts['max_degree']}",
    }
    if schedule.contraction is None:
        rows["consensus"] = f"exact after {schedule.period} rounds, which then begin again"
    else:
        rows["contraction"] = (
            f"{schedule.contraction:.6f}  of the squared distance from the mean a round, expected, at worst"
        )
    _print(console, rows, draw_rounds(facts))


def _print(console: Console, rows: dict[str, str], drawing: str) -> None:
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print()
    console.print(Text(drawing), soft_wrap=True)


def _peers(config: Config) -> int | None:
    """A file says itself how many peers it has."""
    named = config.topology in TOPOLOGIES
    return config.peers if named or "peers" in config.model_fields_set else None
