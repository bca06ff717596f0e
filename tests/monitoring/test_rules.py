"""Prometheus's configuration and rules, by its own tool; and what Grafana is told of both."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.monitoring.prometheus import FASTER, SHIPPED, faster
from tests.monitoring.test_dashboards import rules

ROOT = Path(__file__).parents[2]
PROVISIONING = ROOT / "docker" / "grafana" / "provisioning"
CONFIGS = ("prometheus.yml", "prometheus-static.yml")
UNIT_TESTS = Path(__file__).with_name("rules.test.yml")
GUIDE = (ROOT / "docs" / "monitoring.md").read_text()

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="there is no `promtool` here: install the Debian package prometheus"
)


def loaded(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


def promtool(*words: str) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
@pytest.mark.parametrize("name", CONFIGS)
def test_the_configuration_is_one(name: str) -> None:
    said = promtool("check", "config", "--lint-fatal", "--lint=all", str(SHIPPED / name))
    assert f"{len(list((SHIPPED / 'rules').glob('*.yml')))} rule files found" in said


@needs_promtool
def test_the_rules_do_what_they_say() -> None:
    promtool("test", "rules", str(UNIT_TESTS))


def test_every_rule_has_a_unit_test() -> None:
    tested = UNIT_TESTS.read_text()
    for rule in rules():
        assert f"alertname: {rule['alert']}\n" in tested if "alert" in rule else rule["record"] in tested, rule


@pytest.mark.parametrize("rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: str(rule["alert"]))
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """The paragraph that its annotation leads to exists, and the table of alerts names it with its severity."""
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook"}
    assert "{{ $labels.run }}" in annotations["summary"]
    assert annotations["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
    assert f"\n### {rule['alert']}\n" in GUIDE
    assert re.search(
        rf"^\| \[{rule['alert']}\]\(#{rule['alert'].lower()}\) \| {rule['labels']['severity']} \|", GUIDE, re.MULTILINE
    )


def test_both_configurations_differ_in_how_peers_are_found_and_in_nothing_else() -> None:
    dns, static = (loaded(SHIPPED / name) for name in CONFIGS)
    (by_name,), (by_address,) = dns.pop("scrape_configs"), static.pop("scrape_configs")
    assert dns == static
    assert by_name.pop("dns_sd_configs")[0]["port"] == int(
        by_address.pop("static_configs")[0]["targets"][0].split(":")[1]
    )
    assert by_name == by_address == {"job_name": "grapevine"}


def test_grafana_is_told_what_prometheus_does() -> None:
    (source,) = loaded(PROVISIONING / "datasources" / "prometheus.yml")["datasources"]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == loaded(SHIPPED / "prometheus.yml")["global"]["scrape_interval"]
    (provider,) = loaded(PROVISIONING / "dashboards" / "grapevine.yml")["providers"]
    assert provider["options"]["path"] == "/etc/grafana/provisioning/dashboards"


def test_a_faster_clock_divides_durations_and_nothing_else() -> None:
    assert FASTER == 12
    assert faster("rate(x_total[1m]) > 2 * y:rate1m offset 5m") == "rate(x_total[5000ms]) > 2 * y:rate1m offset 25000ms"
    assert faster("scrape_interval: 5s\nfor: 30s # h:9100, 0.5") == "scrape_interval: 416ms\nfor: 2500ms # h:9100, 0.5"
