"""Children for tests of the launcher. Imports nothing heavy: each is a process of its own."""

from __future__ import annotations

import signal
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topology import Solutions


def does_not_listen(line: socket.socket) -> None:
    """Says hello and never ends by itself."""
    line.sendall(b'{"kind": "ready", "content": 1.0}\n')
    while True:
        signal.pause()


def hangs_up_and_lives_on(line: socket.socket, done: socket.socket) -> None:
    """Closes the launcher's line, says so elsewhere, and never ends by itself."""
    line.close()
    done.sendall(b"closed")
    while True:
        signal.pause()


def takes_breath(line: socket.socket) -> None:
    """Gives a summary of 300 kB in three parts with a pause between them, and ends."""
    message = b'{"kind": "summary", "content": {"rounds": "' + b"x" * 300_000 + b'"}}\n'
    for first, last in ((0, 7), (7, 200_000), (200_000, len(message))):
        line.sendall(message[first:last])
        time.sleep(0.2)


def solves_nothing(config_json: str, peer: int, end: socket.socket, solved: Solutions) -> None:
    """A peer that dies of having to find MATCHA's probabilities itself."""
    from peer.cluster.child import child_main  # the server has imported it
    from topology import matcha

    matcha.solve.cache_clear()  # of the server that it is forked from
    vars(matcha).pop("activation_probabilities")
    child_main(config_json, peer, end, solved)
