"""Kills, pauses and cuts off peers of a compose project, as a script says; on its way out it mends what it broke.

    chaos.py [SCRIPT] [--project NAME]

A script has one deed a line, `#` begins a comment:

    20   kill   2            20 s after the start, SIGKILL peer 2's process: a crash; the restart policy brings it back
    45   pause  1  for 15    freeze peer 1 for 15 s: it neither computes nor answers
    75   cut    3  for 20    take peer 3 off the network for 20 s: nobody is told
    120  repeat              begin again at 0

It talks to the engine over its Unix socket (DOCKER_HOST, else /var/run/docker.sock). WHO CAN WRITE TO THAT SOCKET IS ROOT ON THE HOST; so
in compose this runs only when asked for by name or by the profile `chaos`, without a network and without privileges of its own, and from
the host it runs as whoever may use the engine anyway. It touches containers of one project and of the services `SERVICES` only.
Standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import sys
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVICES = ("peer", "peer-gpu")
ENGINE_SECONDS = 30.0  # for one answer of the engine
SCRIPT = Path(__file__).with_name("chaos.txt")


class Refused(Exception):
    """What can't be done, in one sentence."""


@dataclass(frozen=True, slots=True)
class Deed:
    """At second `at`, `action` (kill, pause, cut, repeat) on a peer, undone after `seconds`."""

    at: float
    action: str
    peer: int = -1
    seconds: float = 0.0


def parse(text: str) -> list[Deed]:
    """The deeds of a script. Raises Refused, naming the line."""
    deeds: list[Deed] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            deeds.append(_deed(words))
        except (ValueError, IndexError):
            raise Refused(
                f"line {number}: {line.strip()!r} is none of: SECONDS kill PEER, SECONDS pause|cut PEER for SECONDS, SECONDS repeat"
            ) from None
        if len(deeds) > 1 and (deeds[-2].action == "repeat" or deeds[-1].at < deeds[-2].at):
            raise Refused(f"line {number}: the deeds stand in the order of their seconds, repeat last")
    if not deeds:
        raise Refused("the script has no deed")
    return deeds


def _deed(words: list[str]) -> Deed:
    at, action, *rest = float(words[0]), *words[1:]
    if not 0 <= at < 1e9:
        raise ValueError
    if action == "repeat" and not rest and at > 0:
        return Deed(at, action)
    peer = int(rest[0])
    if action == "kill" and len(rest) == 1 and peer >= 0:
        return Deed(at, action, peer)
    seconds = float(rest[2])
    if action in ("pause", "cut") and rest[1] == "for" and len(rest) == 3 and peer >= 0 and 0 < seconds < 1e9:
        return Deed(at, action, peer, seconds)
    raise ValueError


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=ENGINE_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """The few calls of the engine's API that are needed."""

    def __init__(self, path: str) -> None:
        self._path = path

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        """Raises Refused."""
        connection = _UnixConnection(self._path)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        except OSError as error:
            raise Refused(f"the engine at {self._path} can't be reached: {error.strerror or error}") from None
        finally:
            connection.close()
        if answer.status >= 300:
            raise Refused(
                f"the engine refuses {method} {path}: {answer.status} {content.decode(errors='replace').strip()}"
            )
        return json.loads(content) if content.startswith((b"{", b"[")) else content

    def peers(self, project: str) -> dict[int, str]:
        """Containers of the project's peers, running or not, by peer id."""
        label = json.dumps({"label": [f"com.docker.compose.project={project}", "com.docker.compose.oneoff=False"]})
        found = self._ask("GET", f"/containers/json?all=1&filters={urllib.parse.quote(label)}")
        labels = {each["Id"]: each["Labels"] for each in found}
        return {
            int(each["com.docker.compose.container-number"]) - 1: container
            for container, each in labels.items()
            if each["com.docker.compose.service"] in SERVICES
        }

    def kill(self, container: str) -> None:
        """SIGKILL all its processes but the first from within: to the engine a crash, while its own `kill` is somebody's wish."""
        body = {"Cmd": ["sh", "-c", "kill -9 -1 2>&- || echo nobody"], "AttachStdout": True, "AttachStderr": True}
        made = self._ask("POST", f"/containers/{container}/exec", body)
        if b"nobody" in self._ask("POST", f"/exec/{made['Id']}/start", {"Detach": False}):
            raise Refused("its first process, which can't be killed from within, is its only one")

    def pause(self, container: str) -> Callable[[], None]:
        """Returns what undoes it."""
        self._ask("POST", f"/containers/{container}/pause")
        return lambda: self._ask("POST", f"/containers/{container}/unpause")

    def cut(self, container: str) -> Callable[[], None]:
        """Take it off all its networks; returns what undoes it. It comes back with its names, perhaps at another address."""
        networks = self._ask("GET", f"/containers/{container}/json")["NetworkSettings"]["Networks"]
        for name in networks:
            self._ask("POST", f"/networks/{name}/disconnect", {"Container": container, "Force": True})

        def mend() -> None:
            for name, known in networks.items():
                back = {"Container": container, "EndpointConfig": {"Aliases": known.get("Aliases")}}
                self._ask("POST", f"/networks/{name}/connect", back)

        return mend


class Chaos:
    """Plays deeds on the peers of a project."""

    def __init__(self, engine: Engine, project: str, say: Callable[[str], None] = print) -> None:
        self._engine = engine
        self._project = project
        self._say = say
        self._broken: dict[tuple[str, int], tuple[float, Callable[[], None]]] = {}  # (when, how) each is mended

    def play(self, deeds: list[Deed]) -> None:
        """Until the last deed is done and undone; with `repeat`, for ever."""
        began = time.monotonic()
        while True:
            for deed in deeds:
                self._mend_until(began + deed.at)
                if deed.action != "repeat":
                    self._do(deed)
            if deeds[-1].action != "repeat":
                break
            began += deeds[-1].at
        while self._broken:
            self._mend_until(min(when for when, _ in self._broken.values()))

    def mend(self) -> None:
        """Undo whatever is not undone, now."""
        for action, peer in list(self._broken):
            self._undo(action, peer)

    def _mend_until(self, when: float) -> None:
        """Sleep until then, undoing what falls due."""
        while True:
            due = min([when, *(at for at, _ in self._broken.values())])
            time.sleep(max(due - time.monotonic(), 0))
            for (action, peer), (at, _) in list(self._broken.items()):
                if at <= due:
                    self._undo(action, peer)
            if due >= when:
                return

    def _do(self, deed: Deed) -> None:
        """An engine or a peer that is not there is no reason to stop."""
        try:
            container = self._engine.peers(self._project).get(deed.peer)
            if container is None:
                raise Refused(f"project {self._project!r} has no such peer")
            if (deed.action, deed.peer) in self._broken:
                raise Refused("it still is")
            if deed.action == "kill":
                self._engine.kill(container)
            else:
                undo = self._engine.pause(container) if deed.action == "pause" else self._engine.cut(container)
                self._broken[deed.action, deed.peer] = (time.monotonic() + deed.seconds, undo)
            self._say(f"{deed.action} peer {deed.peer}" + (f" for {deed.seconds:g} s" if deed.seconds else ""))
        except Refused as no:
            self._say(f"{deed.action} peer {deed.peer}: not done: {no}")

    def _undo(self, action: str, peer: int) -> None:
        _, undo = self._broken.pop((action, peer))
        try:
            undo()
            self._say(f"{action} of peer {peer} is over")
        except Refused as no:
            self._say(f"{action} of peer {peer} could not be undone: {no}")


def socket_path(docker_host: str) -> str:
    """Of DOCKER_HOST; Raises Refused."""
    if not docker_host:
        return "/var/run/docker.sock"
    if not docker_host.startswith("unix://"):
        raise Refused(f"DOCKER_HOST is {docker_host}: only unix:// sockets are spoken to")
    return docker_host.removeprefix("unix://")


def _asked(signum: int, frame: object) -> None:
    sys.exit(0)  # passes through the `finally` below


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill, pause and cut off peers of a compose project as a script says.")
    parser.add_argument(
        "script", nargs="?", type=Path, default=SCRIPT, metavar="SCRIPT", help=f"default: {SCRIPT.name} beside it"
    )
    parser.add_argument("--project", default="grapevine", metavar="NAME", help="compose project (default: grapevine)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _asked)
    signal.signal(signal.SIGINT, _asked)
    try:
        engine = Engine(socket_path(os.environ.get("DOCKER_HOST", "")))
        deeds = parse(options.script.read_text())
        chaos = Chaos(
            engine, options.project, say=lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
        )
        try:
            chaos.play(deeds)
        finally:
            chaos.mend()
    except OSError as error:
        sys.exit(f"chaos: {error.filename or ''}: {error.strerror or error}")
    except Refused as no:
        sys.exit(f"chaos: {no}")


if __name__ == "__main__":
    main()
