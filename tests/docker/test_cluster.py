"""The image and the compose cluster, for real, on whatever engine `docker` finds; skipped, and said so, where none answers."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import BUILD_SECONDS, IMAGE, READY_SECONDS, Project, docker, needs_engine, run_chaos, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

#: Bytes of the CPU image; 1.07 GB were measured.
MOST_BYTES = 1.3e9


@pytest.fixture(scope="module")
def image() -> str:
    """Built from the working tree with the arguments of the environment (PYTHON_IMAGE, TORCH_INDEX, WHEELS, PIP_INDEX_URL)."""
    needs_engine()
    docker(
        "compose", "build", "peer", timeout=BUILD_SECONDS, environment={"PEER_IMAGE": IMAGE, "COMPOSE_PROFILES": "cpu"}
    )
    return IMAGE


@pytest.fixture
def project(image: str, request: pytest.FixtureRequest) -> Iterator[Project]:
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:30].strip("-")
    made = Project(f"gv-{os.getpid()}-{name}")
    try:
        yield made
    finally:
        print(made.compose("--profile", "*", "logs", "--tail", "60"))  # noqa: T201 - shown if the test failed
        made.end()


def test_the_image(image: str) -> None:
    """Not root, no compiler, small; everything runs with a read-only root, without a network and without any capability."""
    (about,) = json.loads(docker("image", "inspect", image))
    assert about["Config"]["User"] == "10001:10001"
    assert about["Config"]["Entrypoint"] == ["tini", "--", "grapevine"]
    assert about["Size"] < MOST_BYTES
    confined = ["--rm", "--read-only", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    confined += ["--tmpfs", "/tmp:size=64m"]
    assert docker("run", *confined, image, "--version").startswith("grapevine ")
    words = ["up", "--peers", "2", "--max-rounds", "5", "--trainer", "process", "--algorithm", "ring-all-reduce"]
    assert "wall time" in docker("run", *confined, image, *words, timeout=120)
    compared = ["compare", "--simulate", "--seeds", "1", "--max-rounds", "3", "--peers", "3", "--out", "/tmp/out"]
    docker("run", *confined, image, *compared, timeout=200)
    found = docker(
        "run", *confined, "--entrypoint", "sh", image, "-c", "command -v gcc cc pip3 /opt/venv/bin/pip || id -u"
    )
    assert found.split()[-1] == "10001"


def test_four_peers_train_and_drain(project: Project) -> None:
    project.up()
    assert [project.identity(k) for k in range(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert {j["address"] for j in project.status(1)["neighbors"]} == {
        f"{project.container(0)}:7000",
        f"{project.container(2)}:7000",
    }
    project.goes_on(0, 1, 2, 3)
    for k in range(4):
        assert project.data_planes(k) == {(k - 1) % 4: "tcp", (k + 1) % 4: "tcp"}, "vectors travel on sockets"
    shares = {k: project.metrics(k) for k in range(4)}
    samples = {k: found["grapevine_samples_total"] / found["grapevine_round"] for k, found in shares.items()}
    assert samples[0] < 0.5 * min(samples[1], samples[2], samples[3]), "peer 0 is the straggler"

    about = project.inspect(0)
    assert about["HostConfig"]["ReadonlyRootfs"]
    bindings = [each for ports in about["NetworkSettings"]["Ports"].values() for each in ports or []]
    assert {each["HostIp"] for each in bindings} == {"127.0.0.1"}
    assert len(bindings) == 2
    port = int(project.compose("port", "--index", "1", "peer", "9100").rpartition(":")[2])
    assert str(port) in {each["HostPort"] for each in bindings}
    assert 9100 <= port <= 9163
    assert "<title>grapevine</title>" in project.fetch("http://127.0.0.1:9100/")

    began = time.monotonic()
    project.compose("--profile", "cpu", "stop", timeout=60)
    seconds = time.monotonic() - began
    states = [project.inspect(k)["State"] for k in range(4)]
    assert [(state["Status"], state["ExitCode"]) for state in states] == [("exited", 0)] * 4
    assert seconds < 25, "the grace period is 30 s"
    logs = project.compose("--profile", "cpu", "logs")
    assert logs.count("asked: SIGTERM") == 4, logs


def test_scale_without_a_number_and_a_number_without_scale(project: Project) -> None:
    project.up("--scale", "peer=6")
    assert [project.identity(k) for k in range(6)] == [(k, 6) for k in range(6)]
    project.goes_on(0, 5, rounds=5)
    project.compose("--profile", "cpu", "rm", "--stop", "--force", "peer")
    project.environment["GRAPEVINE_PEERS"] = "2"
    project.up()
    left = docker("ps", "--quiet", "--filter", f"label=com.docker.compose.project={project.name}").split()
    assert len(left) == 2
    assert project.identity(1) == (1, 2)
    project.goes_on(0, 1, rounds=5)


def test_more_replicas_than_the_number_says_is_one_sentence(project: Project) -> None:
    project.environment["GRAPEVINE_PEERS"] = "2"
    project.compose("--profile", "cpu", "up", "--detach", "--no-build", "--scale", "peer=3")
    until(
        lambda: "this is replica 3 of 'peer', but GRAPEVINE_PEERS is 2" in project.compose("--profile", "cpu", "logs"),
        60,
        "the third replica says why it is none",
    )
    until(lambda: project.rounds(0) > 0 and project.rounds(1) > 0, READY_SECONDS, "the first two train")
    project.goes_on(0, 1)
    until(lambda: project.inspect(2)["State"]["ExitCode"] == 2, 60, "its exit code is that of a bad configuration")


def test_a_crash_a_pause_and_a_cut(project: Project, tmp_path: Path) -> None:
    """Training goes on without the peer, and with it once it is back; the crash from the host, the rest by the service `chaos`."""
    project.up()
    project.goes_on(0, 1, 2, 3)
    lost = project.metrics(1).get("grapevine_neighbor_missed_payloads_total", 0)

    script = tmp_path / "chaos.txt"
    script.write_text("0 kill 2\n")
    assert "kill peer 2\n" in run_chaos(project, script, 60)
    project.goes_on(0, 1, 3)
    assert project.metrics(1)["grapevine_neighbor_missed_payloads_total"] > lost, (
        "peer 1 is peer 2's neighbour on the ring"
    )
    until(lambda: project.inspect(2)["RestartCount"] == 1, 60, "the engine starts peer 2 again")
    until(lambda: project.rounds(2) + 20 >= project.rounds(1) > 20, 300, "peer 2 caught up")
    project.goes_on(2)

    script.write_text("0 pause 1 for 8\n0 cut 3 for 8\n")
    script.chmod(0o644)
    override = tmp_path / "override.yml"
    mount = {"type": "bind", "source": str(script), "target": "/etc/grapevine/chaos.txt", "read_only": True}
    override.write_text(json.dumps({"services": {"chaos": {"volumes": [mount]}}}))
    project.files = [override]
    project.compose("--profile", "chaos", "up", "--detach", "--no-build", "--no-deps", "chaos")
    until(lambda: project.inspect(1)["State"]["Paused"], 30, "peer 1 is paused")
    until(lambda: not project.inspect(3)["NetworkSettings"]["Networks"], 30, "peer 3 is cut off")
    project.goes_on(0, 2, rounds=5)
    until(lambda: "cut of peer 3 is over" in project.compose("--profile", "chaos", "logs", "chaos"), 120, "it mends")
    project.goes_on(0, 1, 2, 3, rounds=20)
    until(lambda: abs(project.rounds(3) - project.rounds(0)) <= 20, 300, "peer 3 caught up")
    for k in range(4):
        until(lambda k=k: project.inspect(k)["State"]["Health"]["Status"] == "healthy", 60, f"peer {k} is well")  # type: ignore[misc]


def test_ending_chaos_mends(project: Project, tmp_path: Path) -> None:
    """SIGTERM in the middle of a pause of an hour."""
    project.environment["GRAPEVINE_PEERS"] = "2"
    project.up()
    script = tmp_path / "chaos.txt"
    script.write_text("0 pause 1 for 3600\n")
    override = tmp_path / "override.yml"
    mount = {"type": "bind", "source": str(script), "target": "/etc/grapevine/chaos.txt", "read_only": True}
    override.write_text(json.dumps({"services": {"chaos": {"volumes": [mount]}}}))
    project.files = [override]
    project.compose("--profile", "chaos", "up", "--detach", "--no-build", "--no-deps", "chaos")
    until(lambda: project.inspect(1)["State"]["Paused"], 30, "peer 1 is paused")
    project.compose("--profile", "chaos", "stop", "chaos")
    assert not project.inspect(1)["State"]["Paused"]
    project.goes_on(0, 1)


def test_prometheus_finds_all_peers(project: Project) -> None:
    """By the DNS name of the service, with the configuration and rules of the repository."""
    has_image(os.environ.get("PROMETHEUS_IMAGE", "prom/prometheus:v2.42.0"))
    project.environment["GRAPEVINE_PEERS"] = "3"
    project.up("peer", "prometheus")

    def ask(query: str) -> list[dict[str, object]]:
        found = json.loads(project.fetch(f"http://prometheus:9090/api/v1/query?query={query}"))
        result = found["data"]["result"]
        assert isinstance(result, list)
        return result

    until(lambda: len(ask("grapevine_round%3E0")) == 3, 60, "Prometheus scrapes three peers")
    rules = json.loads(project.fetch("http://prometheus:9090/api/v1/rules"))["data"]["groups"]
    assert rules
    assert not [rule["lastError"] for group in rules for rule in group["rules"] if rule.get("lastError")]


def has_image(name: str) -> None:
    try:
        docker("image", "inspect", name)
    except AssertionError:
        try:
            docker("pull", "--quiet", name, timeout=300)
        except AssertionError as error:
            pytest.skip(f"SKIPPED: no image {name} here, and it can't be pulled: {str(error)[-200:]}")
