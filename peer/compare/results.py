"""The matrix of a comparison and what its cells measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peer.gossip.algorithms import ALGORITHMS


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One run of the matrix."""

    scenario: str
    algorithm: str
    closing: str
    seed: int

    @property
    def key(self) -> str:
        """Names the cell in files and messages; files of one name in two folders are two scenarios."""
        path = Path(self.scenario)
        name = path.stem if path.name == self.scenario and not path.suffix else f"{path.stem}-{_short(self.scenario)}"
        return f"{name}-{self.algorithm}-{self.closing}-{self.seed}"

    @property
    def label(self) -> str:
        """Names the method in a legend."""
        return f"{self.algorithm} {self.closing}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Result:
    """report: as `up --report` writes it (docs/report.md), of a real or a simulated run. theory: what the closed forms say
    (peer/compare/theory.py)."""

    cell: Cell
    report: Mapping[str, Any]
    theory: Mapping[str, Any]


def matrix(scenarios: Iterable[str], algorithms: Sequence[str], closings: Sequence[str], seeds: int) -> list[Cell]:
    """All cells; of one scenario and seed the methods follow each other, so that a change of the machine strikes all alike. Methods without
    rounds have one cell, whatever the closings."""
    return [
        Cell(scenario, algorithm, closing, seed)
        for scenario in scenarios
        for seed in range(seeds)
        for algorithm in algorithms
        for closing in (closings if ALGORITHMS[algorithm].has_rounds else ("none",))
    ]


def save(result: Result, folder: Path) -> None:
    """Keep a finished cell; whole or not at all. Raises OSError."""
    path = folder / "cells" / f"{result.cell.key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    content = {"cell": asdict(result.cell), "report": result.report, "theory": result.theory}
    partial.write_text(json.dumps(content) + "\n")
    partial.replace(path)


def load(cell: Cell, folder: Path) -> Result | None:
    """A finished cell of an earlier run, None if there is none or it can't be read."""
    path = folder / "cells" / f"{cell.key}.json"
    try:
        content = json.loads(path.read_text())
        found = Cell(**content["cell"])
        return Result(found, content["report"], content["theory"]) if found == cell else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
