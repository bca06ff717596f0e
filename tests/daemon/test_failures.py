"""What goes wrong, in one process: each is one sentence with a documented exit code, and the others go on."""

from __future__ import annotations

import asyncio
import socket

import pytest
import torch

from peer.accounts.summary import PeerSummary
from peer.config import ConfigError, validated
from peer.daemon.peer import Peer
from peer.exit_codes import ExitCode, Fatal
from peer.gossip.delivery import PRESETS, DeadlineBounds
from peer.gossip.round import RoundReport
from peer.training.task import TaskError
from peer.transport.faulty import FaultyWiring
from peer.transport.grpc import GrpcTransport
from tests.daemon.rig import Rig, config


async def fails(rig: Rig) -> Fatal:
    with pytest.raises(Fatal) as fatal:
        await rig.run()
    assert "\n" not in fatal.value.sentence
    return fatal.value


async def test_peers_that_train_another_model_refuse_each_other() -> None:
    rig = Rig(config(start_timeout=10.0))
    rig.build()
    other = Peer(config(task="tests.daemon.tasks:Wider"), 3)
    rig.peers[3] = other
    rig.transports[3] = rig.network.transport(other.parts.identity)
    fatal = await fails(rig)
    assert fatal.code is ExitCode.REFUSED
    assert "fingerprint" in fatal.sentence or "--task" in fatal.sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
async def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu() -> None:
    with pytest.raises(ConfigError, match=r"--device: torch .+ finds no CUDA device here"):
        Peer(config(device="cuda"), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
async def test_peers_that_compute_on_a_gpu_train_as_on_the_cpu() -> None:
    losses = []
    for device in ("cpu", "cuda"):
        reports = await Rig(config(device=device, max_rounds=5, closing="barrier", task="digits")).run()
        losses.append(torch.tensor([summary.train_loss for summary in reports]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-3)


async def test_peers_with_another_setting_refuse_each_other_and_name_it() -> None:
    rig = Rig(config(lr=0.1), configs={2: config(lr=0.2)})
    fatal = await fails(rig)
    assert fatal.code is ExitCode.REFUSED
    assert "--lr" in fatal.sentence
    assert "0.1" in fatal.sentence
    assert "0.2" in fatal.sentence


async def test_peers_with_another_format_on_the_wire_refuse_each_other() -> None:
    rig = Rig(config(wire_dtype="bf16"), configs={2: config(wire_dtype="top-k:0.1")})
    fatal = await fails(rig)
    assert fatal.code is ExitCode.REFUSED
    assert "--wire-dtype" in fatal.sentence
    assert "bf16" in fatal.sentence
    assert "top-k:0.1" in fatal.sentence


async def test_a_peer_that_never_appears_is_named() -> None:
    rig = Rig(config(start_timeout=0.3))
    rig.build()
    del rig.peers[2], rig.transports[2]
    rig._addresses[2] = "memory:2"
    rig.peers = [peer for peer in rig.peers if peer.peer != 2]
    fatal = await fails(rig)
    assert fatal.code is ExitCode.ABSENT
    assert "did not appear within 0.3 s" in fatal.sentence


async def test_peers_may_come_up_in_any_order() -> None:
    rig = Rig(config(max_rounds=3), "grpc")
    summaries = await rig.run(delays=[0.6, 0.0, 0.9, 0.3])
    assert [s.rounds for s in summaries] == [3, 3, 3, 3]


async def test_an_occupied_port_is_said_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        rig = Rig(config(peers=2), "grpc")
        rig.build()
        rig.transports[0] = GrpcTransport(rig.peers[0].parts.identity, address, service=rig.peers[0])
        with pytest.raises(Fatal) as fatal:
            await rig.peers[0].run(rig.transports[0], rig.address_book)
    assert fatal.value.code is ExitCode.PORT
    assert address in fatal.value.sentence


async def test_too_many_nan_chunks_in_a_row_end_the_peer_with_the_reason() -> None:
    rig = Rig(config(task="tests.daemon.tasks:Hopeless", chunks=2, nonfinite_limit=5, closing="first", max_rounds=50))
    fatal = await fails(rig)
    assert fatal.code is ExitCode.NONFINITE
    assert "5 chunks in a row" in fatal.sentence
    for peer in rig.peers:
        assert torch.isfinite(peer.player.master.params).all()


async def test_a_task_that_fails_ends_the_peer_with_its_message() -> None:
    fatal = await fails(Rig(config(task="tests.daemon.tasks:Broken", max_rounds=50)))
    assert fatal.code is ExitCode.TASK
    assert "ArithmeticError: the flux capacitor is empty" in fatal.sentence


@pytest.mark.parametrize("algorithm", ["dpsgd", "matcha"])
async def test_a_peer_that_dies_costs_its_edges_not_the_run(algorithm: str) -> None:
    """The network of peer 2 is cut off without a goodbye; the others finish, and forget it after one round."""
    rig = Rig(config(algorithm=algorithm, topology="complete", peers=5, max_rounds=40, chunk_seconds=0.002))
    rig.build()
    survivors = [i for i in range(5) if i != 2]

    async def kill() -> None:
        while rig.peers[2].state != "training" or rig.peers[2].player.ledger.rounds < 5:
            await asyncio.sleep(0.005)
        rig.transports[2].kill()  # type: ignore[attr-defined]
        rig.peers[2].request_stop("the test killed it")

    async def rest() -> list[PeerSummary]:
        return await rig.run()

    summaries, _ = await asyncio.gather(rest(), kill())
    by_id = {s.peer: s for s in summaries}
    for i in survivors:
        assert by_id[i].rounds == 40
        assert by_id[i].edges_lost, "the dead peer's edges were missed"
        assert set(by_id[i].edges_lost) <= {"link_down", "suspect", "left", "declined"}
        assert rig.peers[i].player.ledger.lost_by_neighbor.keys() == {2}


async def test_under_barrier_nobody_waits_for_a_peer_that_only_its_neighbors_saw_die() -> None:
    """Ring of 6, peer 2 cut off: peers 0, 4 and 5 have no link to it, and a round may last 300 s."""
    rig = Rig(config(peers=6, closing="barrier", round_timeout=300.0, max_rounds=30, chunk_seconds=0.002))
    rig.build()

    async def kill() -> None:
        while rig.peers[2].state != "training" or rig.peers[2].player.ledger.rounds < 5:
            await asyncio.sleep(0.005)
        rig.transports[2].kill()  # type: ignore[attr-defined]
        rig.peers[2].request_stop("the test killed it")

    killer = asyncio.create_task(kill())
    summaries = {s.peer: s for s in await rig.run()}
    await killer
    for i in (0, 1, 3, 4, 5):
        assert summaries[i].rounds_by_reason == {"barrier": 30}
        assert (summaries[i].edges_lost != {}) == (i in (1, 3))


async def test_under_barrier_nobody_waits_for_peers_beyond_a_cut_that_came_bit_by_bit() -> None:
    """Ring of 6: after the first cut its ends are alive to each other by hearsay, after the second the ring is two halves; a round may
    last 300 s."""
    rig = Rig(config(peers=6, closing="barrier", round_timeout=300.0, max_rounds=60, chunk_seconds=0.002))
    wiring = rig.network.wiring = FaultyWiring()
    rig.build()

    async def cut(i: int, j: int, from_round: int) -> None:
        while any(peer.state != "training" or peer.player.ledger.rounds < from_round for peer in rig.peers):
            await asyncio.sleep(0.005)
        wiring.cut(i, j)

    async def cuts() -> None:
        await cut(0, 1, 5)
        await cut(3, 4, 20)

    cutter = asyncio.create_task(cuts())
    summaries = await rig.run()
    await cutter
    assert [s.rounds_by_reason for s in summaries] == [{"barrier": 60}] * 6
    assert [s.edges_lost != {} for s in summaries] == [True, True, False, True, True, False]


async def test_under_barrier_nobody_waits_for_peers_behind_two_that_said_goodbye() -> None:
    """Ring of 6 without peers 0 and 3: two halves, each of which goes on; a round may last 300 s."""
    rig = Rig(config(peers=6, closing="barrier", round_timeout=300.0, max_rounds=60, chunk_seconds=0.002))
    rig.build()

    async def leave() -> None:
        while any(peer.state != "training" or peer.player.ledger.rounds < 5 for peer in rig.peers):
            await asyncio.sleep(0.005)
        for i in (0, 3):
            rig.peers[i].request_stop("it goes")

    leaver = asyncio.create_task(leave())
    summaries = await rig.run()
    await leaver
    for i in (1, 2, 4, 5):
        assert summaries[i].rounds_by_reason == {"barrier": 60}


async def test_what_ends_a_peer_is_said_even_if_its_last_round_is_just_over() -> None:
    rig = Rig(config(max_rounds=4))
    rig.build()
    late, counted = rig.peers[1], rig.peers[1].metrics.round

    def fails_at_the_end(report: RoundReport) -> None:
        counted(report)
        if report.round == 3:
            late._die(Fatal(ExitCode.NONFINITE, "it is broken"))

    late.metrics.round = fails_at_the_end  # type: ignore[method-assign]
    fatal = await fails(rig)
    assert (fatal.code, fatal.sentence) == (ExitCode.NONFINITE, "it is broken")


async def test_a_snapshot_is_stamped_with_the_rounds_that_are_in_it() -> None:
    """Asked in the middle of rounds, over and over: equal stamps are equal vectors, and the last one is the end."""
    rig = Rig(config(closing="barrier", max_rounds=30, chunk_seconds=0.001))
    rig.build()
    seen: dict[int, torch.Tensor] = {}

    async def look() -> None:
        while rig.peers[0].state not in ("training", "draining"):
            await asyncio.sleep(0.001)
        while rig.peers[0].state == "training":
            round, vector = await rig.peers[0].snapshot()
            assert torch.equal(seen.setdefault(round, vector), vector)
            await asyncio.sleep(0)

    looker = asyncio.create_task(look())
    await rig.run()
    await looker
    round, vector = rig.peers[0].player.master.rounds, rig.peers[0].player.master.params
    assert round == 30
    assert torch.equal(seen.get(30, vector), vector)
    assert len(seen) > 5


async def test_a_ring_that_loses_a_peer_says_so() -> None:
    rig = Rig(config(algorithm="ring-all-reduce", max_rounds=2000, chunk_seconds=0.001))
    rig.build()

    async def kill() -> None:
        while rig.peers[2].state != "training" or rig.peers[2].player.ledger.rounds < 3:
            await asyncio.sleep(0.005)
        rig.transports[2].kill()  # type: ignore[attr-defined]

    killer = asyncio.create_task(kill())
    fatal = await fails(rig)
    await killer
    assert fatal.code is ExitCode.LOST
    assert "ring-all-reduce needs every peer" in fatal.sentence
    for peer in rig.peers:
        s = peer.summary()
        assert s.samples_started == s.samples + s.samples_redone + s.samples_nonfinite + s.samples_abandoned


async def test_a_ring_waits_for_the_slow_as_long_as_a_round_may_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `drain` the others stand in the middle of the ring pass while peer 0 finishes a chunk that outlasts every neighbour
    deadline; slow is not lost."""
    monkeypatch.setitem(PRESETS, "local", DeadlineBounds(least=0.02, most=0.05))
    settings = config(algorithm="ring-all-reduce", in_flight="drain", chunk_seconds=0.002, straggler=("0=150x",))
    summaries = await Rig(settings.model_copy(update={"max_rounds": 3})).run()
    assert [s.rounds for s in summaries] == [3, 3, 3, 3]
    assert summaries[0].seconds > 0.3 * 0.9, (
        "of one chunk: on a busy machine a round may close before the next has begun"
    )


@pytest.mark.parametrize("algorithm", ["ring-all-reduce", "dpsgd", "matcha", "noloco"])
@pytest.mark.parametrize("closing", ["first", "barrier"])
async def test_a_stop_in_the_middle_of_a_round_is_clean(algorithm: str, closing: str) -> None:
    """One peer is asked to stop; a ring ends with it, the others of a gossip run go on until they are asked as well."""
    rig = Rig(config(algorithm=algorithm, closing=closing, chunk_seconds=0.01, max_rounds=None))
    rig.build()

    async def stop() -> None:
        while rig.peers[0].state != "training" or rig.peers[0].player.ledger.rounds < 4:
            await asyncio.sleep(0.005)
        rig.peers[1].request_stop("a test")
        if algorithm != "ring-all-reduce":
            before = rig.peers[3].player.ledger.rounds
            while rig.peers[3].player.ledger.rounds < before + 3:
                await asyncio.sleep(0.005)
            for peer in rig.peers:
                peer.request_stop("a test")

    stopper = asyncio.create_task(stop())
    summaries = await rig.run()
    await stopper
    for s in summaries:
        assert s.samples_started == s.samples + s.samples_redone + s.samples_nonfinite + s.samples_abandoned
        assert s.samples_abandoned <= 8 + 2


async def test_every_round_has_a_time_out_even_with_barrier() -> None:
    """A peer whose trainer rests holds up a barrier for no longer than `round_timeout` a round: somebody's time is up first (maybe its
    own), and the others hear that word or run out of time themselves."""
    settings = config(
        closing="barrier", straggler=("0=pause:30s@0s",), chunk_seconds=0.001, round_timeout=0.4, max_rounds=6
    )
    summaries = await Rig(settings).run()
    assert sum(s.rounds_by_reason.get("timeout", 0) for s in summaries) >= 1
    assert all(s.rounds == 6 for s in summaries)
    assert summaries[0].samples == 0


def test_bad_input_is_found_when_the_peer_is_built() -> None:
    for values, sentence in (
        ({"chunks": 3}, "3 chunks do not divide a batch of 8 samples; 2 would"),
        ({"budget": 0.0}, r"--budget: must be in \(0, 1\], not 0.0"),
        ({"algorithm": "dspgd"}, "unknown algorithm 'dspgd'; did you mean dpsgd?"),
        ({"closing": "frist"}, "did you mean first?"),
        ({"pears": 3}, "unknown option 'pears'; did you mean peers?"),
        ({"peers": 0}, "--peers: input should be greater than or equal to 1, not 0"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            config(**values)


async def test_an_unknown_task_or_optimizer_is_refused_when_the_peer_is_built() -> None:
    with pytest.raises(TaskError, match="did you mean"):
        Peer(validated({"task": "digitz"}), 0)
    with pytest.raises(TaskError, match="adam"):
        Peer(config(optimizer="adaam"), 0)
