"""The entry point of a peer in docker compose: which replica is this, who are the others; then `grapevine peer` in its place.

    join.py SERVICE PORT [option of grapevine peer ...]

The replicas of a service are containers called PROJECT-SERVICE-1, -2, ... and the engine's DNS answers three questions about them: the
addresses of all replicas that run (the service's name), the name of the container that has an address (the reverse look-up), and the
address that a container has now (its name). So replica k is peer k - 1, and its address for others is its name, which outlives a
restart with another IP address.

How many peers there are: GRAPEVINE_PEERS, if set. Otherwise the highest number among the replicas, as soon as the same replicas have been
there for `SETTLED_SECONDS`. Peers that counted differently refuse each other and end with exit code 6; restarted, they count again.

Standard library only, and of that little: it runs before anything else, once for each start.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

LOOK_UP_SECONDS = 0.25  # between two looks
SETTLED_SECONDS = 3.0  # engines start the replicas of a service one after the other, some 0.3 s apart
PATIENCE_SECONDS = 60.0  # for all peers to be known by name, and for this container to have one
_REPLICA = re.compile(r"(?P<prefix>[a-zA-Z0-9][a-zA-Z0-9_.-]*[-_])(?P<number>[1-9][0-9]*)")

CONFIG, ABSENT = 2, 4  # exit codes, docs/exit-codes.md


class CannotJoin(Exception):
    """One sentence and the exit code that goes with it."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def replica(container: str) -> tuple[str, int]:
    """("grapevine-peer-", 3) of "grapevine-peer-3", or of "grapevine-peer-3.grapevine_default". Raises CannotJoin."""
    name = container.partition(".")[0]
    found = _REPLICA.fullmatch(name)
    if found is None:
        raise CannotJoin(
            CONFIG,
            f"container {name!r} has no number, so it can't be a numbered peer: let compose name it (no container_name)",
        )
    return found["prefix"], int(found["number"])


def look(service: str) -> frozenset[str]:
    """Names of the containers that answer to a service's name now."""
    try:
        found = socket.getaddrinfo(service, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return frozenset()
    names = (name_of(str(address[0])) for *_, address in found)
    return frozenset(name for name in names if name)


def name_of(address: str) -> str:
    """The container that has an address, by DNS alone (/etc/hosts calls this container by its id); "" if there is none."""
    answer = subprocess.run(
        ["getent", "-s", "dns", "hosts", address], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    words = answer.stdout.split()
    return words[1].partition(".")[0] if len(words) > 1 else ""


def own_name() -> str:
    return name_of(socket.gethostbyname(socket.gethostname()))


def settle(
    service: str,
    peers: int | None,
    see: Callable[[str], frozenset[str]] = look,
    own: Callable[[], str] = own_name,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> tuple[int, list[str]]:
    """(own id, container names of all peers in the order of ids). peers: how many there are; None: count them. Raises CannotJoin.

    With a given number it waits for all of them, but goes on without after `PATIENCE_SECONDS`: a peer that comes back must not depend on
    one that does not.
    """
    began = since = now()
    seen: frozenset[str] = frozenset()
    while True:
        name, found = own(), see(service)
        if found != seen:
            seen, since = found, now()
        late = now() - began >= PATIENCE_SECONDS
        if name and name in seen:
            number, numbers = _numbers(service, name, seen)
            if peers is not None and number > peers:
                raise CannotJoin(
                    CONFIG,
                    f"this is replica {number} of {service!r}, but GRAPEVINE_PEERS is {peers}: "
                    "make it the number of replicas, or leave it unset; "
                    "if that number has changed, `docker compose rm --stop --force` before `up`",
                )
            complete = set(range(1, peers + 1)) <= numbers if peers is not None else now() - since >= SETTLED_SECONDS
            if complete or (late and peers is not None):
                prefix = replica(name)[0]
                return number - 1, [f"{prefix}{k}" for k in range(1, (peers or max(numbers)) + 1)]
        if late:
            raise CannotJoin(
                ABSENT,
                f"the replicas of {service!r} kept changing for {PATIENCE_SECONDS:g} s: {', '.join(sorted(seen))}"
                if name in seen
                else f"this container is not among the replicas of {service!r} ({', '.join(sorted(seen)) or 'no such service'})",
            )
        wait(LOOK_UP_SECONDS)


def _numbers(service: str, name: str, seen: frozenset[str]) -> tuple[int, set[int]]:
    """(own number, the numbers of all replicas). Raises CannotJoin."""
    prefix, number = replica(name)
    known = {other: replica(other) for other in seen}
    strangers = sorted(other for other, (theirs, _) in known.items() if theirs != prefix)
    if strangers:
        raise CannotJoin(
            CONFIG,
            f"{strangers[0]} also answers to {service!r}, so two containers would have one id: start one service of peers only",
        )
    return number, {k for _, k in known.values()}


def given_peers(environment: Mapping[str, str]) -> int | None:
    """GRAPEVINE_PEERS. Raises CannotJoin."""
    text = environment.get("GRAPEVINE_PEERS", "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise CannotJoin(CONFIG, f"GRAPEVINE_PEERS: give a number of peers of at least 1, not {text!r}")
    return int(text)


def command(peer: int, names: list[str], port: int, options: list[str]) -> list[str]:
    """What is run in this process's place."""
    addresses = [word for name in names for word in ("--address", f"{name}:{port}")]
    here = ["--peer", str(peer), "--peers", str(len(names)), "--listen", f"0.0.0.0:{port}", *addresses]
    return [sys.executable, "-m", "peer", "peer", *here, *options]


def main(arguments: list[str]) -> None:
    if len(arguments) < 2 or not arguments[1].isdecimal():
        sys.exit("usage: join.py SERVICE PORT [option of grapevine peer ...]")
    service, port, *options = arguments
    try:
        peer, names = settle(service, given_peers(os.environ))
    except CannotJoin as no:
        print(f"grapevine: {no}", file=sys.stderr)
        sys.exit(no.code)
    words = command(peer, names, int(port), options)
    os.execv(words[0], words)


if __name__ == "__main__":
    main(sys.argv[1:])
