"""What a peer exports, on real clusters in one event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import sys
import threading
import time
from collections import defaultdict

import pytest
import torch

from peer.daemon.counts import PeerMetrics
from peer.daemon.evaluation import Evaluation
from peer.daemon.lag import EVERY_SECONDS, LoopLag
from peer.daemon.peer import Peer
from peer.gossip.round import RoundReport
from peer.metrics import EVAL_ROUND, METRICS, Kind, Sheet
from peer.training.evaluate import Evaluator
from peer.training.task import load_task
from tests.daemon.rig import TASK, Rig, config

Told = dict[str, dict[tuple[str, ...], float]]


def told(metrics: PeerMetrics) -> Told:
    """name -> values of its labels -> value, of the page of a scrape; but for the labels that every sample has."""
    found: Told = defaultdict(dict)
    for line in metrics.text().decode().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            assert match, line
            assert re.match(r'run="[^"]+",peer="\d+"(,|$)', match[2]), line
            found[match[1]][tuple(re.findall(r'="((?:[^"\\]|\\.)*)"', match[2]))[2:]] = float(match[3])
    return found


def kept_reports(peer: Peer) -> list[RoundReport]:
    """Filled with this peer's reports as they are counted."""
    reports: list[RoundReport] = []
    counted = peer.metrics.round

    def keep(report: RoundReport) -> None:
        counted(report)
        reports.append(report)

    peer.metrics.round = keep  # type: ignore[method-assign]
    return reports


async def test_every_declared_metric_is_exported() -> None:
    rig = Rig(
        config(
            algorithm="matcha",
            task="tests.daemon.tasks:Graded",
            closing="barrier",
            max_rounds=25,
            metrics_eval_every=0.01,
            chunk_seconds=0.002,
        )
    )
    rig.build()

    async def depart() -> None:
        while rig.peers[3].state != "training" or rig.peers[3].player.ledger.rounds < 5:
            await asyncio.sleep(0.002)
        rig.transports[3].kill()  # type: ignore[attr-defined]
        rig.peers[3].request_stop("the test killed it")

    departs = asyncio.create_task(depart())
    await rig.run()
    await departs
    metrics = rig.peers[0].metrics
    metrics.refused("fingerprint")
    metrics.dropped("checksum")
    page = told(metrics)
    behind = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count"), Kind.SUMMARY: ("_sum", "_count")}
    declared = {metric.name + suffix for metric in METRICS for suffix in behind.get(metric.kind, ("",))}
    if sys.platform != "linux":
        declared = {name for name in declared if not name.startswith("process_")}
    assert set(page) == declared
    assert sum(page["grapevine_neighbor_missed_payloads_total"].values()) >= 1
    assert page["grapevine_peers"]["suspect",] == 1
    assert sum(page["grapevine_peers"].values()) == 4
    assert all(
        sum(page[name].values()) == 1 for name in ("grapevine_state", "grapevine_build_info", "grapevine_run_info")
    )
    assert sum(page["grapevine_neighbor_state"].values()) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "dpsgd", "closing": "first"},
        {"algorithm": "dpsgd", "closing": "barrier", "wire_dtype": "int8"},
        {"algorithm": "dpsgd", "closing": "first", "in_flight": "drain"},
        {"algorithm": "matcha", "closing": "quorum", "in_flight": "redo"},
        {"algorithm": "ring-all-reduce", "closing": "barrier"},
        {"algorithm": "ring-all-reduce", "closing": "first", "local_steps": 2},
        {"algorithm": "sync-sgd", "closing": "first"},
        {"algorithm": "async-sgd"},
        {"algorithm": "ad-psgd", "topology": "complete"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
async def test_the_parts_of_a_round_do_not_overlap_and_add_up_to_wall_time(options: dict[str, object]) -> None:
    rig = Rig(config(max_rounds=12, chunk_seconds=0.002, straggler=("3=3x",), **options))
    rig.build()
    reports = [kept_reports(peer) for peer in rig.peers]
    await rig.run()
    for peer, seen in zip(rig.peers, reports, strict=True):
        until = 0.0
        for report in seen:
            began, total, computing, accumulating, exchanging, mixing = report.timing
            assert began >= until - 1e-9
            until = began + total
            assert min(computing, accumulating - computing, exchanging, mixing) >= -1e-9
            assert accumulating + exchanging + mixing <= total + 1e-9
        page = told(peer.metrics)
        activities = page["grapevine_activity_seconds_total"]
        assert set(activities) == {("computing",), ("waiting",), ("exchanging",), ("mixing",), ("other",)}
        wall = page["grapevine_training_seconds_total"][()]
        assert sum(activities.values()) == pytest.approx(until)
        # a round that was abandoned at the end is in no report; on a busy machine it may be some tenths of a second
        assert until - 0.01 <= wall <= until + 0.5
        trained = page["grapevine_trainer_seconds_total"]
        if peer.peer == 0 and not peer.parts.algorithm.has_rounds and peer.parts.algorithm.has_head:
            assert sum(trained.values()) == 0
            assert not page["grapevine_idle_ratio"], "it has no trainer that could be idle"
            continue
        # both count from when training began; the trainer stops a moment after it ends
        assert sum(trained.values()) == pytest.approx(wall, abs=0.3)
        assert page["grapevine_idle_ratio"][()] == pytest.approx(trained["idle",] / sum(trained.values()))


@pytest.mark.parametrize("algorithm", ["dpsgd", "ring-all-reduce"])
async def test_under_a_barrier_everybody_waits_for_the_straggler(algorithm: str) -> None:
    """Mostly: on a busy machine somebody else is late now and then. What exactly is counted is tested in virtual time."""
    rig = Rig(config(algorithm=algorithm, closing="barrier", max_rounds=8, chunk_seconds=0.004, straggler=("3=9x",)))
    await rig.run()
    for peer in rig.peers[:3]:
        page = told(peer.metrics)
        waited, activities = page["grapevine_waited_seconds_total"], page["grapevine_activity_seconds_total"]
        for activity in ("waiting", "exchanging"):
            by_peer = {j: seconds for (j, of), seconds in waited.items() if of == activity}
            assert set(by_peer) <= {"0", "1", "2", "3"} - {str(peer.peer)}
            assert sum(by_peer.values()) == pytest.approx(activities[activity,], abs=0.01)
        assert waited["3", "waiting"] > 0.7 * activities["waiting",] > 0
        assert page["grapevine_rounds_closed_first_total"].get(("3",), 0) <= 2
    straggler = told(rig.peers[3].metrics)["grapevine_activity_seconds_total"]
    assert straggler["waiting",] < 0.25 * straggler["computing",]


async def test_the_fastest_closes_first_and_chunks_have_one_fate() -> None:
    rig = Rig(config(closing="first", max_rounds=30, chunk_seconds=0.003, straggler=("all=10x", "1=0.1x")))
    summaries = await rig.run()
    for peer, summary in zip(rig.peers, summaries, strict=True):
        page = told(peer.metrics)
        first = page["grapevine_rounds_closed_first_total"]
        assert sum(first.values()) == sum(page["grapevine_rounds_total"].values()) == 30
        assert first["1",] > 15
        fates = page["grapevine_chunks_total"]
        assert set(fates) == {("finished",), ("carried",), ("redone",), ("nonfinite",)}
        assert fates["finished",] + fates["carried",] >= summary.chunks
        assert page["grapevine_samples_total"]["applied",] == summary.samples
        assert page["grapevine_staleness_updates_count"][()] == summary.chunks
        assert page["grapevine_staleness_updates_bucket"]["0.0",] == summary.staleness.get("0", 0)
    assert told(rig.peers[0].metrics)["grapevine_chunks_total"]["carried",] > 0


async def test_nonfinite_chunks_can_be_counted() -> None:
    rig = Rig(config(task="tests.daemon.tasks:Poisoned", max_rounds=12))
    summaries = await rig.run()
    for peer, summary in zip(rig.peers, summaries, strict=True):
        page = told(peer.metrics)
        assert page["grapevine_chunks_total"]["nonfinite",] * 2 == summary.samples_nonfinite
        assert page["grapevine_samples_total"]["nonfinite",] == summary.samples_nonfinite
    assert sum(summary.samples_nonfinite for summary in summaries) > 0


async def test_a_scrape_takes_no_lock() -> None:
    """Whatever the trainer or the optimizer hold, a page comes."""
    rig = Rig(config(max_rounds=10))
    await rig.run()
    peer, pages = rig.peers[0], list[bytes]()
    with peer.parts.trainer._condition, peer.player.master.lock:
        scrape = threading.Thread(target=lambda: pages.append(peer.metrics.text()), daemon=True)
        scrape.start()
        scrape.join(10)
    assert pages
    assert b'grapevine_round{run="grapevine",peer="0"} 10\n' in pages[0]


async def test_scrapes_from_another_thread_while_everything_changes() -> None:
    rig = Rig(config(algorithm="matcha", max_rounds=40, metrics_eval_every=0.01))
    rig.build()
    over, numbers, broken = threading.Event(), list[int](), list[BaseException]()

    def scrape() -> None:
        try:
            while not over.is_set():
                numbers.append(len(rig.peers[1].metrics.text()))
        except BaseException as error:
            broken.append(error)

    scraper = threading.Thread(target=scrape, daemon=True)
    scraper.start()
    await rig.run()
    over.set()
    scraper.join(10)
    assert not broken
    assert len(numbers) > 10


def test_what_another_peer_says_is_no_label() -> None:
    metrics = PeerMetrics("run", 0, ("--lr",))
    for field in ("--lr", "fingerprint", *(f"junk {i}" for i in range(1000))):
        metrics.refused(field)
    refused = {labels: number for labels, number in told(metrics)["grapevine_refused_links_total"].items() if number}
    assert refused == {("--lr",): 1, ("fingerprint",): 1, ("other",): 1000}


def test_what_can_be_counted_is_told_from_nothing_on() -> None:
    """A counter that appears with 1 has not increased, for Prometheus."""
    metrics = PeerMetrics("run", 0)
    metrics.neighbor(3)
    page = told(metrics)
    for name, labels in (
        ("grapevine_refused_links_total", ("other",)),
        ("grapevine_dropped_messages_total", ("checksum",)),
        ("grapevine_closed_words_total", ("stale",)),
        ("grapevine_rounds_closed_first_total", ("0",)),
        ("grapevine_rounds_closed_first_total", ("3",)),
        ("grapevine_waited_seconds_total", ("3", "waiting")),
        ("grapevine_neighbor_missed_payloads_total", ("3", "deadline")),
    ):
        assert page[name][labels] == 0


async def test_the_loops_lag_is_seen() -> None:
    late: list[float] = []
    lag = LoopLag(late.append)
    lag.start()
    time.sleep(3 * EVERY_SECONDS)  # noqa: ASYNC251
    await asyncio.sleep(0.02)
    assert late[0] >= 1.9 * EVERY_SECONDS
    lag.stop()
    seen = len(late)
    await asyncio.sleep(1.5 * EVERY_SECONDS)
    assert len(late) == seen


# evaluation


def test_a_judgement_is_loss_and_accuracy_on_the_test_set() -> None:
    task = load_task("digits")
    evaluator = Evaluator(task, seed=3)
    vector = torch.randn(evaluator._model.vector.numel(), generator=torch.Generator().manual_seed(1)) * 0.1
    judged = evaluator.judge(vector)
    assert judged is not None
    assert judged.accuracy == pytest.approx(evaluator.accuracy(vector))
    inputs, targets = task.test_data().tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        assert judged.loss == pytest.approx(task.loss(evaluator._module(inputs), targets).item(), rel=1e-5)
    assert evaluator.judge(vector, stop=lambda: True) is None
    linear = Evaluator(load_task(TASK), seed=3)
    without = linear.judge(torch.zeros(linear._model.vector.numel()))
    assert without is not None
    assert without.accuracy is None
    assert without.loss == pytest.approx(linear.loss(torch.zeros(7)), rel=1e-6)  # its test set is its training set


async def test_a_peer_judges_its_own_model_when_asked() -> None:
    rig = Rig(config(task="tests.daemon.tasks:Graded", max_rounds=60, chunk_seconds=0.002))
    rig.configs[0] = rig.config.model_copy(update={"metrics_eval_every": 0.01})
    await rig.run()
    page = told(rig.peers[0].metrics)
    assert page["grapevine_evaluation_seconds_count"][()] >= 1
    assert 1 <= page["grapevine_eval_round"][()] <= 60
    assert 0 <= page["grapevine_eval_accuracy_ratio"][()] <= 1
    assert page["grapevine_eval_loss"][()] > 0
    assert not any(name.startswith("grapevine_eval") for name in told(rig.peers[1].metrics))
    assert not any(thread.name == "evaluation" for thread in threading.enumerate())


async def test_an_evaluation_takes_at_most_a_tenth_of_a_core() -> None:
    task = load_task("tests.daemon.tasks:Graded")
    evaluator = Evaluator(task, seed=0)

    async def snapshot() -> tuple[int, torch.Tensor]:
        return 7, torch.zeros(evaluator._model.vector.numel())

    evaluation = Evaluation(task, 0, 0.001, snapshot)
    began = time.monotonic()
    pause = await asyncio.to_thread(evaluation._evaluate, evaluator)
    assert pause + time.monotonic() - began >= 10 * 0.02
    sheet = Sheet()
    evaluation.fill(sheet)
    assert sheet.rows[EVAL_ROUND] == [("", (), 7)]


async def test_a_model_that_is_not_to_be_had_in_time_is_judged_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.daemon.evaluation.SNAPSHOT_WITHIN", 0.02)
    task, given_up = load_task("tests.daemon.tasks:Graded"), asyncio.Event()
    size = Evaluator(task, seed=0)._model.vector.numel()
    asked = 0

    async def snapshot() -> tuple[int, torch.Tensor]:
        nonlocal asked
        asked += 1
        try:
            await asyncio.sleep(60 if asked == 1 else 0)
        except asyncio.CancelledError:
            given_up.set()
            raise
        return 7, torch.zeros(size)

    evaluation = Evaluation(task, 0, 0.01, snapshot)
    await evaluation.prepare()
    evaluation.start()
    async with asyncio.timeout(10):
        await given_up.wait()
        while evaluation._newest is None:
            await asyncio.sleep(0.01)
    await evaluation.stop()
    assert evaluation._newest[0] == 7


async def test_a_task_that_cannot_be_evaluated_trains_on(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(config(task="tests.daemon.tasks:Unjudged", max_rounds=20, metrics_eval_every=0.001))
    with caplog.at_level(logging.ERROR):
        summaries = await rig.run()
    assert [summary.rounds for summary in summaries] == [20] * 4
    assert "the model is not evaluated any more: ArithmeticError: only trained" in caplog.text
    page = told(rig.peers[0].metrics)
    assert page["grapevine_evaluation_seconds_count"] == {(): 0}
    assert "grapevine_eval_loss" not in page
    assert math.isfinite(page["grapevine_train_loss"][()])
