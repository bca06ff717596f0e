"""What the launcher and a peer of a local cluster tell each other: JSON messages, one a line, over a pair of sockets.

Not multiprocessing's Connection: uvloop makes what it watches non-blocking, and then a message of which only the first part has arrived
raises there as a broken connection does. Here what has arrived is kept until the rest comes.
"""

from __future__ import annotations

import json
import socket
from typing import Any

#: How long the other end may leave a message in the socket: it reads on its event loop, as soon as it gets there.
SAID_WITHIN = 10.0
#: The longest message, in bytes. A summary with a loss at each of 100,000 rounds has 3 MB.
LONGEST = 64 << 20
_PIECE = 1 << 18


class Line:
    """One end. Give `fileno()` to the event loop and call `heard()` when it is readable."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self._unfinished = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def say(self, kind: str, content: object) -> None:
        """Waits, at most SAID_WITHIN seconds, until the socket has taken all of it. Raises OSError when the other end is gone or does not
        read."""
        self._socket.settimeout(SAID_WITHIN)
        try:
            self._socket.sendall(json.dumps({"kind": kind, "content": content}).encode() + b"\n")
        finally:
            self._socket.setblocking(False)

    def heard(self) -> list[dict[str, Any]]:
        """All messages that have arrived whole since the last call; does not wait. Raises EOFError when there are none and there will be
        none, and OSError when a message is longer than LONGEST."""
        hung_up = self._take()
        *whole, rest = self._unfinished.split(b"\n")
        self._unfinished = rest
        if len(rest) > LONGEST:
            raise OSError(f"a message of more than {LONGEST} bytes")
        if hung_up and not whole:
            raise EOFError
        return [json.loads(message) for message in whole]

    def close(self) -> None:
        self._socket.close()

    def _take(self) -> bool:
        """Everything the socket holds. Whether the other end has hung up."""
        while len(self._unfinished) <= LONGEST:
            try:
                piece = self._socket.recv(_PIECE)
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionError:
                return True
            if not piece:
                return True
            self._unfinished += piece
        return False
