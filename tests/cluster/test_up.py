"""Real processes over real gRPC: the cluster of `grapevine up`, standalone peers, signals, kills, and no orphans."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from peer.training.remote import DAEMON_NICENESS
from tests.cluster.warm import Warm
from tests.conftest import Grapevine

pytestmark = pytest.mark.processes
DONE_WITHIN = 50
STOPPED_SECONDS = 5.0
Process = subprocess.Popen[str] | Warm
MODEL_BYTES = 4 * (64 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10)


@contextmanager
def started(*words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A grapevine process in a session of its own; nothing of that session may outlive it."""
    with subprocess.Popen(
        [sys.executable, "-m", "peer", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            end(process.pid)


@contextmanager
def warm(*words: str, **environment: str) -> Iterator[Warm]:
    """The same, without the imports."""
    process = Warm(words, **environment)
    try:
        yield process
    finally:
        end(process.pid)
        process.wait(10)
        process.stdout.close()
        process.stderr.close()


def end(leader: int) -> None:
    """Nothing of that session lives on."""
    for pid in session(leader):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def session(leader: int) -> list[int]:
    """Living processes of that session."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def assert_no_orphans(leader: int) -> None:
    """Whoever of the session still lives ends within ten seconds."""
    until = time.monotonic() + 10
    while (left := session(leader)) and time.monotonic() < until:
        try:
            end = os.pidfd_open(left[0])
        except ProcessLookupError:
            continue
        select.select([end], [], [], max(0.0, until - time.monotonic()))  # readable when the process has ended
        os.close(end)
    assert not left


def wait_for(process: Process, word: str) -> str:
    """Read standard output until a line with that word."""
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return line
    raise AssertionError(f"{word!r} never came; stderr: {process.stderr.read() if process.stderr else ''}")


def wait_until(process: Process, condition: Callable[[], bool]) -> None:
    """Look again whenever the process has said how far it is, at most until its time is up."""
    until = time.monotonic() + DONE_WITHIN
    while not condition():
        assert time.monotonic() < until, "it never came true"
        wait_for(process, "loss")


def signalled(
    report: Path, words: Sequence[str], victim: int, sign: signal.Signals, code: int = 0
) -> tuple[dict[str, Any], str, str]:
    """Run `grapevine up` and send one of its peers a signal in the middle. Returns the report and what was said."""
    with warm("up", *words, "--report", str(report)) as process:
        wait_for(process, "loss")
        os.kill(pids_of_peers(process.pid)[victim], sign)
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == code, out + err
        assert "Traceback" not in err
        assert_no_orphans(process.pid)
    return json.loads(report.read_text()), out, err


def test_up_trains_to_a_target_and_reports(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = [
        "up",
        "--peers",
        "4",
        "--target-loss",
        "2.0",
        "--chunk-seconds",
        "0.002",
        "--straggler",
        "0=4x",
        "--lr",
        "0.5",
    ]
    with warm(*words, "--report", str(report), "--eval-every", "0.1") as process:
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 0, out + err
        assert_no_orphans(process.pid)
    for word in ("target loss", "consensus distance", "idle share", "bytes sent", "worst peer", "staleness"):
        assert word in out
    result = json.loads(report.read_text())
    assert result["train_loss"] <= 2.0
    assert 0 < result["seconds_to_target"] <= result["wall_seconds"]
    assert result["samples"] == sum(peer["samples"] for peer in result["peers"])
    assert result["bytes_sent"] == sum(peer["bytes_sent"] for peer in result["peers"])
    assert result["worst_peer_test_accuracy"] == min(peer["test_accuracy"] for peer in result["peers"])
    assert result["curve"][-1]["loss"] <= 2.0 < result["curve"][0]["loss"]
    assert result["max_staleness"] >= 1, "the straggler's chunks are carried"
    for peer in result["peers"]:
        parts = peer["samples"] + peer["samples_redone"] + peer["samples_nonfinite"] + peer["samples_abandoned"]
        assert peer["samples_started"] == parts
    documented = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    for name in [*result, *result["peers"][0], *result["curve"][0]]:
        assert f"`{name}`" in documented, f"docs/report.md does not say what {name} is"


@pytest.mark.parametrize("algorithm", ["ring-all-reduce", "matcha"])
def test_up_ends_after_its_rounds(algorithm: str, grapevine: Grapevine, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ["up", "--peers", "3", "--algorithm", algorithm, "--max-rounds", "12", "--report", str(report)]
    done = grapevine(*words)
    assert done.code == 0, done.out + done.err
    result = json.loads(report.read_text())
    assert (result["rounds"], result["seconds_to_target"]) == (12, None)
    if algorithm == "ring-all-reduce":
        assert result["consensus_distance"] == 0.0


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_exits_zero(sign: signal.Signals, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with warm("up", "--peers", "3", "--chunk-seconds", "0.005", "--report", str(report)) as process:
        wait_for(process, "loss")
        os.killpg(process.pid, sign) if sign is signal.SIGINT else process.send_signal(sign)
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 0, out + err
        assert "Traceback" not in err
        assert_no_orphans(process.pid)
    result = json.loads(report.read_text())
    assert (result["stop_reason"], result["error"], len(result["peers"])) == ("interrupted", None, 3)


@contextmanager
def stuck() -> Iterator[Warm]:
    """A cluster whose peers are stopped, so that they can't drain; they go on afterwards."""
    with warm("up", "--peers", "3", "--chunk-seconds", "0.005") as process:
        wait_for(process, "loss")
        peers = pids_of_peers(process.pid)
        for pid in peers:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield process
        finally:
            for pid in peers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert "Traceback" not in err, out + err
        assert_no_orphans(process.pid)


def test_a_second_interrupt_ends_at_once_without_orphans() -> None:
    with stuck() as process:
        process.send_signal(signal.SIGINT)
        wait_for(process, "asked to stop by SIGINT")
        process.send_signal(signal.SIGINT)
        process.wait(DONE_WITHIN)
    assert process.returncode == 130


def test_a_second_sigterm_changes_nothing() -> None:
    with stuck() as process:
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            wait_for(process, "asked to stop by SIGTERM")
    assert process.returncode == 0


@pytest.mark.slow
def test_peers_do_not_outlive_a_killed_launcher() -> None:
    with started("up", "--peers", "3", "--chunk-seconds", "0.005", "--trainer", "process") as process:
        wait_for(process, "loss")
        process.kill()
        process.wait(10)
        assert_no_orphans(process.pid)


FOUR = ("--peers", "4", "--topology", "complete", "--chunk-seconds", "0.003")

#: Some five seconds, so that a victim is hit in the middle of its run also where this process gets no turn for two of them.
ROUNDS = 200


@pytest.mark.slow
def test_a_killed_peer_costs_its_edges_not_the_run(tmp_path: Path) -> None:
    words = [*FOUR, "--max-rounds", str(ROUNDS)]
    result, out, err = signalled(tmp_path / "report.json", words, victim=-1, sign=signal.SIGKILL)
    assert "died (killed by signal 9)" in err
    assert re.search(r"peers lost +1 of 4 +peer 3: killed by signal 9 ", out)
    assert (result["peers_lost"], result["lost"]) == (1, {"3": "killed by signal 9"})
    assert [peer["rounds"] for peer in result["peers"]] == [ROUNDS] * 3
    assert set(result["edges_lost"]) <= {"link_down", "suspect", "declined", "stale"}


def niceness(pid: int) -> set[int]:
    """Of all threads."""
    return {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


@pytest.mark.parametrize(("task", "trainer"), [("tests.daemon.tasks:Large", "process"), ("digits", "thread")])
def test_the_size_of_the_model_says_where_chunks_are_computed(task: str, trainer: str) -> None:
    """By default. A peer gives way to a computer that it has, and its metrics say what it has."""
    port, own = free_block(2), os.getpriority(os.PRIO_PROCESS, 0)
    words = ("--peers", "2", "--task", task, "--lr", "0.0001", "--metrics-port", str(port))
    with warm("up", *words) as process:
        wait_for(process, "loss")
        computers = children(process.pid)
        for i, daemon in enumerate(pids_of_peers(process.pid)):
            assert len(computers.get(daemon, [])) == (trainer == "process")
            assert own + DAEMON_NICENESS * (trainer == "process") in niceness(daemon)
            assert f'trainer="{trainer}"' in metrics_of(port + i)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 0, out + err
        assert_no_orphans(process.pid)


@pytest.mark.slow
def test_a_trainer_that_is_killed_costs_its_peer_not_the_run(tmp_path: Path) -> None:
    """Its peer says goodbye; in a thread of the peer, it would have taken the peer along. It comes first where a core is short."""
    report = tmp_path / "report.json"
    with warm("up", *FOUR, "--trainer", "process", "--max-rounds", str(ROUNDS), "--report", str(report)) as process:
        wait_for(process, "loss")
        daemon = pids_of_peers(process.pid)[2]
        victim = children(process.pid)[daemon]
        assert {nice - DAEMON_NICENESS for nice in niceness(daemon)} == niceness(victim[0])
        os.kill(victim[0], signal.SIGKILL)
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 0, out + err
        assert_no_orphans(process.pid)
    assert "died (peer 2: the process of its trainer was killed by signal 9)" in err
    assert re.search(r"peers lost +1 of 4 +peer 2: the process of its trainer ", out)
    result = json.loads(report.read_text())
    assert [(peer["peer"], peer["rounds"]) for peer in result["peers"]] == [(0, ROUNDS), (1, ROUNDS), (3, ROUNDS)]


@pytest.mark.slow
def test_a_peer_that_leaves_early_does_not_hold_up_the_end(tmp_path: Path) -> None:
    words = [*FOUR, "--max-rounds", str(ROUNDS)]
    result, out, _ = signalled(tmp_path / "report.json", words, victim=1, sign=signal.SIGTERM)
    assert result["lost"] == {}
    assert "peers lost" not in out
    rounds = sorted(peer["rounds"] for peer in result["peers"])
    assert rounds[1:] == [ROUNDS, ROUNDS, ROUNDS]
    assert rounds[0] < ROUNDS


def test_a_ring_that_loses_a_peer_tells_what_was_measured_until_then(tmp_path: Path) -> None:
    words = ["--peers", "3", "--algorithm", "ring-all-reduce", "--chunk-seconds", "0.005"]
    result, out, err = signalled(tmp_path / "report.json", words, victim=-1, sign=signal.SIGKILL, code=5)
    assert result["error"] == result["stop_reason"]
    assert f"grapevine: {result['error']}" in err
    assert len(result["curve"]) >= 1
    assert result["train_loss"] > 0
    assert result["wall_seconds"] >= result["curve"][-1]["seconds"]
    assert len(result["peers"]) < 3
    assert result["lost"]["2"] == "killed by signal 9"
    assert "failed" in out


@pytest.mark.parametrize("algorithm", ["sync-sgd", "async-sgd"])
def test_a_head_that_is_killed_is_named_as_the_reason_by_everybody(algorithm: str, tmp_path: Path) -> None:
    words = ["--peers", "3", "--algorithm", algorithm, "--max-seconds", "40", "--chunk-seconds", "0.002", "--head", "1"]
    result, out, err = signalled(tmp_path / "report.json", words, 1, signal.SIGKILL, code=5)
    reason = f"peer 1 died (killed by signal 9); {algorithm} needs its head"
    assert result["error"] == result["stop_reason"]
    assert result["error"].startswith(reason)
    assert [row["peer"] for row in result["peers"]] == [0, 2]
    assert all(reason in row["stop_reason"] for row in result["peers"])
    for worker in (0, 2):
        assert re.search(rf"peer {worker} .*its head, peer 1", err), err
    assert "goes on without" not in err
    assert (result["rounds"] is None) == (result["max_staleness"] is None) == (algorithm == "async-sgd")
    assert ("–" in out) == (algorithm == "async-sgd")
    assert "workers' mean" in out


@pytest.mark.slow
def test_gradients_that_were_never_applied_are_not_in_updates(tmp_path: Path) -> None:
    """30 updates of 16 samples, while about 50 gradients were computed; and who is done goes on without nobody."""
    report = tmp_path / "report.json"
    words = ["--peers", "4", "--algorithm", "async-sgd", "--simulate-staleness", "20", "--max-rounds", "30"]
    with warm("up", *words, "--chunk-seconds", "0.01", "--report", str(report)) as process:
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 0, out + err
        assert_no_orphans(process.pid)
    result = json.loads(report.read_text())
    assert (result["rounds"], result["samples"]) == (30, 480)
    assert sum(row["samples_started"] for row in result["peers"]) >= 50 * 16
    for row in result["peers"]:
        assert row["samples_started"] == row["samples"] + row["samples_abandoned"]
    assert "goes on without" not in err


def test_a_head_that_is_told_to_stop_is_why_the_run_ended(tmp_path: Path) -> None:
    words = ["--peers", "3", "--algorithm", "sync-sgd", "--max-seconds", "40", "--chunk-seconds", "0.002"]
    result, _, _ = signalled(tmp_path / "report.json", words, 0, signal.SIGTERM)
    assert result["error"] is None
    assert result["wall_seconds"] < 40
    assert result["stop_reason"] == "peer 0 was told to stop (SIGTERM), and sync-sgd needs its head"
    assert {row["stop_reason"] for row in result["peers"]} == {
        "asked: SIGTERM",
        "peer 0 left, and sync-sgd needs its head",
    }


def test_a_run_whose_gradients_are_all_nan_tells_what_was_measured(grapevine: Grapevine, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ["up", "--peers", "2", "--task", "tests.daemon.tasks:Hopeless", "--batch-size", "8", "--chunks", "2"]
    done = grapevine(*words, "--report", str(report))
    assert done.code == 7, done.out + done.err
    result = json.loads(report.read_text())
    assert "10 chunks in a row had NaN or infinite gradients" in result["error"]
    assert "Traceback" not in done.err


def children(leader: int) -> dict[int, list[int]]:
    """Processes of that session by parent."""
    by_parent: dict[int, list[int]] = {}
    for pid in session(leader):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        by_parent.setdefault(parent, []).append(pid)
    return by_parent


def pids_of_peers(leader: int) -> list[int]:
    """Children of the forkserver: the peers."""
    by_parent = children(leader)
    server = next(pid for pid in by_parent.get(leader, []) if by_parent.get(pid))
    return sorted(by_parent[server])


def metrics_of(port: int) -> str:
    with closing(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)) as scrape:
        return str(scrape.read().decode())


def scraped(port: int) -> tuple[float, dict[str, float]]:
    """Rounds finished by the peer with this metrics port, and the bytes received of each neighbour."""
    text = metrics_of(port)
    rounds = re.search(r"^grapevine_round\{.*\} (\S+)$", text, re.MULTILINE)
    assert rounds
    received = re.findall(r'^grapevine_neighbor_received_bytes_total\{.*neighbor="(\d+)"\} (\S+)$', text, re.MULTILINE)
    return float(rounds[1]), {neighbor: float(moved) for neighbor, moved in received}


@pytest.mark.slow
def test_a_peer_stopped_for_a_while_comes_back_with_its_edges(tmp_path: Path) -> None:
    """SIGSTOP for five seconds, by when it is a suspect and its edges are given up; the others go on without it. After SIGCONT it
    catches up with them, and both its neighbours in the ring send it their models again."""
    port = free_block(4)
    report = tmp_path / "report.json"
    words = ["up", "--peers", "4", "--topology", "ring", "--chunk-seconds", "0.003", "--metrics-port", str(port)]
    with warm(*words, "--report", str(report)) as process:
        wait_for(process, "loss")
        victim = pids_of_peers(process.pid)[3]
        # until then nobody knows how long a neighbour usually takes, and waits for it longer
        wait_until(process, lambda: scraped(port + 3)[0] > 20 and set(scraped(port + 3)[1]) == {"0", "2"})
        rounds_before, before = scraped(port + 3)
        os.kill(victim, signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)  # this is what is tested, it waits for nothing
        others = scraped(port + 1)[0]
        assert others > rounds_before + 10, "the others waited for it"
        os.kill(victim, signal.SIGCONT)

        def back() -> bool:
            rounds, received = scraped(port + 3)
            return rounds > others and all(received[j] > before[j] + 5 * MODEL_BYTES for j in before)

        wait_until(process, back)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 0, out + err
        assert_no_orphans(process.pid)
    result = json.loads(report.read_text())
    assert [peer["pid"] for peer in result["peers"]][3] == victim
    assert sum(result["edges_lost"].values()) > 0, "nobody noticed"


def free_block(number: int) -> int:
    """The first of so many free ports in a row, below those that the system hands out; each test process looks elsewhere first."""
    for first in range(20_000 + os.getpid() % 1000 * 8, 30_000, number):
        with ExitStack() as held:
            try:
                for port in range(first, first + number):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.mark.slow
def test_standalone_peers_join_by_address_and_answer_status_and_scrapes(tmp_path: Path) -> None:
    *ports, metrics_port = free_ports(3)
    config = tmp_path / "peer.toml"
    addresses = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    config.write_text(f"peers = 2\naddresses = [{addresses}]\nchunk_seconds = 0.005\nmetrics_eval_every = 0.1\n")
    common = ["peer", "--config", str(config)]
    first = [*common, "--peer", "0", "--metrics-port", str(metrics_port)]
    with warm(*first, "--report", str(tmp_path / "0.json")) as zero:
        wait_for(zero, "waiting for the others")
        with warm(*common, "--metrics-port", "-1", RANK="1") as one:
            wait_for(zero, "training")
            status = subprocess.run(
                [sys.executable, "-m", "peer", "status", f"127.0.0.1:{ports[0]}", "--json"],
                capture_output=True,
                text=True,
                check=True,
                timeout=30,
            )
            metrics = ""
            until = time.monotonic() + DONE_WITHIN
            while "grapevine_eval_accuracy_ratio" not in metrics:
                assert time.monotonic() < until, metrics
                metrics = metrics_of(metrics_port)
            one.send_signal(signal.SIGTERM)
            zero.send_signal(signal.SIGINT)
            ends = [peer.communicate(timeout=DONE_WITHIN) for peer in (zero, one)]
            assert (zero.returncode, one.returncode) == (0, 0), ends
            assert_no_orphans(one.pid)
        assert_no_orphans(zero.pid)
    told = json.loads(status.stdout)
    assert (told["peer"], told["num_peers"], told["state"], told["trainer"]) == (0, 2, "STATE_TRAINING", "thread")
    assert [neighbor["state"] for neighbor in told["neighbors"]] == ["alive"]
    for name in (
        "grapevine_rounds_total",
        "grapevine_samples_total",
        "grapevine_train_loss",
        "grapevine_neighbor_sent_bytes_total",
        "grapevine_trainer_seconds_total",
        "grapevine_staleness_updates_bucket",
        "grapevine_neighbor_distance",
        "grapevine_build_info",
    ):
        assert name in metrics
    report = json.loads((tmp_path / "0.json").read_text())
    assert report["rounds"] >= 1
    assert report["stop_reason"] == "asked: SIGINT"


def test_a_standalone_worker_writes_its_report_when_the_head_has_died(tmp_path: Path) -> None:
    report, ports = tmp_path / "1.json", free_ports(2)
    common = ["peer", "--peers", "2", "--algorithm", "sync-sgd", "--chunk-seconds", "0.002", "--metrics-port", "-1"]
    common += [word for port in ports for word in ("--address", f"127.0.0.1:{port}")]
    with (
        warm(*common, "--peer", "0", "--listen", f"127.0.0.1:{ports[0]}") as head,
        warm(*common, "--peer", "1", "--listen", f"127.0.0.1:{ports[1]}", "--report", str(report)) as worker,
    ):
        wait_for(worker, "training")
        os.kill(head.pid, signal.SIGKILL)
        out, err = worker.communicate(timeout=DONE_WITHIN)
        assert worker.returncode == 5, out + err
    said = json.loads(report.read_text())
    assert said["error"] == said["stop_reason"]
    assert "sync-sgd needs its head" in said["error"]
    assert f"grapevine: {said['error']}" in err
    assert "its head, peer 0" in err
    assert said["samples_started"] >= said["samples"]


def test_an_occupied_port_is_exit_code_three() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["peer", "--peer", "0", "--peers", "2", "--address", f"127.0.0.1:{port}", "--address", "127.0.0.1:1"]
        with warm(*words, "--metrics-port", "-1") as process:
            _, err = process.communicate(timeout=DONE_WITHIN)
            assert process.returncode == 3
            assert f"127.0.0.1:{port}" in err
            assert "Traceback" not in err


def test_a_peer_that_never_appears_is_exit_code_four() -> None:
    ports = free_ports(2)
    addresses = [word for port in ports for word in ("--address", f"127.0.0.1:{port}")]
    words = ["peer", "--peer", "0", "--peers", "2", *addresses, "--listen", f"127.0.0.1:{ports[0]}"]
    with warm(*words, "--start-timeout", "1", "--metrics-port", "-1") as process:
        _, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 4
        assert f"peer 1 (127.0.0.1:{ports[1]}) did not appear within 1 s" in err


@pytest.mark.parametrize("option", ["--metrics-port", "--data-port"])
def test_a_port_that_is_taken_ends_the_cluster_in_one_sentence(grapevine: Grapevine, option: str) -> None:
    port = free_block(3) + 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = grapevine("up", "--peers", "3", "--data-plane", "direct", option, str(port - 1))
        assert done.code == 3
        assert f"127.0.0.1:{port}" in done.err
        assert "Traceback" not in done.err


@pytest.mark.slow
def test_an_interrupt_before_training_ends_well() -> None:
    with started("up", "--peers", "3") as process:
        wait_for(process, "starting")
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 0, out + err
        assert "interrupted before training began" in out
        assert "Traceback" not in err
        assert_no_orphans(process.pid)
