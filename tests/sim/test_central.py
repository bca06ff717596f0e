"""Methods with a head, with real gradients in virtual time."""

from __future__ import annotations

import math
import re
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from peer.assembly import make_model, make_optimizer, make_shares
from peer.cluster import live
from peer.exit_codes import ExitCode
from peer.gossip.closing import CLOSINGS
from peer.sim.play import simulate
from peer.sim.simulator import Simulation
from peer.training.chunk import ChunkComputer
from peer.training.data import SampleStream
from peer.training.task import load_task
from tests.daemon.rig import config


def one_machine(settings: dict[str, object], rounds: int) -> Tensor:
    """SGD in one process on the same samples in the same order: x [d] after so many rounds."""
    made = config(**settings)
    task = load_task(made.task)
    data = task.train_data()
    model = make_model(made, task)
    computer, x = ChunkComputer(task, make_model(made, task), data), model.vector
    optimizer = make_optimizer(made, task, model, x)
    shares = make_shares(made, task, data)
    computing = [i for i in range(made.peers) if made.head_computes or i != made.head]
    streams = [SampleStream(shares[i], made.seed, i, made.batch_size) for i in computing]
    for k in range(rounds):
        total = torch.zeros_like(x)
        for stream in streams:
            computer.load(x)
            total += computer.compute(stream.next()).gradient
        optimizer.step(total / (len(streams) * made.batch_size), (k + 1) * len(streams) * made.batch_size)
    return x


@pytest.mark.parametrize("extra", [{}, {"head": 2, "head_computes": False}, {"optimizer": "momentum"}])
def test_it_equals_one_process_on_the_same_sample_order(extra: dict[str, object]) -> None:
    settings = {"algorithm": "sync-sgd", "task": "digits", "closing": "barrier", "max_rounds": 25, "lr": 0.1, **extra}
    run = Simulation(config(**settings), exact=True)
    run.run()
    models = run.models()
    assert all(torch.equal(row, models[0]) for row in models)
    torch.testing.assert_close(models[0], one_machine(settings, 25), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("computes", [True, False])
@pytest.mark.parametrize("closing", CLOSINGS)
def test_the_matrix_of_closings_is_complete(closing: str, computes: bool) -> None:
    """Under stragglers and a network: equal bits everywhere, every sample one fate, nobody dropped."""
    run = Simulation(
        config(
            algorithm="sync-sgd",
            closing=closing,
            head_computes=computes,
            max_rounds=30,
            straggler=("0=3x", "all=exp:1"),
            scenario="wan",
            chunk_seconds=0.05,
        )
    )
    run.run()
    assert all(torch.equal(row, run.models()[0]) for row in run.models())
    for summary in run.summaries():
        fates = [summary[f"samples{name}"] for name in ("", "_redone", "_nonfinite", "_abandoned")]
        assert summary["samples_started"] == sum(fates)  # type: ignore[arg-type]
        assert summary["samples_dropped"] == summary["rounds_dropped"] == 0
        assert summary["rounds"] == 30
        if closing == "barrier" and (computes or summary["peer"]):
            assert summary["samples"] == 30 * 8
    assert (run.peers[0].ledger.samples > 0) == computes


@pytest.mark.parametrize("computes", [True, False])
@pytest.mark.parametrize("closing", CLOSINGS)
def test_a_worker_that_stands_still_costs_a_timeout_and_nobody_else(closing: str, computes: bool) -> None:
    run = Simulation(
        config(
            algorithm="sync-sgd",
            closing=closing,
            head_computes=computes,
            max_rounds=60,
            chunk_seconds=0.05,
            round_timeout=5.0,
            straggler=("2=pause:40s@3s",),
        )
    )
    run.run()
    assert run.failure is None
    assert [peer.round for peer in run.peers if peer.peer != 2] == [60, 60, 60]


@pytest.mark.parametrize(("peers", "computes", "backups"), [(8, True, 1), (8, True, 2), (7, False, 3)])
def test_the_wasted_share_is_that_of_the_backups_and_slow_peers_are_chosen_less(
    peers: int, computes: bool, backups: int
) -> None:
    """e / (m + e), exactly; one peer at twice the time of the others is late in most rounds, which is the skew."""
    settings = {
        "algorithm": "sync-sgd",
        "peers": peers,
        "head_computes": computes,
        "backup_workers": backups,
        "straggler": ("3=2x", "all=exp:0.5"),
        "max_rounds": 60,
        "chunk_seconds": 0.01,
    }
    report = simulate(config(**settings))
    assert report["wasted_fraction"] == pytest.approx(backups / (peers - (not computes)), abs=1e-9)
    used = {row["peer"]: row["samples"] for row in report["peers"] if computes or row["peer"]}
    assert sum(used.values()) == 60 * 8 * (len(used) - backups)
    assert min(used, key=lambda peer: used[peer]) == 3
    fair = 60 * 8 * (len(used) - backups) / len(used)
    assert report["sample_skew"] == pytest.approx(max(used.values()) / fair)
    assert report["least_share"] == pytest.approx(used[3] / fair)
    assert report["least_share"] < 0.8
    shares = [row["sample_share"] for row in report["peers"] if row["sample_share"] is not None]
    assert sum(shares) == pytest.approx(1)
    assert len(shares) == len(used)
    assert report["samples_dropped"] > 0
    for row in report["peers"]:
        fates = [row[f"samples{name}"] for name in ("", "_redone", "_nonfinite", "_dropped", "_abandoned")]
        assert row["samples_started"] == sum(fates)


def test_a_peer_that_is_never_used_is_a_skew_too() -> None:
    """All alike, so that ties go by id: the last is dropped in every round, which no ratio to its samples could say."""
    report = simulate(config(algorithm="sync-sgd", backup_workers=1, max_rounds=20, chunk_seconds=0.01))
    assert [row["sample_share"] for row in report["peers"]] == [pytest.approx(1 / 3)] * 3 + [0.0]
    assert report["sample_skew"] == pytest.approx(4 / 3)
    assert report["least_share"] == 0.0
    console = Console(record=True, width=140, file=StringIO())
    console.print(live.summary(report, None))
    text = console.export_text()
    assert re.search(r"wasted share +25\.0%", text)
    assert re.search(r"sample skew +1\.33 .*never used: peer 3", text)
    assert "the head's model" in text
    assert "mean model" not in text


def test_backups_do_not_wait_for_the_slowest() -> None:
    settings: dict[str, object] = {
        "algorithm": "sync-sgd",
        "closing": "barrier",
        "straggler": ("3=10x",),
        "max_rounds": 20,
        "chunk_seconds": 0.01,
        "scenario": "none",
    }
    seconds = [simulate(config(**settings, backup_workers=e))["wall_seconds"] for e in (0, 1)]
    assert seconds[0] / seconds[1] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("closing", CLOSINGS)
def test_a_dead_head_ends_the_run_and_a_dead_worker_does_not(tmp_path: Path, closing: str) -> None:
    file = tmp_path / "crash.toml"
    settings = {"algorithm": "sync-sgd", "closing": closing, "chunk_seconds": 0.05, "max_rounds": 60}
    file.write_text("[[crash]]\npeer = 0\nat = 4\n")
    report = simulate(config(**settings, scenario=str(file)))
    assert report["error"].startswith("peer 0 was lost in the middle of a round")
    assert "sync-sgd needs its head" in report["error"]
    assert report["simulation"]["exit_code"] == ExitCode.LOST
    assert report["stop_reason"] == report["error"]
    console = Console(record=True, width=140, file=StringIO())
    console.print(live.summary(report, None))
    assert "workers' mean: the head died" in console.export_text()
    assert [row["stop_reason"] for row in report["peers"]] == ["crashed", *[report["error"]] * 3]
    file.write_text("[[crash]]\npeer = 2\nat = 4\n")
    run = Simulation(config(**settings, scenario=str(file)))
    run.run()
    assert [peer.round for peer in run.peers if peer.peer != 2] == [60, 60, 60]
    assert run.peers[0].ledger.lost_by_neighbor.keys() == {2}
    assert all(torch.equal(row, run.models()[0]) for row in run.models())
    assert run.agenda.now < 60 * 4 * 0.05 * 1.1, "nobody waited for the dead"


# async-sgd


def delayed(settings: dict[str, object], updates: int, delay: int, divisor: int = 1) -> Tensor:
    """x_{t+1} = x_t - lr g(x_{t - delay}) / divisor with the samples of peer 1 alone; before there are so many updates, at x_0."""
    made = config(**settings)
    task = load_task(made.task)
    data = task.train_data()
    model = make_model(made, task)
    computer, x = ChunkComputer(task, make_model(made, task), data), model.vector
    optimizer = make_optimizer(made, task, model, x)
    stream = SampleStream(make_shares(made, task, data)[1], made.seed, 1, made.chunk_samples)
    waiting: list[Tensor] = []
    for t in range(updates):
        while len(waiting) <= delay:
            computer.load(x)
            gradient = computer.compute(stream.next()).gradient.clone()
            for _ in range(made.chunks - 1):
                gradient += computer.compute(stream.next()).gradient
            waiting.append(gradient)
        staleness = min(t, delay)
        slower = max(staleness, 1) if divisor > 1 else 1
        optimizer.step(waiting.pop(0).mul_(1.0 / (made.batch_size * slower)), t)
    return x


@pytest.mark.parametrize(
    "extra",
    [{}, {"simulate_staleness": 3}, {"simulate_staleness": 3, "staleness_aware_lr": True, "optimizer": "momentum"}],
)
def test_one_worker_is_sgd_in_sequence_with_the_delay_that_is_asked_for(extra: dict[str, object]) -> None:
    settings = {"algorithm": "async-sgd", "peers": 2, "max_rounds": 30, **extra}
    run = Simulation(config(**settings), exact=True)
    run.run()
    delay = run.config.simulate_staleness
    updates = run.peers[0].round
    assert updates >= 30 - delay
    assert run.peers[0].ledger.staleness == {s: 1 if s < delay else updates - delay for s in range(delay + 1)}
    expected = delayed(settings, updates, delay, 1 + run.config.staleness_aware_lr)
    assert torch.equal(run.models()[0], expected)


@pytest.mark.parametrize(("peers", "tau"), [(5, 0), (9, 0), (5, 10)])
def test_staleness_is_the_number_of_the_other_workers_and_what_is_added(peers: int, tau: int) -> None:
    """Workers that are alike take turns: N - 2 updates between reading and applying, and tau more."""
    report = simulate(
        config(algorithm="async-sgd", peers=peers, simulate_staleness=tau, max_rounds=200, chunk_seconds=0.01)
    )
    staleness = {int(value): count for value, count in report["peers"][0]["staleness"].items()}
    assert max(staleness) == peers - 2 + tau
    assert staleness[peers - 2 + tau] >= 200 - 2 * (peers + tau)
    assert sum(staleness.values()) == 200
    assert report["rounds_by_reason"]["gradient"] == 200
    assert 200 <= sum(row["rounds"] for row in report["peers"][1:]) <= 200 + peers + tau
    assert report["peers"][0]["samples"] == 0
    assert all(row["staleness"] == {} for row in report["peers"][1:])


def test_more_staleness_is_slower_or_unstable_and_the_aware_learning_rate_stable() -> None:
    """The same number of updates at one learning rate: Chen et al. 2017, figure 2, in small."""
    losses = {}
    for tau, aware in ((0, False), (8, False), (30, False), (30, True)):
        settings = {
            "simulate_staleness": tau,
            "staleness_aware_lr": aware,
            "lr": 0.3,
            "max_rounds": 120,
            "eval_every": 5.0,
        }
        report = simulate(config(algorithm="async-sgd", task="digits", peers=3, batch_size=16, **settings))
        losses[tau, aware] = report["train_loss"] if math.isfinite(report["train_loss"]) else math.inf
    assert losses[0, False] < losses[8, False] < losses[30, False]
    assert losses[30, True] < losses[30, False]


def test_nobody_waits_for_a_slow_worker() -> None:
    """One of four workers ten times slower: 3.1 workers' worth of gradients."""
    settings = {"algorithm": "async-sgd", "peers": 5, "chunk_seconds": 0.01, "max_seconds": 8.0, "max_rounds": None}
    report = simulate(config(**settings, straggler=("4=10x",)))
    full = 8 / (4 * 0.01)
    assert report["rounds"] == pytest.approx(3.1 * full, rel=0.05)
    assert report["idle_fraction"] < 0.05


def test_without_rounds_a_dead_head_ends_the_run_and_a_dead_or_leaving_worker_does_not(tmp_path: Path) -> None:
    file = tmp_path / "crash.toml"
    settings = {"algorithm": "async-sgd", "chunk_seconds": 0.05, "max_rounds": 100}
    file.write_text("[[crash]]\npeer = 0\nat = 2\n")
    report = simulate(config(**settings, scenario=str(file)))
    assert "async-sgd needs its head" in report["error"]
    assert report["simulation"]["exit_code"] == ExitCode.LOST
    file.write_text("[[crash]]\npeer = 2\nat = 2\n")
    run = Simulation(config(**settings, scenario=str(file)))
    run.run()
    assert run.failure is None
    assert run.peers[0].round == 100
    assert run.peers[0].ledger.lost_by_neighbor == {2: 1}
    file.write_text("".join(f"[[crash]]\npeer = {worker}\nat = {worker}\n" for worker in (1, 2, 3)))
    report = simulate(config(**settings, scenario=str(file)))
    assert "async-sgd needs a worker" in report["error"]


@pytest.mark.parametrize(("peers", "tau"), [(4, 0), (4, 50), (3, 1000)])
def test_only_what_the_head_applied_is_in_updates_and_only_its_rounds_are_rounds(peers: int, tau: int) -> None:
    """30 updates of 16 samples, whatever has been computed for them; every other sample has another fate."""
    settings = {"peers": peers, "simulate_staleness": tau, "max_rounds": 30, "batch_size": 16, "chunks": 4}
    report = simulate(config(algorithm="async-sgd", **settings))
    assert report["error"] is None
    assert report["stop_reason"] == "30 rounds are done"
    assert (report["rounds"], report["samples"]) == (30, 480)
    assert report["curve"][-1]["rounds"] == 30
    assert sum(row["rounds"] for row in report["peers"][1:]) >= 30 + tau - peers
    assert sum(row["chunks"] for row in report["peers"]) == 120
    for row in report["peers"]:
        fates = [row[f"samples{name}"] for name in ("", "_redone", "_nonfinite", "_dropped", "_abandoned")]
        assert row["samples_started"] == sum(fates)
        assert min(fates) >= 0
        assert row["finished_fraction"] <= 1
    if tau == 50:
        assert report["finished_fraction"] < 0.5


def test_workers_know_what_was_applied_but_for_the_last_answers() -> None:
    """Without the head's books: what they were told is never more than that, and less by a gradient each at most."""
    run = Simulation(config(algorithm="async-sgd", peers=4, simulate_staleness=5, max_rounds=40))
    run.run()
    used = run.peers[0].algorithm.samples_of_workers
    assert sum(used.values()) == 40 * 8
    for worker in (1, 2, 3):
        told = run.peers[worker].ledger.samples
        assert used[worker] - 8 <= told <= used[worker]
        assert math.isfinite(run.peers[worker].ledger.train_loss)
