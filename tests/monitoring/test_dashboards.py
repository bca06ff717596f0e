"""The committed dashboards: fresh, as Grafana's schema has them, laid out, described, linked; and no metric without a panel."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard
from ruamel.yaml import YAML

from dashboards import FOLDER, WITHOUT_PANEL, rendered
from dashboards.panels import SOURCE
from peer.metrics import METRICS, Kind
from tests.monitoring.asked import OVER_TIME, boards, panels, queries
from tests.monitoring.prometheus import SHIPPED

BOARDS = boards()
KINDS = {"timeseries", "stat", "bargauge", "heatmap", "state-timeline", "table", "nodeGraph"}
UNITS = {value for name, value in vars(units).items() if isinstance(value, str) and not name.startswith("_")}
#: Metric names as queries have them, those of recording rules included.
NAME = re.compile(r"\b(?:run_peer:|run:)?(?:grapevine|process)_[a-z0-9_:]+")


def _names(name: str, kind: Kind) -> list[str]:
    """What a metric is called in queries."""
    suffixes = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count"), Kind.SUMMARY: ("_sum", "_count")}
    return [name + suffix for suffix in suffixes.get(kind, ("",))]


EXPORTED = {name: metric.name for metric in METRICS for name in _names(metric.name, metric.kind)}

each_board = pytest.mark.parametrize("name", sorted(BOARDS))


def test_the_committed_files_are_what_the_source_writes() -> None:
    """`make dashboards` after a change of docker/grafana/dashboards."""
    written = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert written == rendered()


@each_board
def test_a_dashboard_is_what_grafanas_schema_knows(name: str) -> None:
    """Read by the SDK into its types and written again, nothing is lost: a key that the schema does not have would be."""
    register_default_plugins()
    again = json.loads(json.dumps(Dashboard.from_json(BOARDS[name]), cls=JSONEncoder))
    assert again == BOARDS[name]
    assert BOARDS[name]["schemaVersion"] == Dashboard().schema_version
    assert {panel["type"] for panel in panels(BOARDS[name])} <= KINDS


def test_the_check_against_the_schema_finds_a_wrong_key() -> None:
    register_default_plugins()
    board = json.loads(json.dumps(BOARDS["cluster.json"]))
    panels(board)[0]["fieldConfg"] = {}
    assert json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder)) != board


@each_board
def test_panels_fill_the_grid_and_do_not_overlap(name: str) -> None:
    members = BOARDS[name]["panels"]
    covered: dict[tuple[int, int], str] = {}
    for member in members:
        place = member["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in covered, f"{member['title']} lies on {covered[x, y]}"
                covered[x, y] = member["title"]
    height = max(y for _, y in covered) + 1
    assert len(covered) == 24 * height, "there is a hole"
    assert [member["gridPos"]["y"] for member in members] == sorted(member["gridPos"]["y"] for member in members)
    assert len({member["id"] for member in members}) == len(members)


@each_board
def test_every_panel_says_what_it_shows(name: str) -> None:
    titles = [(panel["type"], panel["title"]) for panel in panels(BOARDS[name])]
    assert len(titles) == len(set(titles))
    for panel in panels(BOARDS[name]):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": SOURCE.type_val, "uid": SOURCE.uid}
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target.get("range", False) == (panel["type"] in OVER_TIME or _is_curve(panel)), panel["title"]
        for unit in _units(panel):
            as_it_is = unit.startswith("suffix:") or panel["type"] == "nodeGraph"
            assert unit in UNITS or as_it_is, f"{panel['title']}: {unit}"


def _is_curve(panel: dict[str, Any]) -> bool:
    """A number with its curve behind it."""
    return bool(panel["type"] == "stat" and panel["options"]["graphMode"] == "area")


def _units(panel: dict[str, Any]) -> list[str]:
    """At least one of every panel with numbers, and one of every column."""
    if panel["type"] == "nodeGraph":
        return [panel["options"][part]["mainStatUnit"] for part in ("nodes", "edges")]
    if panel["type"] == "heatmap":
        return [panel["options"]["yAxis"]["unit"]]
    looks = panel.get("fieldConfig", {})
    columns = [p["value"] for o in looks.get("overrides", []) for p in o["properties"] if p["id"] == "unit"]
    whole = looks.get("defaults", {}).get("unit")
    found = [*columns, *([whole] if whole else [])]
    facts = panel["type"] == "table" and not any("Value" in column for column in _renamed(panel))
    assert found or panel["type"] == "state-timeline" or facts, f"{panel['title']} has no unit"
    return found


def _renamed(panel: dict[str, Any]) -> dict[str, str]:
    for step in panel.get("transformations", []):
        if step["id"] == "organize":
            found: dict[str, str] = step["options"]["renameByName"]
            return found
    return {"Value": "matrix"}


@each_board
def test_variables_are_used_and_those_used_exist(name: str) -> None:
    board = BOARDS[name]
    known = {variable["name"] for variable in board["templating"]["list"]}
    text = json.dumps(board["panels"]) + json.dumps([v.get("query") for v in board["templating"]["list"]])
    used = {found for found in re.findall(r"\$\{?([a-z_]\w*)", text) if not found.startswith("__")}
    assert used == known
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["description"]
            assert variable["multi"] == variable["includeAll"] == variable["name"].endswith("s")


def test_dashboards_lead_to_each_other() -> None:
    uids = {board["uid"] for board in BOARDS.values()}
    assert len(uids) == len(BOARDS)
    led_to = set()
    for board in BOARDS.values():
        (link,) = board["links"]
        assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
            "dashboards",
            board["tags"],
            True,
            True,
        )
        for uid, variables in re.findall(r"/d/([\w-]+)/[\w-]+\?([^\"]*)", json.dumps(board["panels"])):
            led_to.add(uid)
            target = next(other for other in BOARDS.values() if other["uid"] == uid)
            names = {variable["name"] for variable in target["templating"]["list"]}
            assert set(re.findall(r"var-(\w+)=", variables)) <= names
    assert led_to <= uids
    assert "grapevine-peer" in led_to


def test_every_metric_has_a_panel_or_a_reason() -> None:
    shown = {base for board in BOARDS.values() for asked in queries("", board) for base in _bases(asked.expr)}
    declared = {metric.name for metric in METRICS}
    assert shown <= declared, "a panel asks for what no peer exports"
    assert declared - shown == set(WITHOUT_PANEL)
    assert all(reason.endswith(".") for reason in WITHOUT_PANEL.values())


def test_rules_ask_only_for_what_peers_export() -> None:
    declared = {metric.name for metric in METRICS}
    for rule in rules():
        assert _bases(rule["expr"]) <= declared, rule


@cache
def rules() -> list[dict[str, Any]]:
    """All rules of docker/prometheus."""
    found = []
    for path in sorted((SHIPPED / "rules").glob("*.yml")):
        for group in YAML(typ="safe").load(path.read_text())["groups"]:
            found += group["rules"]
    return found


def _bases(expr: str) -> set[str]:
    """Declared names of the metrics that an expression asks for, through recording rules."""
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    found: set[str] = set()
    for name in NAME.findall(expr):
        found |= _bases(recorded[name]) if name in recorded else {EXPORTED.get(name, name)}
    return found
