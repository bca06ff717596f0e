"""The JSON report of a cluster run: an interface, documented in docs/report.md."""

from __future__ import annotations

import json
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from peer import __version__
from peer.accounts.observation import Observation, consensus_distance, model_of
from peer.assembly import head_of
from peer.config import Config
from peer.exit_codes import ExitCode, Fatal
from peer.gossip.algorithms import ALGORITHMS
from peer.training.evaluate import Evaluator

SCHEMA = 1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run:
    """What the launcher saw of a run. error: the sentence it ended with before its time, None if it ended well. models: peer -> [d]
    of those that answered the last look. summaries: of the peers that said how they ended. lost: how those ended that died in the run."""

    config: Config
    error: str | None
    seconds_to_target: float | None
    wall_seconds: float
    start_seconds: float
    stop_reason: str
    curve: Sequence[Observation]
    summaries: Sequence[Mapping[str, Any]]
    models: Mapping[int, Tensor]
    lost: Mapping[int, str] = field(default_factory=dict)


def make_report(run: Run, evaluator: Evaluator | None) -> dict[str, Any]:
    """The report as JSON-able values; null is what nobody can tell. Evaluates the mean model and each peer's model on training and
    test set; where a run has failed and the task's own code fails here too, its numbers are null."""
    head = head_of(run.config)
    alone = None if ALGORITHMS[run.config.algorithm].has_rounds else head  # only its rounds are steps of the model
    models = torch.stack(list(run.models.values())) if run.models else None
    mean = model_of(models, list(run.models), head) if models is not None else None
    judge = Judge(evaluator, forgiving=run.error is not None)
    rows = settled(run.summaries, run.config)
    samples = sum(row["samples"] for row in rows)
    peers = [_peer(row, samples, run.models.get(row["peer"]), mean, judge) for row in rows]
    accuracies = [row["test_accuracy"] for row in peers if row["test_accuracy"] is not None]
    return {
        "schema": SCHEMA,
        "grapevine": __version__,
        "error": run.error,
        "seconds_to_target": run.seconds_to_target,
        "wall_seconds": run.wall_seconds,
        "start_seconds": run.start_seconds,
        "stop_reason": run.stop_reason,
        "peers_lost": len(run.lost),
        "lost": {str(peer): how for peer, how in sorted(run.lost.items())},
        **_together(peers, run.config.round_chunks, alone),
        "train_loss": judge.loss(mean),
        "test_accuracy": judge.accuracy(mean),
        "worst_peer_test_accuracy": min(accuracies, default=None),
        "consensus_distance": consensus_distance(models, mean) if models is not None and mean is not None else None,
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


@dataclass(frozen=True, slots=True)
class Judge:
    """Loss and accuracy of a model; None where there is no model, or where the task fails and that is forgiven."""

    evaluator: Evaluator | None
    forgiving: bool

    def loss(self, model: Tensor | None) -> float | None:
        return self._judged(self.evaluator.loss, model) if self.evaluator is not None else None

    def accuracy(self, model: Tensor | None) -> float | None:
        return self._judged(self.evaluator.accuracy, model) if self.evaluator is not None else None

    def _judged(self, evaluate: Callable[[Tensor], T], model: Tensor | None) -> T | None:
        if model is None:
            return None
        try:
            return evaluate(model)
        except Exception:
            if self.forgiving:
                return None
            raise


def settled(summaries: Sequence[Mapping[str, Any]], config: Config) -> list[Mapping[str, Any]]:
    """The same, with what their head knows of workers and they were not told before it ended."""
    used = {int(j): n for row in summaries for j, n in row["samples_of_workers"].items()}
    return [_corrected(row, used[row["peer"]], config) if row["peer"] in used else row for row in summaries]


def _corrected(row: Mapping[str, Any], samples: int, config: Config) -> Mapping[str, Any]:
    more, chunks = samples - row["samples"], samples // config.chunk_samples
    full = row["rounds"] * config.round_chunks
    return {
        **row,
        "samples": samples,
        "samples_abandoned": row["samples_abandoned"] - more,
        "chunks": chunks,
        "finished_fraction": chunks / full if full else 0.0,
    }


def _together(peers: Sequence[Mapping[str, Any]], chunks: int, alone: int | None) -> dict[str, Any]:
    """What all peers did; without a peer that told it, nothing is known, which is not 0. alone: whose rounds are the run's, if not all
    peers' are."""
    computing, idle = (sum(row[name] for row in peers) for name in ("seconds_computing", "seconds_idle"))
    full = sum(row["rounds"] for row in _computed(peers)) * chunks
    fair = fair_shares(peers)
    steps = [row for row in peers if alone in (None, row["peer"])]
    known = {
        "rounds": max((row["rounds"] for row in steps), default=None),
        **{name: sum(row[name] for row in peers) for name in _TOTALS},
        "idle_fraction": idle / (idle + computing) if idle + computing else 0.0,
        "finished_fraction": sum(row["chunks"] for row in peers) / full if full else 0.0,
        "wasted_fraction": wasted_fraction(peers),
        "sample_skew": max(fair, default=None),
        "least_share": min(fair, default=None),
        "max_staleness": max((row["max_staleness"] for row in steps), default=None),
    }
    counts = {name: dict(sum((Counter(row[name]) for row in peers), Counter[str]())) for name in _COUNTS}
    return {**(known if peers else dict.fromkeys(known)), **counts}


def _computed(peers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that trained: a head may only apply what the others compute."""
    return [row for row in peers if row["samples_started"]]


def wasted_fraction(peers: Sequence[Mapping[str, Any]]) -> float:
    """Gradients that the step of their round went on without, over all that were to be computed: e / (m + e) with e backup workers."""
    rows = _computed(peers)
    rounds = sum(row["rounds"] for row in rows)
    return sum(row["rounds_dropped"] for row in rows) / rounds if rounds else 0.0


def fair_shares(peers: Sequence[Mapping[str, Any]]) -> list[float]:
    """How unevenly samples were chosen: of each peer that trained, its share of the samples in updates over what it would be if all
    were used alike. Empty if none are in updates."""
    counts = [row["samples"] for row in _computed(peers)]
    return [count * len(counts) / total for count in counts] if (total := sum(counts)) else []


_TOTALS = ("samples", "samples_redone", "samples_nonfinite", "samples_dropped", "bytes_sent")
_COUNTS = ("rounds_by_reason", "edges_lost")


def _peer(
    summary: Mapping[str, Any], samples: int, model: Tensor | None, mean: Tensor | None, judge: Judge
) -> dict[str, Any]:
    """samples: in updates, of all peers together."""
    apart = None if model is None or mean is None else float(torch.linalg.vector_norm(model - mean))
    return {
        **summary,
        "wall_seconds": summary["seconds"],
        "sample_share": summary["samples"] / samples if samples and summary["samples_started"] else None,
        "batch_loss": _or_none(summary["train_loss"]),
        "train_loss": judge.loss(model),
        "test_accuracy": judge.accuracy(model),
        "consensus_distance": apart,  # 0.0 exactly if all models are equal bit for bit
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write whole or not at all. NaN and infinities become null. Raises Fatal."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(_finite(report), indent=2, allow_nan=False) + "\n")
        partial.replace(path)
    except OSError as error:
        raise Fatal(ExitCode.CONFIG, f"--report: can't write {path}: {error.strerror}") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
