"""What the committed dashboards ask Prometheus, read from their JSON as Grafana reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dashboards import FOLDER

#: Panels whose queries ask for a curve, not for one value.
OVER_TIME = {"timeseries", "heatmap", "state-timeline"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A query of a panel. labels: what every series of the answer must have, or the panel can't show it."""

    where: str
    expr: str
    over_time: bool
    labels: frozenset[str]


def boards() -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Without the headings."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(name: str, board: Mapping[str, Any]) -> Iterator[Asked]:
    for panel in panels(board):
        for target in panel["targets"]:
            where = f"{name}: {panel['title']} ({target['refId']})"
            over_time = target.get("range", False)
            assert over_time != target.get("instant", False), where
            yield Asked(where, target["expr"], over_time, frozenset(_needed(panel, target)))


def _needed(panel: Mapping[str, Any], target: Mapping[str, Any]) -> set[str]:
    """By the kind of panel: the labels of a legend, the columns of a table, the fields of a graph's nodes and edges."""
    if panel["type"] == "nodeGraph":
        return {"nodes": {"id", "title"}, "edges": {"id", "source", "target"}}[target["refId"]]
    needed = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
    for step in panel.get("transformations", []):
        options = step["options"]
        if step["id"] == "organize":
            needed |= {column for column in options["indexByName"] if not column.startswith("Value")}
        elif step["id"] == "groupingToMatrix":
            needed |= {options["rowField"], options["columnField"]}
    return needed


def filled(expr: str, values: Mapping[str, str]) -> str:
    """The query with Grafana's variables replaced; $1 is no variable but label_replace's."""
    return re.sub(r"\$([a-z_]\w*)", lambda found: values[found[1]], expr)
