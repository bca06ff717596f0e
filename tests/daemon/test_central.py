"""Methods with a head, in the daemon: who may die, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from peer.accounts.summary import PeerSummary
from peer.assembly import BAD_INPUT, make_model, make_optimizer, make_schedule, make_wire
from peer.daemon.playing import Stopwatch
from peer.exit_codes import ExitCode, Fatal
from peer.gossip.delivery import PRESETS
from peer.gossip.effects import Answer, Effect
from peer.gossip.round import RoundReport
from peer.sim.simulator import Simulation
from peer.training.task import load_task
from tests.daemon.rig import Rig, config


async def endings(rig: Rig, victim: int) -> dict[int, PeerSummary | BaseException]:
    """How each peer ends when the network of one is cut off without a goodbye."""
    if not rig.peers:
        rig.build()

    async def kill() -> None:
        while rig.peers[victim].state != "training" or rig.peers[victim].player.ledger.rounds < 3:
            await asyncio.sleep(0.005)
        rig.transports[victim].kill()  # type: ignore[attr-defined]
        rig.peers[victim].request_stop("the test killed it")

    killer = asyncio.create_task(kill())
    async with asyncio.timeout(40):
        ends = await asyncio.gather(*(rig._run(i, 0.0) for i in range(len(rig.peers))), return_exceptions=True)
    await killer
    return dict(enumerate(ends))


@pytest.mark.parametrize("closing", ["first", "barrier"])
async def test_a_dead_head_is_said_by_every_worker(closing: str) -> None:
    ends = await endings(Rig(config(algorithm="sync-sgd", closing=closing, max_rounds=None, chunk_seconds=0.002)), 0)
    for worker in (1, 2, 3):
        fatal = ends[worker]
        assert isinstance(fatal, Fatal), fatal
        assert fatal.code is ExitCode.LOST
        assert fatal.sentence.startswith("peer 0 was lost in the middle of a round")
        assert "sync-sgd needs its head" in fatal.sentence
        assert "\n" not in fatal.sentence


@pytest.mark.parametrize("settings", [{"closing": "first"}, {"closing": "barrier"}, {"backup_workers": 1}], ids=str)
async def test_a_dead_worker_costs_its_samples(settings: dict[str, object]) -> None:
    rig = Rig(config(algorithm="sync-sgd", head=1, max_rounds=30, chunk_seconds=0.002, round_timeout=30.0, **settings))
    ends = await endings(rig, 2)
    for i in (0, 1, 3):
        summary = ends[i]
        assert isinstance(summary, PeerSummary), summary
        assert summary.rounds == 30
        assert torch.equal(rig.peers[i].player.master.params, rig.peers[1].player.master.params)
    head = ends[1]
    assert isinstance(head, PeerSummary)
    assert rig.peers[1].player.ledger.lost_by_neighbor.keys() == {2}
    assert set(head.edges_lost) <= {"link_down", "suspect", "left", "declined"}


async def test_backup_workers_in_the_daemon() -> None:
    rig = Rig(
        config(
            algorithm="sync-sgd",
            peers=5,
            backup_workers=1,
            head_computes=False,
            max_rounds=25,
            chunk_seconds=0.002,
            straggler=("4=5x",),
        )
    )
    summaries = await rig.run()
    assert sum(s.rounds_dropped for s in summaries) <= 25
    assert summaries[4].rounds_dropped > 0
    assert sum(s.samples for s in summaries) == 25 * 3 * 8
    for s in summaries:
        fates = s.samples + s.samples_redone + s.samples_nonfinite + s.samples_dropped + s.samples_abandoned
        assert s.samples_started == fates
    assert all(torch.equal(peer.player.master.params, rig.peers[0].player.master.params) for peer in rig.peers)


async def test_one_worker_of_the_daemon_ends_with_the_bits_of_the_simulator() -> None:
    settings = config(algorithm="async-sgd", peers=2, max_rounds=15, simulate_staleness=2)
    rig = Rig(settings)
    head, worker = await rig.run()
    simulated = Simulation(settings, exact=True)
    simulated.run()
    assert head.rounds == simulated.peers[0].round
    assert torch.equal(rig.peers[0].player.master.params, simulated.models()[0])
    assert head.staleness == simulated.summaries()[0]["staleness"] == {"0": 1, "1": 1, "2": head.rounds - 2}
    assert worker.samples_started == worker.samples + worker.samples_abandoned


async def test_without_rounds_every_gradient_is_applied_once_and_a_dead_worker_costs_its_own() -> None:
    rig = Rig(config(algorithm="async-sgd", peers=5, max_rounds=200, chunk_seconds=0.001, straggler=("all=exp:1",)))
    ends = await endings(rig, 2)
    head = ends[0]
    assert isinstance(head, PeerSummary), head
    assert head.rounds == sum(head.staleness.values()) == 200
    assert rig.peers[0].parts.algorithm.state.samples_clock == 200 * 8
    workers = [end for i, end in ends.items() if i not in (0, 2)]
    assert all(isinstance(worker, PeerSummary) for worker in workers), ends
    known = sum(peer.player.ledger.samples for peer in rig.peers[1:])
    assert abs(known - 200 * 8) <= 4 * 8, "one gradient of each may be under way at the end"
    assert head.edges_lost == {"link_down": 1}
    assert rig.peers[1].stop_reason.endswith("async-sgd needs its head")


async def test_without_rounds_a_dead_head_is_said_by_every_worker() -> None:
    ends = await endings(Rig(config(algorithm="async-sgd", max_rounds=None, chunk_seconds=0.002)), 0)
    for worker in (1, 2, 3):
        fatal = ends[worker]
        assert isinstance(fatal, Fatal), fatal
        assert fatal.code is ExitCode.LOST
        assert "async-sgd needs its head" in fatal.sentence


async def test_ad_psgd_keeps_the_mean_and_nobody_waits_for_a_slow_peer() -> None:
    """Different vectors at the start, a learning rate of nothing: what one end of an averaging adds the other takes away."""
    rig = Rig(
        config(
            algorithm="ad-psgd",
            topology="complete",
            peers=5,
            lr=1e-30,
            max_rounds=None,
            max_seconds=2.5,
            chunk_seconds=0.004,
            straggler=("1=30x",),
        )
    ).build()
    for i, peer in enumerate(rig.peers):
        generator = torch.Generator().manual_seed(i)
        params = peer.parts.algorithm.state.params
        params.copy_(torch.randn(params.shape, generator=generator))
    mean = torch.stack([peer.parts.algorithm.state.params for peer in rig.peers]).double().mean(0)
    before = float(torch.stack([peer.parts.algorithm.state.params for peer in rig.peers]).double().sub(mean).norm())
    summaries = await rig.run()
    models = torch.stack([peer.player.master.params for peer in rig.peers]).double()
    assert torch.allclose(models.mean(0), mean, atol=1e-5)
    assert float(models.sub(mean).norm()) < 0.2 * before
    assert all(s.rounds > 3 * summaries[1].rounds for s in summaries if s.peer != 1)
    for s in summaries:
        assert s.samples_started == s.samples + s.samples_abandoned


async def test_ad_psgd_goes_on_without_a_dead_peer_and_averages_with_the_living() -> None:
    rig = Rig(config(algorithm="ad-psgd", topology="complete", peers=5, max_rounds=60, chunk_seconds=0.002)).build()
    reports: dict[int, list[tuple[RoundReport, set[int]]]] = {i: [] for i in range(5)}  # and who had ended by then
    for i, peer in enumerate(rig.peers):

        def heard(report: RoundReport, i: int = i, told: Callable[[RoundReport], None] = peer.watch.round) -> None:
            reports[i].append((report, {j for j, other in enumerate(rig.peers) if other.stop_reason}))
            told(report)

        peer.watch.round = heard  # type: ignore[method-assign]
    ends = await endings(rig, 2)
    for i in (0, 1, 3, 4):
        summary = ends[i]
        assert isinstance(summary, PeerSummary), summary
        assert summary.rounds == len(reports[i]) == 60
        for report, ended in reports[i]:
            assert report.lost.keys() <= ended, "only the dead, and who has done its rounds"
        after = [report.num_received for report, ended in reports[i] if ended == {2}][2:]
        assert sum(after) > 0.3 * len(after) > 5, "it averages with the living"


def test_a_tasks_own_sgd_may_have_the_staleness_aware_learning_rate() -> None:
    made = config(algorithm="async-sgd", task="tests.gossip.tasks:OwnOptimizer", staleness_aware_lr=True)
    task = load_task(made.task)
    model = make_model(made, task)
    assert make_optimizer(made, task, model, model.vector).scales_with_gradient


async def test_ad_psgd_asks_again_whoever_was_silent_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answering end speaks of its own accord to nobody, so that nobody hears that it is back."""
    monkeypatch.setitem(PRESETS, "local", replace(PRESETS["local"], least=0.2, most=0.6))
    rig = Rig(
        config(algorithm="ad-psgd", topology="ring", peers=2, max_rounds=None, max_seconds=6.0, chunk_seconds=0.006)
    )
    rig.build()
    halted: list[int] = []

    async def halt() -> None:
        while rig.peers[1].state != "training" or rig.peers[0].player.ledger.rounds < 12:
            await asyncio.sleep(0.005)
        player = rig.peers[1].player
        carry_out = player._carry_out

        async def late(round: int, effect: Effect, clock: Stopwatch) -> Answer:
            if not halted:
                halted.append(rig.peers[0].player.ledger.rounds)
                await asyncio.sleep(1.5)
            return await carry_out(round, effect, clock)

        player._carry_out = late  # type: ignore[method-assign]

    halting = asyncio.create_task(halt())
    await rig.run()
    await halting
    asker = rig.peers[0].player.ledger
    assert asker.edges_lost["deadline"] >= 1
    averagings = rig.peers[0].parts.algorithm._averagings  # type: ignore[attr-defined]
    assert averagings > halted[0] + 5, (averagings, halted, asker.rounds, asker.edges_lost)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"algorithm": "sync-sgd", "topology": "ring"}, "--topology star, not ring"),
        ({"algorithm": "sync-sgd", "head": 4}, "there is no peer 4 among 4"),
        ({"algorithm": "sync-sgd", "wire_dtype": "bf16"}, "workers would compute at a rounded x"),
        ({"algorithm": "sync-sgd", "random_graph_every": 2}, "every peer talks to the head"),
        ({"algorithm": "sync-sgd", "backup_workers": 4}, "4 of 4 computing peers leave nobody"),
        ({"algorithm": "sync-sgd", "backup_workers": 1, "closing": "first"}, "nobody waits for the last gradients"),
        ({"algorithm": "sync-sgd", "backup_workers": 1, "in_flight": "carry"}, "a gradient of an older x"),
        ({"algorithm": "async-sgd", "closing": "first"}, "async-sgd has no rounds that could be closed"),
        ({"closing": "none"}, "dpsgd has rounds, and they must end"),
        ({"algorithm": "async-sgd", "head_computes": True}, "means nothing with async-sgd"),
        ({"algorithm": "async-sgd", "local_steps": 2}, "takes each gradient as it comes"),
        ({"algorithm": "async-sgd", "topology": "complete"}, "--topology star, not complete"),
        ({"algorithm": "async-sgd", "wire_dtype": "int8"}, "nobody has shown that it converges"),
        (
            {"algorithm": "async-sgd", "optimizer": "adam", "staleness_aware_lr": True},
            "adam divides the scale out again",
        ),
        (
            {"algorithm": "async-sgd", "task": "tests.gossip.tasks:OwnRMSprop", "staleness_aware_lr": True},
            "the optimizer that tests.gossip.tasks:OwnRMSprop brings along divides the scale out again",
        ),
        ({"algorithm": "ad-psgd", "closing": "barrier"}, "ad-psgd has no rounds that could be closed"),
        ({"algorithm": "ad-psgd", "in_flight": "drain"}, "with nothing in flight"),
        ({"algorithm": "ad-psgd", "wire_dtype": "fp16"}, "nobody has shown that it converges"),
        ({"algorithm": "ad-psgd", "random_graph_every": 3}, "it averages along one graph"),
        ({"simulate_staleness": 1}, "--simulate-staleness: it is for async-sgd"),
        ({"head": 1}, "--head: it is for sync-sgd and async-sgd, and means nothing with dpsgd"),
        ({"head_computes": False}, "--head-computes: it is for sync-sgd, and"),
        ({"backup_workers": 1}, "--backup-workers: it is for sync-sgd"),
        ({"algorithm": "async-sgd", "backup_workers": 1}, "^--backup-workers: it is for sync-sgd"),
        ({"algorithm": "ad-psgd", "backup_workers": 1}, "^--backup-workers: it is for sync-sgd"),
    ],
)
def test_what_it_is_not_correct_under_is_refused_with_the_reason(values: dict[str, object], sentence: str) -> None:
    def build() -> None:
        made = config(**values)
        make_schedule(made)
        make_wire(made)
        task = load_task(made.task)
        model = make_model(made, task)
        make_optimizer(made, task, model, model.vector)

    with pytest.raises(BAD_INPUT, match=sentence) as refused:
        build()
    assert "\n" not in str(refused.value)


def test_options_that_a_method_needs_otherwise_are_its_defaults() -> None:
    assert config(algorithm="sync-sgd").topology == "star"
    made = config(algorithm="sync-sgd", backup_workers=1)
    assert (made.closing, made.in_flight) == ("barrier", "redo")
    assert config().closing == "first"
