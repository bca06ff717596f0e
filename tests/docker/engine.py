"""The Docker engine that answers here, if one does, and compose projects on it that leave nothing behind."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
#: Built once and kept, as an ordinary build is: the layers of torch are downloaded once for all runs.
IMAGE = "grapevine:test"
BUILD_SECONDS = 1500
READY_SECONDS = 400.0


@functools.cache
def why_not() -> str:
    """Why nothing of Docker can be tested here; "" if it can."""
    if shutil.which("docker") is None:
        return "there is no command `docker`"
    for words in (("version", "--format", "{{.Server.Version}}"), ("compose", "version"), ("buildx", "version")):
        try:
            done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            return f"`docker {words[0]}` does not answer"
        if done.returncode != 0:
            return f"`docker {words[0]}`: {(done.stderr or done.stdout).strip().splitlines()[0]}"
    return ""


def needs_engine() -> None:
    if reason := why_not():
        pytest.skip(f"SKIPPED, nothing of the image and the cluster was run: no Docker engine answers: {reason}")


def docker(*words: str, timeout: float = 60, environment: dict[str, str] | None = None) -> str:
    """Standard output. Fails the test with what the command said."""
    done = subprocess.run(
        ["docker", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr[-3000:] or done.stdout[-3000:]}"
    return done.stdout


def engine_socket() -> str:
    endpoint = docker("context", "inspect", "--format", "{{.Endpoints.docker.Host}}").strip()
    return os.environ.get("DOCKER_HOST", endpoint).removeprefix("unix://")


@dataclass(slots=True)
class Project:
    """A compose project of its own name, with its peers; `end` removes it."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    files: Sequence[Path] = ()

    def compose(self, *words: str, timeout: float = 60) -> str:
        files = [w for file in (ROOT / "docker-compose.yml", *self.files) for w in ("--file", str(file))]
        told = {"PEER_IMAGE": IMAGE, "DOCKER_SOCKET": engine_socket(), **self.environment}
        return docker("compose", *files, "--project-name", self.name, *words, timeout=timeout, environment=told)

    def up(self, *words: str) -> float:
        """Start peers and wait until all are healthy; seconds that took."""
        began = time.monotonic()
        options = ["--detach", "--wait", "--no-build", "--wait-timeout", str(int(READY_SECONDS)), *words]
        self.compose("--profile", "cpu", "up", *options, timeout=READY_SECONDS + 30)
        return time.monotonic() - began

    def container(self, peer: int) -> str:
        return f"{self.name}-peer-{peer + 1}"

    def inspect(self, peer: int) -> dict[str, Any]:
        (found,) = json.loads(docker("inspect", self.container(peer)))
        assert isinstance(found, dict)
        return found

    def within(self, peer: int, *words: str, timeout: float = 60) -> str:
        return docker("exec", self.container(peer), *words, timeout=timeout)

    def fetch(self, url: str, peer: int = 0) -> str:
        """What an HTTP server answers to a peer's container: published ports are not reached where the engine has its own network."""
        program = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=5).read().decode())"
        return self.within(peer, "python", "-I", "-c", program)

    def metrics(self, peer: int) -> dict[str, float]:
        """Sums over labels, by name."""
        sums: dict[str, float] = {}
        for line in self.fetch("http://127.0.0.1:9100/metrics", peer).splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def rounds(self, peer: int) -> float:
        return self.metrics(peer)["grapevine_round"]

    def identity(self, peer: int) -> tuple[int, int]:
        """(its id, the number of peers), as the peer itself says."""
        found = re.search(
            r"^grapevine_run_info\{(.*)\} 1", self.fetch("http://127.0.0.1:9100/metrics", peer), re.MULTILINE
        )
        assert found
        labels = dict(re.findall(r'(\w+)="([^"]*)"', found[1]))
        return int(labels["peer"]), int(labels["peers"])

    def data_planes(self, peer: int) -> dict[int, str]:
        """Neighbour -> what vectors travel on."""
        page = self.fetch("http://127.0.0.1:9100/metrics", peer)
        found = re.findall(r"^grapevine_neighbor_info\{(.*)\} 1", page, re.MULTILINE)
        labels = [dict(re.findall(r'(\w+)="([^"]*)"', each)) for each in found]
        return {int(each["neighbor"]): each["data_plane"] for each in labels}

    def status(self, peer: int) -> dict[str, Any]:
        words = ["grapevine", "status", "127.0.0.1:7000", "--json", "--timeout", "60"]
        found = json.loads(self.within(peer, *words, timeout=180))
        assert isinstance(found, dict)
        return found

    def goes_on(self, *peers: int, rounds: int = 10, seconds: float = 180.0) -> None:
        """Each of these peers finishes so many more rounds."""
        before = {peer: self.rounds(peer) for peer in peers}
        for peer, round in before.items():
            until(lambda peer=peer, round=round: self.rounds(peer) >= round + rounds, seconds, f"peer {peer} goes on")  # type: ignore[misc]

    def end(self) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "5", "--remove-orphans", timeout=120)


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Look every half second; an engine that refuses while a container starts is not yet a failure."""
    end = time.monotonic() + seconds
    last: object = ""
    while time.monotonic() < end:
        try:
            if holds():
                return
        except (AssertionError, KeyError, json.JSONDecodeError) as error:
            last = error
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:g} s: {what} {last}")


def run_chaos(project: Project, script: Path, timeout: float) -> str:
    """The script of faults, played from the host."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docker" / "chaos.py"), str(script), "--project", project.name],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "DOCKER_HOST": f"unix://{engine_socket()}"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
