"""Grafana's dashboards as code: made with Grafana's own SDK, so that names, types and nesting are those of its schema.

`make dashboards` writes them to docker/grafana/provisioning/dashboards; tests/monitoring holds that the files are fresh, that every query
has data in a real cluster, and that every metric has a panel or a reason here.
"""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.cluster import cluster_overview
from dashboards.laboratory import algorithm_laboratory
from dashboards.one_peer import one_peer

FOLDER = Path(__file__).parents[1] / "provisioning" / "dashboards"

#: Metrics that no panel shows, and why.
WITHOUT_PANEL = {
    "process_start_time_seconds": "Prometheus itself uses it: a start later than a counter's last sample tells a restart.",
}


def all_dashboards() -> dict[str, Dashboard]:
    """By name of the file."""
    return {"cluster.json": cluster_overview(), "peer.json": one_peer(), "laboratory.json": algorithm_laboratory()}


def rendered() -> dict[str, str]:
    """The text of each file."""
    return {
        name: json.dumps(made, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, made in all_dashboards().items()
    }
