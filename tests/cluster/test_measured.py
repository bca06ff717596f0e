"""What a launcher saw of its peers: looks, the report, the summary; also of peers that fall silent and of runs that fail."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from peer.accounts.observation import Observation
from peer.accounts.report import Run, make_report, write_report
from peer.cluster.launcher import Launcher
from peer.cluster.live import PlainView, summary
from peer.cluster.observer import Observer
from peer.cluster.up import _last_word, _watch
from peer.config import validated
from peer.exit_codes import ExitCode, Fatal
from peer.transport.client import PeerUnreachable

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
TOLD = {
    "peer": 1,
    "seconds": 2.0,
    "rounds": 7,
    "chunks": 40,
    "samples": 80,
    "samples_started": 80,
    "samples_dropped": 0,
    "rounds_dropped": 0,
    "samples_redone": 0,
    "samples_nonfinite": 0,
    "train_loss": 0.5,
    "seconds_computing": 1.5,
    "seconds_idle": 0.5,
    "max_staleness": 1,
    "rounds_by_reason": {"quota": 7},
    "edges_lost": {"link_down": 1},
    "bytes_sent": 1000,
    "samples_of_workers": {},
}


class SumOfModel:
    """Stands for an evaluator: the loss of a model is the sum of its elements. error: what the task's code raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def loss(self, vector: Tensor) -> float:
        if self._error is not None:
            raise self._error
        return float(vector.sum())

    def accuracy(self, vector: Tensor) -> float | None:
        return self.loss(vector) / 100


class Client:
    """Stands for a peer that sends its model [2] so far, and breaks off after so many elements."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.breaks_off_after = 2

    async def snapshot(self, out: Tensor, timeout: float) -> int:
        out[: self.breaks_off_after] = self.value
        if self.breaks_off_after < 2:
            raise PeerUnreachable("the snapshot of the peer at a:1 broke off")
        return 3


def observer(clients: Any, evaluator: Any) -> Observer:
    return Observer(clients, evaluator, torch.zeros(len(clients), 2), 0.0)


async def test_a_snapshot_that_breaks_off_changes_no_row_and_is_not_in_the_mean() -> None:
    clients = [Client(1.0), Client(3.0)]
    watching = observer(clients, SumOfModel())
    assert (await watching.observe()).loss == 4.0
    clients[0].value, clients[1].value, clients[1].breaks_off_after = 5.0, 9.0, 1
    assert (await watching.observe()).loss == 10.0
    assert watching.answered == [0]
    assert watching.models.tolist() == [[5.0, 5.0], [3.0, 3.0]]


async def test_a_task_that_fails_under_evaluation_is_a_sentence() -> None:
    with pytest.raises(Fatal, match="ArithmeticError: no flux") as fatal:
        await observer([Client(1.0)], SumOfModel(ArithmeticError("no flux"))).observe()
    assert fatal.value.code is ExitCode.TASK


async def test_an_error_of_the_statuses_ends_the_watching() -> None:
    class Deaf(Observer):
        async def refresh_statuses(self) -> None:
            raise ZeroDivisionError("a bug of ours")

    clients: Any = [Client(1.0)]
    evaluator: Any = SumOfModel()
    watching = Deaf(clients, evaluator, torch.zeros(1, 2), 0.0)
    config = validated({"eval_every": 1000.0})
    async with asyncio.timeout(10):
        with pytest.raises(ZeroDivisionError):
            await _watch(config, Launcher(config), watching, PlainView(Console(quiet=True)), asyncio.Event())


def test_a_run_of_which_nobody_told_the_end_is_lost() -> None:
    fatal = _last_word(Launcher(validated({})))
    assert fatal is not None
    assert (fatal.code, fatal.sentence) == (ExitCode.LOST, "no peer told how it ended")


def run(
    error: str | None,
    summaries: list[dict[str, Any]],
    models: dict[int, Tensor],
    lost: Mapping[int, str] = MappingProxyType({}),
) -> Run:
    curve = [Observation(0.1, 1.0, 2.0, 0.0, 10)]
    return Run(validated({}), error, None, 3.0, 1.0, error or "as asked", curve, summaries, models, lost)


def told(report: dict[str, Any]) -> str:
    console = Console(record=True, width=100, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(summary(report, None))
    return captured.get()


def test_a_failed_run_without_summaries_has_a_valid_report(tmp_path: Path) -> None:
    evaluator: Any = SumOfModel()
    report = make_report(run("peer 2 died", [], {0: torch.ones(2), 2: 3 * torch.ones(2)}), evaluator)
    write_report(report, tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text())
    assert (read["error"], read["peers"], read["train_loss"], read["consensus_distance"]) == (
        "peer 2 died",
        [],
        4.0,
        2**0.5,
    )
    assert [read[name] for name in ("rounds", "samples", "idle_fraction", "bytes_sent", "max_staleness")] == [None] * 5
    assert len(read["curve"]) == 1
    for name in read:
        assert f"`{name}`" in DOCUMENTED, name
    text = told(report)
    assert "peer 2 died" in text
    assert "4.0000" in text
    assert "samples" not in text


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, []),
        (1, ["peers lost 1 of 8 peer 0: killed by signal 9"]),
        (3, ["peers lost 3 of 8 peer 0: killed by signal 9", "peer 1: the task failed", "peer 2: killed by signal 9"]),
        (
            4,
            [
                "peers lost 4 of 8 peer 0: killed by signal 9",
                "peer 1: the task failed",
                "peer 2: killed by signal 9",
                "and 1 other",
            ],
        ),
        (
            5,
            [
                "peers lost 5 of 8 peer 0: killed by signal 9",
                "peer 1: the task failed",
                "peer 2: killed by signal 9",
                "and 2 others",
            ],
        ),
    ],
)
def test_the_summary_says_which_peers_were_lost_and_how(number: int, said: list[str]) -> None:
    evaluator: Any = SumOfModel()
    how = {peer: "peer 1: the task failed" if peer == 1 else "killed by signal 9" for peer in range(number)}
    report = make_report(run(None, [TOLD], {1: torch.ones(2)}, how), evaluator)
    assert report["peers_lost"] == number
    assert report["lost"] == {str(peer): reason for peer, reason in how.items()}
    lines = [" ".join(line.strip("│ \n").split()) for line in told(report).splitlines()]
    assert [line for line in lines if re.search(r"lost|^peer \d|^and", line)] == said


def test_a_failed_run_before_the_first_look_has_a_report_and_a_summary() -> None:
    evaluator: Any = SumOfModel()
    report = make_report(run("all is lost", [], {}), evaluator)
    assert (report["train_loss"], report["test_accuracy"], report["consensus_distance"]) == (None, None, None)
    assert "all is lost" in told(report)


def test_a_peer_that_did_not_answer_the_last_look_has_no_model_in_the_report() -> None:
    evaluator: Any = SumOfModel()
    report = make_report(run(None, [TOLD, {**TOLD, "peer": 0}], {0: torch.ones(2)}), evaluator)
    silent, heard = report["peers"]
    assert [silent[name] for name in ("train_loss", "test_accuracy", "consensus_distance")] == [None] * 3
    assert (heard["train_loss"], heard["consensus_distance"]) == (2.0, 0.0)
    assert (report["train_loss"], report["samples"], report["rounds"], report["error"]) == (2.0, 160, 7, None)
    assert (report["rounds_by_reason"], report["edges_lost"]) == ({"quota": 14}, {"link_down": 2})
    assert "160" in told(report)


def test_a_task_that_fails_here_too_leaves_nulls_in_the_report_of_a_failed_run_only() -> None:
    evaluator: Any = SumOfModel(ArithmeticError("no flux"))
    report = make_report(run("the task failed", [TOLD], {1: torch.ones(2)}), evaluator)
    assert (report["train_loss"], report["samples"]) == (None, 80)
    assert "the task failed" in told(report)
    with pytest.raises(ArithmeticError):
        make_report(run(None, [TOLD], {1: torch.ones(2)}), evaluator)
