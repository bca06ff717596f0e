"""Children for tests of the launcher. Imports nothing heavy: each is a process of its own."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection


def does_not_listen(pipe: Connection) -> None:
    """Says hello and never ends by itself."""
    pipe.send_bytes(b'{"kind": "ready", "content": 1.0}')
    while True:
        signal.pause()


def hangs_up_and_lives_on(pipe: Connection, done: Connection) -> None:
    """Closes the launcher's pipe, says so elsewhere, and never ends by itself."""
    pipe.close()
    done.send_bytes(b"closed")
    while True:
        signal.pause()
