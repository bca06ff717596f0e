"""The JSON report of a cluster run: an interface, documented in docs/report.md."""

from __future__ import annotations

import json
import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peer import __version__
from peer.cluster.observer import Observation, mean_model
from peer.config import Config
from peer.training.evaluate import Evaluator

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Run:
    """What the launcher saw of a run. models [n, d]: at the target if it was reached, else the last ones."""

    config: Config
    seconds_to_target: float | None
    wall_seconds: float
    start_seconds: float
    stop_reason: str
    curve: Sequence[Observation]
    summaries: Sequence[Mapping[str, Any]]
    models: Tensor


def make_report(run: Run, evaluator: Evaluator) -> dict[str, Any]:
    """The report as JSON-able values. Evaluates the mean model and each peer's model on training and test set."""
    mean = mean_model(run.models)
    peers = [_peer(row, model, mean, evaluator) for row, model in zip(run.summaries, run.models, strict=True)]
    computing = sum(row["seconds_computing"] for row in peers)
    idle = sum(row["seconds_idle"] for row in peers)
    accuracies = [row["test_accuracy"] for row in peers if row["test_accuracy"] is not None]
    full = sum(row["rounds"] for row in peers) * run.config.chunks
    reasons = sum((Counter(row["rounds_by_reason"]) for row in peers), Counter[str]())
    lost = sum((Counter(row["edges_lost"]) for row in peers), Counter[str]())
    return {
        "schema": SCHEMA,
        "grapevine": __version__,
        "seconds_to_target": run.seconds_to_target,
        "wall_seconds": run.wall_seconds,
        "start_seconds": run.start_seconds,
        "stop_reason": run.stop_reason,
        "rounds": max(row["rounds"] for row in peers),
        "samples": sum(row["samples"] for row in peers),
        "samples_redone": sum(row["samples_redone"] for row in peers),
        "samples_nonfinite": sum(row["samples_nonfinite"] for row in peers),
        "train_loss": evaluator.loss(mean),
        "test_accuracy": evaluator.accuracy(mean),
        "worst_peer_test_accuracy": min(accuracies, default=None),
        "consensus_distance": math.sqrt(sum(row["consensus_distance"] ** 2 for row in peers) / len(peers)),
        "idle_fraction": idle / (idle + computing) if idle + computing else 0.0,
        "finished_fraction": sum(row["chunks"] for row in peers) / full if full else 0.0,
        "max_staleness": max(row["max_staleness"] for row in peers),
        "bytes_sent": sum(row["bytes_sent"] for row in peers),
        "rounds_by_reason": dict(reasons),
        "edges_lost": dict(lost),
        "curve": [asdict(seen) for seen in run.curve],
        "peers": peers,
        "config": run.config.model_dump(mode="json", exclude={"report", "addresses", "peer", "listen"}),
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "platform": platform.platform(),
        },
    }


def _peer(summary: Mapping[str, Any], model: Tensor, mean: Tensor, evaluator: Evaluator) -> dict[str, Any]:
    return {
        **summary,
        "wall_seconds": summary["seconds"],
        "batch_loss": _or_none(summary["train_loss"]),
        "train_loss": evaluator.loss(model),
        "test_accuracy": evaluator.accuracy(model),
        "consensus_distance": float(
            torch.linalg.vector_norm(model - mean)
        ),  # 0.0 exactly if all models are equal bit for bit
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write whole or not at all. NaN and infinities become null. Raises OSError."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_finite(report), indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
